"""U-Net (Ronneberger et al. 2015) of an image and its flow time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from sknsgf.flow.networks.layers import convolution, group_norm, linear

N_FREQUENCIES = 32
MAX_FREQUENCY = 100.0  # radians per unit of flow time
TIME_UNITS = 64
OUTPUT_GAIN = 0.1  # training starts near the constant 0: measured better than an output of size 1


class VelocityUNet(nn.Module):
    """Convolutional network of an image and its flow time.

    One residual block per resolution on the way down and on the way up, attention at the lowest
    resolution. The weights are drawn from the given generator alone.

    Parameters
    ----------
    image_shape : (int, int, int)
        Channels, height and width of the image that a row holds, in this order.
    channels : sequence of int
        Channels at each resolution, from the full one downwards; each halves the height and the
        width of the one before, rounded up.
    generator : torch.Generator
        Source of the initial weights, on the CPU.

    Notes
    -----
    Rows of float32 on a CUDA device of compute capability 8 or more are computed in bfloat16, with
    float32 weights and output; everything else in the dtype of the rows.

    Examples
    --------
    >>> import torch
    >>> from sknsgf.flow.networks import VelocityUNet
    >>> network = VelocityUNet((1, 8, 8), (8, 16), torch.Generator().manual_seed(0))
    >>> network(torch.zeros(5, 64), torch.zeros(5)).shape
    torch.Size([5, 64])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        n_image, first, last = image_shape[0], channels[0], channels[-1]
        finer_and_coarser = list(zip(channels, channels[1:], strict=False))
        self.time = _TimeEmbedding(generator)
        self.input = convolution(n_image, first, generator)
        self.down_blocks = nn.ModuleList(_ResidualBlock(n, n, generator) for n in channels)
        self.halvings = nn.ModuleList(
            convolution(finer, coarser, generator, stride=2) for finer, coarser in finer_and_coarser
        )
        self.attention = _Attention(last, generator)
        self.up_blocks = nn.ModuleList(
            _ResidualBlock(coarser + finer, finer, generator)
            for finer, coarser in reversed(finer_and_coarser)
        )
        self.output = nn.Sequential(
            group_norm(first), nn.SiLU(), convolution(first, n_image, generator, gain=OUTPUT_GAIN)
        )
        # Tensor cores read channels last; on the CPU both layouts were measured equally fast.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of shape (n, d) for images as rows (n, d) at times (n,)."""
        with _mixed_precision(x):
            image = x.unflatten(1, self.image_shape)
            image = image.contiguous(memory_format=torch.channels_last)
            velocity = self._convolve(image, self.time(t.to(x.dtype)))
        return velocity.flatten(1).to(x.dtype)

    def _convolve(self, image: Tensor, time: Tensor) -> Tensor:
        """Images of velocities (n, C, H, W) for images and embedded times."""
        first, *coarser = self.down_blocks
        h = first(self.input(image), time)
        skips = []
        for halving, block in zip(self.halvings, coarser, strict=True):
            skips.append(h)
            h = block(halving(h), time)
        h = self.attention(h)
        for skip, block in zip(reversed(skips), self.up_blocks, strict=True):
            # To the size of the skip, since odd sizes do not double back.
            h = functional.interpolate(h, size=skip.shape[2:], mode="nearest")
            h = block(torch.cat([h, skip], 1), time)
        return self.output(h)


class _TimeEmbedding(nn.Module):
    """Features (n, TIME_UNITS) of times (n,), from sines and cosines of growing frequency."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            linear(2 * N_FREQUENCIES, TIME_UNITS, generator, gain=math.sqrt(2)),
            nn.SiLU(),
            linear(TIME_UNITS, TIME_UNITS, generator, gain=math.sqrt(2)),
            nn.SiLU(),
        )

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.logspace(
            0, math.log10(MAX_FREQUENCY), N_FREQUENCIES, dtype=t.dtype, device=t.device
        )
        phases = t[:, None] * frequencies
        return self.layers(torch.cat([phases.sin(), phases.cos()], 1))


class _ResidualBlock(nn.Module):
    """Two convolutions around a shortcut, the identity at the start (up to the channels)."""

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Sequential(
            group_norm(n_in), nn.SiLU(), convolution(n_in, n_out, generator), group_norm(n_out)
        )
        # Time scales and shifts after the norm, which would take away a part of a mere shift.
        self.scale_and_shift = linear(TIME_UNITS, 2 * n_out, generator, gain=0.3)
        self.second = nn.Sequential(nn.SiLU(), convolution(n_out, n_out, generator, gain=0.0))
        same = n_in == n_out
        self.shortcut = nn.Identity() if same else convolution(n_in, n_out, generator, size=1)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift(time)[:, :, None, None].chunk(2, 1)
        return self.shortcut(h) + self.second(self.first(h) * (1 + scale) + shift)


class _Attention(nn.Module):
    """Attention with one head between the pixels of an image, the identity at the start."""

    def __init__(self, n_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = group_norm(n_channels)
        self.query_key_value = linear(n_channels, 3 * n_channels, generator)
        self.output = linear(n_channels, n_channels, generator, gain=0.0)

    def forward(self, h: Tensor) -> Tensor:
        pixels = self.norm(h).flatten(2).transpose(1, 2)
        one_head = self.query_key_value(pixels)[:, None]
        seen = functional.scaled_dot_product_attention(*one_head.chunk(3, -1))[:, 0]
        return h + self.output(seen).transpose(1, 2).unflatten(2, h.shape[2:])


def _mixed_precision(x: Tensor) -> AbstractContextManager:
    """Context that computes in bfloat16 where x is float32 and its device is made for it."""
    if x.is_cuda and x.dtype == torch.float32:
        # Older devices only emulate bfloat16.
        enabled = torch.cuda.get_device_capability(x.device) >= (8, 0)
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled)
    return nullcontext()
