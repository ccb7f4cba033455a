"""Velocity fields that trained networks define."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def velocity_field(
    network: nn.Module, target: str, smallest_remaining: float | Tensor = 0.005
) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity field of a trained network.

    The velocity that leads to a predicted endpoint ``e`` is ``(e - x) / (1 - t)``, which has no
    meaning at time 1. Times at which less remains than a bound are taken for the one at which it
    does. With half a step of the integration as the bound, forward Euler and midpoint steps never
    evaluate the field later; backward ones do, at time 1
    (:func:`~sknsgf.flow.integration.least_remaining_back`).

    Parameters
    ----------
    network : callable (x, t) -> Tensor of shape (n, d)
        For points of shape (n, d) at times of shape (n,).
    target : {"velocity", "endpoint"}
        What the network was trained on.
    smallest_remaining : float or Tensor of shape (n,), default=0.005
        Bound on the remaining time, above 0; a tensor holds one for each point. A field of
        velocities makes no use of it.

    Returns
    -------
    callable (x, t) -> Tensor of shape (n, d)

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import velocity_field
    >>> field = velocity_field(lambda x, t: torch.ones_like(x), "endpoint")
    >>> field(torch.zeros(2, 1), torch.tensor([0.0, 0.5]))
    tensor([[1.],
            [2.]])
    """
    if target == "velocity":
        return network

    def field(x: Tensor, t: Tensor) -> Tensor:
        remaining = (1 - t).clamp_min(smallest_remaining)
        return (network(x, t.clamp_max(1 - smallest_remaining)) - x) / remaining[:, None]

    return field


def particle_field(
    network: nn.Module, target: str, step_sizes: Sequence[float]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Field whose Euler steps are those of the particle scheme.

    A predicted endpoint ``e = x + v`` is where a step of size 1 would lead to. Of the ``n`` steps
    over the flow time from 0 to 1, step ``k`` goes a share ``step_sizes[k]`` of this way, at the
    velocity ``n * step_sizes[k] * (e - x)``.

    Parameters
    ----------
    network : callable (x, t) -> Tensor of shape (n, d)
        For points of shape (n, d) at times of shape (n,).
    target : {"velocity", "endpoint"}
        What the network was trained on.
    step_sizes : sequence of float
        Sizes of the steps; the field of endpoints is defined at their times ``k / n`` only.

    Returns
    -------
    callable (x, t) -> Tensor of shape (n, d)

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import particle_field
    >>> field = particle_field(lambda x, t: torch.ones_like(x), "endpoint", [0.3, 0.4])
    >>> field(torch.zeros(2, 1), torch.tensor([0.0, 0.5]))
    tensor([[0.6000],
            [0.8000]])
    """
    if target == "velocity":
        return network
    n_steps = len(step_sizes)

    def field(x: Tensor, t: Tensor) -> Tensor:
        sizes = x.new_tensor(step_sizes)[(t * n_steps).round().long()]
        return n_steps * sizes[:, None] * (network(x, t) - x)

    return field
