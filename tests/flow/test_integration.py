import math

import pytest
import torch

from sknsgf.flow.integration import METHODS, integrate

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}
EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "rk4": 4}


def bending_velocity(x, t):
    """Nonlinear field x' = cos(t) x^2; its solutions are x(t) = 1 / (1 / x(0) - sin(t))."""
    return torch.cos(t)[:, None] * x**2


def exact_end(x):
    return 1 / (1 / x - math.sin(1))


@pytest.fixture
def points():
    return torch.tensor([[-1.0, 0.3], [0.5, 0.4], [-0.2, 0.1]], dtype=torch.float64)


def slope(errors, n_steps):
    """Least-squares slope of log(error) against log(step)."""
    x = -torch.log(torch.tensor(n_steps, dtype=torch.float64))
    y = torch.log(torch.stack(errors))
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) / (x @ x)).item()


def test_every_method_has_its_order_checked():
    assert set(METHODS) == set(ORDERS)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_error_decreases_at_the_order_of_the_method(method, backward, points):
    start, end = points, exact_end(points)
    if backward:
        start, end = end, start
    n_steps = [32, 64, 128, 256]
    errors = [
        (integrate(bending_velocity, start, n_steps=n, method=method, backward=backward).x - end)
        .abs()
        .max()
        for n in n_steps
    ]
    assert slope(errors, n_steps) == pytest.approx(ORDERS[method], abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_backward_after_forward_returns_to_the_start_at_the_order_of_the_method(method, points):
    n_steps = [16, 32, 64, 128]
    errors = []
    for n in n_steps:
        there = integrate(bending_velocity, points, n_steps=n, method=method).x
        back = integrate(bending_velocity, there, n_steps=n, method=method, backward=True).x
        errors.append((back - points).abs().max())
    assert slope(errors, n_steps) > ORDERS[method] - 0.15


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_field_shifts_the_points_exactly(method, backward, points):
    shift = torch.tensor([1.0, -2.0], dtype=points.dtype)
    x = integrate(
        lambda x, _: shift.expand_as(x), points, n_steps=7, method=method, backward=backward
    ).x
    torch.testing.assert_close(x, points - shift if backward else points + shift)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_those_made_and_times_stay_in_the_unit_interval(method, backward, points):
    times = []

    def velocity(x, t):
        assert t.shape == (len(x),)
        assert t.dtype == x.dtype
        times.append(t[0].item())
        return x

    n_evaluations = integrate(
        velocity, points, n_steps=49, method=method, backward=backward
    ).n_evaluations
    assert n_evaluations == len(times) == 49 * EVALUATIONS_PER_STEP[method]
    assert min(times) >= 0
    assert max(times) <= 1
    assert times == sorted(times, reverse=backward)


def test_euler_never_evaluates_at_time_one(points):
    def endpoint_velocity(x, t):
        return (2 - x) / (1 - t)[:, None]

    forward = integrate(endpoint_velocity, points, n_steps=10)
    torch.testing.assert_close(forward.x, torch.full_like(points, 2))
    assert integrate(endpoint_velocity, points, n_steps=10, backward=True).x.isfinite().all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_trajectory_runs_from_the_start_to_the_end(method, backward, points):
    options = {"n_steps": 5, "method": method, "backward": backward}
    end, n_evaluations = integrate(bending_velocity, points, **options)
    trajectory, n_evaluations_again = integrate(
        bending_velocity, points, return_trajectory=True, **options
    )
    assert trajectory.shape == (6, *points.shape)
    assert torch.equal(trajectory[0], points)
    assert torch.equal(trajectory[-1], end)
    assert n_evaluations == n_evaluations_again


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_under_any_default(method, dtype, points):
    default = torch.get_default_dtype()
    other = torch.float64 if dtype == torch.float32 else torch.float32
    torch.set_default_dtype(other)
    try:
        x = integrate(bending_velocity, points.to(dtype), n_steps=2, method=method).x
    finally:
        torch.set_default_dtype(default)
    assert x.dtype == dtype


def test_device_is_that_of_the_points_under_any_default(points):
    with torch.device("meta"):
        assert integrate(bending_velocity, points, n_steps=2).x.device.type == "cpu"
    assert integrate(bending_velocity, points.to("meta"), n_steps=2).x.device.type == "meta"


@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_not_modified(method, points):
    before = points.clone()
    integrate(bending_velocity, points, n_steps=3, method=method)
    assert torch.equal(points, before)
