"""
Digits from noise, in a few steps
=================================

A flow fitted on one sample alone, ``fit(X)``, starts from noise: a normal law with the mean and
variance of each feature. Here `X` are the handwritten digits that come with scikit-learn, images of
8 x 8 pixels, and what the flow makes of fresh noise are new digits.

What a new digit costs is the number of times the network is evaluated for it. :class:`NSGFSampler`
follows the Sinkhorn gradient flow in as many steps as you like; :class:`NSGFPlusPlus` is made for
few: here one step of the Sinkhorn flow, whose digits are blurred, and then a second network that
sharpens them along nearly straight paths. With two to ten evaluations its digits are closer to real
ones that no flow has seen; with more its values spread too far. The straight flow is also followed
alone, from the noise itself, for comparison.

All generated digits of the picture come from the same noise. It is saved beside this file, or where
you say::

    python examples/plot_digits.py [picture.png]
"""

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.metrics import energy_distance

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

EVALUATIONS = (1, 2, 3, 5, 10, 20)
SHOWN = (1, 2, 5)  # evaluations whose digits are shown
MOSAIC = (6, 8)  # rows and columns of digits in a picture
DISTANCES = (0.1, 0.2, 0.5, 1, 2)  # ticks
N_GENERATED = 2_000
TRAINING_STEPS = 3_000  # of the networks that lead somewhere, together
N_BATCHES = 64  # of simulated flows and of pairs
BRIGHTEST = 16
NOWHERE = 1e-6  # step of the first phase that leaves the whole way to the straight flow


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
    axes.set_anchor("N")  # level with its neighbours, whatever their height


def compare(distances, floor, axes):
    """Draw distances to the test digits against the number of evaluations."""
    for name, values in distances.items():
        axes.plot(EVALUATIONS, values, "o-", label=name)
    axes.axhline(floor, color="gray", linestyle="--", label="training digits")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per digit")
    axes.set_xticks(EVALUATIONS, EVALUATIONS)
    axes.set_yticks(DISTANCES, DISTANCES)
    axes.minorticks_off()
    axes.set_title("energy distance to test digits")
    axes.legend(frameon=False)


def main(path):
    """Fit, generate, compare, draw."""
    X, digit = load_digits(return_X_y=True)
    X_train, X_test = train_test_split(X, test_size=0.5, stratify=digit, random_state=0)
    shared = {"n_flows": N_BATCHES, "random_state": 0, "n_jobs": -1}
    two_phases = {"n_pairings": N_BATCHES, **shared}
    flows = {
        "NSGFSampler": NSGFSampler(max_iter=TRAINING_STEPS, **shared),
        # One step of size 1 ends at digits already; the default leaves more to the second network,
        # which takes two thirds of the gradient steps.
        "NSGFPlusPlus": NSGFPlusPlus(step_size=1.0, max_iter=TRAINING_STEPS * 2 // 3, **two_phases),
        "straight flow alone": NSGFPlusPlus(
            step_size=NOWHERE, max_iter=TRAINING_STEPS, **two_phases
        ),
    }
    for name, flow in flows.items():
        start = perf_counter()
        flow.fit(X_train)
        print(f"{name}: fit on {len(X_train)} digits in {perf_counter() - start:.1f} s.")

    law = flows["NSGFSampler"].source_mean_, flows["NSGFSampler"].source_std_
    noise = np.random.default_rng(0).normal(*law, size=(N_GENERATED, X.shape[1]))
    generated = {
        name: {n: generate(flow, noise, n) for n in EVALUATIONS} for name, flow in flows.items()
    }
    distances = {
        name: [energy_distance(digits, X_test) for digits in versions.values()]
        for name, versions in generated.items()
    }
    floor = energy_distance(X_train, X_test)
    print(f"Energy distance to {len(X_test)} test digits (training digits: {floor:.2f}):")
    for name, values in distances.items():
        table = "  ".join(f"{n}: {d:.2f}" for n, d in zip(EVALUATIONS, values, strict=True))
        print(f"  {name}, by evaluations  {table}")

    figure, panels = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    show(X_train, panels[0, 0], "real digits")
    for n, axes in zip(SHOWN, (panels[0, 1], panels[0, 2], panels[1, 0]), strict=True):
        plural = "s" if n > 1 else ""
        show(generated["NSGFPlusPlus"][n], axes, f"NSGFPlusPlus, {n} evaluation{plural}")
    show(generated["NSGFSampler"][SHOWN[-1]], panels[1, 1], f"NSGFSampler, {SHOWN[-1]} evaluations")
    compare(distances, floor, panels[1, 2])
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


if __name__ == "__main__":
    parser = ArgumentParser(description="Digits from noise, in a few steps.")
    default = Path("plot_digits.png")
    if "__file__" in globals():  # not so where the gallery of the docs runs this
        default = Path(__file__).with_name("plot_digits.png")
    parser.add_argument("path", nargs="?", type=Path, default=default, help="picture to write")
    main(parser.parse_args().path)
