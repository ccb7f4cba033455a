import math

import pytest
import torch

from sknsgf.flow.networks import TransitionCNN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [(4,), (8, 12), (4, 6, 5)])
@pytest.mark.parametrize(
    "image_shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (1, 7, 7), (2, 5, 9), (1, 1, 1)]
)
def test_each_row_has_one_time(image_shape, channels):
    x = torch.randn(4, math.prod(image_shape), generator=generator(1))
    times = TransitionCNN(image_shape, channels, generator())(x)
    assert times.shape == (4,)
    assert times.isfinite().all()


def test_rows_do_not_influence_one_another():
    x = torch.randn(4, 98, generator=generator(1))
    network = TransitionCNN((2, 7, 7), (8, 16), generator())
    alone = torch.cat([network(row[None]) for row in x])
    torch.testing.assert_close(network(x), alone, atol=1e-5, rtol=1e-4)


def test_rows_hold_one_channel_after_another():
    """A blank channel makes its weights count for nothing."""
    image = torch.randn(4, 2, 6, 6, generator=generator(1))
    image[:, 1] = 0
    network = TransitionCNN((2, 6, 6), (8, 16), generator())
    before = network(image.flatten(1))
    with torch.no_grad():
        network.layers[0].weight[:, 1] += 1
    assert torch.equal(network(image.flatten(1)), before)


def test_gradient_reaches_every_parameter():
    network = TransitionCNN((1, 8, 8), (8, 16, 32), generator())
    network(torch.randn(4, 64, generator=generator(1))).square().mean().backward()
    still = [name for name, weight in network.named_parameters() if not weight.grad.any()]
    assert still == []


def test_a_time_that_the_contrast_tells_is_learned_and_not_clipped():
    g = generator(1)
    network = TransitionCNN((1, 8, 8), (16, 32), generator())
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    errors = []
    for _ in range(200):
        times = 4 * torch.rand(64, generator=g) - 2
        x = (3 + times)[:, None] * torch.randn(64, 64, generator=g)
        optimizer.zero_grad()
        error = (network(x) - times).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-20:]) / 20 < 0.15 * (4**2 / 12)
