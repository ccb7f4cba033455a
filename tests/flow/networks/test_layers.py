import pytest
import torch

from sknsgf.flow.networks.layers import convolution, group_norm, linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_linear_multiplies_the_size_of_the_signal_by_its_gain(gain):
    x = torch.randn(500, 256, generator=generator(1))
    size = linear(256, 512, generator(), gain=gain)(x).square().mean().sqrt().item()
    assert size == pytest.approx(gain, rel=0.05)


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_multiplies_the_size_of_the_signal_by_its_gain(size, gain):
    x = torch.randn(50, 64, 9, 9, generator=generator(1))
    inside = convolution(64, 128, generator(), size=size, gain=gain)(x)[:, :, 1:-1, 1:-1]
    assert inside.square().mean().sqrt().item() == pytest.approx(gain, rel=0.05)


@pytest.mark.parametrize("layer", [linear, convolution])
def test_without_a_gain_the_signal_keeps_its_size(layer):
    default, kept = layer(3, 5, generator()), layer(3, 5, generator(), gain=1.0)
    assert torch.equal(default.weight, kept.weight)


def test_gain_zero_is_the_zero_map():
    x = torch.randn(2, 3, 4, 4, generator=generator(1))
    assert not convolution(3, 5, generator(), gain=0.0)(x).any()


@pytest.mark.parametrize(("side", "stride", "after"), [(8, 1, 8), (8, 2, 4), (7, 2, 4), (1, 2, 1)])
def test_convolution_divides_the_side_by_its_stride_and_rounds_up(side, stride, after):
    layer = convolution(1, 2, generator(), stride=stride)
    assert layer(torch.zeros(3, 1, side, side)).shape == (3, 2, after, after)


@pytest.mark.parametrize(
    ("n_channels", "n_groups"), [(1, 1), (3, 3), (8, 8), (11, 1), (12, 6), (20, 5), (32, 8)]
)
def test_groups_are_the_most_that_divide_the_channels(n_channels, n_groups):
    layer = group_norm(n_channels)
    assert layer.num_groups == n_groups
    assert layer(torch.zeros(2, n_channels, 3, 3)).shape == (2, n_channels, 3, 3)
