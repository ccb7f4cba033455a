"""Least-squares training of a network on drawn batches. Knows nothing of flows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]  # what the network is called with, and last the targets
SCHEDULES = ("cosine", "constant")
CHECK_EVERY = 100  # iterations between two looks at the losses (each look waits for the device)


class DivergenceError(ValueError):
    """The loss or the weights are no longer finite numbers."""


class Regression(NamedTuple):
    """What :func:`fit_regression` returns.

    Attributes
    ----------
    network : nn.Module
        The averaged network, or the best one on held-out data.
    losses : list of float
        Mean squared error of the batch at each iteration.
    validation_losses : list of float
        Mean squared error on the held-out data, every ``CHECK_EVERY`` iterations.
    """

    network: nn.Module
    losses: list[float]
    validation_losses: list[float]


def mean_squared_error(network: nn.Module, batch: Batch) -> Tensor:
    """Mean over rows and features of the squared difference to the targets.

    Parameters
    ----------
    network : nn.Module
        Called with all but the last tensor of the batch.
    batch : tuple of Tensor
        For a velocity ``(x, t, target)`` of shapes (n, d), (n,) and (n, d).

    Returns
    -------
    Tensor of shape ()
    """
    *inputs, target = batch
    return (network(*inputs) - target).square().mean()


def fit_regression(
    network: nn.Module,
    draw: Callable[[], Batch],
    *,
    n_iterations: int,
    learning_rate: float = 4e-3,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema_decay: float = 0.999,
    validation: Batch | None = None,
    tol: float = 1e-4,
    n_iter_no_change: int = 10,
    on_iteration: Callable[[int], None] | None = None,
    on_check: Callable[[Callable[[], Regression]], bool] | None = None,
) -> Regression:
    """Train ``network`` in place by AdamW on the mean squared error, and return its average.

    Parameters
    ----------
    network : nn.Module
        Called as ``network(x, t)``; its parameters live on the device of the batches. It ends with
        the last weights; what is returned is another module.
    draw : callable () -> (x, t, target)
        Gives the next batch.
    n_iterations : int
        Number of gradient steps, at most.
    learning_rate : float, default=4e-3
        Step size of AdamW at the start.
    schedule : {"cosine", "constant"}, default="cosine"
        "cosine" lets the learning rate fall to zero over ``n_iterations``.
    weight_decay : float, default=0.0
        Decoupled weight decay.
    ema_decay : float, default=0.999
        Decay of the exponential moving average of the weights; 0 returns the last weights.
    validation : (x, t, target), default=None
        Held-out data. With it, training stops once ``n_iter_no_change`` checks in a row did not
        lower its loss by a share ``tol``, and the best network is returned.
    tol, n_iter_no_change
        See ``validation``.
    on_iteration : callable (iteration), default=None
        Called after each gradient step.
    on_check : callable (result) -> bool, default=None
        Called at each look at the losses, every ``CHECK_EVERY`` iterations and after the last;
        ``result()`` is what is returned when it answers True, which ends the training.

    Returns
    -------
    Regression

    Raises
    ------
    DivergenceError
        When a loss, looked at every ``CHECK_EVERY`` iterations, the held-out loss or a final weight
        is not finite.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import VelocityMLP
    >>> from sknsgf.flow.regression import fit_regression
    >>> generator = torch.Generator().manual_seed(0)
    >>> network = VelocityMLP(1, (16,), "silu", generator)
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> batch = x, torch.zeros(64), 2 * x
    >>> losses = fit_regression(network, lambda: batch, n_iterations=50).losses
    >>> len(losses), losses[-1] < losses[0] / 2
    (50, True)
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    average = _Average(network, ema_decay)
    losses: list[float] = []
    latest: list[Tensor] = []  # until the next check; kept for longer, they would scatter the heap
    validation_losses: list[float] = []
    best, best_loss, n_bad = None, math.inf, 0

    def result() -> Regression:
        chosen = average.network if best is None else best
        _check_finite_weights(chosen)
        return Regression(chosen, list(losses), list(validation_losses))

    network.train()
    for iteration in range(1, n_iterations + 1):
        if schedule == "cosine":
            rate = learning_rate * (1 + math.cos(math.pi * (iteration - 1) / n_iterations)) / 2
            optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = mean_squared_error(network, draw())
        loss.backward()
        optimizer.step()
        average.update(iteration)
        latest.append(loss.detach())
        if on_iteration is not None:
            on_iteration(iteration)
        if iteration % CHECK_EVERY and iteration < n_iterations:
            continue
        losses += _finite_numbers(latest, iteration)
        latest.clear()
        if validation is not None:
            held_out = _evaluate(average.network, validation)
            if not math.isfinite(held_out):
                raise DivergenceError(
                    f"the held-out loss is not finite after {iteration} iterations"
                )
            validation_losses.append(held_out)
            n_bad = 0 if held_out < best_loss * (1 - tol) else n_bad + 1
            if held_out < best_loss:
                best, best_loss = copy.deepcopy(average.network), held_out
        asked_to_stop = on_check is not None and on_check(result)
        if asked_to_stop or n_bad >= n_iter_no_change:
            break
    return result()


class _Average:
    """Copy of a network whose weights are the exponential moving average of the network's."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.trained, self.decay = copy.deepcopy(network).eval(), network, decay
        # Collected once, since that takes longer than the update.
        self.weights = list(self.network.parameters()), list(network.parameters())

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Move to the network; the memory grows with the iterations, up to ``decay``."""
        memory = 0.0 if iteration == 1 else min(self.decay, iteration / (9 + iteration))
        torch._foreach_lerp_(*self.weights, 1 - memory)  # all at once, as torch's own averages do
        for kept, current in zip(self.network.buffers(), self.trained.buffers(), strict=True):
            kept.copy_(current)


def _finite_numbers(losses: list[Tensor], iteration: int) -> list[float]:
    numbers = torch.stack(losses).tolist()
    if not all(map(math.isfinite, numbers)):
        raise DivergenceError(f"the loss is not finite after {iteration} iterations")
    return numbers


def _check_finite_weights(network: nn.Module) -> None:
    """Find what the last step spoilt: no loss was computed after it."""
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise DivergenceError("the weights are not finite after the last iteration")


@torch.no_grad()
def _evaluate(network: nn.Module, batch: Batch) -> float:
    return float(mean_squared_error(network, batch))
