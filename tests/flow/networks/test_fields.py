import pytest
import torch

from sknsgf.flow.integration import integrate
from sknsgf.flow.networks import VelocityMLP, particle_field, velocity_field


def mlp():
    return VelocityMLP(2, (16, 8), "silu", torch.Generator().manual_seed(0))


def batch(n=20, dtype=torch.float32):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(n, 2, generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype)


def test_field_of_a_network_that_learned_velocities_is_the_network():
    x, t = batch()
    network = mlp()
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
    network = mlp()
    t = torch.ones(len(x))
    velocity = velocity_field(network, target, smallest_remaining=0.02)(x, t)
    bound = 50 * ((network(x, t) - x).abs().max() + network(x, t).abs().max())
    assert velocity.isfinite().all()
    assert velocity.abs().max() <= bound


def test_remaining_time_is_bounded_for_each_point_by_its_own_bound():
    bounds = torch.tensor([0.5, 0.25, 0.1])
    field = velocity_field(lambda x, t: torch.ones_like(x), "endpoint", bounds)
    velocity = field(torch.zeros(3, 2), torch.tensor([1.0, 0.9, 0.5]))
    torch.testing.assert_close(velocity, torch.tensor([2.0, 4.0, 2.0])[:, None].expand(3, 2))


def test_after_the_bound_the_field_is_that_at_the_bound():
    x, _ = batch()
    field = velocity_field(mlp(), "endpoint", 0.25)
    at_the_bound, later = (field(x, torch.full((len(x),), t)) for t in (0.75, 1.0))
    assert torch.equal(later, at_the_bound)


def test_field_of_endpoints_keeps_the_dtype_of_the_points():
    velocity = velocity_field(mlp().double(), "endpoint")(*batch(dtype=torch.float64))
    assert velocity.dtype == torch.float64


@pytest.mark.parametrize("method", ["euler", "midpoint"])
@pytest.mark.parametrize("n_steps", [1, 10, 100, 1000])
def test_a_flow_bounded_by_half_a_step_arrives_at_the_predicted_endpoint(method, n_steps):
    field = velocity_field(lambda x, t: torch.ones_like(x), "endpoint", 0.5 / n_steps)
    start = torch.zeros(1, 1, dtype=torch.float64)
    end = integrate(field, start, n_steps=n_steps, method=method).x
    torch.testing.assert_close(end, torch.ones_like(end), rtol=0, atol=1e-9)


def test_euler_steps_along_a_particle_field_are_those_of_the_particle_scheme():
    destination, step_sizes = torch.tensor([4.0, -2.0]), [0.3, 0.5, 0.2]
    field = particle_field(lambda x, t: destination.expand_as(x), "endpoint", step_sizes)
    positions = integrate(field, torch.zeros(2, 2), n_steps=3, return_trajectory=True).x
    left = torch.tensor([1.0, 0.7, 0.7 * 0.5, 0.7 * 0.5 * 0.8])
    expected = (1 - left)[:, None, None] * destination.expand(2, 2)
    torch.testing.assert_close(positions, expected)


def test_a_particle_field_of_velocities_is_the_network():
    network = mlp()
    assert particle_field(network, "velocity", [0.3]) is network
