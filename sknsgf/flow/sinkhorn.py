r"""Entropic optimal transport between clouds of points: potentials, projections, velocity.

Conventions, the same everywhere in this library: the cost is :math:`|x - y|^2 / 2`, the
temperature :math:`\varepsilon = \mathrm{blur}^2`. Clouds come in batches of independent problems:
particles ``x`` of shape (B, n, d) with weights ``a`` (B, n), target ``y`` (B, m, d) with weights
``b`` (B, m).

The transport plan is

.. math:: P_{ij} = a_i b_j \exp\big((f_i + g_j - |x_i - y_j|^2 / 2) / \varepsilon\big).

Row ``i`` is, up to its normalisation, ``exp(<x_i, y_j>/eps + bias_j)`` with
``bias_j = (g_j - |y_j|^2/2)/eps + log b_j``: the potential ``g`` alone describes the plan. So it is
the state of the iteration, ``f`` is the log-normaliser of a row, and both extend to points that
were not in the cloud (:func:`extend_potential`, :func:`barycentric_projection`).

Accuracy in float32: exponents carry an error of about ``6e-8 (R / blur)**2`` for clouds of radius
R.

References
----------
Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences",
AISTATS 2019.
Janati et al., "Entropic optimal transport between unbalanced Gaussian measures has a closed form",
NeurIPS 2020.
Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 2011.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sknsgf.flow.kernels import (
    DenseKernel,
    DenseSelfPlan,
    KernelMemory,
    RescaledKernel,
    StreamedKernel,
    StreamedSelfPlan,
    row_blocks,
    row_sums,
    scaled_exponentials,
)

SMALLEST_MASS = 1e-30
MAX_DENSE_BYTES = 2**29  # above, a kernel is streamed instead of stored
CACHE_BYTES = 2**22  # problems are solved together while their kernels fit in here (CPU)
STALLED_ERROR = 1e-3  # a solve that ends above has stalled; one that ends below is slow
ANDERSON_MEMORY = 5
RESTART_GROWTH = 4.0
MAX_MIXED_STEP = 4.0  # logarithm of a scaling; longer steps are not extrapolated
SELF_RELAXATION = 0.55


class Potential(NamedTuple):
    """A dual potential with what its solve reports.

    Attributes
    ----------
    potential : Tensor of shape (B, m)
        Values on the cloud, in units of length squared.
    error : Tensor of shape (B,)
        L1 distance between the marginal of the plan and the weights (between 0 and 2).
    n_iterations : int
        Sinkhorn iterations spent, annealing included.
    """

    potential: Tensor
    error: Tensor
    n_iterations: int


class SinkhornState(NamedTuple):
    """Potentials on the target and on the particles to start from; None is a cold start."""

    target: Tensor | None
    self: Tensor | None

    def after_step(self, step_size: float) -> SinkhornState:
        """State to start from once the particles moved by ``step_size`` times their velocity.

        The remaining displacement has shrunk by ``1 - step_size``, and so has the target potential:
        exact for unregularised transport.
        """
        target = None if self.target is None else (1 - step_size) * self.target
        return SinkhornState(target, self.self)


class SinkhornVelocity(NamedTuple):
    """The velocity of a Sinkhorn flow with what its solve reports.

    Attributes
    ----------
    velocity : Tensor of shape (B, n, d)
        ``T_xy(x) - T_xx(x)``, a displacement: length per unit of flow time.
    state : SinkhornState or None
        Start of the next solve (None from solvers that keep none).
    error : Tensor of shape (B,)
        The larger of the two marginal errors.
    n_iterations : int
        Iterations of both solves, the largest over the batch's chunks.
    """

    velocity: Tensor
    state: SinkhornState | None
    error: Tensor
    n_iterations: int


def _half_square_norm(cloud: Tensor) -> Tensor:
    return cloud.square().sum(-1) / 2


def _log_weights(weights: Tensor) -> Tensor:
    return weights.clamp_min(SMALLEST_MASS).log()


def _log_ratio(wanted: Tensor, got: Tensor) -> Tensor:
    """``log(wanted / got)``; a point without weight has nothing to correct."""
    ratio = (wanted / got.clamp_min(SMALLEST_MASS)).clamp_min_(SMALLEST_MASS).log_()
    return ratio.mul_(wanted.sign())


def _zero_mean(values: Tensor, weights: Tensor) -> Tensor:
    return values - (values * weights).sum(-1, keepdim=True)


class _Options(NamedTuple):
    """How to solve: to which error, within how many iterations, in which memory.

    Potentials alone need no projection, which is half of a solve in many dimensions.
    """

    tol: float
    max_iter: int
    memory: KernelMemory
    projects: bool = True


class _Annealing(NamedTuple):
    """Falling temperatures from ``start`` times the clouds' squared radii, by ``factor`` each.

    A temperature is left at a marginal error of ``tol``, or after ``max_iter`` iterations.
    """

    start: float
    factor: float
    tol: float
    max_iter: int


QUICK_ANNEALING = _Annealing(start=0.007, factor=8.0, tol=0.1, max_iter=20)


class _Anderson:
    """Type-II Anderson mixing of the fixed points ``h <- h + r(h)`` of a batch of problems.

    The history has a fixed number of rows; those still empty, or forgotten, get no weight.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        shape = weights.shape[0], ANDERSON_MEMORY, weights.shape[1]
        self.steps, self.changes, self.weighted = (weights.new_zeros(shape) for _ in range(3))
        self.previous: tuple[Tensor, Tensor] | None = None
        self.oldest = 0

    def forget(self, problems: Tensor) -> None:
        """Restart some problems (boolean mask): without history the next step is a plain one."""
        for history in (self.steps, self.changes, self.weighted):
            history[problems] = 0

    def next(self, h: Tensor, r: Tensor) -> Tensor:
        if self.previous is not None:
            histories = self.steps, self.changes, self.weighted
            step, change, weighted = (history[:, self.oldest] for history in histories)
            torch.sub(r, self.previous[1], out=change)
            torch.sub(h, self.previous[0], out=step).add_(change)
            torch.mul(self.weights, change, out=weighted)
            self.oldest = (self.oldest + 1) % ANDERSON_MEMORY
        self.previous = h, r
        normal = torch.bmm(self.weighted, self.changes.mT)
        normal.diagonal(dim1=1, dim2=2).mul_(1 + 1e-6).add_(SMALLEST_MASS)
        mix = torch.linalg.solve_ex(normal, torch.bmm(self.weighted, r[..., None]))[0]
        return torch.baddbmm((h + r)[:, None], mix.mT, self.steps, alpha=-1)[:, 0]


