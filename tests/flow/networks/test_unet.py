import math

import pytest
import torch
from torch import nn

from sknsgf.flow.networks import VelocityUNet

IMAGE_SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (1, 7, 7), (2, 5, 9), (1, 1, 1)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unet(image_shape=(1, 6, 6), channels=(16, 32), seed=0):
    return VelocityUNet(image_shape, channels, generator(seed))


def stirred(network, size=0.2):
    """Put noise on all weights: fresh blocks are the identity, which hides what they do."""
    g = generator(3)
    with torch.no_grad():
        for weight in network.parameters():
            weight += size * torch.randn(weight.shape, generator=g)
    return network


def batch(image_shape=(1, 6, 6), n=4, dtype=torch.float32):
    g = generator(5)
    x = torch.randn(n, math.prod(image_shape), generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype)


def losses_of_training(network, target, n_steps, n=32):
    """Mean squared error of a batch before each gradient step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    x, t = batch(network.image_shape, n)
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = (network(x, t) - target(x, t)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("channels", [(4,), (8, 12), (4, 6, 5)])
@pytest.mark.parametrize("image_shape", IMAGE_SHAPES)
def test_velocity_has_the_shape_of_the_rows(image_shape, channels):
    x, t = batch(image_shape)
    velocity = unet(image_shape, channels)(x, t)
    assert velocity.shape == x.shape
    assert velocity.dtype == x.dtype
    assert velocity.isfinite().all()


def test_a_fresh_network_gives_small_velocities():
    x, t = batch((1, 16, 16), n=64)
    size = unet((1, 16, 16))(x, t).square().mean().sqrt().item()
    assert 0.01 < size < 0.2


def test_velocity_depends_on_the_time_after_a_few_steps():
    network = unet()
    x, _ = batch()
    losses_of_training(network, lambda x, t: t[:, None] * x, n_steps=5)
    early, late = (network(x, torch.full((len(x),), t)) for t in (0.1, 0.9))
    assert (early - late).abs().amax(-1).min() > 1e-3


def test_rows_do_not_influence_one_another():
    network = stirred(unet((2, 7, 7)))
    x, t = batch((2, 7, 7))
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(network(x, t), alone, atol=1e-4, rtol=1e-4)


def test_rows_hold_one_channel_after_another():
    """A shift of the image shifts its velocity, away from the border."""
    network = unet((3, 16, 16))
    t = torch.zeros(1)
    image = torch.zeros(1, 3, 16, 16)
    image[..., 4:8, 4:8] = torch.randn(3, 4, 4, generator=generator(1))
    velocity, of_shifted = (
        network(x.flatten(1), t).unflatten(1, (3, 16, 16))
        for x in (image, image.roll((2, 4), (2, 3)))
    )
    before, after = (..., slice(2, 12), slice(2, 10)), (..., slice(4, 14), slice(6, 14))
    assert velocity[before].std() > 0.01
    torch.testing.assert_close(of_shifted[after], velocity[before])


def test_skips_carry_the_image_past_the_lower_resolutions():
    network = unet()
    nn.init.zeros_(network.halvings[0].weight)
    first, second = network(*batch(n=2))
    assert (first - second).abs().min() > 1e-6


def test_attention_does_not_depend_on_where_the_pixels_are():
    attention = stirred(unet()).attention
    h = torch.randn(2, 32, 3, 3, generator=generator(1))
    order = torch.randperm(9, generator=generator(2))
    shuffled = h.flatten(2)[..., order].unflatten(2, (3, 3))
    seen = attention(h)
    assert (seen - h).abs().max() > 0.1
    torch.testing.assert_close(
        attention(shuffled).flatten(2), seen.flatten(2)[..., order], atol=1e-4, rtol=1e-4
    )


def test_each_pixel_acts_on_the_whole_image():
    network = stirred(unet((1, 16, 16)))
    x, t = batch((1, 16, 16), n=1)
    changed = x.clone()
    changed[:, 0] += 10
    assert ((network(changed, t) - network(x, t)).abs() > 1e-6).all()


def test_gradient_reaches_every_parameter_after_one_step():
    network = unet()
    losses_of_training(network, lambda x, t: x, n_steps=2)
    still = [name for name, weight in network.named_parameters() if not weight.grad.any()]
    assert still == []


def test_velocity_that_changes_with_place_and_time_is_learned():
    losses = losses_of_training(unet(), lambda x, t: (1 - 2 * t)[:, None] * x.flip(1), n_steps=150)
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_velocities_on_cuda_are_those_of_the_cpu():
    network = stirred(unet((3, 9, 9)), size=0.05)
    x, t = batch((3, 9, 9))
    expected = network(x, t)
    velocity = network.cuda()(x.cuda(), t.cuda())
    velocity.square().mean().backward()
    assert velocity.dtype == torch.float32
    assert {weight.grad.dtype for weight in network.parameters()} == {torch.float32}
    error = (velocity.cpu() - expected).square().mean() / expected.square().mean()
    assert error.item() < 0.03**2
    double = network.double()(x.double().cuda(), t.double().cuda())
    torch.testing.assert_close(double.cpu(), expected.double(), atol=1e-4, rtol=1e-4)
