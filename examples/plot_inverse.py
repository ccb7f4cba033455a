"""
There and back again
====================

``transform`` follows a flow from the source to the target, and ``inverse_transform`` follows it
back. Does a row come home?

As exactly as its ways are computed. With the default, ten Euler steps, a typical row comes back to
a place that is off by a thousandth of the spread of the source, and more steps bring it home more
closely, without fitting again. What resists longest are rows at a *tear*, where neighbours part for
different places.
"""

# %%
# Two flows
# ---------
#
# A round cloud of standard deviation 1 is to become eight clouds on a circle. Both kinds of flow
# learn the way.

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import make_pair
from sknsgf.metrics import energy_distance

N_ROWS = 5_000
N_RETURNING = 1_000  # rows whose return is measured for each number of steps
N_BATCHES = 32  # of simulated flows and of pairs
TRAINING_STEPS = 2_500
STEPS = (5, 10, 20, 50)
METHODS = {"euler": ("#0072B2", "o"), "midpoint": ("#E69F00", "s"), "rk4": ("#009E73", "^")}
CLOUDS = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#999999")

X_source, X_target = make_pair("8gaussians", N_ROWS, random_state=0)
X_new, X_test = make_pair("8gaussians", N_ROWS, random_state=1)

fitting = {"n_flows": N_BATCHES, "max_iter": TRAINING_STEPS, "random_state": 0, "n_jobs": -1}
flow = NSGFSampler(**fitting).fit(X_source, X_target)
two_phases = NSGFPlusPlus(n_pairings=N_BATCHES, **fitting).fit(X_source, X_target)

# %%
# How far from home?
# ------------------
#
# Here is the distance between where a row was and where it comes back to, for three methods and
# several numbers of steps. Both may be assigned to after the fit. What a step costs depends on the
# method, so the figure goes by network evaluations on the way there. Lines are medians over rows;
# the dotted lines are exceeded by one row in a hundred.
#
# An Euler step back is solved for where a step there would have begun, by one iteration, which
# takes two evaluations: so it undoes that step, and the error falls to a quarter when their number
# doubles. The other methods are integrated back as they are. The straight phase of
# :class:`~sknsgf.NSGFPlusPlus` has Euler steps, too, and its errors are ten times smaller, since
# its ways bend less; the step before it is undone by 50 evaluations.


def return_errors(estimator, X):
    """Distance of each row to where it comes back to."""
    return np.linalg.norm(estimator.inverse_transform(estimator.transform(X)) - X, axis=1)


X_few = X_new[:N_RETURNING]
curves = {method: [] for method in (*METHODS, "NSGFPlusPlus")}
for n_steps in STEPS:
    flow.n_integration_steps_ = n_steps
    for flow.method_ in METHODS:
        curves[flow.method_].append((flow.n_evaluations_, return_errors(flow, X_few)))
    two_phases.n_straight_steps_ = n_steps - 1  # after one step of the first phase
    curves["NSGFPlusPlus"].append((two_phases.n_evaluations_, return_errors(two_phases, X_few)))

figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
print("Median distance to home, by evaluations one way")
for name, curve in curves.items():
    colour, marker = METHODS.get(name, ("#D55E00", "D"))
    evaluations, errors = zip(*curve, strict=True)
    medians = np.median(errors, axis=1)
    axes.plot(evaluations, medians, marker=marker, color=colour, label=name)
    axes.plot(evaluations, np.quantile(errors, 0.99, axis=1), ":", color=colour)
    table = "  ".join(f"{n}: {median:.1e}" for n, median in zip(evaluations, medians, strict=True))
    print(f"  {name:13}{table}")
axes.set(xscale="log", yscale="log", xlabel="network evaluations, one way")
axes.set_ylabel("distance to home")
ticks = (5, 10, 20, 50, 100, 200)
axes.set_xticks(ticks, ticks)
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %%
# Where are the hard places?
# --------------------------
#
# The first picture shows rows of the source in the colour of the cloud that they are carried to:
# eight sectors, and tears between them. The others show the distance to home with ten steps. The
# errors are largest in the centre, where all sectors meet, and along the tears: there velocities
# differ most from one place to the next, so that a small error on the way becomes a larger one.

flow.n_integration_steps_, two_phases.n_straight_steps_ = 10, 9
flow.method_ = "midpoint"
moved = flow.transform(X_new)
cloud = np.round(np.arctan2(moved[:, 1], moved[:, 0]) / (np.pi / 4)).astype(int) % 8

figure, panels = plt.subplots(
    2, 2, figsize=(9.5, 8.6), layout="constrained", sharex=True, sharey=True
)
panels[0, 0].scatter(*X_new.T, s=4, c=cloud, cmap=ListedColormap(CLOUDS), vmin=0, vmax=7)
panels[0, 0].set_title("where rows go: eight clouds")
for axes, estimator, method in (
    (panels[0, 1], flow, "euler"),
    (panels[1, 0], flow, "midpoint"),
    (panels[1, 1], two_phases, "euler"),
):
    estimator.method_ = method
    errors = return_errors(estimator, X_new)
    norm = LogNorm(1e-5, 1, clip=True)
    points = axes.scatter(*X_new.T, s=4, c=errors, cmap="viridis", norm=norm)
    axes.set_title(f"{type(estimator).__name__}, {method} steps")
for axes in panels.flat:
    axes.set(aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
figure.colorbar(points, ax=panels, label="distance to home", shrink=0.7)
plt.show()

# %%
# Rows of the target, carried back
# --------------------------------
#
# Few need a row to come home; more want rows of the target carried to the source. For that the law
# of what arrives counts, and ten Euler steps are enough: here is the energy distance of test rows
# of the target, carried back, to rows of the source.

for method, n_steps in (("euler", 10), ("euler", 50), ("midpoint", 10)):
    flow.method_, flow.n_integration_steps_ = method, n_steps
    distance = energy_distance(flow.inverse_transform(X_test), X_new)
    print(f"{method:9}{n_steps:3} steps: {distance:.4f}")
print(f"{'floor':19}: {energy_distance(X_source, X_new):.4f}")

# %%
# In the paper's mode of :class:`~sknsgf.NSGFPlusPlus` many rows may share one end, so that they
# cannot come home at all: :doc:`/two_phases`.

# sphinx_gallery_thumbnail_number = 2
plt.show()
