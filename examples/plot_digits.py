"""
Digits from noise, in a few steps
=================================

A flow fitted to one sample alone, ``fit(X)``, starts from noise: a normal law with the mean and
variance of each feature. Here `X` are the handwritten digits that come with scikit-learn, images of
8 x 8 pixels, and what the flow makes of fresh noise are new digits. What a new digit costs is the
number of times that a network is evaluated for it. How few are enough?

:class:`~sknsgf.NSGFSampler` follows the Sinkhorn gradient flow in as many steps as you like;
:class:`~sknsgf.NSGFPlusPlus` is made for few: here one step of the Sinkhorn flow, whose digits are
blurred, and then a second network that sharpens them along nearly straight paths. From two
evaluations on its digits are closer to real ones that no flow has seen.
"""

# %%
# Three flows
# -----------
#
# Half of the digits are for the fit, the other half for judging. The third flow is a straight one
# followed alone, from the noise itself, for comparison: an :class:`~sknsgf.NSGFPlusPlus` whose
# first step leads nowhere. All are trained for about as many gradient steps.

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.metrics import energy_distance

EVALUATIONS = (1, 2, 3, 5, 10, 20)
SHOWN = (1, 2, 5)  # evaluations whose digits are shown
MOSAIC = (6, 8)  # rows and columns of digits in a picture
DISTANCES = (0.1, 0.2, 0.5, 1, 2)  # ticks
N_GENERATED = 2_000
TRAINING_STEPS = 3_000  # of the networks that lead somewhere, together
N_BATCHES = 64  # of simulated flows and of pairs
BRIGHTEST = 16
NOWHERE = 1e-6  # step of the first phase that leaves the whole way to the straight flow
STYLES = {
    "NSGFSampler": {"color": "#0072B2", "marker": "o"},
    "NSGFPlusPlus": {"color": "#D55E00", "marker": "s"},
    "straight flow alone": {"color": "#009E73", "marker": "^"},
}

X, digit = load_digits(return_X_y=True)
X_train, X_test = train_test_split(X, test_size=0.5, stratify=digit, random_state=0)
shared = {"n_flows": N_BATCHES, "random_state": 0, "n_jobs": -1}
two_phases = {"n_pairings": N_BATCHES, **shared}
flows = {
    "NSGFSampler": NSGFSampler(max_iter=TRAINING_STEPS, **shared),
    # One step of size 1 ends at digits already; the default leaves more to the second network,
    # which takes two thirds of the gradient steps.
    "NSGFPlusPlus": NSGFPlusPlus(step_size=1.0, max_iter=TRAINING_STEPS * 2 // 3, **two_phases),
    "straight flow alone": NSGFPlusPlus(step_size=NOWHERE, max_iter=TRAINING_STEPS, **two_phases),
}
for name, flow in flows.items():
    start = perf_counter()
    flow.fit(X_train)
    print(f"{name}: fit on {len(X_train)} digits in {perf_counter() - start:.1f} s.")

# %%
# Digits
# ------
#
# The number of evaluations may be changed after the fit. All digits are made of the same noise, so
# that a digit keeps its place from picture to picture. After one evaluation of
# :class:`~sknsgf.NSGFPlusPlus` they are shadows, each an average of digits that the noise may lead
# to; after two they have edges, after five they are clear. Five evaluations of
# :class:`~sknsgf.NSGFSampler` leave them a little greyer.


def generate(flow, noise, n_evaluations):
    """Carry noise to digits with a number of network evaluations, without fitting again."""
    if isinstance(flow, NSGFPlusPlus):  # a first step counts unless it leads nowhere
        flow.n_straight_steps_ = n_evaluations - (flow.step_size > NOWHERE)
    else:
        flow.n_integration_steps_ = n_evaluations
    return flow.transform(noise)


def show(digits, axes, title):
    """Draw the first digits side by side."""
    n_rows, n_columns = MOSAIC
    tiles = digits[: n_rows * n_columns].reshape(n_rows, n_columns, 8, 8)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)))
    picture = tiles.swapaxes(1, 2).reshape(10 * n_rows, 10 * n_columns)
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=BRIGHTEST)
    axes.set_title(title)
    axes.set_axis_off()


law = flows["NSGFSampler"].source_mean_, flows["NSGFSampler"].source_std_
noise = np.random.default_rng(0).normal(*law, size=(N_GENERATED, X.shape[1]))
generated = {
    name: {n: generate(flow, noise, n) for n in EVALUATIONS} for name, flow in flows.items()
}

figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
show(X_train, panels[0, 0], "real digits")
show(noise, panels[0, 1], "noise")
for n, axes in zip(SHOWN, (panels[0, 2], panels[1, 0], panels[1, 1]), strict=True):
    show(generated["NSGFPlusPlus"][n], axes, f"NSGFPlusPlus, {n} evaluation" + "s" * (n > 1))
show(generated["NSGFSampler"][SHOWN[-1]], panels[1, 2], f"NSGFSampler, {SHOWN[-1]} evaluations")
plt.show()

# %%
# How few are enough?
# -------------------
#
# From two evaluations on, :class:`~sknsgf.NSGFPlusPlus` has the least energy distance to the test
# digits, and after twenty it is close to the floor, the distance of the training digits. All flows
# gain with every step, but twenty do not bring the other two to where it is after ten.

floor = energy_distance(X_train, X_test)
print(f"Energy distance to {len(X_test)} test digits (training digits: {floor:.2f}):")
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, versions in generated.items():
    values = [energy_distance(digits, X_test) for digits in versions.values()]
    table = "  ".join(f"{n}: {d:.2f}" for n, d in zip(EVALUATIONS, values, strict=True))
    print(f"  {name}, by evaluations  {table}")
    axes.plot(EVALUATIONS, values, label=name, **STYLES[name])
axes.axhline(floor, color="gray", linestyle="--", label="training digits")
axes.set(xscale="log", yscale="log", xlabel="network evaluations per digit")
axes.set_ylabel("energy distance to test digits")
axes.set_xticks(EVALUATIONS, EVALUATIONS)
axes.set_yticks(DISTANCES, DISTANCES)
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()
