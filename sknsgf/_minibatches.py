"""Minibatches: which rows of the samples are moved, or paired, together."""

from functools import cached_property
from math import ceil
from threading import Lock

import numpy as np
from scipy.stats import qmc
from sklearn.decomposition import PCA
from sklearn.neighbors import KDTree
from sklearn.utils import gen_even_slices

from sknsgf._torch_bridge import balanced_rows, random_rows, seed_of, seed_of_batch

MINIBATCHES = ("stratified", "random")
MOST_HELD_OUT = 2**13  # rows of a sample
# Rows that are dealt together, unless these are fewer batches.
DEALT_ROWS, FEWEST_BATCHES = 2**17, 16
# Principal axes that regions are cut along (of a normal law, features), and rows, and entries of
# these, that they are of.
MOST_AXES, AXES_ROWS, AXES_ENTRIES = 8, 2**11, 2**22


def hold_out(estimator, X_source, X_target):
    """Samples to train on and, for early stopping, samples of their other rows, or None.

    Whatever the seed of a fit, the same rows are held out, so that a fit which goes on from the
    last one has not been trained on them.
    """
    samples = X_source, X_target
    if not estimator.early_stopping:
        return samples, None
    seed = seed_of(0, "held out")
    parts = [_split(estimator, X, seed_of_batch(seed, n)) for n, X in enumerate(samples)]
    return tuple(zip(*parts, strict=True))


def _split(estimator, X, seed):
    """Rows to train on, and rows held out; a normal law, which is None, serves as both."""
    if X is None:
        return None, None
    held_out = random_rows(len(X), len(X) - n_training_rows(estimator, X), seed)
    return OtherRows(X, held_out), X[held_out]


def n_training_rows(estimator, X):
    """Number of rows of a sample that are not held out: one at least."""
    if not estimator.early_stopping:
        return len(X)
    n_held_out = min(ceil(estimator.validation_fraction * len(X)), MOST_HELD_OUT, len(X) - 1)
    return len(X) - n_held_out


class OtherRows:
    """Rows of an array without some of them, by arrays of indices; nothing is copied.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
    left_out : ndarray of int
        Indices of the rows that are left out, in their order.
    """

    def __init__(self, X, left_out):
        self.X, self.n_rows = X, len(X) - len(left_out)
        self.n_before = left_out - np.arange(len(left_out))  # of the others, before each of these

    def __len__(self):
        return self.n_rows

    def __getitem__(self, rows):
        return self.X[rows + np.searchsorted(self.n_before, rows, side="right")]


def minibatches(estimator, X_source, X_target, size, n_batches, streams):
    """Minibatches of both samples; a source that is None is a normal law."""
    seeds = [seed_of(estimator.seed_, stream) for stream in streams]
    stratified = estimator.minibatches == "stratified"
    targets = RowBatches(X_target, size, n_batches, seeds[1], stratified)
    if X_source is None:
        moments = estimator.source_mean_, estimator.source_std_
        return NormalBatches(*moments, targets.size, seeds[0], stratified), targets
    return RowBatches(X_source, size, n_batches, seeds[0], stratified), targets


class RowBatches:
    """Minibatches of rows of an array, converted one slice of batches at a time.

    All batches together draw each row equally often, give or take one. Stratified, each batch by
    itself has its share of every region of the rows that are dealt together with its own.
    """

    def __init__(self, X, size, n_batches, seed, stratified=False):
        self.X, self.size = X, min(size, len(X))
        self.n_batches, self.seed = n_batches, seed
        self.hands = []  # slices of batches that are still to be dealt
        if stratified and self.size < len(X):  # else each batch is all rows
            n_hands = ceil(n_batches / _dealt_together(self.size))
            self.hands = list(gen_even_slices(n_batches, n_hands))
        self.dealing = Lock()

    @cached_property
    def rows(self):
        """Indices of the rows of each minibatch, dealt anew as batches are asked for."""
        rows = balanced_rows(len(self.X), self.n_batches * self.size, self.seed)
        return rows.reshape(self.n_batches, self.size)

    def __getitem__(self, batches):
        with self.dealing:  # several threads may be the first to ask for batches of a hand
            rows = self.rows
            for hand in [hand for hand in self.hands if _overlap(hand, batches)]:
                rng = np.random.default_rng(seed_of_batch(self.seed, hand.start))
                rows[hand] = stratify(self.X, rows[hand], rng)
                self.hands.remove(hand)
        return self.X[rows[batches]]


