"""Networks that represent a velocity field, and the fields they define."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
SMALLEST_REMAINING_TIME = 0.02


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
        Source of the initial weights (He et al. 2015, uniform).
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
    """Network of an estimator on the CPU, its initial weights a function of ``seed`` alone."""
    if network == "mlp":
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return VelocityMLP(n_features, hidden_layer_sizes, activation, generator)
    # A user's layers draw their initial weights from torch's global generator: it is seeded for
    # the call and put back as it was.
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        return network(n_features).to(device="cpu", dtype=torch.float32)
    finally:
        torch.default_generator.set_state(before)


def velocity_field(network: nn.Module, target: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity field of a network that was trained on ``target``: "velocity" or "endpoint".

    The velocity that leads to a predicted endpoint ``e`` is ``(e - x) / (1 - t)``; the remaining
    time is kept above 0.02, as the quotient loses its meaning at time 1.
    """
    if target == "velocity":
        return network

    def field(x: Tensor, t: Tensor) -> Tensor:
        remaining = (1 - t).clamp_min(SMALLEST_REMAINING_TIME)
        return (network(x, t) - x) / remaining[:, None]

    return field
