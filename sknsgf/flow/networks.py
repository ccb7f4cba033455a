"""Networks that represent a velocity field, and the fields they define."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor, nn

_GLOBAL_GENERATOR = RLock()
ACTIVATIONS = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


class VelocityMLP(nn.Module):
    """Multi-layer perceptron of a point and its flow time.

    Time enters as one more feature (Fourier features of time were measured to hurt in low
    dimension). The weights are drawn from the given generator alone.

    Parameters
    ----------
    n_features : int
        Number of features of a point, and of the output.
    hidden_layer_sizes : sequence of int
        Units of each hidden layer.
    activation : str
        One of ``ACTIVATIONS``.
    generator : torch.Generator
        Source of the initial weights (He et al. 2015, uniform), on the CPU.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import VelocityMLP
    >>> network = VelocityMLP(2, (16, 16), "silu", torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_features: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        sizes = [n_features + 1, *hidden_layer_sizes]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            layers += [
                _linear(n_in, n_out, generator, gain=math.sqrt(2)),
                ACTIVATIONS[activation](),
            ]
        self.layers = nn.Sequential(*layers, _linear(sizes[-1], n_features, generator, gain=1.0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of shape (n, d) for points (n, d) at times (n,)."""
        return self.layers(torch.cat([x, t[:, None]], -1))


def _linear(n_in: int, n_out: int, generator: torch.Generator, gain: float) -> nn.Linear:
    # skip_init and the explicit dtype and device keep global state out: default generator,
    # default dtype, default device.
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32, device="cpu")
    bound = gain * math.sqrt(3 / n_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


def build_network(
    network: str | Callable[[int], nn.Module],
    n_features: int,
    hidden_layer_sizes: Sequence[int],
    activation: str,
    seed: int,
) -> nn.Module:
    """Network of an estimator on the CPU in float32, its initial weights drawn from ``seed``.

    Parameters
    ----------
    network : "mlp" or callable
        A callable builds a module from the number of features. Its layers draw their weights in
        torch's default dtype, so this one setting of the program changes their values.
    n_features : int
        Number of features of a point.
    hidden_layer_sizes, activation
        Those of :class:`VelocityMLP`; a callable makes no use of them.
    seed : int
        Seed of the initial weights.

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> from sknsgf.flow.networks import build_network
    >>> build_network("mlp", 1, (4,), "tanh", seed=0)
    VelocityMLP(
      (layers): Sequential(
        (0): Linear(in_features=2, out_features=4, bias=True)
        (1): Tanh()
        (2): Linear(in_features=4, out_features=1, bias=True)
      )
    )
    """
    if network == "mlp":
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return VelocityMLP(n_features, hidden_layer_sizes, activation, generator)
    with seeded_layers(seed), torch.device("cpu"):  # whatever the caller's default device
        return network(n_features).to(device="cpu", dtype=torch.float32)


@contextmanager
def seeded_layers(seed: int) -> Iterator[None]:
    """Make what a user's layers draw a function of ``seed``: initial weights, dropout.

    They draw from torch's global CPU generator: it is seeded for the block and put back as it was,
    by one thread at a time.
    """
    with _GLOBAL_GENERATOR:
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            torch.default_generator.set_state(before)


def velocity_field(
    network: nn.Module, target: str, n_steps: int = 100
) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity field of a trained network.

    The velocity that leads to a predicted endpoint ``e`` is ``(e - x) / (1 - t)``, which has no
    meaning at time 1. The remaining time is kept above half a step: forward Euler and midpoint
    steps never evaluate the field later, and backward ones are off by the network's error at most.

    Parameters
    ----------
    network : callable (x, t) -> Tensor of shape (n, d)
        For points of shape (n, d) at times of shape (n,).
    target : {"velocity", "endpoint"}
        What the network was trained on.
    n_steps : int, default=100
        Steps of the integration that the field is for.

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
        remaining = (1 - t).clamp_min(0.5 / n_steps)
        return (network(x, t) - x) / remaining[:, None]

    return field
