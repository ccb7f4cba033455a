import pytest
import torch
from torch import nn

from sknsgf.flow.networks import ACTIVATIONS, EndpointMLP, TransitionMLP, VelocityMLP
from sknsgf.flow.regression import fit_regression

SIZES = pytest.mark.parametrize("sizes", [(), (4,), (5, 6, 7)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=20, n_features=2):
    g = generator(5)
    return torch.randn(n, n_features, generator=g), torch.rand(n, generator=g)


def linear_layers(network):
    return [layer for layer in network.layers if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("n_features", [1, 3])
@SIZES
def test_layers_of_the_velocity_have_the_sizes_asked_for(sizes, n_features):
    network = VelocityMLP(n_features, sizes, "relu", generator())
    linear = linear_layers(network)
    assert [layer.out_features for layer in linear] == [*sizes, n_features]
    assert linear[0].in_features == n_features + 1
    assert network(*batch(7, n_features)).shape == (7, n_features)


@pytest.mark.parametrize("n_features", [1, 3])
@SIZES
def test_layers_of_the_transition_time_have_the_sizes_asked_for(sizes, n_features):
    network = TransitionMLP(n_features, sizes, "relu", generator())
    linear = linear_layers(network)
    assert [layer.out_features for layer in linear] == [*sizes, 1]
    assert linear[0].in_features == n_features
    assert network(batch(7, n_features)[0]).shape == (7,)


@pytest.mark.parametrize("kind", [VelocityMLP, TransitionMLP])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_hidden_layer_ends_in_the_activation(name, kind):
    kinds = [type(layer) for layer in kind(2, (4, 4), name, generator()).layers]
    assert kinds == [nn.Linear, ACTIVATIONS[name]] * 2 + [nn.Linear]


def test_activations_are_those_of_the_documentation():
    assert set(ACTIVATIONS) == {"relu", "silu", "gelu", "elu", "tanh"}


def test_initial_weights_keep_the_size_of_the_signal():
    network = VelocityMLP(63, (2048,), "relu", generator())
    first, _, last = network.layers
    assert first.weight.var().item() == pytest.approx(2 / 64, rel=0.05)
    assert last.weight.var().item() == pytest.approx(1 / 2048, rel=0.05)
    assert not first.bias.any()
    assert not last.bias.any()
    x = torch.randn(500, 64, generator=generator(1))
    output = network(x[:, 1:], x[:, 0])
    assert output.square().mean().item() == pytest.approx(1, rel=0.15)


def test_velocity_depends_on_the_time():
    x, _ = batch()
    network = VelocityMLP(2, (16, 8), "silu", generator())
    early, late = (network(x, torch.full((len(x),), t)) for t in (0.1, 0.9))
    assert (early - late).abs().amax(-1).min() > 1e-3


def test_transition_time_is_learned_and_not_clipped():
    x = torch.linspace(-1, 1, 128)[:, None]
    times = 3 * x[:, 0].square() - 1
    network = TransitionMLP(1, (32,), "silu", generator())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (network(x) - times).square().mean().backward()
        optimizer.step()
    assert (network(x) - times).square().mean().sqrt() < 0.1


def endpoint_network(n_features=3):
    return EndpointMLP(n_features, (16, 8), "silu", generator())


def silenced(network):
    """The same network with a perceptron that gives 0."""
    with torch.no_grad():
        network.layers[-1].weight.zero_()
    return network


def test_a_point_at_time_1_is_its_own_endpoint_but_for_a_twentieth_of_what_the_perceptron_gives():
    (x, _), network = batch(n_features=3), endpoint_network()
    end = torch.ones(len(x))
    added = VelocityMLP.forward(network, x, end) / 20
    torch.testing.assert_close(network(x, end), x + added)
    assert torch.equal(silenced(network)(x, end), x)


def test_at_time_0_a_fresh_endpoint_keeps_nothing_of_the_point_and_a_trained_one_its_shares():
    (x, _), network = batch(n_features=3), silenced(endpoint_network())
    start, shares = torch.zeros(len(x)), torch.tensor([0.0, 0.5, 1.0])
    assert not network(x, start).any()
    network.kept.data.copy_(shares)
    torch.testing.assert_close(network(x, start), shares * x)


def test_late_errors_of_endpoints_weigh_more_but_not_as_much_as_those_of_velocities():
    t = torch.linspace(0, 0.99, 50)
    weights = endpoint_network().loss_weight(t[:, None], t)
    assert (weights.diff() > 0).all()
    assert ((weights * (1 - t).square()).diff() < 0).all()  # constant for those of velocities


def test_the_perceptron_of_endpoints_starts_as_that_of_velocities():
    velocity = VelocityMLP(3, (16, 8), "silu", generator())
    for name, weights in velocity.state_dict().items():
        assert torch.equal(endpoint_network().state_dict()[name], weights)


def test_a_narrow_network_learns_to_keep_every_coordinate():
    draws, network = generator(1), EndpointMLP(40, (8,), "relu", generator())

    def draw():
        x = torch.randn(256, 40, generator=draws)
        return x, torch.rand(256, generator=draws), x + 2

    fit_regression(network, draw, n_iterations=800, learning_rate=0.02)
    x, _, target = draw()
    errors = (network(x, torch.zeros(256)) - target).square().mean()
    assert errors < 0.1  # without the shares, what 8 units pass on leaves 0.8 of the variance
