"""Layers whose initial weights come from a given generator alone.

``skip_init`` and the explicit dtype and device keep global state out: default generator, default
dtype, default device.
"""

from __future__ import annotations

import math

import torch
from torch import nn

MAX_GROUPS = 8


def linear(n_in: int, n_out: int, generator: torch.Generator, *, gain: float = 1.0) -> nn.Linear:
    """Linear layer with uniform weights that multiply the root-mean-square of a signal by ``gain``.

    Parameters
    ----------
    n_in, n_out : int
        Number of features before and after.
    generator : torch.Generator
        Source of the weights (He et al. 2015), on the CPU; biases are zero.
    gain : float, default=1.0
        What the layer does to the size of the signal.

    Returns
    -------
    nn.Linear

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks.layers import linear
    >>> linear(2, 3, torch.Generator().manual_seed(0))
    Linear(in_features=2, out_features=3, bias=True)
    """
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, dtype=torch.float32, device="cpu")
    return _drawn(layer, n_in, generator, gain)


def convolution(
    n_in: int,
    n_out: int,
    generator: torch.Generator,
    *,
    size: int = 3,
    stride: int = 1,
    gain: float = 1.0,
) -> nn.Conv2d:
    """Convolution that pads by zeros, initialised as :func:`linear`.

    Parameters
    ----------
    n_in, n_out : int
        Number of channels before and after.
    generator : torch.Generator
        Source of the weights, on the CPU; biases are zero.
    size : int, default=3
        Side of the kernel, odd.
    stride : int, default=1
        An image of side s becomes one of side s / stride, rounded up.
    gain : float, default=1.0
        What the layer does to the size of the signal.

    Returns
    -------
    nn.Conv2d

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks.layers import convolution
    >>> layer = convolution(1, 4, torch.Generator().manual_seed(0), stride=2)
    >>> layer(torch.zeros(5, 1, 7, 7)).shape
    torch.Size([5, 4, 4, 4])
    """
    layer = nn.utils.skip_init(
        nn.Conv2d,
        n_in,
        n_out,
        size,
        stride=stride,
        padding=size // 2,
        dtype=torch.float32,
        device="cpu",
    )
    return _drawn(layer, n_in * size**2, generator, gain)


def group_norm(n_channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) with the most groups, up to ``MAX_GROUPS``, that fit.

    Parameters
    ----------
    n_channels : int
        Number of channels, which the number of groups divides.

    Returns
    -------
    nn.GroupNorm

    Examples
    --------
    >>> from sknsgf.flow.networks.layers import group_norm
    >>> group_norm(12).num_groups
    6
    """
    n_groups = max(n for n in range(1, MAX_GROUPS + 1) if n_channels % n == 0)
    return nn.GroupNorm(n_groups, n_channels, dtype=torch.float32, device="cpu")


def _drawn(layer: nn.Module, fan_in: int, generator: torch.Generator, gain: float) -> nn.Module:
    """The layer with its weights drawn and its biases zero."""
    bound = gain * math.sqrt(3 / fan_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer
