import math

import pytest
import torch

from sknsgf.flow.integration import (
    EVALUATIONS_PER_STEP,
    METHODS,
    integrate,
    integrate_back,
    invert_euler,
)

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


def bending_velocity(x, t):
    """Nonlinear field x' = cos(t) x^2; its solutions are x(t) = 1 / (1 / x(0) - sin(t))."""
    return torch.cos(t)[:, None] * x**2


def exact_end(x, start=0.0):
    return 1 / (1 / x - math.sin(1) + torch.as_tensor(start, dtype=x.dtype).sin())


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
    per_step = 2 if method == "euler" and backward else EVALUATIONS_PER_STEP[method]
    assert n_evaluations == len(times) == 49 * per_step
    assert min(times) >= 0
    assert max(times) <= 1
    assert times == sorted(times, reverse=backward)


def test_forward_euler_never_evaluates_at_time_one(points):
    def endpoint_velocity(x, t):
        return (2 - x) / (1 - t)[:, None]

    forward = integrate(endpoint_velocity, points, n_steps=10)
    torch.testing.assert_close(forward.x, torch.full_like(points, 2))


@pytest.mark.parametrize("factor", [0.1, 8.0])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_straight_paths_are_followed_exactly_in_both_directions(method, backward, factor, points):
    shift = torch.tensor([1.0, -2.0], dtype=points.dtype)

    def velocity(x, t):  # of the paths from z to factor * z + shift
        t = t[:, None]
        return (factor - 1) * (x - t * shift) / (1 + (factor - 1) * t) + shift

    ends = factor * points + shift
    first, last = (ends, points) if backward else (points, ends)
    moved = integrate(velocity, first, n_steps=5, method=method, backward=backward).x
    torch.testing.assert_close(moved, last)


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


# From a later start


STARTS = [0.4, torch.tensor([0.0, 0.4, 0.9], dtype=torch.float64)]


def of_each_point(start):
    return torch.as_tensor(start, dtype=torch.float64).expand(3)[:, None]


