"""Images from noise: our estimators and OT-CFM, for few network evaluations.

    pip install --no-deps torchcfm==1.0.7
    python benchmarks/bench_images.py --data digits mnist --seeds 0 1 2 --steps 6000

A normal law with the mean and variance of each pixel is carried to the training images. The Frechet
distance compares 10,000 generated images with the test images in the features of a small classifier
(`image_quality.py`; not the Inception FID); the floor compares the training images with them. All
contenders have the same network, optimiser and total number of gradient steps; NSGFPlusPlus spends
a third of them on its first network. Batches are the defaults of the time when this was first
measured; NSGFPlusPlus is there with otherwise default parameters, with half of all steps, and with
a first phase of one step that goes all the way. A fit's time is CPU time of the process, and its
memory the peak beyond what was held before. OT-CFM is left out where torchcfm is not installed, and
a data set that is not to be had (`image_data.py`) is skipped.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from time import process_time
from typing import NamedTuple

import numpy as np
from image_data import load_images
from image_quality import (
    ImageClassifier,
    class_balance,
    confidence,
    frechet_distance,
    nearest_distance,
)
from memory import peak_memory, reset_peak
from packages import DataMissingError
from peers import HAS_TORCHCFM, FlowMatching, follow
from results import publish, summary

from sknsgf import NSGFPlusPlus, NSGFSampler

DATA = ("digits", "mnist", "fashion-mnist", "patches", "emoji", "cifar10")
EVALUATIONS = (1, 2, 5, 10, 50)
CLOSE_LOOK = 10  # evaluations whose images are looked at in more ways than one
N_GENERATED = 10_000
WIDTHS = {64: 128}  # units of a hidden layer for so many pixels
LARGE_WIDTH = 512


def make_contenders(n_pixels, n_steps, seed):
    """Estimators to compare, by name."""
    network = {"hidden_layer_sizes": (WIDTHS.get(n_pixels, LARGE_WIDTH),) * 3}
    ours = network | {"pool": "online", "random_state": seed}
    contenders = {
        "NSGFSampler": NSGFSampler(max_iter=n_steps, **ours),
        "NSGFPlusPlus": NSGFPlusPlus(max_iter=n_steps * 2 // 3, **ours),
        "NSGFPlusPlus, half the steps": NSGFPlusPlus(max_iter=n_steps // 3, **ours),
        "NSGFPlusPlus, step_size=1": NSGFPlusPlus(
            n_steps=1, step_size=1.0, max_iter=n_steps * 2 // 3, **ours
        ),
    }
    if HAS_TORCHCFM:
        contenders["OT-CFM"] = FlowMatching(
            max_iter=n_steps,
            prediction="endpoint",
            learning_rate_init=2e-3,
            random_state=seed,
            **network,
        )
    return contenders


def fit(flow, X):
    """Fit on a sample of images, in whatever way the contender takes it."""
    return flow.fit(None, X) if isinstance(flow, FlowMatching) else flow.fit(X)


class Judge(NamedTuple):
    """A data set and the classifier that looks at generated images of its kind."""

    images: NamedTuple
    classifier: ImageClassifier

    @classmethod
    def of(cls, images):
        """Train the classifier."""
        classifier = ImageClassifier(images.image_shape).fit(images.X_train, images.y_train)
        return cls(images, classifier)

    def noise(self, seed):
        """Points of the normal law that all contenders start from."""
        X = self.images.X_train
        points = np.random.default_rng(seed).standard_normal((N_GENERATED, X.shape[1]))
        return (points * X.std(0) + X.mean(0)).astype(np.float32)

    def frechet(self, X):
        """Frechet distance to the test images."""
        return frechet_distance(*map(self.classifier.features, (X, self.images.X_test)))

    def look(self, X):
        """Confidence, class balance, and nearest training image compared with test images."""
        probabilities = self.classifier.predict_proba(X)
        nearest, usual = (nearest_distance(Z, self.images.X_train) for Z in (X, self.images.X_test))
        return {
            "confidence": confidence(probabilities),
            "balance": class_balance(probabilities),
            "nearest": nearest / usual,
        }


def measure(flow, judge, seed):
    """Fit, and judge what comes out."""
    reset_peak()
    held, start = peak_memory(), process_time()
    fit(flow, judge.images.X_train)
    row = {"fit (CPU s)": process_time() - start, "memory (MB)": peak_memory() - held}
    noise = judge.noise(1_000 + seed)
    generated = {n: follow(flow, noise, n) for n in EVALUATIONS}
    row |= {f"Frechet, {n} eval.": judge.frechet(X) for n, X in generated.items()}
    return row | judge.look(generated[CLOSE_LOOK])


def floor(judge):
    """Figures of the real images: training against test images; confidence of the latter."""
    X_train, X_test = judge.images.X_train, judge.images.X_test
    distance = f"{judge.frechet(X_train):.3g}"
    return {
        "fit (CPU s)": "",
        "memory (MB)": "",
        **{f"Frechet, {n} eval.": distance for n in EVALUATIONS},
        **{name: f"{value:.3g}" for name, value in judge.look(X_test).items()},
    }


def compare(name, seeds, n_steps):
    """Measure all contenders on a data set, and publish."""
    images = load_images(name)
    judge = Judge.of(images)
    print(f"{name}: classifier {judge.classifier.score(images.X_test, images.y_test):.2%}")
    rows = [{"flow": "real images"} | floor(judge)]
    print(*rows[0].values(), sep="  ", flush=True)
    for contender in make_contenders(images.X_train.shape[1], n_steps, 0):
        runs = []
        for seed in seeds:
            flow = make_contenders(images.X_train.shape[1], n_steps, seed)[contender]
            runs.append(measure(flow, judge, seed))
        figures = {key: summary([run[key] for run in runs]) for key in runs[0]}
        rows.append({"flow": contender} | figures)
        print(*rows[-1].values(), sep="  ", flush=True)
    options = f"--data {name} --seeds {' '.join(map(str, seeds))} --steps {n_steps}"
    publish(f"images_{name}", rows, f"python benchmarks/bench_images.py {options}")


def main():
    """Compare on each data set that is to be had."""
    parser = ArgumentParser(description="Images from noise: our estimators and OT-CFM.")
    parser.add_argument("--data", nargs="+", choices=DATA, default=["digits"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=6_000, help="gradient steps in total")
    arguments = parser.parse_args()
    for name in arguments.data:
        try:
            compare(name, arguments.seeds, arguments.steps)
        except DataMissingError as error:
            print(f"Skipped: {error}")


if __name__ == "__main__":
    main()
