"""Simulated particle trajectories of the Sinkhorn flow, and the pool that regression draws from.

Flow time ``t`` runs from 0 to 1 in ``n_steps`` equal intervals: after ``k`` steps of the particle
scheme ``X <- X + step_size v(X)`` a particle is at time ``k / n_steps``, and between two steps it
moves in a straight line. So the velocity per unit of flow time is ``n_steps (X_{k+1} - X_k)``
whatever the step sizes, and positions are all that has to be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sknsgf.flow.sinkhorn import SinkhornVelocity

TIMES = ("continuous", "discrete")
POOL_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Flow(NamedTuple):
    """One batch of simulated minibatch flows.

    Attributes
    ----------
    positions : Tensor of shape (B * n, n_steps + 1, d)
        Where every particle was before the first and after each step.
    error : float
        Largest marginal error of the solves (NaN where the solver reports none).
    """

    positions: Tensor
    error: float


def flow_step_sizes(n_steps: int, step_size: float | str, share: float = 1.0) -> list[float]:
    """Step sizes of the particle scheme.

    ``"auto"`` gives ``share / (n_steps - share * k)``: particles keep their speed and go this share
    of the way; with all of it, the last step, of size 1, ends at the (debiased) barycentres of the
    target. A number gives equal steps, after which a share ``(1 - step_size) ** n_steps`` of the
    way is left when the blur is small.

    Parameters
    ----------
    n_steps : int
        Number of steps, at least 1.
    step_size : float or "auto"
        Size of every step, or steps of constant speed.
    share : float, default=1.0
        Share of the way that steps of constant speed go. Only used with "auto".

    Returns
    -------
    list of float, of length n_steps

    Examples
    --------
    >>> from sknsgf.flow.trajectories import flow_step_sizes
    >>> flow_step_sizes(4, "auto")
    [0.25, 0.3333333333333333, 0.5, 1.0]
    """
    if step_size == "auto":
        return [share / (n_steps - share * k) for k in range(n_steps)]
    return [step_size] * n_steps


def simulate_flow(
    x: Tensor,
    y: Tensor,
    velocity: Callable[..., SinkhornVelocity],
    step_sizes: Sequence[float],
) -> Flow:
    """Move a batch of particle clouds to their target minibatches along the Sinkhorn flow.

    Parameters
    ----------
    x : Tensor of shape (B, n, d)
        Particles at time 0. Each cloud is its own self term at every step: the exact gradient of
        the empirical divergence.
    y : Tensor of shape (B, m, d)
        Targets, the same along the whole flow.
    velocity : callable ``(x, y, *, state)`` -> SinkhornVelocity
        One of the solvers with its options bound.
    step_sizes : sequence of float
        See :func:`flow_step_sizes`; at least one.

    Returns
    -------
    Flow
        Rows of ``positions`` keep the order of the particles, cloud after cloud.

    Examples
    --------
    >>> from functools import partial
    >>> import torch
    >>> from sknsgf.flow.sinkhorn import sinkhorn_velocity
    >>> from sknsgf.flow.trajectories import flow_step_sizes, simulate_flow
    >>> x, y = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    >>> velocity = partial(sinkhorn_velocity, blur=0.5)
    >>> simulate_flow(x, y, velocity, flow_step_sizes(4, "auto")).positions.flatten()
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    state = None
    positions, errors = [x], []
    for step_size in step_sizes:
        solved = velocity(x, y, state=state)
        x = x + step_size * solved.velocity
        state = None if solved.state is None else solved.state.after_step(step_size)
        positions.append(x)
        errors.append(solved.error.max())
    return Flow(torch.stack(positions, 2).flatten(0, 1), float(torch.stack(errors).max()))


