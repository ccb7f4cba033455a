"""Two-dimensional pairs of samples, as used throughout the literature on flow matching.

A law is written once, as a map from the unit cube to the plane. Independent uniforms through this
map give random draws, Sobol points give draws with far less noise, which is what an evaluation
wants. The first coordinate of the cube also chooses the piece (mode, moon, square) of the law.
"""

from collections.abc import Callable
from numbers import Integral
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc
from sklearn.utils import check_random_state

__all__ = [
    "PAIRS",
    "make_8gaussians",
    "make_checkerboard",
    "make_pair",
    "make_plane_s_curve",
    "make_scaled_moons",
    "quasi_random_pair",
]


class _Law(NamedTuple):
    """A law of the plane: equally likely pieces, and the map (n, n_uniforms) -> (n, 2)."""

    from_uniforms: Callable
    n_uniforms: int
    n_pieces: int = 1


def _normal_from_uniforms(u):
    """Map uniforms to independent standard normal values, at most 6.2 in absolute value."""
    half_step = 2.0**-31  # Sobol points are multiples of 2**-30, zero included
    return ndtri(np.clip(u, half_step, 1 - half_step))


def _piece_and_position(u, n_pieces):
    """Split a uniform into the number of a piece and a uniform position inside that piece."""
    piece = np.minimum(np.floor(n_pieces * u), n_pieces - 1)
    return piece, n_pieces * u - piece


def _8gaussians_from_uniforms(u):
    """Place a normal cloud around each of eight points of a circle."""
    piece, position = _piece_and_position(u[:, 0], 8)
    angle = piece * np.pi / 4
    noise = _normal_from_uniforms(np.column_stack([position, u[:, 1]]))
    return 5 * np.column_stack([np.cos(angle), np.sin(angle)]) + 0.1**0.25 * noise


def _checkerboard_from_uniforms(u):
    """Fill the eight dark squares, two in each of the four columns."""
    piece, position = _piece_and_position(u[:, 0], 8)
    column = piece // 2
    row = 2 * (piece % 2) + column % 2
    return 2 * np.column_stack([column + position, row + u[:, 1]]) - 4


def _moons_from_uniforms(u):
    """Bend the first coordinate into two half circles and shift each point along the diagonal."""
    inner, position = _piece_and_position(u[:, 0], 2)
    sign, angle = 1 - 2 * inner, np.pi * position
    arc = np.column_stack([inner + sign * np.cos(angle), inner / 2 + sign * np.sin(angle)])
    return 3 * (arc + 0.2 * u[:, 1:]) - 1


def _s_curve_from_uniforms(u):
    """Bend the first coordinate into an S and add noise."""
    angle = 3 * np.pi * (u[:, 0] - 0.5)
    curve = np.column_stack([np.sin(angle), np.sign(angle) * (np.cos(angle) - 1)])
    return 1.5 * (curve + 0.05 * _normal_from_uniforms(u[:, 1:]))


_NORMAL = _Law(_normal_from_uniforms, n_uniforms=2)
_8GAUSSIANS = _Law(_8gaussians_from_uniforms, n_uniforms=2, n_pieces=8)
_CHECKERBOARD = _Law(_checkerboard_from_uniforms, n_uniforms=2, n_pieces=8)
_MOONS = _Law(_moons_from_uniforms, n_uniforms=2, n_pieces=2)
_S_CURVE = _Law(_s_curve_from_uniforms, n_uniforms=3)

_PAIR_LAWS = {
    "8gaussians": (_NORMAL, _8GAUSSIANS),
    "moons": (_NORMAL, _MOONS),
    "8gaussians-moons": (_8GAUSSIANS, _MOONS),
    "s-curve": (_NORMAL, _S_CURVE),
    "checkerboard": (_NORMAL, _CHECKERBOARD),
}
PAIRS = tuple(_PAIR_LAWS)


def _draw(law, n_samples, rng):
    """Draw rows at random, spread evenly over the pieces; pieces in excess are chosen by chance."""
    u = rng.uniform(size=(n_samples, law.n_uniforms))
    pieces = rng.permutation(law.n_pieces)[np.arange(n_samples) % law.n_pieces]
    u[:, 0] = (rng.permutation(pieces) + u[:, 0]) / law.n_pieces
    return law.from_uniforms(u)


def _draw_quasi_random(law, n_samples, rng):
    """Push shuffled, scrambled Sobol points through the law."""
    sobol = qmc.Sobol(law.n_uniforms, seed=rng.randint(2**31))
    return law.from_uniforms(rng.permutation(sobol.random(n_samples)))


