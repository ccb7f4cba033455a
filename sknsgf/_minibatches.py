"""Minibatches: which rows of the samples are moved, or paired, together."""

from functools import cached_property
from math import ceil

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KDTree
from sklearn.utils import gen_even_slices

from sknsgf._torch_bridge import seed_of, seed_of_batch

MINIBATCHES = ("stratified", "random")
DEALT_ROWS = 2**17  # rows that are dealt to batches at a time
MOST_AXES, AXES_ROWS = 8, 2**11  # principal axes that regions are cut along, and rows they are of


def minibatches(estimator, X_source, X_target, size, n_batches, streams):
    """Minibatches of both samples; a source that is None is a normal law."""
    seeds = [seed_of(estimator.seed_, stream) for stream in streams]
    stratified = estimator.minibatches == "stratified"
    targets = RowBatches(X_target, size, n_batches, seeds[1], stratified)
    if X_source is None:
        moments = estimator.source_mean_, estimator.source_std_
        return NormalBatches(*moments, targets.size, seeds[0]), targets
    return RowBatches(X_source, size, n_batches, seeds[0], stratified), targets


class RowBatches:
    """Minibatches of rows of an array, converted one slice of batches at a time.

    All batches together draw each row equally often, give or take one. Stratified, each batch by
    itself has its share of every region as well, as far as that goes.
    """

    def __init__(self, X, size, n_batches, seed, stratified=False):
        self.X, self.size = X, min(size, len(X))
        self.n_batches, self.seed = n_batches, seed
        self.stratified = stratified and self.size < len(X)  # else each batch is all rows

    @cached_property
    def rows(self):
        """Indices of the rows of each minibatch, drawn when the first of them is asked for."""
        rows = balanced_rows(len(self.X), self.n_batches * self.size, self.seed)
        rows = rows.reshape(self.n_batches, self.size)
        if self.stratified:
            n_hands = min(ceil(rows.size / DEALT_ROWS), self.n_batches)
            for hand in gen_even_slices(self.n_batches, n_hands):
                rng = np.random.default_rng(seed_of_batch(self.seed, hand.start))
                rows[hand] = stratify(self.X, rows[hand], rng)
        return rows

    def __getitem__(self, batches):
        return self.X[self.rows[batches]]


class NormalBatches:
    """Minibatches drawn from a normal law with independent features."""

    def __init__(self, mean, std, size, seed):
        self.mean, self.std, self.size, self.seed = mean, std, size, seed

    def __getitem__(self, batches):
        rng = np.random.default_rng([self.seed, batches.start])
        shape = (batches.stop - batches.start, self.size, len(self.mean))
        return rng.standard_normal(shape) * self.std + self.mean


def balanced_rows(n_rows, n_draws, seed):
    """Indices of shuffled passes over the rows: each is drawn equally often, give or take one."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(n_rows) for _ in range(n_draws // n_rows)]
    return np.concatenate([*passes, rng.choice(n_rows, n_draws % n_rows, replace=False)])


def stratify(X, rows, rng):
    """Deal rows of some batches anew, so that each batch has its share of every region.

    A k-d tree puts them in an order in which neighbours follow each other. Of each cell of as many
    rows as there are batches, every batch gets one. The tree cuts along the first principal axes,
    which tell clusters apart that single features do not.

    Parameters
    ----------
    X : array of shape (n_rows, n_features)
    rows : ndarray of int of shape (n_batches, size)
        Indices of the rows.
    rng : numpy.random.Generator
        Decides who in a cell goes to which batch.

    Returns
    -------
    ndarray of shape (n_batches, size)
        The same indices.
    """
    n_batches, size = rows.shape
    some = np.asarray(X[rows.ravel()[:AXES_ROWS]], dtype=np.float64)
    with np.errstate(invalid="ignore"):  # a share of no variance, where all rows are the same
        axes = PCA(min(MOST_AXES, *some.shape), random_state=0).fit(some)
    points = np.concatenate([axes.transform(np.asarray(X[b], dtype=np.float64)) for b in rows])
    tree = KDTree(points, leaf_size=max(1, n_batches // 2))  # leaves of at most a cell
    order = np.asarray(tree.get_arrays()[1])
    cells = rows.ravel()[order].reshape(size, n_batches)
    return rng.permuted(cells, axis=1).T
