"""The velocity of the Sinkhorn flow computed by GeomLoss and by POT, with our solver's signature.

Each solver of :data:`SOLVERS` can stand in for :func:`~sknsgf.flow.sinkhorn.sinkhorn_velocity`.
The libraries are imported when first used. Options that mean something else to them are described
in each function: nothing is ignored in silence.

References
----------
Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences",
AISTATS 2019 (GeomLoss).
Flamary et al., "POT: Python Optimal Transport", JMLR 22(78), 2021.
"""

from __future__ import annotations

import importlib.util
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sknsgf.flow.sinkhorn import (
    MAX_DENSE_BYTES,
    SinkhornState,
    SinkhornVelocity,
    barycentric_projection,
    sinkhorn_velocity,
    weights_or_equal,
)

GEOMLOSS_MATRICES = 8  # matrices of the kernel's size that its "tensorized" backend holds
MULTISCALE_SIZE = 10**8  # entries of a kernel above which clusters of points pay (dimension 1 to 3)
POT_ITERATIONS = 20  # plain Sinkhorn iterations that count as one accelerated iteration


def geomloss_velocity(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    blur: float,
    state: SinkhornState | None = None,
    tol: float = 1e-3,
    max_iter: int = 200,
    max_bytes: int = MAX_DENSE_BYTES,
) -> SinkhornVelocity:
    """Velocity of the Sinkhorn flow by ``geomloss.SamplesLoss``.

    Minus the gradient, by autograd, of GeomLoss's debiased potential at the particles. GeomLoss
    lowers the temperature by a constant ratio with one iteration a level, and stops there: the
    accuracy depends on the problem as much as on ``tol`` (see Notes).

    Parameters
    ----------
    x, y, a, b, blur
        As in :func:`~sknsgf.flow.sinkhorn.sinkhorn_velocity`.
    state : SinkhornState, default=None
        Has no effect: GeomLoss has no warm start, and only its time could depend on one.
    tol : float, default=1e-3
        Sets GeomLoss's ``scaling``, the ratio of the blurs of two levels, to ``1 - sqrt(tol)``, at
        least 0.5: 0.9 for 1e-2, 0.968 for 1e-3, 0.99 for 1e-4. Not a bound on an error.
    max_iter : int, default=200
        Bound on the number of levels: where ``tol`` asks for more, ``scaling`` is lowered.
    max_bytes : int, default=2**29
        Problems are solved together while their matrices fit in this memory. One that does not fit
        alone is solved by KeOps, in memory linear in its points, if pykeops is installed (on
        clusters of points if it has at most 3 dimensions and 1e8 pairs or more), else in memory
        all the same.

    Returns
    -------
    SinkhornVelocity
        ``state`` is None. ``error`` is NaN, not reported: GeomLoss measures no marginal.
        ``n_iterations`` is the number of levels.

    Notes
    -----
    Median over the particles of the relative error against a converged float64 solve, measured on
    normal clouds of 200 to 256 points, in 2 to 64 dimensions, blurs of 0.1 to 2: between 0.4 and
    8 % at ``tol=1e-2``, between 0.2 and 5 % at 1e-3, between 0.1 and 3 % at 1e-4.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.external import geomloss_velocity
    >>> x, y = torch.zeros(1, 1, 2), torch.tensor([[[3.0, -1.0]]])
    >>> geomloss_velocity(x, y, blur=0.5).velocity
    tensor([[[ 3., -1.]]])
    """
    n, m, d = x.shape[1], y.shape[1], x.shape[2]
    a, b = weights_or_equal(x, a), weights_or_equal(y, b)
    center = y.mean(1, keepdim=True)
    x, y = x - center, y - center
    one = GEOMLOSS_MATRICES * max(n, m) ** 2 * x.element_size()
    schedule = _schedule(x, y, blur, tol, max_iter)
    backend = _geomloss_backend(n * m, d) if one > max_bytes else "tensorized"
    size = max(1, max_bytes // one)
    chunks = [slice(start, start + size) for start in range(0, x.shape[0], size)]
    velocity = torch.cat(
        [_geomloss_descent(x[c], y[c], a[c], b[c], blur, schedule, backend) for c in chunks]
    )
    not_reported = x.new_full(x.shape[:1], torch.nan)
    return SinkhornVelocity(velocity, None, not_reported, schedule.n_levels)


class _Schedule(NamedTuple):
    """How GeomLoss lowers the blur: from the diameter, by a constant ratio."""

    diameter: float
    scaling: float
    n_levels: int


def _schedule(x: Tensor, y: Tensor, blur: float, tol: float, max_iter: int) -> _Schedule:
    points = torch.cat([x, y], 1).flatten(0, 1)
    diameter = max(float((points.amax(0) - points.amin(0)).norm()), blur)
    descent = math.log(diameter / blur)
    scaling = min(max(0.5, 1 - math.sqrt(tol)), 0.9999, math.exp(-descent / max_iter))
    return _Schedule(diameter, scaling, 2 + math.ceil(descent / -math.log(scaling)))


def _geomloss_backend(n_pairs: int, d: int) -> str:
    """Backend for a problem that does not fit in memory."""
    if not _has_keops():
        return "tensorized"
    return "multiscale" if d <= 3 and n_pairs >= MULTISCALE_SIZE else "online"


def _has_keops() -> bool:
    return importlib.util.find_spec("pykeops") is not None


def _geomloss_descent(x, y, a, b, blur, schedule, backend):
    """Minus the gradient of the debiased potential; each particle's depends on its place alone.

    The gradient of the loss is the same times the weights, but cannot be divided by small ones.
    """
    from geomloss import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=blur,
        diameter=schedule.diameter,
        scaling=schedule.scaling,
        debias=True,
        potentials=True,
        backend=backend,
    )
    # GeomLoss leaves gradients enabled behind it: the context puts the caller's mode back.
    with torch.inference_mode(False), torch.enable_grad():
        x, y, a, b = (part.detach().clone() for part in (x, y, a, b))
        potential = loss(a, x.requires_grad_(), b, y)[0]
        return -torch.autograd.grad(potential.sum(), x)[0]


