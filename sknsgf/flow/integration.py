"""Fixed-step integration of a velocity field over the flow time, in either direction."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x, t), shapes (n, d) and (n,) -> (n, d)
Time = float | Tensor  # one for all points, or one for each, of shape (n, 1)
TimedField = Callable[[Tensor, Time], Tensor]
MEMORY = 2  # past moves that the inversion of a step learns from; more were measured less robust


class Integration(NamedTuple):
    """Result of :func:`integrate`.

    Attributes
    ----------
    x : Tensor of shape (n, d), or (n_steps + 1, n, d) for a trajectory
        The points at the end, or at the start and after each step in order of integration.
    n_evaluations : int
        Number of calls made to the velocity.
    """

    x: Tensor
    n_evaluations: int


def _euler_step(field: TimedField, x: Tensor, start: Time, end: Time) -> Tensor:
    """Move with the velocity at the start."""
    return x + (end - start) * field(x, start)


def _inverse_euler_step(field: TimedField, x: Tensor, start: Time, end: Time) -> Tensor:
    """Move to where a forward Euler step leads here from, by one fixed-point iteration.

    It begins where the velocity at the start leads, which on a straight path is there already.
    """
    guess = x + (end - start) * field(x, start)
    return x + (end - start) * field(guess, end)


def _midpoint_step(field: TimedField, x: Tensor, start: Time, end: Time) -> Tensor:
    """Move with the velocity halfway."""
    half = (end - start) / 2
    return x + 2 * half * field(x + half * field(x, start), start + half)


def _rk4_step(field: TimedField, x: Tensor, start: Time, end: Time) -> Tensor:
    """Move with the weighted mean of the four velocities of Runge and Kutta."""
    half = (end - start) / 2
    v1 = field(x, start)
    v2 = field(x + half * v1, start + half)
    v3 = field(x + half * v2, start + half)
    v4 = field(x + 2 * half * v3, end)
    return x + half / 3 * (v1 + 2 * v2 + 2 * v3 + v4)


METHODS = {"euler": _euler_step, "midpoint": _midpoint_step, "rk4": _rk4_step}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "rk4": 4}


def least_remaining_back(method: str, n_steps: int) -> float:
    """Bound on the remaining time of a field of endpoints that is followed back from time 1.

    Parameters
    ----------
    method : {"euler", "midpoint", "rk4"}
        Scheme of the integration.
    n_steps : int
        Number of its steps.

    Returns
    -------
    float
        For :func:`~sknsgf.flow.networks.velocity_field`. For Euler a whole step, which was measured
        to bring points back more closely than half of one; half a step for the other methods.

    Examples
    --------
    >>> from sknsgf.flow.integration import least_remaining_back
    >>> least_remaining_back("euler", 10), least_remaining_back("midpoint", 10)
    (0.1, 0.05)
    """
    return (1.0 if method == "euler" else 0.5) / n_steps


def integrate(
    velocity: Velocity,
    x: Tensor,
    *,
    n_steps: int,
    method: str = "euler",
    start: float | Tensor = 0.0,
    backward: bool = False,
    return_trajectory: bool = False,
) -> Integration:
    """Integrate dx/dt = velocity(x, t) from time ``start`` to time 1 in equal steps.

    Parameters
    ----------
    velocity : callable (x, t) -> Tensor of shape (n, d)
        The field, for points of shape (n, d) at times of shape (n,).
    x : Tensor of shape (n, d)
        The points at the start; they are not modified.
    n_steps : int
        Number of steps, at least 1.
    method : {"euler", "midpoint", "rk4"}, default="euler"
        Scheme of order 1, 2 or 4, with 1, 2 or 4 evaluations per step.
    start : float or Tensor of shape (n,), default=0.0
        Earliest time, for all points or for each; a point that starts at time 1 stays.
    backward : bool, default=False
        Integrate from time 1 to ``start``. Each Euler step is then solved for where a forward one
        must have begun, by one iteration, with 2 evaluations. The field is evaluated at time 1,
        where one that leads to predicted endpoints needs a bound
        (:func:`~sknsgf.flow.networks.velocity_field`).
    return_trajectory : bool, default=False
        Whether to return the points at the start and after each step.

    Returns
    -------
    Integration
        The points, in the dtype and on the device of `x`, and the number of evaluations.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.integration import integrate
    >>> integrate(lambda x, t: torch.ones_like(x), torch.zeros(1, 2), n_steps=4)
    Integration(x=tensor([[1., 1.]]), n_evaluations=4)
    """
    n_evaluations = 0

    def field(x: Tensor, t: Time) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += 1
        return velocity(x, t[:, 0] if isinstance(t, Tensor) else x.new_full(x.shape[:1], t))

    first = start[:, None] if isinstance(start, Tensor) else start
    times = [first + k / n_steps * (1 - first) for k in range(n_steps + 1)]
    trajectory = [x] if return_trajectory else None
    step = _inverse_euler_step if backward and method == "euler" else METHODS[method]
    for here, there in pairwise(reversed(times) if backward else times):
        x = step(field, x, here, there)
        if trajectory is not None:
            trajectory.append(x)
    return Integration(x if trajectory is None else torch.stack(trajectory), n_evaluations)


def integrate_back(
    velocity: Velocity,
    x: Tensor,
    start_time: Callable[[Tensor], Tensor],
    *,
    n_steps: int,
    return_trajectory: bool = False,
) -> Integration:
    """Integrate from time 1 back, each point to the start time that belongs to where it then is.

    The inverse of :func:`integrate` with ``start=start_time(x)`` up to the error of Euler's method:
    a point stops once the time it has come back to is its own start time.

    Parameters
    ----------
    velocity, x, n_steps, return_trajectory
        As in :func:`integrate`; steps have length ``1 / n_steps`` or what is left.
    start_time : callable x -> Tensor of shape (n,)
        Time between 0 and 1 at which the field takes over a point; evaluated at each step.

    Returns
    -------
    Integration
        ``n_evaluations`` counts the calls made to the velocity.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.integration import integrate_back
    >>> half = lambda x: torch.full((len(x),), 0.5)
    >>> integrate_back(lambda x, t: torch.ones_like(x), torch.ones(1, 1), half, n_steps=4).x
    tensor([[0.5000]])
    """

    def field(x: Tensor, t: Tensor) -> Tensor:
        return velocity(x, t[:, 0])

    t = x.new_ones(len(x))
    trajectory = [x]
    for _ in range(n_steps):
        end = t - (t - start_time(x)).clamp(0, 1 / n_steps)
        x, t = _inverse_euler_step(field, x, t[:, None], end[:, None]), end
        trajectory.append(x)
    return Integration(torch.stack(trajectory) if return_trajectory else x, 2 * n_steps)


def invert_euler(velocity: Velocity, x: Tensor, *, n_steps: int, n_iterations: int = 50) -> Tensor:
    """Where forward Euler steps from time 0 to 1 must have started to end at ``x``.

    Each step ``x = z + h velocity(z, t)`` is solved for ``z`` by damped Anderson iterations, for
    each point on its own. A move that would raise the residual is not made, but remembered, and
    halves the damping: a point ends where the step leads closest. A few large steps are inverted
    far better so than by integrating backward.

    Parameters
    ----------
    velocity, x, n_steps
        As in :func:`integrate`.
    n_iterations : int, default=50
        Evaluations for each step.

    Returns
    -------
    Tensor of shape (n, d)

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.integration import invert_euler
    >>> invert_euler(lambda z, t: 3 * z, torch.tensor([[4.0]]), n_steps=1)
    tensor([[1.]])
    """
    for step in reversed(range(n_steps)):
        t = x.new_full((len(x),), step / n_steps)

        def residual(z: Tensor, t: Tensor = t, end: Tensor = x) -> Tensor:
            return end - z - velocity(z, t) / n_steps

        z, r, damping = x, residual(x), x.new_ones((len(x), 1))
        moves: list[Tensor] = []
        changes: list[Tensor] = []  # of the residual by these moves
        for _ in range(n_iterations - 1):
            move = damping * r
            if moves:
                move = move - _foreseen(moves, changes, r, damping)
            new = residual(z + move)
            moves, changes = [*moves[1 - MEMORY :], move], [*changes[1 - MEMORY :], new - r]
            closer = new.norm(dim=-1, keepdim=True) < r.norm(dim=-1, keepdim=True)
            z, r = torch.where(closer, z + move, z), torch.where(closer, new, r)
            damping = torch.where(closer, (1.5 * damping).clamp_max(1), damping / 2)
        x = z
    return x


def _foreseen(moves: list[Tensor], changes: list[Tensor], r: Tensor, damping: Tensor) -> Tensor:
    """What Anderson's method takes off a damped move, from past moves and what they changed."""
    dz, dr = torch.stack(moves, -1), torch.stack(changes, -1)
    gram = (dr.mT @ dr).double()
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()[..., None]
    ridge = 1e-10 * torch.eye(len(moves), dtype=gram.dtype, device=gram.device)
    normal = gram * norms * norms.mT + ridge
    weights = norms * torch.linalg.solve(normal, norms * (dr.mT @ r[..., None]).double())
    correction = ((dz + damping[..., None] * dr) @ weights.to(r))[..., 0]
    return torch.where(correction.isfinite(), correction, 0)
