"""Convolutional network that predicts the transition time of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sknsgf.flow.networks.layers import convolution, group_norm, linear


class TransitionCNN(nn.Module):
    """Convolutions that each halve the image, a mean over what is left of it, a linear layer.

    Parameters
    ----------
    image_shape : (int, int, int)
        Channels, height and width of the image that a row holds, in this order.
    channels : sequence of int
        Channels after each convolution.
    generator : torch.Generator
        Source of the initial weights, on the CPU.

    Notes
    -----
    It is trained by least squares and its output is not clipped: times outside of [0, 1] may occur.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import TransitionCNN
    >>> network = TransitionCNN((1, 8, 8), (8, 16), torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 64)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        n_in, first, *later = image_shape[0], *channels
        # The first layer is not normalised: the contrast of an image tells its time.
        layers: list[nn.Module] = [_halving(n_in, first, generator), nn.SiLU()]
        for before, after in zip(channels, later, strict=False):
            layers += [_halving(before, after, generator), group_norm(after), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.output = linear(channels[-1], 1, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Times of shape (n,) for images as rows (n, d)."""
        features = self.layers(x.unflatten(1, self.image_shape))
        return self.output(features.mean((2, 3)))[:, 0]


def _halving(n_in: int, n_out: int, generator: torch.Generator) -> nn.Conv2d:
    """Convolution to half the height and width."""
    return convolution(n_in, n_out, generator, stride=2, gain=math.sqrt(2))
