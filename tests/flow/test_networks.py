import pytest
import torch
from torch import nn

from sknsgf.flow.integration import integrate
from sknsgf.flow.networks import ACTIVATIONS, VelocityMLP, build_network, velocity_field


class Custom(nn.Module):
    """User's network that draws its weights from torch's global generator, on purpose."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features + 1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, n_features)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], -1))


BUILDERS = pytest.mark.parametrize("network", ["mlp", Custom], ids=["mlp", "custom"])


def build(network="mlp", n_features=2, seed=0):
    return build_network(network, n_features, (16, 8), "silu", seed)


def batch(n=20, n_features=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, n_features, generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype)


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first | second)


# Multi-layer perceptron


@pytest.mark.parametrize("n_features", [1, 3])
@pytest.mark.parametrize("sizes", [(), (4,), (5, 6, 7)])
def test_layers_have_the_sizes_asked_for(sizes, n_features):
    network = build_network("mlp", n_features, sizes, "relu", 0)
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [*sizes, n_features]
    assert linear[0].in_features == n_features + 1
    assert network(*batch(7, n_features)).shape == (7, n_features)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_hidden_layer_ends_in_the_activation(name):
    network = build_network("mlp", 2, (4, 4), name, 0)
    kinds = [type(layer) for layer in network.layers]
    assert kinds == [nn.Linear, ACTIVATIONS[name]] * 2 + [nn.Linear]


def test_activations_are_those_of_the_documentation():
    assert set(ACTIVATIONS) == {"relu", "silu", "gelu", "elu", "tanh"}


def test_initial_weights_keep_the_size_of_the_signal():
    network = VelocityMLP(63, (2048,), "relu", torch.Generator().manual_seed(0))
    first, _, last = network.layers
    assert first.weight.var().item() == pytest.approx(2 / 64, rel=0.05)
    assert last.weight.var().item() == pytest.approx(1 / 2048, rel=0.05)
    assert not first.bias.any()
    assert not last.bias.any()
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    output = network(x[:, 1:], x[:, 0])
    assert output.square().mean().item() == pytest.approx(1, rel=0.15)


def test_mlp_sees_the_time():
    x, _ = batch()
    network = build()
    early, late = (network(x, torch.full((len(x),), t)) for t in (0.1, 0.9))
    assert (early - late).abs().amax(-1).min() > 1e-3


def test_rows_do_not_influence_one_another():
    x, t = batch()
    network = build()
    torch.testing.assert_close(network(x, t)[3:5], network(x[3:5], t[3:5]))


# Building


@BUILDERS
def test_weights_are_a_function_of_the_seed(network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build(network, seed=3)
        torch.manual_seed(2)
        second = build(network, seed=3)
    assert same_weights(first, second)
    assert not same_weights(first, build(network, seed=4))


@BUILDERS
def test_building_leaves_the_global_generator_as_it_was(network):
    before = torch.get_rng_state()
    build(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_builder_that_fails_leaves_the_global_generator_as_it_was():
    def broken(n_features):
        torch.rand(3)
        raise RuntimeError("no network today")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no network today"):
        build(broken)
    assert torch.equal(torch.get_rng_state(), before)


@BUILDERS
def test_networks_are_float32_on_the_cpu_whatever_the_default_dtype(network):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        built = build(network)
    finally:
        torch.set_default_dtype(before)
    floating = [value for value in built.state_dict().values() if value.is_floating_point()]
    assert {(value.dtype, value.device.type) for value in floating} == {(torch.float32, "cpu")}


def test_weights_of_the_mlp_do_not_depend_on_the_default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        built = build("mlp")
    finally:
        torch.set_default_dtype(before)
    assert same_weights(built, build("mlp"))


@BUILDERS
def test_weights_do_not_depend_on_the_default_device_of_the_caller(network):
    with torch.device("meta"):
        built = build(network)
    assert same_weights(built, build(network))


@BUILDERS
def test_counters_of_a_network_keep_their_integer_dtype(network):
    integers = [b for b in build(network).buffers() if not b.is_floating_point()]
    assert [b.dtype for b in integers] == ([] if network == "mlp" else [torch.int64])


@BUILDERS
def test_networks_evaluate_in_float64(network):
    built = build(network).eval()
    single = built(*batch())
    double = built.double()(*(part.double() for part in batch()))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), atol=1e-5, rtol=1e-4)


# Velocity field


def test_field_of_a_network_that_learned_velocities_is_the_network():
    x, t = batch()
    network = build()
    assert torch.equal(velocity_field(network, "velocity")(x, t), network(x, t))


def test_velocity_to_the_end_of_a_straight_line_is_constant():
    start, end = torch.tensor([1.0, -1.0]).double(), torch.tensor([3.0, 5.0]).double()
    t = torch.linspace(0, 0.97, 30, dtype=torch.float64)
    x = (1 - t)[:, None] * start + t[:, None] * end
    field = velocity_field(lambda x, t: end.expand_as(x), "endpoint")
    torch.testing.assert_close(field(x, t), (end - start).expand(30, 2))


@pytest.mark.parametrize("n_steps", [1, 3, 20])
def test_flow_to_a_predicted_endpoint_ends_there(n_steps):
    end = torch.tensor([3.0, 5.0], dtype=torch.float64)
    field = velocity_field(lambda x, t: end.expand_as(x), "endpoint")
    x, _ = batch(dtype=torch.float64)
    torch.testing.assert_close(integrate(field, x, n_steps=n_steps).x, end.expand_as(x))


@pytest.mark.parametrize("target", ["velocity", "endpoint"])
def test_field_is_finite_and_moderate_up_to_time_one(target):
    x, _ = batch()
    network = build()
    t = torch.ones(len(x))
    velocity = velocity_field(network, target, n_steps=25)(x, t)
    bound = 50 * ((network(x, t) - x).abs().max() + network(x, t).abs().max())
    assert velocity.isfinite().all()
    assert velocity.abs().max() <= bound


def test_field_of_endpoints_keeps_the_dtype_of_the_points():
    network = build().double()
    velocity = velocity_field(network, "endpoint")(*batch(dtype=torch.float64))
    assert velocity.dtype == torch.float64


@pytest.mark.parametrize("method", ["euler", "midpoint"])
@pytest.mark.parametrize("n_steps", [1, 10, 100, 1000])
def test_a_flow_to_a_predicted_endpoint_arrives_there(method, n_steps):
    field = velocity_field(lambda x, t: torch.ones_like(x), "endpoint", n_steps)
    start = torch.zeros(1, 1, dtype=torch.float64)
    end = integrate(field, start, n_steps=n_steps, method=method).x
    torch.testing.assert_close(end, torch.ones_like(end), rtol=0, atol=1e-9)
