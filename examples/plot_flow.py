"""
What the second phase of a flow does
====================================

Rows of eight clouds are to become two moons. :class:`~sknsgf.NSGFPlusPlus` takes one long step of
the Sinkhorn flow, and then four short ones of a straight flow. What are these for?

The displays of :mod:`sknsgf.plotting` answer. Every row goes straight towards what faces it, but
the first phase stops on the way, at flow time 0.2, and leaves its rows around the moons. The second
phase takes over there and brings them onto the moons, but for a few rows in between, where a cloud
is torn apart.
"""

# %%
# After each phase
# ----------------
#
# The energy distance to other rows of the target, printed after each phase, says it in a number.
# The last line is the floor: what another sample of the target has.

from time import perf_counter

import matplotlib.pyplot as plt

from sknsgf import NSGFPlusPlus
from sknsgf.datasets import make_pair
from sknsgf.metrics import energy_distance
from sknsgf.plotting import FlowDisplay, LossCurveDisplay

N_ROWS = 4_000  # of each sample
N_BATCHES = 32  # of simulated flows and of pairs
TRAINING_STEPS = 2_000  # of the straight flow, and a fifth as many of the Sinkhorn phase

X_source, X_target = make_pair("8gaussians-moons", N_ROWS, random_state=0)
X_new, X_test = make_pair("8gaussians-moons", N_ROWS, random_state=1)

start = perf_counter()
flow = NSGFPlusPlus(
    n_flows=N_BATCHES,
    n_pairings=N_BATCHES,
    max_iter=TRAINING_STEPS,
    random_state=0,
    n_jobs=-1,
).fit(X_source, X_target)
print(f"Fit on {N_ROWS} rows of each sample in {perf_counter() - start:.1f} s.")

trajectory = flow.trajectory(X_new)
stages = {
    "source": X_new,
    "after the first phase": trajectory[len(flow.step_sizes_)],
    "after the second phase": trajectory[-1],
    "another sample of the target": X_target,
}
print(f"Energy distance to {N_ROWS} other rows of the target:")
for name, rows in stages.items():
    print(f"  {name:30}{energy_distance(rows, X_test):8.4f}")

# %%
# Four displays
# -------------
#
# - Above, on the left: the paths of 200 rows, the first phase in blue and the second in vermilion.
# - On the right: velocities where the second phase begins. They carry rows across what is left, by
#   ways that may bend.
# - Below, on the left: the filled regions of the moved rows lie on those of the target, which are
#   drawn as lines, but for a little at the tips of the moons.
# - On the right: the loss of each network. Neither falls to zero, as rows that meet at one place
#   may have different ways before them; what tells whether a flow is good is its ``score``, or the
#   densities.

figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
FlowDisplay.from_estimator(flow, X_new, ax=axes[0, 0])
FlowDisplay.from_estimator(flow, X_new, kind="velocity", time=0.2, ax=axes[0, 1])
FlowDisplay.from_estimator(flow, X_new, kind="density", ax=axes[1, 0])
LossCurveDisplay.from_estimator(flow, ax=axes[1, 1])
plt.show()