class _CrossProblem:
    """Clouds ``x`` and ``y`` with the storage for their kernel at any temperature.

    Each cloud is centred on its own mean, so that far clouds cost no accuracy: the plan is the
    same, and potentials differ by ``tilt``, linear in y. Methods but :meth:`solve` speak of the
    centred clouds.
    """

    def __init__(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor, memory: KernelMemory) -> None:
        mean_x, self.mean_y = _weighted_mean(x, a), _weighted_mean(y, b)
        self.x, self.y, self.a, self.b = x - mean_x, y - self.mean_y, a, b
        self.tilt = torch.bmm(mean_x - self.mean_y, self.y.mT)[:, 0]
        self.yy = _half_square_norm(self.y)
        self.storage = DenseKernel if memory.stores(x, y) else StreamedKernel
        self.buffer = memory.buffer(x, y)
        self.products = memory.products(self.x, self.y)

    def kernel(self, g: Tensor, eps: Tensor) -> DenseKernel | StreamedKernel:
        """Build the kernel at the potential ``g``; ``eps`` has shape (B, 1)."""
        bias = (g - self.yy) / eps + _log_weights(self.b)
        if self.products is not None:
            return RescaledKernel(self.products, eps, bias, self.a, self.buffer)
        scale = eps.rsqrt()[..., None]
        return self.storage(self.x * scale, self.y * scale, bias, self.a, self.buffer)

    def normal_start(self, eps: Tensor) -> Tensor:
        """Potential in closed form if both clouds were isotropic normal laws (Janati et al. 2020).

        There ``E[x | y] = h y`` with ``h = (sqrt(var_x var_y + eps^2/4) - eps/2) / var_y``, and
        ``grad g(y) = y - E[x | y]``.
        """
        var_x, var_y = (spread / self.y.shape[-1] for spread in self.square_radii())
        h = ((var_x * var_y + eps**2 / 4).sqrt() - eps / 2) / var_y.clamp_min(SMALLEST_MASS)
        return _zero_mean((1 - h) * self.yy, self.b)

    def square_radii(self) -> tuple[Tensor, Tensor]:
        """Mean squared distance of each cloud to its mean, of shape (B, 1)."""
        xx = 2 * _half_square_norm(self.x)
        return (self.a * xx).sum(-1, keepdim=True), (self.b * 2 * self.yy).sum(-1, keepdim=True)

    def anneal(self, eps: Tensor, schedule: _Annealing) -> tuple[Tensor, int]:
        """Start for a cold solve: from normal laws, a few iterations at falling temperatures."""
        ratio = (schedule.start * sum(self.square_radii()) / eps).nan_to_num(nan=1.0)
        ratio = ratio.clamp(1, 1 / SMALLEST_MASS)
        n_levels = math.ceil(math.log(float(ratio.max()), schedule.factor))
        g, n_iterations = self.normal_start(eps * ratio), 0
        for level in range(n_levels):
            temperature = eps * ratio ** (1 - level / n_levels)
            solved, _, _ = self.iterate(g, temperature, schedule.tol, schedule.max_iter)
            g, n_iterations = solved.potential, n_iterations + solved.n_iterations
        return g, n_iterations

    def iterate(
        self, g: Tensor, eps: Tensor, tol: float, max_iter: int
    ) -> tuple[Potential, DenseKernel | StreamedKernel, Tensor]:
        """Accelerated iterations at one temperature; also the kernel and its best correction."""
        kernel = self.kernel(g, eps)
        h = best_h = best_step = torch.zeros_like(g)
        best = torch.full_like(g[:, :1], torch.inf)
        anderson = _Anderson(self.b)
        for iteration in range(1, max_iter + 1):
            marginal = kernel.marginal(h)
            error = (marginal - self.b).abs_().sum(-1, keepdim=True)
            step = _log_ratio(self.b, marginal)
            better = error < best
            if bool(better.all()):
                failed, best, best_h, best_step = ~better, error, h, step
            else:
                failed = ~(error < RESTART_GROWTH * best)
                best = torch.where(better, error, best)
                best_h = torch.where(better, h, best_h)
                best_step = torch.where(better, step, best_step)
                h, step = torch.where(failed, best_h, h), torch.where(failed, best_step, step)
            if iteration == max_iter or float(best.max()) < tol:
                break
            # Plain steps never fail: one from the best potential after a failure, and all long ones
            plain = failed | (step.abs().amax(-1, keepdim=True) > MAX_MIXED_STEP)
            if bool(plain.any()):
                anderson.forget(plain[:, 0])
                h = torch.where(plain, h + step, anderson.next(h, step))
            else:
                h = anderson.next(h, step)
        g = _zero_mean(g + eps * best_h, self.b)
        return Potential(g, best[:, 0], iteration), kernel, best_h

    def solve(
        self,
        g: Tensor | None,
        eps: Tensor,
        options: _Options,
        annealing: _Annealing = QUICK_ANNEALING,
    ) -> tuple[Potential, Tensor | None]:
        """Return the converged potential and the barycentric projection of ``x``, if wanted."""
        g, n_annealing = self.anneal(eps, annealing) if g is None else (g + self.tilt, 0)
        solved, kernel, h = self.iterate(g, eps, options.tol, options.max_iter)
        g, n_iterations = solved.potential - self.tilt, n_annealing + solved.n_iterations
        solved = Potential(_zero_mean(g, self.b), solved.error, n_iterations)
        mean = kernel.project(h, self.y) + self.mean_y if options.projects else None
        return solved, mean