@pytest.mark.parametrize("start", STARTS, ids=["float", "tensor"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_from_a_later_start_the_order_is_that_of_the_method(method, backward, start, points):
    first, last = points, exact_end(points, of_each_point(start))
    if backward:
        first, last = last, first
    options = {"method": method, "start": start, "backward": backward}
    n_steps = [16, 32, 64, 128]
    errors = [
        (integrate(bending_velocity, first, n_steps=n, **options).x - last).abs().max()
        for n in n_steps
    ]
    assert slope(errors, n_steps) == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("start", STARTS, ids=["float", "tensor"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_later_start_leaves_a_share_of_a_constant_shift(method, backward, start, points):
    shift = torch.tensor([1.0, -2.0], dtype=points.dtype)
    options = {"method": method, "start": start, "backward": backward}
    x = integrate(lambda x, _: shift.expand_as(x), points, n_steps=7, **options).x
    share = (1 - of_each_point(start)) * (-1 if backward else 1)
    torch.testing.assert_close(x, points + share * shift)


@pytest.mark.parametrize("method", METHODS)
def test_each_point_moves_as_if_its_start_were_that_of_all(method, points):
    start = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    options = {"n_steps": 4, "method": method, "return_trajectory": True}
    together, n_evaluations = integrate(bending_velocity, points, start=start, **options)
    assert n_evaluations == 4 * EVALUATIONS_PER_STEP[method]
    for i, time in enumerate(start.tolist()):
        alone = integrate(bending_velocity, points[i : i + 1], start=time, **options).x
        torch.testing.assert_close(together[:, i : i + 1], alone)


@pytest.mark.parametrize("start", STARTS, ids=["float", "tensor"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_times_lie_between_the_start_and_one(method, backward, start, points):
    times = []

    def velocity(x, t):
        assert t.shape == (len(x),)
        assert t.dtype == x.dtype
        times.append(t)
        return x

    integrate(velocity, points, n_steps=9, method=method, start=start, backward=backward)
    times, earliest = torch.stack(times), of_each_point(start)[:, 0]
    step = (1 - earliest) / 9
    forward_euler = method == "euler" and not backward
    latest = 1 - step if forward_euler else torch.ones(3, dtype=torch.float64)
    assert (times.amin(0) >= earliest - 1e-15).all()
    assert (times.amin(0) < earliest + step).all()
    assert (times.amax(0) <= latest + 1e-15).all()
    assert (times.amax(0) > 1 - 1.1 * step).all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_point_that_starts_at_time_one_stays(method, backward, points):
    start = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    x = integrate(
        bending_velocity, points, n_steps=3, method=method, start=start, backward=backward
    ).x
    assert torch.equal(x[start == 1], points[start == 1])
    assert (x[start < 1] != points[start < 1]).all()


# Back to start times that depend on the point


def back_to(time):
    return lambda x: x.new_full((len(x),), time)


def test_back_to_time_zero_is_backward_integration(points):
    options = {"n_steps": 6, "return_trajectory": True}
    back = integrate_back(bending_velocity, points, back_to(0.0), **options)
    expected = integrate(bending_velocity, points, backward=True, **options)
    torch.testing.assert_close(back.x, expected.x)
    assert back.n_evaluations == expected.n_evaluations == 12


def test_back_to_a_time_of_each_point_takes_a_share_of_a_constant_shift(points):
    shift = torch.tensor([1.0, -2.0], dtype=points.dtype)
    times = torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64)
    x = integrate_back(lambda x, _: shift.expand_as(x), points, lambda _: times, n_steps=5).x
    torch.testing.assert_close(x, points - (1 - times)[:, None] * shift)
    assert torch.equal(x[2], points[2])


def test_back_after_forward_returns_at_order_one_where_the_start_depends_on_the_point(points):
    def start_time(x):
        return 0.5 + 0.2 * torch.sin(x[:, 0])

    n_steps = [100, 200, 400, 800, 1600]
    ends = exact_end(points, start_time(points)[:, None])
    errors = [
        (integrate_back(bending_velocity, ends, start_time, n_steps=n).x - points).abs().max()
        for n in n_steps
    ]
    assert slope(errors, n_steps) == pytest.approx(1, abs=0.25)


def test_a_point_that_has_come_back_too_far_stays():
    def start_time(x):
        return torch.where(x[:, 0] > 0.8, 0.5, 0.9)

    options = {"n_steps": 4, "return_trajectory": True}
    x = integrate_back(lambda x, _: torch.ones_like(x), torch.ones(1, 1), start_time, **options).x
    assert x.flatten().tolist() == [1, 0.75, 0.75, 0.75, 0.75]


def test_going_back_calls_the_field_where_each_step_begins_and_ends(points):
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.ones_like(x)

    start = torch.tensor([0.0, 0.37, 0.8], dtype=torch.float64)
    x, n_evaluations = integrate_back(velocity, points, lambda _: start, n_steps=10)
    assert n_evaluations == len(times) == 20
    expected = (1 - torch.arange(11, dtype=torch.float64) / 10)[:, None].maximum(start)
    torch.testing.assert_close(torch.stack(times[::2]), expected[:-1])
    torch.testing.assert_close(torch.stack(times[1::2]), expected[1:])
    torch.testing.assert_close(x, points - (1 - start)[:, None])


def test_a_trajectory_back_leads_from_the_end_to_the_start(points):
    options = {"start_time": back_to(0.3), "n_steps": 5}
    trajectory = integrate_back(bending_velocity, points, return_trajectory=True, **options).x
    assert trajectory.shape == (6, 3, 2)
    assert torch.equal(trajectory[0], points)
    assert torch.equal(trajectory[-1], integrate_back(bending_velocity, points, **options).x)


# Inverse of Euler steps


TILT = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
SMOOTH_FIELDS = {
    "zero": lambda z, t: torch.zeros_like(z),
    "constant": lambda z, t: torch.ones_like(z),
    "contraction": lambda z, t: -0.7 * z,
    "of time": lambda z, t: (1 + t)[:, None] * z,
    "steep": lambda z, t: 8 * z,
    "steeper in one direction": lambda z, t: z @ TILT @ (TILT.T * z.new_tensor([[8.0], [0.3]])),
    "rotation": lambda z, t: 2.0 * z @ z.new_tensor([[0.0, 1.0], [-1.0, 0.0]]),
    "wave": lambda z, t: 0.3 * torch.sin(2 * z.flip(-1)),
}


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("name", SMOOTH_FIELDS)
def test_inverse_steps_undo_the_euler_steps_of_a_smooth_field(name, n_steps, points):
    field = SMOOTH_FIELDS[name]
    there = integrate(field, points, n_steps=n_steps).x
    back = invert_euler(field, there, n_steps=n_steps)
    torch.testing.assert_close(back, points, atol=1e-6, rtol=0)


@pytest.mark.parametrize("field", [lambda z, t: 8 * torch.tanh(z), lambda z, t: 3 * z**3])
def test_inverse_steps_undo_a_steep_bend(field):
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)[:, None]
    there = integrate(field, x, n_steps=2).x
    torch.testing.assert_close(invert_euler(field, there, n_steps=2), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.5, 2.0, 8.0, 20.0])
def test_inverse_of_a_linear_step_divides(factor):
    x = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    z = invert_euler(lambda z, t: factor * z, x, n_steps=1)
    torch.testing.assert_close(z, x / (1 + factor), atol=2e-6, rtol=1e-5)


def discontinuous(z, t):
    return torch.where(z > 0.2, 3.0, -3.0) - 5 * z


def chaotic(z, t):
    return 40 * torch.sin(90 * z)


@pytest.mark.parametrize("field", [discontinuous, chaotic, lambda z, t: -3 * z])
def test_the_residual_of_a_step_without_an_inverse_is_no_worse_than_at_the_start(field):
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, t = invert_euler(field, x, n_steps=1), torch.zeros(500, dtype=torch.float64)
    before, after = ((x - start - field(start, t)).norm(dim=-1) for start in (x, z))
    assert (after <= before).all()
    assert z.isfinite().all()


def test_points_are_inverted_on_their_own():
    def field(z, t):
        wild = z[:, :1] > 5
        return torch.where(wild, torch.nan, 8 * torch.tanh(z))

    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with_a_wild_point = torch.cat([x, x.new_tensor([[9.0, 9.0]])])
    together = invert_euler(field, with_a_wild_point, n_steps=2)
    alone = torch.cat([invert_euler(field, point[None], n_steps=2) for point in x])
    torch.testing.assert_close(together[:-1], alone, atol=1e-12, rtol=0)
    assert torch.equal(together[-1], with_a_wild_point[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_inverse_keeps_the_dtype_and_the_points_and_counts_its_evaluations(dtype, points):
    times = []

    def velocity(z, t):
        times.append(t[0].item())
        return z

    x = points.to(dtype)
    assert invert_euler(velocity, x, n_steps=2, n_iterations=7).dtype == dtype
    assert torch.equal(x, points.to(dtype))
    assert times == [0.5] * 7 + [0.0] * 7
