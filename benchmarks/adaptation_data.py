"""Pairs of a labelled source and a target for domain adaptation.

The rows by which a method is scored never take part in the choice of its settings: for that there
is a development version of each pair.
"""

from typing import NamedTuple

import numpy as np
from image_data import load_images
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

INK = 128  # grey value from which on a pixel of MNIST belongs to the stroke
BITMAP, BLOCK = 32, 4  # pixels along a side, in the protocol of UCI's optical digits
DEVELOPMENT = 1_000  # added to seeds


class Shift(NamedTuple):
    """Labelled rows of a source, unlabelled rows of a target, and labelled rows for scoring."""

    X_source: np.ndarray
    y_source: np.ndarray
    X_target: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def digits_shift(seed, development=False, crop=True):
    """MNIST to scikit-learn's digits: the seed draws 1797 rows of the source.

    One half of the target is seen and the other one scored, always the same. For development, the
    first half is split again, and the source is drawn from the other images of MNIST.
    """
    X, y = load_digits(return_X_y=True)
    X_target, X_test, y_target, y_test = _halves(X / BLOCK**2, y, 0)
    if development:
        X_target, X_test, _, y_test = _halves(X_target, y_target, seed)
    return Shift(*_mnist_rows(len(X), seed, development, crop), X_target, X_test, y_test)


def whole_digits_shift(seed, development=False):
    """MNIST to scikit-learn's digits, all of which are seen and scored."""
    if development:
        return digits_shift(seed, development)
    X, y = load_digits(return_X_y=True)
    X = X / BLOCK**2
    return Shift(*_mnist_rows(len(X), seed, development, crop=True), X, X, y)


def instrument_shift(seed, development=False):
    """Breast cancer data: half of the patients, and the other half as a second instrument has them.

    Half of the target is seen, the other half scored; all is in units of the source.
    """
    seed += DEVELOPMENT * development
    X, y = load_breast_cancer(return_X_y=True)
    X_source, X_other, y_source, y_other = _halves(X, y, seed)
    scaler = StandardScaler().fit(X_source)
    X_other = _second_instrument(scaler.transform(X_other), np.random.default_rng(seed))
    X_target, X_test, _, y_test = _halves(X_other, y_other, seed)
    return Shift(scaler.transform(X_source), y_source, X_target, X_test, y_test)


def _second_instrument(X, rng):
    """A response that is flat for low values, cross-talk, a gain and an offset of each feature."""
    n_rows, n_features = X.shape
    response = np.log1p(np.exp(2 * X))
    crosstalk = response @ rng.normal(0, 0.1, (n_features, n_features))
    gain, offset = rng.uniform(0.5, 1.5, n_features), rng.normal(0, 1, n_features)
    return gain * (response + crosstalk) + offset + rng.normal(0, 0.1, (n_rows, n_features))


def _mnist_rows(n_rows, seed, development, crop):
    """Rows and labels of MNIST in the protocol of UCI's optical digits, with values in [0, 1]."""
    mnist = load_images("mnist")
    pixels = mnist.X_test if development else mnist.X_train
    labels = mnist.y_test if development else mnist.y_train
    chosen = np.random.default_rng(seed).choice(len(pixels), n_rows, replace=False)
    images = (pixels[chosen] + 1) * (255 / 2) >= INK
    counts = [_block_counts(image.reshape(mnist.image_shape[1:]), crop) for image in images]
    return np.array(counts) / BLOCK**2, labels[chosen]


def _block_counts(ink, crop):
    """Ink in each block of a bitmap that an image, or its bounding box, is resized to."""
    if crop:
        rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    middles = (np.arange(BITMAP) + 0.5) / BITMAP
    nearest = [(middles * length).astype(int) for length in ink.shape]
    blocks = ink[np.ix_(*nearest)].reshape(BITMAP // BLOCK, BLOCK, BITMAP // BLOCK, BLOCK)
    return blocks.sum((1, 3)).ravel()


def _halves(X, y, seed):
    """Two halves with the classes in the same shares."""
    return train_test_split(X, y, test_size=0.5, stratify=y, random_state=seed)