def _solve_cross(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor | None,
    eps: Tensor,
    options: _Options,
) -> tuple[Potential, Tensor | None]:
    """Solve the problems of a batch; those that stall once more, cooled patiently.

    Between far clusters that hold unequal shares, mass must cross gaps that iterations at the final
    temperature can't see.
    """
    solved, mean = _CrossProblem(x, y, a, b, options.memory).solve(g, eps, options)
    level_tol = max(options.tol, STALLED_ERROR)
    stalled = (solved.error > level_tol).nonzero()[:, 0]
    if len(stalled):
        patient = _Annealing(start=1.0, factor=1.5, tol=level_tol, max_iter=options.max_iter)
        problem = _CrossProblem(*(cloud[stalled] for cloud in (x, y, a, b)), options.memory)
        again, new_mean = problem.solve(None, eps[stalled], options, patient)
        better = again.error < solved.error[stalled]
        rows = stalled[better]
        solved.potential[rows], solved.error[rows] = again.potential[better], again.error[better]
        if options.projects:
            mean[rows] = new_mean[better]
        solved = solved._replace(n_iterations=solved.n_iterations + again.n_iterations)
    return solved, mean


def _solve_self(
    x: Tensor, a: Tensor, f: Tensor | None, eps: Tensor, options: _Options
) -> tuple[Potential, Tensor | None]:
    """Solve the symmetric problem by a relaxed fixed point, which contracts at any temperature."""
    center = _weighted_mean(x, a)
    x, log_a = x - center, _log_weights(a)
    if f is None:
        f = -eps / 4 * log_a  # half way between eps = 0 and eps = infinity
    storage = DenseSelfPlan if options.memory.stores(x, x) else StreamedSelfPlan
    bias = (f - _half_square_norm(x)) / eps + log_a
    plan = storage(x * eps.rsqrt()[..., None], bias, options.memory.buffer(x, x))
    u = torch.ones_like(a)
    for iteration in range(1, options.max_iter + 1):  # noqa: B007
        marginal = plan.marginal(u)
        error = (marginal - a).abs().sum(-1)
        u = u * (SELF_RELAXATION * _log_ratio(a, marginal)).exp()
        if float(error.max()) < options.tol:
            break
    f, mean = f + eps * u.log(), plan.project(u, x) + center if options.projects else None
    if bool((a == 0).any()):  # rows without mass were not solved for: extend the others' potential
        blur = float(eps[0, 0]) ** 0.5
        f = extend_potential(x, x, f, a, blur=blur)
        if options.projects:
            mean = barycentric_projection(x, x, f, a, blur=blur) + center
    error = error.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return Potential(f, error, iteration), mean