def pot_velocity(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    blur: float,
    state: SinkhornState | None = None,
    tol: float = 1e-3,
    max_iter: int = 200,
    max_bytes: int = MAX_DENSE_BYTES,
) -> SinkhornVelocity:
    """Velocity of the Sinkhorn flow by ``ot.sinkhorn``: log-domain, float64, one by one.

    Slow and dependable: the reference for the other solvers.

    Parameters
    ----------
    x, y, a, b, blur
        As in :func:`~sknsgf.flow.sinkhorn.sinkhorn_velocity`; POT's ``reg`` is ``2 * blur**2``, as
        its cost is the squared distance. Points of weight zero are left out of the solve.
    state : SinkhornState, default=None
        Has no effect: every solve is a cold start, and only its time could depend on it.
    tol : float, default=1e-3
        Bound on the L1 error of the marginals (``tol / 3`` for the self-problem). POT's
        ``stopThr``, on the L2 error, is ``tol / sqrt(m)``, which implies it.
    max_iter : int, default=200
        POT makes up to ``20 * max_iter`` iterations a problem: plain ones, which achieve less.
    max_bytes : int, default=2**29
        Has no effect: POT holds several float64 matrices of shape (n, m), whatever their size.

    Returns
    -------
    SinkhornVelocity
        ``state`` is None. ``error`` is the larger L1 error of the marginals of both plans.
        ``n_iterations`` is the largest number of (plain) iterations over the problems.

    Notes
    -----
    Median over the particles of the relative error against a converged float64 solve, measured on
    normal clouds of 200 to 256 points, in 2 to 64 dimensions, blurs of 0.1 to 2: below ``tol`` at
    every ``tol`` from 1e-2 to 1e-6. Small ones can take 20,000 iterations: raise ``max_iter``.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.external import pot_velocity
    >>> x, y = torch.zeros(1, 1, 2), torch.tensor([[[3.0, -1.0]]])
    >>> pot_velocity(x, y, blur=0.5).velocity
    tensor([[[ 3., -1.]]])
    """
    a, b = weights_or_equal(x, a), weights_or_equal(y, b)
    solved = []
    for problem in zip(x, y, a, b, strict=True):
        points, target, mass, target_mass = (part.double() for part in problem)
        center = target.mean(0)
        points, target = points - center, target - center
        own = _pot_projection(points, points, mass, mass, blur, tol / 3, max_iter)
        cross = _pot_projection(points, target, mass, target_mass, blur, tol, max_iter)
        error = torch.maximum(own.error, cross.error)
        solved.append((cross.mean - own.mean, error, own.n_iterations + cross.n_iterations))
    velocity, error, n_iterations = zip(*solved, strict=True)
    return SinkhornVelocity(
        torch.stack(velocity).to(x.dtype), None, torch.stack(error).to(x.dtype), max(n_iterations)
    )


class _Projection(NamedTuple):
    """Means of the target seen from each particle (n, d), with what the solve reports."""

    mean: Tensor
    error: Tensor
    n_iterations: int


def _pot_projection(x, y, a, b, blur, tol, max_iter):
    import ot

    y, b, rows = y[b > 0], b[b > 0], a > 0
    plan, log = ot.sinkhorn(
        a[rows],
        b,
        torch.cdist(x[rows], y).square(),
        2 * blur**2,
        method="sinkhorn_log",
        numItermax=POT_ITERATIONS * max_iter,
        stopThr=tol / math.sqrt(len(b)),
        warn=False,
        log=True,
    )
    error = (plan.sum(0) - b).abs().sum()
    g = blur**2 * (log["log_v"] - b.log())
    mean = barycentric_projection(x[None], y[None], g[None], b[None], blur=blur)[0]
    return _Projection(mean, error, log["niter"] + 1)


SOLVERS = {"native": sinkhorn_velocity, "geomloss": geomloss_velocity, "pot": pot_velocity}


def choose_solver(name: str, n: int, m: int, d: int) -> str:
    """Resolve the solver ``"auto"`` for clouds of ``n`` and ``m`` points in ``d`` dimensions.

    It is ``"native"``, except for the problems that KeOps solves on clusters of points, in at most
    3 dimensions from 1e8 pairs of points on: ``"geomloss"`` if pykeops is installed. Other names
    are returned as they are.

    Examples
    --------
    >>> from sknsgf.flow.external import choose_solver
    >>> choose_solver("auto", 500, 500, 2)
    'native'
    >>> choose_solver("pot", 500, 500, 2)
    'pot'
    """
    if name != "auto":
        return name
    return "geomloss" if d <= 3 and n * m >= MULTISCALE_SIZE and _has_keops() else "native"