class TrajectoryPool:
    """Positions of many simulated particles, drawn as regression data.

    Parameters
    ----------
    positions : Tensor of shape (n_trajectories, n_steps + 1, d)
        Positions of each particle at times ``k / n_steps``; kept, not copied. Half precision is
        for storage only: what is drawn is float32 then.
    time : {"continuous", "discrete"}, default="continuous"
        Whether times are drawn from the interval [0, 1), with positions interpolated between two
        steps, or from the grid ``k / n_steps``.
    target : {"velocity", "endpoint"}, default="velocity"
        What the network learns: the velocity ``u`` per unit of flow time, or the point
        ``x + (1 - t) u`` where this velocity leads to at time 1.
    step_sizes : sequence of float, default=None
        Sizes of the simulated steps. With them an endpoint is instead where a step of size 1 would
        have led to, ``x + v`` for a particle at ``x`` with Sinkhorn velocity ``v``, however much of
        this way the step goes.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.trajectories import TrajectoryPool
    >>> pool = TrajectoryPool(torch.tensor([[[0.0], [1.0], [3.0]]]), time="discrete")
    >>> x, t, u = pool.draw(4, torch.Generator().manual_seed(0))
    >>> sorted(zip(t.tolist(), x.flatten().tolist(), u.flatten().tolist()))
    [(0.0, 0.0, 2.0), (0.0, 0.0, 2.0), (0.5, 1.0, 4.0), (0.5, 1.0, 4.0)]
    """

    def __init__(
        self,
        positions: Tensor,
        *,
        time: str = "continuous",
        target: str = "velocity",
        step_sizes: Sequence[float] | None = None,
    ) -> None:
        self.positions, self.time, self.target = positions, time, target
        self._points = positions.flatten(0, 1)  # selected from in one go, which is far faster
        self.dtype = torch.promote_types(positions.dtype, torch.float32)
        self.step_sizes: Tensor | None = None
        if step_sizes is not None:
            self.step_sizes = positions.new_tensor(step_sizes, dtype=self.dtype)
        self.epoch = positions.new_empty(0, dtype=torch.int64)

    @property
    def n_steps(self) -> int:
        """Number of simulated steps."""
        return self.positions.shape[1] - 1

    def __len__(self) -> int:
        """Count the trajectories."""
        return len(self.positions)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw points, times and targets.

        Trajectories come in epochs without replacement and times are stratified: the same law as
        independent draws, with less noise in the gradient.

        Parameters
        ----------
        n : int
            Number of points; more than there are trajectories is fine.
        generator : torch.Generator
            Source of the randomness, on any device.

        Returns
        -------
        x, t, target : Tensor of shapes (n, d), (n,) and (n, d)
            On the device of the positions.
        """
        rows = self._next_rows(n, generator)
        t = self._stratified_times(n, generator)
        step = (t * self.n_steps).long().clamp_(max=self.n_steps - 1)
        if self.time == "discrete":
            t = step.to(t) / self.n_steps
        start = rows * (self.n_steps + 1) + step
        here = self._points.index_select(0, start).to(self.dtype)
        move = self._points.index_select(0, start + 1) - here
        x = here + (t * self.n_steps - step)[:, None] * move
        velocity = self.n_steps * move
        if self.target == "velocity":
            return x, t, velocity
        if self.step_sizes is None:
            return x, t, x + (1 - t)[:, None] * velocity
        return x, t, here + move / self.step_sizes[step, None]

    def _next_rows(self, n: int, generator: torch.Generator) -> Tensor:
        while len(self.epoch) < n:
            fresh = torch.randperm(len(self), generator=generator, device=generator.device)
            self.epoch = torch.cat([self.epoch, fresh.to(self.epoch.device)])
        rows, self.epoch = self.epoch[:n], self.epoch[n:]
        return rows

    def _stratified_times(self, n: int, generator: torch.Generator) -> Tensor:
        kind = {"generator": generator, "device": generator.device}
        strata = torch.randperm(n, **kind)
        within = torch.rand(n, dtype=torch.float64, **kind)
        t = ((strata + within) / n).to(self.positions.device, self.dtype)
        return t.clamp_(max=1 - torch.finfo(t.dtype).eps / 2)  # rounding may have given 1


class PoolInParts:
    """A pool that is made in parts, one after another, each used for an equal share of the draws.

    Only one part is in memory at a time; the next one to be drawn from is made at once.

    Parameters
    ----------
    make_part : callable (index) -> TrajectoryPool
        Makes the part with a number from 0 to ``n_parts - 1``.
    n_parts : int
        Number of parts.
    n_draws : int
        Number of draws that will be made; later ones come from the last part.
    n_drawn : int, default=0
        Number of draws that were made before.
    """

    def __init__(
        self,
        make_part: Callable[[int], TrajectoryPool],
        n_parts: int,
        n_draws: int,
        n_drawn: int = 0,
    ) -> None:
        self.make_part, self.n_parts, self.n_draws = make_part, n_parts, n_draws
        self.index, self.part = -1, None
        self._move_to(n_drawn)

    def _move_to(self, n_drawn: int) -> None:
        """Have the part for the draw after this many."""
        index = min(n_drawn * self.n_parts // self.n_draws, self.n_parts - 1)
        if index != self.index:
            self.part: TrajectoryPool | None = None  # its memory is needed
            self.part, self.index = self.make_part(index), index
        self.n_drawn = n_drawn

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw as :meth:`TrajectoryPool.draw` does."""
        self._move_to(self.n_drawn)
        self.n_drawn += 1
        return self.part.draw(n, generator)

    def state(self) -> dict[str, int | Tensor]:
        """Where the draws are, for :meth:`load_state`."""
        return {"n_drawn": self.n_drawn, "epoch": self.part.epoch}

    def load_state(self, state: dict[str, int | Tensor]) -> None:
        """Go on with the draws where they were."""
        if state["n_drawn"]:  # the last draw's part has the epoch
            self._move_to(state["n_drawn"] - 1)
        self.n_drawn = state["n_drawn"]
        self.part.epoch = state["epoch"].to(self.part.positions.device)

    def restart(self) -> None:
        """Draw from the first part again, as if nothing had been drawn."""
        self.n_drawn = 0
