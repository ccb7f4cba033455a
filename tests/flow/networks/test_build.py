"""What holds for every network that is built: its weights, its dtype, its state."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn

from sknsgf.flow.networks import (
    TransitionCNN,
    TransitionMLP,
    VelocityMLP,
    VelocityUNet,
    build_network,
    build_transition_network,
)

IMAGE_SHAPE = (1, 4, 4)


class Custom(nn.Module):
    """User's network that draws its weights from torch's global generator, on purpose."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features + 1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, n_features)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], -1))


def build(network, seed=0, builder=build_network):
    return builder(network, 16, (16, 8), "silu", IMAGE_SHAPE, (8, 16), seed)


build_transition = partial(build, builder=build_transition_network)
OURS = {
    "mlp": partial(build, "mlp"),
    "unet": partial(build, "unet"),
    "transition-mlp": partial(build_transition, "mlp"),
    "transition-cnn": partial(build_transition, "unet"),
}
EVERY = OURS | {"custom": partial(build, Custom)}
FOR_OURS = pytest.mark.parametrize("start", OURS.values(), ids=OURS)
FOR_EVERY = pytest.mark.parametrize("start", EVERY.values(), ids=EVERY)


def evaluate(network, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(20, 16, generator=g).to(dtype)
    t = torch.rand(20, generator=g).to(dtype)
    return network(x) if isinstance(network, TransitionMLP | TransitionCNN) else network(x, t)


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first | second)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# Kinds


@pytest.mark.parametrize(
    ("network", "velocity", "transition"),
    [
        ("mlp", VelocityMLP, TransitionMLP),
        ("unet", VelocityUNet, TransitionCNN),
        (Custom, Custom, TransitionMLP),
    ],
)
def test_each_velocity_network_has_its_predictor_of_times(network, velocity, transition):
    assert type(build(network)) is velocity
    assert type(build_transition(network)) is transition


def test_an_mlp_needs_no_image():
    assert build_network("mlp", 3, (4,), "relu", None, (), 0).layers[-1].out_features == 3
    assert build_transition_network("mlp", 3, (4,), "relu", None, (), 0).layers[0].in_features == 3


def test_an_image_network_needs_no_layer_sizes():
    unet = build_network("unet", 16, (), None, IMAGE_SHAPE, (4, 8), 0)
    cnn = build_transition_network("unet", 16, (), None, IMAGE_SHAPE, (4, 8), 0)
    assert (evaluate(unet).shape, evaluate(cnn).shape) == ((20, 16), (20,))


# Weights


@FOR_EVERY
def test_weights_are_a_function_of_the_seed(start):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = start(seed=3)
        torch.manual_seed(2)
        second = start(seed=3)
    assert same_weights(first, second)
    assert not same_weights(first, start(seed=4))


@FOR_EVERY
def test_building_leaves_the_global_generator_as_it_was(start):
    before = torch.get_rng_state()
    start()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_builder_that_fails_leaves_the_global_generator_as_it_was():
    def broken(n_features):
        torch.rand(3)
        raise RuntimeError("no network today")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no network today"):
        build(broken)
    assert torch.equal(torch.get_rng_state(), before)


@FOR_EVERY
def test_networks_are_float32_on_the_cpu_whatever_the_default_dtype(start):
    with default_dtype(torch.float64):
        built = start()
    floating = [value for value in built.state_dict().values() if value.is_floating_point()]
    assert {(value.dtype, value.device.type) for value in floating} == {(torch.float32, "cpu")}


@FOR_OURS
def test_weights_of_our_networks_do_not_depend_on_the_default_dtype(start):
    with default_dtype(torch.float64):
        built = start()
    assert same_weights(built, start())


@FOR_EVERY
def test_weights_do_not_depend_on_the_default_device_of_the_caller(start):
    with torch.device("meta"):
        built = start()
    assert same_weights(built, start())


@FOR_EVERY
def test_counters_of_a_network_keep_their_integer_dtype(start):
    built = start()
    integers = [b for b in built.buffers() if not b.is_floating_point()]
    assert [b.dtype for b in integers] == ([torch.int64] if isinstance(built, Custom) else [])


# Use


@FOR_EVERY
def test_networks_evaluate_in_float64(start):
    built = start().eval()
    single = evaluate(built)
    double = evaluate(built.double(), torch.float64)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), atol=1e-5, rtol=1e-4)


@FOR_OURS
def test_our_networks_evaluate_whatever_the_default_dtype_and_device(start):
    built = start()
    x, t = torch.ones(3, 16), torch.ones(3)
    inputs = (x,) if isinstance(built, TransitionMLP | TransitionCNN) else (x, t)
    expected = built(*inputs)
    with default_dtype(torch.float64), torch.device("meta"):
        output = built(*inputs)
    assert torch.equal(output, expected)


@FOR_EVERY
def test_arrays_of_a_network_load_into_another(start):
    first, second = start(seed=0).eval(), start(seed=1).eval()
    assert not torch.equal(evaluate(first), evaluate(second))
    arrays = {name: tensor.numpy().copy() for name, tensor in first.state_dict().items()}
    second.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    assert torch.equal(evaluate(first), evaluate(second))
