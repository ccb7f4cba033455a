"""
Give one photo the colours of another
=====================================

A pixel is a point in the cube of red, green and blue, a photo is a sample of such points. The flow
learns to carry the colours of ``china.jpg`` to those of ``flower.jpg`` (both come with
scikit-learn), and then carries every pixel of the first photo. The picture is saved beside this
file, or where you say::

    python examples/quickstart.py [picture.png]
"""

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_sample_image

from sknsgf import NSGFSampler
from sknsgf.metrics import sinkhorn_divergence

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)

N_FIT = 40_000  # pixels of each photo that the flow is fitted on
N_COMPARE = 4_000  # pixels that are compared by the Sinkhorn divergence
BLUR = 0.05  # of the comparison, in units of colour (0 to 1)


def load_pixels(name, rng):
    """Pixels of a photo as rows of (red, green, blue) in [0, 1], and its shape.

    A photo stores 256 levels. A flow may stretch a smooth sky so that steps between levels show as
    bands: a random offset within the level is as faithful to the scene and leaves no steps.
    """
    photo = load_sample_image(name)
    levels = photo.reshape(-1, 3) + rng.uniform(size=(photo.shape[0] * photo.shape[1], 3))
    return (levels / 256).astype(np.float32), photo.shape


def show(pixels, shape, axes_image, axes_cloud, title, rng):
    """Draw a photo and the cloud of its colours."""
    axes_image.imshow(pixels.reshape(shape))
    axes_image.set_title(title)
    axes_image.set_axis_off()
    points = pixels[rng.choice(len(pixels), 5_000, replace=False)]
    axes_cloud.scatter(*points.T, c=points, s=2, linewidths=0, depthshade=False)
    axes_cloud.set(xlim=(0, 1), ylim=(0, 1), zlim=(0, 1))
    axes_cloud.set(xlabel="red", ylabel="green", zlabel="blue")
    axes_cloud.set_box_aspect(None, zoom=0.85)  # room for the labels


def main(path):
    """Fit, transport, compare, draw."""
    rng = np.random.default_rng(0)
    source, source_shape = load_pixels("china.jpg", rng)
    target, target_shape = load_pixels("flower.jpg", rng)

    start = perf_counter()
    # The sky is one dense cloud of similar colours; no colour of the flower is as frequent. A sharp
    # blur (try 0.1) tears it along the blocks of the JPEG file to match every frequency; a wide one
    # spreads it over a gradient of colours, at the price of a larger divergence.
    flow = NSGFSampler(blur=1.3, n_flows=32, max_iter=4_000, random_state=0, n_jobs=-1)
    flow.fit(rng.permutation(source)[:N_FIT], rng.permutation(target)[:N_FIT])
    fitted = perf_counter()
    moved = flow.transform(source)
    done = perf_counter()

    outside = ((moved < 0) | (moved > 1)).mean()
    print(f"Values outside [0, 1], clipped: {outside:.1%}, by {excess(moved):.3f} at most.")
    edge = (target < 0.02).any(axis=1).mean()
    print(f"(Of the target's own pixels, {edge:.0%} lie at the dark faces of the cube.)")
    moved = moved.clip(0, 1)

    def some(pixels):
        return pixels[rng.choice(len(pixels), N_COMPARE, replace=False)]

    print("Sinkhorn divergence to the target's colours (lower is closer):")
    for name, pixels in {"before": source, "after": moved, "floor": target}.items():
        divergence = sinkhorn_divergence(some(pixels), some(target), blur=BLUR)
        print(f"  {name:8s}{divergence:.6f}")
    print("The floor compares the target with itself: two random draws of its pixels.")
    print(f"Fit on {N_FIT} pixels of each photo: {fitted - start:.1f} s.")
    print(f"Transform of {len(source)} pixels: {done - fitted:.1f} s.")

    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    photos = [
        (source, source_shape, "before"),
        (target, target_shape, "target"),
        (moved, source_shape, "after"),
    ]
    for column, (pixels, shape, title) in enumerate(photos, start=1):
        image = figure.add_subplot(2, 3, column)
        cloud = figure.add_subplot(2, 3, 3 + column, projection="3d")
        show(pixels, shape, image, cloud, title, rng)
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


def excess(colours):
    """Largest distance of a value to the interval [0, 1]."""
    return max(0.0, float(-colours.min()), float(colours.max() - 1))


if __name__ == "__main__":
    parser = ArgumentParser(description="Give one photo the colours of another.")
    default = Path("quickstart.png")
    if "__file__" in globals():  # not so where the gallery of the docs runs this
        default = Path(__file__).with_name("quickstart.png")
    parser.add_argument("path", nargs="?", type=Path, default=default, help="picture to write")
    main(parser.parse_args().path)