@torch.no_grad()
def cross_potential(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    blur: float,
    init: Tensor | None = None,
    tol: float = 1e-3,
    max_iter: int = 200,
    max_bytes: int = MAX_DENSE_BYTES,
) -> Potential:
    """Target potential ``g`` of the transport from ``x`` to ``y``; its weighted mean is zero.

    Parameters
    ----------
    x : Tensor of shape (B, n, d)
        Particles.
    y : Tensor of shape (B, m, d)
        Target points, same dtype and device.
    a, b : Tensor of shape (B, n) and (B, m), default=None
        Weights that sum to one; None means equal weights.
    blur : float
        Square root of the temperature, in units of length.
    init : Tensor of shape (B, m), default=None
        Potential to start from; None starts from that of normal laws and cools down.
    tol : float, default=1e-3
        The solve stops once the L1 error of every problem's marginal is below.
    max_iter : int, default=200
        Bound on the iterations at each temperature.
    max_bytes : int, default=2**29
        The kernel is stored while it fits in this memory, else recomputed by blocks of rows.

    Returns
    -------
    Potential

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.sinkhorn import cross_potential
    >>> x, y = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    >>> cross_potential(x, y, blur=0.5).potential
    tensor([[0.]])
    """
    a, b = weights_or_equal(x, a), weights_or_equal(y, b)
    options = _Options(tol, max_iter, KernelMemory(max_bytes), projects=False)
    return _solve_cross(x, y, a, b, init, _temperature(y, blur), options)[0]


