"""Least-squares training of a network on drawn batches. Knows nothing of flows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sknsgf.flow.recording import Recorded

Batch = tuple[Tensor, ...]  # what the network is called with, and last the targets
SCHEDULES = ("cosine", "constant")
CHECK_EVERY = 100  # iterations between two looks at the losses (each look waits for the device)
EVALUATED_ROWS = 2**9  # of held-out data, at a time: bounds the memory of the layers


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


def mean_squared_error(
    network: nn.Module, batch: Batch, loss_weight: Callable[..., Tensor] | None = None
) -> Tensor:
    """Mean over rows and features of the squared difference to the targets.

    Parameters
    ----------
    network : nn.Module
        Called with all but the last tensor of the batch.
    batch : tuple of Tensor
        For a velocity ``(x, t, target)`` of shapes (n, d), (n,) and (n, d).
    loss_weight : callable, default=None
        Gives weights of the rows, of shape (n,), from what the network is called with; None is 1
        for all. Targets then have shape (n, d).

    Returns
    -------
    Tensor of shape ()
    """
    *inputs, target = batch
    squares = (network(*inputs) - target).square()
    if loss_weight is not None:
        squares = loss_weight(*inputs)[:, None] * squares
    return squares.mean()


def fit_regression(
    network: nn.Module,
    draw: Callable[[], Batch],
    *,
    n_iterations: int,
    learning_rate: float = 4e-3,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    ema_decay: float = 0.999,
    loss_weight: Callable[..., Tensor] | None = None,
    validation: Batch | None = None,
    tol: float = 1e-4,
    n_iter_no_change: int = 10,
    pretrained: bool = False,
    on_iteration: Callable[[int], None] | None = None,
    on_check: Callable[[_Run], bool] | None = None,
    state: dict | None = None,
    share_batches: bool = False,
    record: bool = False,
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
    loss_weight : callable (x, t) -> Tensor of shape (n,), default=None
        Weights of the squared errors of the rows, in all losses; None is 1 for all.
    validation : (x, t, target), default=None
        Held-out data. With it, training stops once ``n_iter_no_change`` checks in a row did not
        lower its loss by a share ``tol``, and the best network is returned.
    tol, n_iter_no_change
        See ``validation``.
    pretrained : bool, default=False
        Whether the weights that the network has at the start may be the best on held-out data.
    on_iteration : callable (iteration), default=None
        Called after each gradient step.
    on_check : callable (run) -> bool, default=None
        Called at each look at the losses, every ``CHECK_EVERY`` iterations and after the last;
        ``run.result()`` is what is returned when it answers True, which ends the training, and
        ``run.state()`` is what another call needs to go on from here.
    state : dict, default=None
        State of a training with the same arguments, to go on from: the result is the same, bit by
        bit, if ``draw`` goes on as well.
    share_batches : bool, default=False
        Whether each process of a ``torch.distributed`` group takes an equal part of the rows of
        each batch, which must be the same in all processes.
    record : bool, default=False
        Whether, on a GPU, steps are recorded once and replayed, which is far faster where networks
        are small. The network must do the same whatever the values it is called with; shared
        batches are not recorded.

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
    options = loss_weight, share_batches, record
    run = _Run(network, learning_rate, weight_decay, ema_decay, *options)
    if state is not None:
        run.load_state(state)
    network.train()
    with run:
        if pretrained and run.iteration == 0 and validation is not None:
            run.keep_if_best(validation)
        while run.iteration < n_iterations and not run.is_stopped:
            if schedule == "cosine":
                progress = run.iteration / n_iterations
                run.set_learning_rate(learning_rate * (1 + math.cos(math.pi * progress)) / 2)
            run.step(draw())
            if on_iteration is not None:
                on_iteration(run.iteration)
            if run.iteration % CHECK_EVERY and run.iteration < n_iterations:
                continue
            run.look(validation, tol, n_iter_no_change)
            if on_check is not None and on_check(run):
                run.is_stopped = True
    return run.result()


class _Run:
    """A training under way."""

    _PLAIN = ("iteration", "is_stopped", "losses", "validation_losses", "best_loss", "n_bad")

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        ema_decay: float,
        loss_weight: Callable[..., Tensor] | None,
        share_batches: bool,
        record: bool,
    ) -> None:
        self.network, self.loss_weight = network, loss_weight
        self.replica = DistributedDataParallel(network) if share_batches else network
        device = next(network.parameters()).device
        self.records = record and device.type == "cuda" and not share_batches
        self.learning_rate: float | Tensor = learning_rate
        if self.records:  # numbers outside of tensors stay what they were when they were recorded
            self.learning_rate = torch.tensor(learning_rate, dtype=torch.float32, device=device)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=self.learning_rate,
            weight_decay=weight_decay,
            fused=True,
            capturable=self.records,
        )
        update = partial(_gradient_step, self.replica, self.optimizer, loss_weight)
        self.update = Recorded(update, device) if self.records else update
        self.average = _Average(network, ema_decay)
        self.iteration, self.is_stopped = 0, False
        self.losses: list[float] = []
        self.latest: list[Tensor] = []  # until the next look; kept longer they scatter the heap
        self.validation_losses: list[float] = []
        self.best: nn.Module | None = None
        self.best_loss, self.n_bad = math.inf, 0

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, *error: object) -> None:
        """Give back what a recording holds."""
        if self.records:
            self.update.close()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        if self.records:
            self.learning_rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate

    def step(self, batch: Batch) -> None:
        """Take a gradient step."""
        if self.replica is not self.network:
            batch = _share_of(batch)
        loss = self.update(*batch)
        self.iteration += 1
        self.average.update(self.iteration)
        self.latest.append(loss)

    def look(self, validation: Batch | None, tol: float, n_iter_no_change: int) -> None:
        """Look at the losses since the last time, and at the held-out loss."""
        losses = torch.stack(self.latest)
        if self.replica is not self.network:
            dist.all_reduce(losses)
            losses /= dist.get_world_size()
        self.losses += _finite_numbers(losses, self.iteration)
        self.latest.clear()
        if validation is None:
            return
        last_best = self.best_loss
        held_out = self.keep_if_best(validation)
        self.validation_losses.append(held_out)
        self.n_bad = 0 if held_out < last_best * (1 - tol) else self.n_bad + 1
        self.is_stopped = self.n_bad >= n_iter_no_change

    def keep_if_best(self, validation: Batch) -> float:
        """Held-out loss of the average until now, which is kept if this is the lowest."""
        held_out = _evaluate(self.average.network, validation, self.loss_weight)
        if not math.isfinite(held_out):
            raise DivergenceError(
                f"the held-out loss is not finite after {self.iteration} iterations"
            )
        if held_out < self.best_loss:
            self.best, self.best_loss = copy.deepcopy(self.average.network), held_out
        return held_out

    def result(self) -> Regression:
        """What the training has come to."""
        chosen = self.average.network if self.best is None else self.best
        _check_finite_weights(chosen)
        return Regression(chosen, list(self.losses), list(self.validation_losses))

    def state(self) -> dict:
        """All that :meth:`load_state` needs to go on, in tensors and plain values."""
        state = {
            **{name: getattr(self, name) for name in self._PLAIN},
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": dict(self.average.network.state_dict()),
            "best": None if self.best is None else dict(self.best.state_dict()),
        }
        return copy.deepcopy(state)  # the training goes on

    def load_state(self, state: dict) -> None:
        """Go on from what :meth:`state` gave in a training with the same arguments."""
        for name in self._PLAIN:
            setattr(self, name, copy.copy(state[name]))
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # What a recording needs to be its own.
        self.optimizer.param_groups[0].update(lr=self.learning_rate, capturable=self.records)
        self.average.network.load_state_dict(state["average"])
        if state["best"] is not None:
            self.best = copy.deepcopy(self.average.network)
            self.best.load_state_dict(state["best"])


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


def _gradient_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_weight: Callable[..., Tensor] | None,
    *batch: Tensor,
) -> Tensor:
    """Move the weights against the gradient of the loss, and return the loss."""
    optimizer.zero_grad()
    loss = mean_squared_error(network, batch, loss_weight)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _share_of(batch: Batch) -> Batch:
    """Rows of a batch that belong to this process."""
    rows = slice(dist.get_rank(), None, dist.get_world_size())
    return tuple(part[rows] for part in batch)


def _finite_numbers(losses: Tensor, iteration: int) -> list[float]:
    numbers = losses.tolist()
    if not all(map(math.isfinite, numbers)):
        raise DivergenceError(f"the loss is not finite after {iteration} iterations")
    return numbers


def _check_finite_weights(network: nn.Module) -> None:
    """Find what the last step spoilt: no loss was computed after it."""
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise DivergenceError("the weights are not finite after the last iteration")


@torch.no_grad()
def _evaluate(network: nn.Module, batch: Batch, loss_weight: Callable[..., Tensor] | None) -> float:
    """Mean squared error of a batch, which may be too large for the layers of all its rows."""
    parts = zip(*(part.split(EVALUATED_ROWS) for part in batch), strict=True)
    total = sum(len(part[0]) * mean_squared_error(network, part, loss_weight) for part in parts)
    return float(total) / len(batch[0])
