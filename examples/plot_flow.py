"""
What the second phase of a flow does
====================================

Rows of eight clouds are to become two moons. :class:`NSGFPlusPlus` takes one long step of the
Sinkhorn flow, and then four short ones of a straight flow. What are these for?

The displays of :mod:`sknsgf.plotting` answer. Every row goes straight towards what faces it, but
the first phase stops on the way (blue paths), at flow time 0.2, and leaves its rows around the
moons. The second phase takes over there. Its velocities carry rows across what is left, by ways
that may bend, and the regions of the moved rows then lie on those of the target, but for a few rows
between the moons, where a cloud is torn apart. The energy distance to other rows of the target,
printed after each phase, says the same.

The picture is saved beside this file, or where you say::

    python examples/plot_flow.py [picture.png]
"""

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import matplotlib as mpl
from PIL import Image

from sknsgf import NSGFPlusPlus
from sknsgf.datasets import make_pair
from sknsgf.metrics import energy_distance
from sknsgf.plotting import FlowDisplay, LossCurveDisplay

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

N_ROWS = 4_000  # of each sample
N_BATCHES = 32  # of simulated flows and of pairs
TRAINING_STEPS = 2_000  # of each network
COLOURS = 64  # of the picture file, which stays small


def main(path):
    """Fit, compare, draw."""
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

    figure, axes = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
    FlowDisplay.from_estimator(flow, X_new, ax=axes[0, 0])
    FlowDisplay.from_estimator(flow, X_new, kind="velocity", time=0.2, ax=axes[0, 1])
    FlowDisplay.from_estimator(flow, X_new, kind="density", ax=axes[1, 0])
    LossCurveDisplay.from_estimator(flow, ax=axes[1, 1])
    figure.savefig(path, dpi=90)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    parser = ArgumentParser(description="What the second phase of a flow does.")
    default = Path("plot_flow.png")
    if "__file__" in globals():  # not so where the gallery of the docs runs this
        default = Path(__file__).with_name("plot_flow.png")
    parser.add_argument("path", nargs="?", type=Path, default=default, help="picture to write")
    main(parser.parse_args().path)