@torch.no_grad()
def self_potential(
    x: Tensor,
    a: Tensor | None = None,
    *,
    blur: float,
    init: Tensor | None = None,
    tol: float = 1e-3,
    max_iter: int = 200,
    max_bytes: int = MAX_DENSE_BYTES,
) -> Potential:
    """Symmetric potential of the transport of a cloud to itself.

    The parameters are those of :func:`cross_potential`.

    Returns
    -------
    Potential

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.sinkhorn import self_potential
    >>> x = torch.tensor([[[0.0], [100.0]]])  # far apart: f = -eps/2 log(1/2)
    >>> self_potential(x, blur=1.0, tol=1e-6).potential
    tensor([[0.3465, 0.3465]])
    """
    a = weights_or_equal(x, a)
    options = _Options(tol, max_iter, KernelMemory(max_bytes), projects=False)
    return _solve_self(x, a, init, _temperature(x, blur), options)[0]


def extend_potential(
    query: Tensor, y: Tensor, g: Tensor, b: Tensor | None = None, *, blur: float
) -> Tensor:
    """Potential at points that need not belong to a cloud, from the potential on the other cloud.

    ``f(x) = -eps log sum_j b_j exp((g_j - |x - y_j|^2 / 2) / eps)``, computed by blocks of rows.

    Parameters
    ----------
    query : Tensor of shape (B, q, d)
        Where to evaluate.
    y : Tensor of shape (B, m, d)
        Cloud that carries the known potential.
    g : Tensor of shape (B, m)
        Its potential, as :func:`cross_potential` or :func:`self_potential` give it.
    b : Tensor of shape (B, m), default=None
        Its weights; None means equal weights.
    blur : float
        The blur that ``g`` was solved with.

    Returns
    -------
    Tensor of shape (B, q)

    Examples
    --------
    Half the squared distance to a single point:

    >>> import torch
    >>> from sknsgf.flow.sinkhorn import extend_potential
    >>> query, y = torch.tensor([[[0.0], [3.0]]]), torch.tensor([[[1.0]]])
    >>> extend_potential(query, y, torch.zeros(1, 1), blur=1.0)
    tensor([[0.5000, 2.0000]])
    """
    query, keys, bias = _extension(query, y, g, b, blur)
    rows = []
    for block in row_blocks(query, keys):
        entries, largest = scaled_exponentials(query[:, block], keys, bias)
        rows.append(entries.sum(-1).log() + largest[..., 0])
    return blur**2 * (_half_square_norm(query) - torch.cat(rows, 1))


def barycentric_projection(
    query: Tensor, y: Tensor, g: Tensor, b: Tensor | None = None, *, blur: float
) -> Tensor:
    """Plan-weighted mean of ``y`` seen from each query point: it minus the gradient of ``f``.

    The parameters are those of :func:`extend_potential`; new points are welcome.

    Returns
    -------
    Tensor of shape (B, q, d)

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.sinkhorn import barycentric_projection
    >>> query, y = torch.tensor([[[0.0], [9.0]]]), torch.tensor([[[-1.0], [1.0]]])
    >>> barycentric_projection(query, y, torch.zeros(1, 2), blur=1.0)
    tensor([[[0.],
             [1.]]])
    """
    center = y.mean(1, keepdim=True)
    out = []
    for block in row_blocks(query, y):
        plan = plan_rows(query[:, block], y, g, b, blur=blur)
        out.append(row_sums(plan, y - center) / plan.sum(-1, keepdim=True))
    return torch.cat(out, 1) + center


