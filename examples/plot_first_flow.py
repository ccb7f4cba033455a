"""
A first flow
============

Here are two samples of different sizes, rows of a *source* and rows of a *target*, and nothing says
which row belongs to which. How can the one be carried onto the other?

In three lines: make an :class:`~sknsgf.NSGFSampler`, ``fit`` it to both samples, ``transform`` rows
of the source. This page carries two moons to an S, looks at the ways that rows take, and measures
how close they come to rows of the target that the flow has not seen.
"""

# %%
# Two samples
# -----------
#
# A sample is an array with one row for each observation, as everywhere in scikit-learn. One pair of
# samples is for the fit, and another one, drawn in the same way, for judging it.

import matplotlib.pyplot as plt

from sknsgf import NSGFSampler
from sknsgf.datasets import make_plane_s_curve, make_scaled_moons
from sknsgf.metrics import energy_distance
from sknsgf.plotting import FlowDisplay

N_SOURCE = 4_000
N_TARGET = 3_000
N_FLOWS = 32  # simulated flows that the network learns from
TRAINING_STEPS = 4_000
N_DRAWN = 1_000  # rows of a sample in a picture
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#808080"

X_source = make_scaled_moons(N_SOURCE, random_state=0)
X_target = make_plane_s_curve(N_TARGET, random_state=1)
X_new = make_scaled_moons(N_SOURCE, random_state=2)
X_test = make_plane_s_curve(N_TARGET, random_state=3)

figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
axes.scatter(*X_source[:N_DRAWN].T, s=6, color=BLUE, label="source")
axes.scatter(*X_target[:N_DRAWN].T, s=6, color=VERMILION, label="target")
axes.set(aspect="equal", xlabel="x0", ylabel="x1")
axes.legend(markerscale=2.5, frameon=False)
plt.show()

# %%
# Fit
# ---
#
# ``fit`` simulates the Sinkhorn gradient flow, which moves batches of the source to the target, and
# trains a network on the velocities of the rows on their way. By default it simulates 64 such
# flows and takes 6,000 gradient steps; fewer are enough here.

flow = NSGFSampler(n_flows=N_FLOWS, max_iter=TRAINING_STEPS, random_state=0, n_jobs=-1)
flow.fit(X_source, X_target)

# %%
# The ways of rows
# ----------------
#
# What has been learned is a velocity for every place and every flow time from 0 to 1. ``transform``
# follows it. Here it takes 200 rows that the fit has not seen from the white points to the black
# ones: each goes to a near part of the S, on a way that is nearly straight.

FlowDisplay.from_estimator(flow, X_new)
plt.show()

# %%
# Where rows arrive
# -----------------
#
# A row keeps its colour, which tells how far to the right it began. Neighbours stay neighbours,
# with exceptions: at its end, each moon is torn where rows part for two places of the S. A learned
# velocity changes gradually there, so that a few rows are left in between, beside the S.

X_moved = flow.transform(X_new)

figure, panels = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained", sharey=True)
panels[0].scatter(*X_new[:N_DRAWN].T, s=6, c=X_new[:N_DRAWN, 0], cmap="viridis")
panels[1].scatter(*X_moved[:N_DRAWN].T, s=6, c=X_new[:N_DRAWN, 0], cmap="viridis")
panels[2].scatter(*X_test[:N_DRAWN].T, s=6, color=GREY)
for axes, title in zip(panels, ("source", "moved", "target (not seen)"), strict=True):
    axes.set(title=title, aspect="equal", xlabel="x0", xlim=(-4.5, 6.2), ylim=(-3.8, 3.8))
panels[0].set_ylabel("x1")
plt.show()

# %%
# How good is it?
# ---------------
#
# ``score`` is minus the Sinkhorn divergence of the moved rows to the target: 0 is the best, and it
# is the score that a search for parameters maximises. It is the flow's own measure, so let another
# one check it. The energy distance of the moved rows to unseen rows of the target should be near
# its floor, which is what two samples of the target have between them by chance alone.

print(f"score: {flow.score(X_new):.4f}")
print("energy distance to unseen rows of the target")
print(f"  before {energy_distance(X_new, X_test):.4f}")
print(f"  after  {energy_distance(X_moved, X_test):.4f}")
print(f"  floor  {energy_distance(X_target, X_test):.4f}")

# %%
# New rows
# --------
#
# ``sample`` draws rows of the target's law, by carrying rows of the source that the fit has kept;
# and ``inverse_transform`` carries rows of the target back to the source.

print(flow.sample(3, random_state=0).round(2))
print(flow.inverse_transform(X_test[:3]).round(2))

# %%
# Where to go from here: the :doc:`user guide </user_guide>` explains the parameters, and
# :ref:`sphx_glr_auto_examples_plot_blur_and_steps.py` shows what the two most important change.
# sphinx_gallery_thumbnail_number = 3
plt.show()
