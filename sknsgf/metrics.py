"""Distances between two samples: entropic, exact and kernel-free, in float64.

A sample is an array of shape (n_samples, n_features) with optional weights of its rows. All three
functions are symmetric, zero for equal samples up to rounding, do not change when both samples are
moved together, and scale with the data: the values are lengths, or lengths squared, in the data's
units.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_array

from sknsgf._validation import FLOATS, check_parameter, check_weights, real, whole_number
from sknsgf.flow.sinkhorn import cross_potential, extend_potential, self_potential

__all__ = ["energy_distance", "sinkhorn_divergence", "wasserstein_distance"]

RELATIVE_BLUR = 0.1
BLUR_LIMITS = 1e-6, 1e4  # relative; beyond, float64 rounding hides any further change
EXACT_MAX_ITER = 10**7  # pivots of the network simplex


class _Sample(NamedTuple):
    """Rows in float64 and their weights, which sum to one."""

    rows: np.ndarray
    weights: np.ndarray


def _check_weights(weights, X, sample):
    """Return weights that sum to one; None stands for equal weights."""
    weights = check_weights(weights, X, f"{sample}_weight", sample)
    return np.full(len(X), 1 / len(X)) if weights is None else weights


def _check_samples(X, Y, X_weight, Y_weight):
    """Validate two samples; return them centred and divided by their spread, and the spread.

    The spread is the root-mean-square distance of the rows to their common mean, where both samples
    count equally. It makes offsets and units harmless to the accuracy.
    """
    X = check_array(X, dtype=FLOATS, input_name="X")
    Y = check_array(Y, dtype=FLOATS, input_name="Y")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            "Incompatible dimension for X and Y matrices: X.shape[1] == "
            f"{X.shape[1]} while Y.shape[1] == {Y.shape[1]}"
        )
    a = _check_weights(X_weight, X, "X")
    b = _check_weights(Y_weight, Y, "Y")
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    center = (a @ X + b @ Y) / 2
    X, Y = X - center, Y - center
    spread = np.sqrt((a @ np.square(X).sum(1) + b @ np.square(Y).sum(1)) / 2)
    if not np.isfinite(spread):
        raise ValueError(
            "X and Y have values too large for their variance to be computed in float64. Rescale "
            "the data."
        )
    scale = spread if spread > 0 else 1.0
    return _Sample(X / scale, a), _Sample(Y / scale, b), float(spread)


def sinkhorn_divergence(X, Y, *, blur=None, X_weight=None, Y_weight=None, tol=1e-4, max_iter=500):
    """Debiased entropic transport cost between two samples.

    ``S(X, Y) = W(X, Y) - W(X, X) / 2 - W(Y, Y) / 2`` where W is the entropic transport cost with
    the ground cost ``|x - y|**2 / 2`` and the temperature ``blur**2`` [1]_. It tends to half the
    squared Wasserstein distance when `blur` tends to zero, and to half the squared distance between
    the means when it tends to infinity.

    Parameters
    ----------
    X : array-like of shape (n_samples_X, n_features)
        First sample.
    Y : array-like of shape (n_samples_Y, n_features)
        Second sample.
    blur : float, default=None
        Square root of the temperature, in the units of the data: roughly the distance below which
        details do not count. None means 0.1 times the root-mean-square distance of the rows to
        their common mean, both samples counting equally. Give a number to compare values of
        several pairs of samples: the divergence depends on it.
    X_weight, Y_weight : array-like of shape (n_samples_X,) and (n_samples_Y,), default=None
        Weights of the rows, divided by their sum; None means equal weights.
    tol : float, default=1e-4
        Each solve stops once the L1 error of its marginals is below. The error of the divergence
        is much smaller, of the order of ``tol**2``.
    max_iter : int, default=500
        Bound on the Sinkhorn iterations of each of the three solves, at each temperature.

    Returns
    -------
    divergence : float
        In units of length squared. Never negative: what rounding leaves below zero is returned as
        zero.

    Raises
    ------
    ValueError
        If the samples have different numbers of features, hold NaN or infinity, have no rows, or if
        weights or parameters are not valid.

    Warns
    -----
    ConvergenceWarning
        If a solve did not reach `tol` within `max_iter` iterations.

    Notes
    -----
    Memory is linear in the numbers of rows beyond a few thousand rows: kernels are recomputed by
    blocks instead of stored. Beyond 1e-6 and 1e4 times the root-mean-square distance to the common
    mean, `blur` makes no difference that float64 could show, and counts as these.

    References
    ----------
    .. [1] J. Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn
       divergences", AISTATS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sknsgf.metrics import sinkhorn_divergence
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> round(sinkhorn_divergence(X, X + [3.0, 4.0]), 3)  # half the squared shift
    12.5
    """
    if blur is not None:
        check_parameter("blur", blur, real(0, closed="neither"), "sinkhorn_divergence")
    check_parameter("tol", tol, real(0, closed="neither"), "sinkhorn_divergence")
    check_parameter("max_iter", max_iter, whole_number(), "sinkhorn_divergence")
    X, Y, spread = _check_samples(X, Y, X_weight, Y_weight)
    if spread == 0:
        return 0.0
    options = {
        "blur": float(np.clip(RELATIVE_BLUR if blur is None else blur / spread, *BLUR_LIMITS)),
        "tol": tol,
        "max_iter": max_iter,
    }
    costs, errors = zip(
        _transport_cost(X, Y, options),
        _transport_cost(X, X, options),
        _transport_cost(Y, Y, options),
        strict=True,
    )
    if not all(error <= tol for error in errors):
        warnings.warn(
            "The Sinkhorn iterations of sinkhorn_divergence did not converge: the marginal error "
            f"of the worst solve is {max(errors):.1e} instead of tol={tol:g}. Increase blur "
            f"(here {options['blur'] * spread:.3g}) or max_iter, or accept a larger tol.",
            ConvergenceWarning,
            stacklevel=2,
        )
    divergence = costs[0] - costs[1] / 2 - costs[2] / 2
    return max(divergence * spread**2, 0.0)


def _transport_cost(X, Y, options):
    """Entropic cost and marginal error. The best potential given the other makes it accurate."""
    (x, a), (y, b) = [(torch.from_numpy(part)[None] for part in sample) for sample in (X, Y)]
    if X is Y:
        g, error, _ = self_potential(x, a, **options)
    else:
        g, error, _ = cross_potential(x, y, a, b, **options)
    f = extend_potential(x, y, g, b, blur=options["blur"])
    return float((a * f).sum() + (b * g).sum()), float(error)


def wasserstein_distance(X, Y, *, X_weight=None, Y_weight=None):
    """Exact Wasserstein distance of order 2 between two samples.

    The square root of the least mean squared displacement that carries one sample to the other,
    computed by the network simplex of POT [1]_. Time grows like the cube of the number of rows, and
    memory like its square: about 4 GB for twice 10,000 rows.

    Parameters
    ----------
    X : array-like of shape (n_samples_X, n_features)
        First sample.
    Y : array-like of shape (n_samples_Y, n_features)
        Second sample.
    X_weight, Y_weight : array-like of shape (n_samples_X,) and (n_samples_Y,), default=None
        Weights of the rows, divided by their sum; None means equal weights.

    Returns
    -------
    distance : float
        In units of length.

    Raises
    ------
    ValueError
        If the samples have different numbers of features, hold NaN or infinity, have no rows, or if
        weights are not valid.

    Warns
    -----
    ConvergenceWarning
        If POT does not report the optimum: the value is then an upper bound.

    References
    ----------
    .. [1] N. Bonneel et al., "Displacement interpolation using Lagrangian mass transport",
       SIGGRAPH Asia 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from sknsgf.metrics import wasserstein_distance
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> round(wasserstein_distance(X, X + [3.0, 4.0]), 6)  # the length of the shift
    5.0
    """
    import ot

    X, Y, spread = _check_samples(X, Y, X_weight, Y_weight)
    cost = euclidean_distances(X.rows, Y.rows, squared=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # reported below, in our words
        value, log = ot.emd2(X.weights, Y.weights, cost, numItermax=EXACT_MAX_ITER, log=True)
    if log["warning"] is not None:
        warnings.warn(
            "The exact transport of wasserstein_distance was not solved to optimality: the value "
            "is an upper bound. Use fewer rows, or sinkhorn_divergence. POT says: "
            f"{log['warning']}",
            ConvergenceWarning,
            stacklevel=2,
        )
    return float(np.sqrt(max(value, 0.0)) * spread)


def energy_distance(X, Y, *, X_weight=None, Y_weight=None):
    """Energy distance between two samples.

    ``2 E|x - y| - E|x - x'| - E|y - y'|``, where x, x' are independent draws from the rows of X and
    y, y' from those of Y [1]_. It needs no parameter and its cost grows like the square of the
    number of rows; memory is bounded (scikit-learn's `working_memory`).

    Parameters
    ----------
    X : array-like of shape (n_samples_X, n_features)
        First sample.
    Y : array-like of shape (n_samples_Y, n_features)
        Second sample.
    X_weight, Y_weight : array-like of shape (n_samples_X,) and (n_samples_Y,), default=None
        Weights of the rows, divided by their sum; None means equal weights.

    Returns
    -------
    distance : float
        In units of length. (:func:`scipy.stats.energy_distance`, for one feature, is its square
        root.) Never negative: what rounding leaves below zero is returned as zero.

    Raises
    ------
    ValueError
        If the samples have different numbers of features, hold NaN or infinity, have no rows, or if
        weights are not valid.

    References
    ----------
    .. [1] G. J. Szekely and M. L. Rizzo, "Energy statistics: a class of statistics based on
       distances", Journal of Statistical Planning and Inference 143, 2013.

    Examples
    --------
    >>> from sknsgf.metrics import energy_distance
    >>> energy_distance([[0.0], [0.0]], [[3.0], [3.0]])  # 2 * 3 - 0 - 0
    6.0
    """
    X, Y, spread = _check_samples(X, Y, X_weight, Y_weight)
    between, within_X, within_Y = (_mean_distance(*pair) for pair in ((X, Y), (X, X), (Y, Y)))
    return max((2 * between - within_X - within_Y) * spread, 0.0)


def _mean_distance(X, Y):
    """Mean distance between a row of X and a row of Y, by blocks of rows."""
    means = pairwise_distances_chunked(
        X.rows, Y.rows, reduce_func=lambda block, _: block @ Y.weights
    )
    return float(X.weights @ np.concatenate(list(means)))
