"""Multi-layer perceptrons, for points without structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sknsgf.flow.networks.layers import linear

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
        sizes = [n_features + 1, *hidden_layer_sizes, n_features]
        self.layers = _perceptron(sizes, activation, generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of shape (n, d) for points (n, d) at times (n,)."""
        return self.layers(torch.cat([x, t[:, None]], -1))


class TransitionMLP(nn.Module):
    """Multi-layer perceptron that predicts a time from a point.

    Parameters
    ----------
    n_features : int
        Number of features of a point.
    hidden_layer_sizes, activation, generator
        Those of :class:`VelocityMLP`.

    Notes
    -----
    It is trained by least squares and its output is not clipped: times outside of [0, 1] may occur.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import TransitionMLP
    >>> network = TransitionMLP(2, (16, 16), "silu", torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        n_features: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layers = _perceptron([n_features, *hidden_layer_sizes, 1], activation, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Times of shape (n,) for points (n, d)."""
        return self.layers(x)[:, 0]


def _perceptron(sizes: list[int], activation: str, generator: torch.Generator) -> nn.Sequential:
    """Linear layers between the given sizes, with the activation after all but the last."""
    *hidden, (n_in, n_out) = zip(sizes, sizes[1:], strict=False)
    layers: list[nn.Module] = []
    for before, after in hidden:
        layers += [
            linear(before, after, generator, gain=math.sqrt(2)),
            ACTIVATIONS[activation](),
        ]
    return nn.Sequential(*layers, linear(n_in, n_out, generator))
