"""Multi-layer perceptrons, for points without structure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sknsgf.flow.networks.layers import linear

LEAST_SIZE = 0.05  # of what an endpoint's perceptron adds, beside 1 - t
LEAST_TIME = 0.1  # a remaining time at which the weight of errors of endpoints levels off
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


class EndpointMLP(VelocityMLP):
    """Multi-layer perceptron that predicts the endpoint of a point, and keeps the point in view.

    Through hidden layers narrower than a point no endpoint comes that is spread in all directions.
    So the perceptron ``F`` gives only what is added to shares of the point's coordinates: the
    endpoint is ``(t + (1 - t) kept) x + s(t) F(x, t)`` with ``s(t)^2 = (1 - t)^2 + 0.05^2``. At
    time 1 a point is its own endpoint: this holds for all of it but a twentieth of ``F``. At time
    0 the shares ``kept`` are learned: near 1 where coordinates are carried along, near 0 where the
    endpoint does not depend on them.

    Parameters
    ----------
    n_features, hidden_layer_sizes, activation, generator
        Those of :class:`VelocityMLP`.

    Notes
    -----
    An error of the endpoint is one of the velocity that is larger by ``1 / (1 - t)``, so that late
    errors matter more than their size says. ``loss_weight`` is ``((1 - t)^2 + 0.1^2)^(-3/4)``,
    between the constant weight of endpoints and the weight ``(1 - t)^-2`` of velocities: with more
    weight on late times, images after few evaluations were measured worse, with less, points in
    200 features. The formula is a relative of Karras et al. (2022), but what is added does not
    vanish at time 1: where targets lie near a surface, the last step must lead onto it.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import EndpointMLP
    >>> network = EndpointMLP(2, (16, 16), "silu", torch.Generator().manual_seed(0))
    >>> x, t = torch.randn(5, 2), torch.ones(5)
    >>> network(x, t).shape, network.loss_weight(x, t)[0]
    (torch.Size([5, 2]), tensor(31.6228))
    """

    def __init__(
        self,
        n_features: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__(n_features, hidden_layer_sizes, activation, generator)
        self.kept = nn.Parameter(torch.zeros(n_features, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Endpoints of shape (n, d) for points (n, d) at times (n,)."""
        remaining = 1 - t[:, None]
        share = 1 - remaining + remaining * self.kept
        size = (remaining.square() + LEAST_SIZE**2).sqrt()
        return share * x + size * super().forward(x, t)

    def loss_weight(self, x: Tensor, t: Tensor) -> Tensor:
        """Weights of shape (n,) for squared errors of the endpoints of points (n, d)."""
        return ((1 - t).square() + LEAST_TIME**2) ** -0.75


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