def _is_positive_int(value):
    """Tell whether a value is an int of at least one; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _check_positive_int(n_samples, function):
    """Raise unless `n_samples` is a number of rows."""
    if not _is_positive_int(n_samples):
        raise ValueError(
            f"The 'n_samples' parameter of {function} must be an int in the range [1, inf). "
            f"Got {n_samples!r} instead."
        )


def _check_pair_of_sizes(n_samples, function):
    """Return the numbers of source and target rows given by an int or a pair of ints."""
    sizes = n_samples if isinstance(n_samples, tuple | list) else (n_samples, n_samples)
    if len(sizes) != 2 or not all(map(_is_positive_int, sizes)):
        raise ValueError(
            f"The 'n_samples' parameter of {function} must be an int in the range [1, inf), or a "
            f"pair (n_source, n_target) of such ints. Got {n_samples!r} instead."
        )
    return sizes


def _check_pair_name(name, function):
    """Return the laws of the source and of the target of a named pair."""
    if not isinstance(name, str) or name not in _PAIR_LAWS:
        choices = ", ".join(map(repr, PAIRS))
        raise ValueError(
            f"The 'name' parameter of {function} must be one of {choices}. Got {name!r} instead."
        )
    return _PAIR_LAWS[name]


def make_8gaussians(n_samples=2000, *, random_state=None):
    """Draw a mixture of eight normal laws on a circle.

    The centres are 5 (cos k pi/4, sin k pi/4), k = 0, ..., 7; the covariance of each is
    sqrt(0.1) times the identity: a standard deviation of 0.1 ** 0.25 = 0.56, as in [1]_.

    Parameters
    ----------
    n_samples : int, default=2000
        Number of rows, spread over the centres as evenly as possible: the numbers of rows of two
        centres differ by at most one.
    random_state : int, RandomState instance or None, default=None
        Determines the draws; an int gives the same rows at each call.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        The rows, in random order, float64.

    Raises
    ------
    ValueError
        If `n_samples` is not an int of at least 1.

    References
    ----------
    .. [1] A. Tong et al., "Improving and generalizing flow-based generative models with minibatch
       optimal transport", 2023 (arXiv:2302.00482), and its package torchcfm.

    Examples
    --------
    >>> from sknsgf.datasets import make_8gaussians
    >>> X = make_8gaussians(80, random_state=0)
    >>> X.shape
    (80, 2)
    """
    _check_positive_int(n_samples, "make_8gaussians")
    return _draw(_8GAUSSIANS, n_samples, check_random_state(random_state))


def make_checkerboard(n_samples=2000, *, random_state=None):
    """Draw uniformly from the dark squares of a 4 x 4 checkerboard.

    The board covers [-4, 4] x [-4, 4]; its squares have sides of length 2, and the eight squares
    of even row plus column, counted from the lower left corner, are dark.

    Parameters
    ----------
    n_samples : int, default=2000
        Number of rows, spread over the dark squares as evenly as possible: the numbers of rows of
        two squares differ by at most one.
    random_state : int, RandomState instance or None, default=None
        Determines the draws; an int gives the same rows at each call.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        The rows, in random order, float64.

    Raises
    ------
    ValueError
        If `n_samples` is not an int of at least 1.

    Examples
    --------
    >>> from sknsgf.datasets import make_checkerboard
    >>> X = make_checkerboard(80, random_state=0)
    >>> bool(abs(X).max() <= 4)
    True
    """
    _check_positive_int(n_samples, "make_checkerboard")
    return _draw(_CHECKERBOARD, n_samples, check_random_state(random_state))


def make_scaled_moons(n_samples=2000, *, random_state=None):
    """Draw two interleaved half circles, blurred along the diagonal and enlarged three times.

    With an angle a uniform in [0, pi] and a shift s uniform in [0, 0.2], a row is
    3 (cos a + s, sin a + s) - 1 on the outer moon and 3 (1 - cos a + s, 1/2 - sin a + s) - 1 on
    the inner one. The shape is that of :func:`sklearn.datasets.make_moons`; the noise is that of
    [1]_: one shift for both coordinates, not normal noise.

    Parameters
    ----------
    n_samples : int, default=2000
        Number of rows, half of them on each moon (one more on a random moon if odd).
    random_state : int, RandomState instance or None, default=None
        Determines the draws; an int gives the same rows at each call.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        The rows, in random order, float64.

    Raises
    ------
    ValueError
        If `n_samples` is not an int of at least 1.

    References
    ----------
    .. [1] A. Tong et al., "Improving and generalizing flow-based generative models with minibatch
       optimal transport", 2023 (arXiv:2302.00482), and its package torchcfm.

    Examples
    --------
    >>> from sknsgf.datasets import make_scaled_moons
    >>> X = make_scaled_moons(80, random_state=0)
    >>> X.shape
    (80, 2)
    """
    _check_positive_int(n_samples, "make_scaled_moons")
    return _draw(_MOONS, n_samples, check_random_state(random_state))


def make_plane_s_curve(n_samples=2000, *, random_state=None):
    """Draw from an S in the plane.

    With an angle a uniform in [-3 pi/2, 3 pi/2], a row is 1.5 (sin a, sign(a) (cos a - 1)) plus
    normal noise of standard deviation 0.075: the first and the last column of
    :func:`sklearn.datasets.make_s_curve` with its noise set to 0.05, times 1.5.

    Parameters
    ----------
    n_samples : int, default=2000
        Number of rows.
    random_state : int, RandomState instance or None, default=None
        Determines the draws; an int gives the same rows at each call.

    Returns
    -------
    X : ndarray of shape (n_samples, 2)
        The rows, in random order, float64.

    Raises
    ------
    ValueError
        If `n_samples` is not an int of at least 1.

    Examples
    --------
    >>> from sknsgf.datasets import make_plane_s_curve
    >>> X = make_plane_s_curve(80, random_state=0)
    >>> X.shape
    (80, 2)
    """
    _check_positive_int(n_samples, "make_plane_s_curve")
    return _draw(_S_CURVE, n_samples, check_random_state(random_state))


def make_pair(name, n_samples=2000, *, random_state=None):
    """Draw a source and a target sample of a named pair of laws of the plane.

    The pairs are those on which flow matching is usually compared [1]_:

    ================== ================================ ================================
    name               source                           target
    ================== ================================ ================================
    "8gaussians"       N(0, I)                          :func:`make_8gaussians`
    "moons"            N(0, I)                          :func:`make_scaled_moons`
    "8gaussians-moons" :func:`make_8gaussians`          :func:`make_scaled_moons`
    "s-curve"          N(0, I)                          :func:`make_plane_s_curve`
    "checkerboard"     N(0, I)                          :func:`make_checkerboard`
    ================== ================================ ================================

    Parameters
    ----------
    name : {"8gaussians", "moons", "8gaussians-moons", "s-curve", "checkerboard"}
        The pair; the names are also in `PAIRS`.
    n_samples : int or pair of ints, default=2000
        Number of rows of both samples, or `(n_source, n_target)`.
    random_state : int, RandomState instance or None, default=None
        Determines the draws; an int gives the same rows at each call.

    Returns
    -------
    X_source : ndarray of shape (n_source, 2)
        Rows of the source, float64.
    X_target : ndarray of shape (n_target, 2)
        Rows of the target, float64, independent of the source: equal positions mean nothing.

    Raises
    ------
    ValueError
        If `name` is unknown, or `n_samples` is neither an int of at least 1 nor a pair of them.

    See Also
    --------
    quasi_random_pair : Draws with far less noise, to evaluate a flow.

    References
    ----------
    .. [1] A. Tong et al., "Improving and generalizing flow-based generative models with minibatch
       optimal transport", 2023 (arXiv:2302.00482), and its package torchcfm.

    Examples
    --------
    >>> from sknsgf.datasets import make_pair
    >>> X_source, X_target = make_pair("8gaussians-moons", (300, 500), random_state=0)
    >>> X_source.shape, X_target.shape
    ((300, 2), (500, 2))
    """
    source, target = _check_pair_name(name, "make_pair")
    n_source, n_target = _check_pair_of_sizes(n_samples, "make_pair")
    rng = check_random_state(random_state)
    return _draw(source, n_source, rng), _draw(target, n_target, rng)


def quasi_random_pair(name, n_samples=2048, *, random_state=None):
    """Draw a pair of samples with far less noise than independent rows have.

    Scrambled Sobol points [1]_ replace the random numbers behind :func:`make_pair`. Each row still
    follows its law, but the rows of a sample fill it evenly, with exactly the same number of rows
    in each mode, moon or square. The distance between two such samples of one law, the floor below
    which no generator can be judged, is several times smaller than for independent rows.

    Parameters
    ----------
    name : {"8gaussians", "moons", "8gaussians-moons", "s-curve", "checkerboard"}
        The pair, see :func:`make_pair`.
    n_samples : int, default=2048
        Number of rows of both samples, a power of 2 of at least 16.
    random_state : int, RandomState instance or None, default=None
        Determines the scrambling; an int gives the same rows at each call.

    Returns
    -------
    X_source : ndarray of shape (n_samples, 2)
        Rows of the source, float64.
    X_target : ndarray of shape (n_samples, 2)
        Rows of the target, float64, shuffled: equal positions mean nothing.

    Raises
    ------
    ValueError
        If `name` is unknown, or `n_samples` is not a power of 2 of at least 16.

    References
    ----------
    .. [1] A. B. Owen, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", Monte Carlo and
       Quasi-Monte Carlo Methods in Scientific Computing, 1995.

    Examples
    --------
    >>> from sknsgf.datasets import quasi_random_pair
    >>> X_source, X_target = quasi_random_pair("moons", 64, random_state=0)
    >>> X_source.shape, X_target.shape
    ((64, 2), (64, 2))
    """
    laws = _check_pair_name(name, "quasi_random_pair")
    if not _is_positive_int(n_samples) or n_samples < 16 or n_samples & (n_samples - 1):
        raise ValueError(
            "The 'n_samples' parameter of quasi_random_pair must be a power of 2 in the range "
            f"[16, inf). Got {n_samples!r} instead."
        )
    rng = check_random_state(random_state)
    source, target = (_draw_quasi_random(law, n_samples, rng) for law in laws)
    return source, target
