"""Fixed-step integration of a velocity field over the flow time [0, 1], in either direction."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x, t), shapes (n, d) and (n,) -> (n, d)
TimedField = Callable[[Tensor, float], Tensor]  # the same, with one time for all rows


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


def _euler_step(field: TimedField, x: Tensor, start: float, end: float) -> Tensor:
    """Move with the velocity at the earlier flow time, as a field may be singular at time 1."""
    return x + (end - start) * field(x, min(start, end))


def _midpoint_step(field: TimedField, x: Tensor, start: float, end: float) -> Tensor:
    """Move with the velocity halfway."""
    half = (end - start) / 2
    return x + 2 * half * field(x + half * field(x, start), start + half)


def _rk4_step(field: TimedField, x: Tensor, start: float, end: float) -> Tensor:
    """Move with the weighted mean of the four velocities of Runge and Kutta."""
    half = (end - start) / 2
    v1 = field(x, start)
    v2 = field(x + half * v1, start + half)
    v3 = field(x + half * v2, start + half)
    v4 = field(x + 2 * half * v3, end)
    return x + half / 3 * (v1 + 2 * v2 + 2 * v3 + v4)


METHODS = {"euler": _euler_step, "midpoint": _midpoint_step, "rk4": _rk4_step}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "rk4": 4}


def integrate(
    velocity: Velocity,
    x: Tensor,
    *,
    n_steps: int,
    method: str = "euler",
    backward: bool = False,
    return_trajectory: bool = False,
) -> Integration:
    """Integrate dx/dt = velocity(x, t) from time 0 to time 1 in equal steps.

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
    backward : bool, default=False
        Integrate from time 1 to time 0. Euler then takes each step's velocity at the earlier time,
        so that the field is never evaluated at time 1; the other methods do evaluate it there.
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

    def field(x: Tensor, t: float) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += 1
        return velocity(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))

    times = [k / n_steps for k in range(n_steps + 1)]
    trajectory = [x] if return_trajectory else None
    for start, end in pairwise(reversed(times) if backward else times):
        x = METHODS[method](field, x, start, end)
        if trajectory is not None:
            trajectory.append(x)
    return Integration(x if trajectory is None else torch.stack(trajectory), n_evaluations)