def _dealt_together(size):
    """Number of batches of a size that have their shares together."""
    return max(FEWEST_BATCHES, ceil(DEALT_ROWS / size))


def _overlap(first, second):
    """Tell whether two slices have anything in common."""
    return first.start < second.stop and second.start < first.stop


class NormalBatches:
    """Minibatches drawn from a normal law with independent features.

    Stratified, the features of the largest spread are those of scrambled Sobol points. Each batch
    has its share of every region then, almost so where its size is no power of two, and so have all
    batches of as many rows as are dealt together.
    """

    def __init__(self, mean, std, size, seed, stratified=False):
        self.mean, self.std, self.size, self.seed = mean, std, size, seed
        self.widest = np.argsort(-std, kind="stable")[: MOST_AXES if stratified else 0]

    def __getitem__(self, batches):
        rng = np.random.default_rng([self.seed, batches.start])
        shape = (batches.stop - batches.start, self.size, len(self.mean))
        draws = rng.standard_normal(shape)
        if len(self.widest):
            numbers = range(batches.start, batches.stop)
            draws[..., self.widest] = [self._quasi_random(number) for number in numbers]
        return draws * self.std + self.mean

    def _quasi_random(self, number):
        """Standard normal points of the batch with a number."""
        hand, place = divmod(number, _dealt_together(self.size))
        points = qmc.Sobol(len(self.widest), seed=seed_of_batch(self.seed, hand))
        if place:  # SciPy can't go forward by nothing
            points.fast_forward(place * self.size)
        n_points = 1 << (self.size - 1).bit_length()  # SciPy warns if the first are no power of two
        normal = qmc.MultivariateNormalQMC(np.zeros(len(self.widest)), engine=points)
        return normal.random(n_points)[: self.size]


def stratify(X, rows, rng):
    """Deal rows of some batches anew, so that each batch has its share of every region.

    A k-d tree puts them in an order in which neighbours follow each other. Of each cell of as many
    rows as there are batches, every batch gets one. The tree cuts along the first principal axes,
    which tell clusters apart that single features do not. A batch alone is left as it is.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
    rows : ndarray of int of shape (n_batches, size)
        Indices of the rows.
    rng : numpy.random.Generator
        Decides who in a cell goes to which batch, and the order in a batch.

    Returns
    -------
    ndarray of shape (n_batches, size)
        The same indices.
    """
    n_batches, size = rows.shape
    if n_batches == 1:
        return rows
    leaf_size = max(1, n_batches // 2)  # leaves of at most a cell
    tree = KDTree(_along_principal_axes(X, rows), leaf_size=leaf_size)
    order = np.asarray(tree.get_arrays()[1])
    cells = rows.ravel()[order].reshape(size, n_batches)
    return rng.permuted(rng.permuted(cells, axis=1).T, axis=1)


def _along_principal_axes(X, rows):
    """Coordinates of rows, batch after batch, along the first principal axes of some of them."""
    origin = np.asarray(X[rows[0, :1]], dtype=np.float64)  # a large offset would cost accuracy
    n_some = max(2, min(AXES_ROWS, AXES_ENTRIES // origin.size))
    some = np.asarray(X[rows.ravel()[:n_some]], dtype=np.float64) - origin
    with np.errstate(invalid="ignore"):  # a share of no variance, where all rows are the same
        axes = PCA(min(MOST_AXES, *some.shape), random_state=0).fit(some)
    batches = (np.asarray(X[batch], dtype=np.float64) - origin for batch in rows)
    return np.concatenate([axes.transform(batch) for batch in batches])
