"""Two phases of a flow, one after the other: Sinkhorn steps, then a straight flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sknsgf.flow.integration import (
    Velocity,
    integrate,
    integrate_back,
    invert_euler,
    least_remaining_back,
)


class TwoPhases(NamedTuple):
    """The learned fields of both phases and how they are followed.

    Attributes
    ----------
    sinkhorn : callable (x, t) -> Tensor of shape (n, d)
        Field of the first phase, followed by ``n_sinkhorn_steps`` Euler steps.
    straight : callable (smallest_remaining) -> field
        Field of the second phase, given the bound of
        :func:`~sknsgf.flow.networks.velocity_field` on the remaining time.
    start_time : callable x -> Tensor of shape (n,), or None
        Predicted time at which a point enters the second phase, cut to [0, 1] here; None is time 0
        for all.
    n_sinkhorn_steps, n_straight_steps : int
        Steps of each phase; points are left where they are by 0 straight steps.
    method : {"euler", "midpoint", "rk4"}
        Integration of the straight phase.
    """

    sinkhorn: Velocity
    straight: Callable[[float | Tensor], Velocity]
    start_time: Callable[[Tensor], Tensor] | None
    n_sinkhorn_steps: int
    n_straight_steps: int
    method: str

    def forward(self, x: Tensor, return_trajectory: bool = False) -> Tensor:
        """Carry points (n, d) to the target; a trajectory has shape (n_times, n, d)."""
        first = integrate(
            self.sinkhorn, x, n_steps=self.n_sinkhorn_steps, return_trajectory=return_trajectory
        ).x
        if self.n_straight_steps == 0:
            return first
        x = first[-1] if return_trajectory else first
        start = 0.0 if self.start_time is None else self._start_time(x)
        second = integrate(
            self.straight(self._half_step(1 - start)),
            x,
            n_steps=self.n_straight_steps,
            method=self.method,
            start=start,
            return_trajectory=return_trajectory,
        ).x
        return torch.cat([first, second[1:]]) if return_trajectory else second

    def backward(self, x: Tensor) -> Tensor:
        """Carry points (n, d) of the target back to the source.

        The straight flow is integrated backward, each point to the time at which it would have
        entered it; the Sinkhorn steps are inverted one by one.
        """
        steps = self.n_straight_steps
        if steps and self.start_time is None:
            field = self.straight(least_remaining_back(self.method, steps))
            x = integrate(field, x, n_steps=steps, method=self.method, backward=True).x
        elif steps:  # to a time of each point's own only Euler steps lead
            field = self.straight(least_remaining_back("euler", steps))
            x = integrate_back(field, x, self._start_time, n_steps=steps).x
        return invert_euler(self.sinkhorn, x, n_steps=self.n_sinkhorn_steps)

    def _start_time(self, x: Tensor) -> Tensor:
        return self.start_time(x).clamp(0, 1)

    def _half_step(self, duration: float | Tensor) -> float | Tensor:
        """Half a step, and never zero: what is divided by it is then multiplied by zero."""
        half = duration / (2 * self.n_straight_steps)
        return half.clamp_min(1e-6) if isinstance(half, Tensor) else half