def plan_rows(
    query: Tensor, y: Tensor, g: Tensor, b: Tensor | None = None, *, blur: float
) -> Tensor:
    """Rows of the plan at query points, each divided by its largest entry.

    The parameters are those of :func:`extend_potential`; nothing is cut into blocks.

    Returns
    -------
    Tensor of shape (B, q, m)
    """
    return scaled_exponentials(*_extension(query, y, g, b, blur))[0]


@torch.no_grad()
def sinkhorn_velocity(
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
    """Velocity of the gradient flow of the Sinkhorn divergence from the particles to the target.

    ``v(x_i) = T_xy(x_i) - T_xx(x_i)``: minus the gradient of the Sinkhorn divergence at ``x_i``,
    per unit of mass (Feydy et al. 2019). Both projections come from potentials; no autograd.

    Parameters
    ----------
    x, y, a, b, blur, tol, max_iter, max_bytes
        As in :func:`cross_potential`; the self-problem is solved to ``tol / 3``.
    state : SinkhornState, default=None
        Start of both solves, from an earlier call on the same target:
        ``state.after_step(step_size)``.

    Returns
    -------
    SinkhornVelocity

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.sinkhorn import sinkhorn_velocity
    >>> x = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    >>> shift = torch.tensor([3.0, -1.0])
    >>> v = sinkhorn_velocity(x, x + shift, blur=0.5, tol=1e-5).velocity
    >>> bool(torch.allclose(v, shift.expand_as(v), atol=1e-3))
    True
    """
    a, b = weights_or_equal(x, a), weights_or_equal(y, b)
    options, results = _Options(tol, max_iter, KernelMemory(max_bytes)), []
    for chunk in _problem_chunks(x, y, max_bytes):
        start = None if state is None else SinkhornState(*(_rows(s, chunk) for s in state))
        clouds = (points[chunk] for points in (x, y, a, b))
        results.append(_solve_velocity(*clouds, blur, start, options))
    velocity, target, own, error, iterations = zip(*results, strict=True)
    state = SinkhornState(torch.cat(target), torch.cat(own))
    return SinkhornVelocity(torch.cat(velocity), state, torch.cat(error), max(iterations))


def _solve_velocity(x, y, a, b, blur, state, options):
    eps = _temperature(y, blur)
    g, f = (None, None) if state is None else state
    own, own_mean = _solve_self(x, a, f, eps, options._replace(tol=options.tol / 3))
    cross, target_mean = _solve_cross(x, y, a, b, g, eps, options)
    error = torch.maximum(own.error, cross.error)
    n_iterations = own.n_iterations + cross.n_iterations
    return target_mean - own_mean, cross.potential, own.potential, error, n_iterations


def _rows(potential: Tensor | None, chunk: slice) -> Tensor | None:
    return None if potential is None else potential[chunk]


def _problem_chunks(x: Tensor, y: Tensor, max_bytes: int) -> list[slice]:
    """Problems solved together: as many as keep their kernels in the cache (CPU) or the budget."""
    one = x.shape[1] * max(x.shape[1], y.shape[1]) * x.element_size()
    size = max(1, (CACHE_BYTES if x.device.type == "cpu" else max_bytes) // one)
    return [slice(start, start + size) for start in range(0, x.shape[0], size)]


def weights_or_equal(cloud: Tensor, weights: Tensor | None) -> Tensor:
    """The weights themselves, or equal ones for None."""
    return cloud.new_full(cloud.shape[:2], 1 / cloud.shape[1]) if weights is None else weights


def _weighted_mean(cloud: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights[:, None], cloud)


def _temperature(cloud: Tensor, blur: float) -> Tensor:
    return cloud.new_full((cloud.shape[0], 1), blur**2)


def _extension(query, y, g, b, blur):
    """Queries, keys and the keys' bias: ``<q_i, k_j> + bias_j`` are exponents at new points."""
    center = y.mean(1, keepdim=True)
    keys = (y - center) / blur
    bias = g / blur**2 - _half_square_norm(keys) + weights_or_equal(y, b).log()
    return (query - center) / blur, keys, bias
