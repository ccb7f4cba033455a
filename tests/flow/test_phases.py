import math
from functools import partial

import pytest
import torch

from sknsgf.flow.integration import integrate
from sknsgf.flow.networks import velocity_field
from sknsgf.flow.phases import TwoPhases

FIRST = torch.tensor([1.0, -2.0], dtype=torch.float64)
SECOND = torch.tensor([0.5, 3.0], dtype=torch.float64)
METHODS = {"euler": 1, "midpoint": 2, "rk4": 4}


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.n_calls = function, 0

    def __call__(self, *args):
        self.n_calls += 1
        return self.function(*args)


def constant(velocity):
    return lambda x, t: velocity.expand_as(x)


def linear(factor):
    return lambda x, t: factor * x


def velocities(field):
    """Straight field of a network that learned velocities, which needs no bound on the time."""
    return lambda smallest_remaining: field


TO_FIRST, TO_SECOND = constant(FIRST), velocities(constant(SECOND))


def phases(
    sinkhorn=TO_FIRST,
    straight=TO_SECOND,
    start_time=None,
    n_sinkhorn_steps=2,
    n_straight_steps=4,
    method="euler",
):
    return TwoPhases(sinkhorn, straight, start_time, n_sinkhorn_steps, n_straight_steps, method)


@pytest.fixture
def points():
    return torch.tensor([[-1.0, 0.3], [0.5, 0.4], [-0.2, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [1, 5])
def test_two_constant_fields_shift_the_points_by_their_sum(points, n_steps, method):
    flow = phases(n_sinkhorn_steps=n_steps, n_straight_steps=n_steps, method=method)
    torch.testing.assert_close(flow.forward(points), points + FIRST + SECOND)


@pytest.mark.parametrize("start_time", [None, lambda x: torch.zeros_like(x[:, 0])])
def test_two_linear_fields_multiply_the_factors_of_their_euler_steps(points, start_time):
    flow = phases(linear(2), velocities(linear(-1)), start_time, 3, 5)
    factor = (1 + 2 / 3) ** 3 * (1 - 1 / 5) ** 5
    torch.testing.assert_close(flow.forward(points), factor * points)


def test_the_second_phase_is_integrated_by_its_own_method(points):
    flow = phases(linear(2), velocities(linear(-1)), None, 3, 40, "rk4")
    factor = (1 + 2 / 3) ** 3 * math.exp(-1)
    torch.testing.assert_close(flow.forward(points), factor * points, atol=0, rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_points_enter_the_second_phase_at_their_own_time(points, method):
    times = torch.tensor([0.0, 0.25, 0.9], dtype=torch.float64)
    flow = phases(start_time=lambda x: times, method=method)
    expected = points + FIRST + (1 - times)[:, None] * SECOND
    torch.testing.assert_close(flow.forward(points), expected)


def test_the_time_is_that_of_where_the_first_phase_ends(points):
    flow = phases(start_time=lambda x: x[:, 0] / 10, sinkhorn=constant(torch.ones(2).double()))
    expected = points + 1 + (1 - (points[:, :1] + 1) / 10) * SECOND
    torch.testing.assert_close(flow.forward(points), expected)


@pytest.mark.parametrize(
    ("target", "method"),
    [
        *[("velocity", method) for method in METHODS],
        ("endpoint", "euler"),
        ("endpoint", "midpoint"),
    ],
)
def test_a_point_that_enters_at_time_one_stays(points, target, method):
    straight = partial(velocity_field, lambda x, t: 100 * torch.ones_like(x), target)
    times = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    moved = phases(straight=straight, start_time=lambda x: times, method=method).forward(points)
    stays = times == 1
    torch.testing.assert_close(moved[stays], (points + FIRST)[stays])
    assert (moved[~stays] > 50).all()


@pytest.mark.parametrize("n_straight_steps", [1, 3])
def test_every_point_ends_at_its_predicted_end_whatever_its_time(points, n_straight_steps):
    straight = partial(velocity_field, constant(SECOND), "endpoint")
    for times in ([0.0, 0.5, 0.99], [0.999, 1 - 1e-9, 0.2]):
        flow = phases(
            straight=straight,
            start_time=lambda x, times=times: torch.tensor(times, dtype=x.dtype),
            n_straight_steps=n_straight_steps,
        )
        moved = flow.forward(points)
        close = torch.tensor(times) < 1 - 1e-6
        torch.testing.assert_close(moved[close], SECOND.expand(3, 2)[close])
        assert moved.isfinite().all()


@pytest.mark.parametrize(("start", "of_a_step"), [(None, 1.0), (0.0, 1.0), (0.5, 0.5), (1.0, 8e-6)])
def test_the_remaining_time_is_bounded_by_half_a_step_and_by_one_on_the_way_back(
    points, start, of_a_step
):
    def straight(smallest_remaining):
        bounds.append(smallest_remaining)
        return constant(SECOND)

    bounds = []
    start_time = start if start is None else lambda x: torch.full_like(x[:, 0], start)
    flow = phases(straight=straight, start_time=start_time, n_straight_steps=4)
    flow.forward(points)
    flow.backward(points)
    forward, backward = (
        bounds  # backward, the time at which a point would have entered is not known
    )
    assert torch.as_tensor(forward).flatten().tolist() == pytest.approx(
        [of_a_step / 8] * (1 if start is None else len(points))
    )
    assert backward == 1 / 4


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_predicted_times_are_cut_to_the_unit_interval(points, direction):
    wild = torch.tensor([-0.7, 0.4, 1.8], dtype=torch.float64)
    moved = getattr(phases(start_time=lambda x: wild), direction)(points)
    cut = getattr(phases(start_time=lambda x: wild.clamp(0, 1)), direction)(points)
    torch.testing.assert_close(moved, cut)
    sign = 1 if direction == "forward" else -1
    shares = torch.tensor([[1.0], [0.6], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(moved, points + sign * (FIRST + shares * SECOND))


@pytest.mark.parametrize("start_time", [None, lambda x: torch.sigmoid(x[:, 0])])
def test_without_straight_steps_the_first_phase_is_all(points, start_time):
    def straight(smallest_remaining):
        pytest.fail("the straight field is not needed")

    flow = phases(linear(0.5), straight, start_time, n_straight_steps=0)
    torch.testing.assert_close(flow.forward(points), 1.25**2 * points)
    torch.testing.assert_close(flow.backward(1.25**2 * points), points)
    assert flow.forward(points, return_trajectory=True).shape == (3, 3, 2)


@pytest.mark.parametrize("n_straight_steps", [0, 1, 4])
@pytest.mark.parametrize("start_time", [None, lambda x: torch.sigmoid(x[:, 0])])
def test_a_trajectory_leads_from_the_points_to_where_forward_ends(
    points, start_time, n_straight_steps
):
    flow = phases(linear(0.5), velocities(linear(-1)), start_time, 3, n_straight_steps)
    trajectory = flow.forward(points, return_trajectory=True)
    assert trajectory.shape == (3 + n_straight_steps + 1, 3, 2)
    assert torch.equal(trajectory[0], points)
    assert torch.equal(trajectory[-1], flow.forward(points))
    first = integrate(linear(0.5), points, n_steps=3, return_trajectory=True).x
    assert torch.equal(trajectory[:4], first)


def test_a_trajectory_of_constant_fields_is_made_of_equal_steps(points):
    steps = phases(n_sinkhorn_steps=2, n_straight_steps=4).forward(points, True).diff(dim=0)
    expected = [FIRST / 2] * 2 + [SECOND / 4] * 4
    torch.testing.assert_close(steps, torch.stack(expected)[:, None].expand(6, 3, 2))


@pytest.mark.parametrize("method", METHODS)
def test_backward_undoes_forward_exactly_for_constant_fields(points, method):
    flow = phases(method=method)
    torch.testing.assert_close(flow.backward(flow.forward(points)), points)


def test_backward_undoes_forward_exactly_where_all_points_enter_at_one_time(points):
    for time in (0.0, 0.3, 1.0):
        flow = phases(start_time=lambda x, time=time: torch.full_like(x[:, 0], time))
        torch.testing.assert_close(flow.backward(flow.forward(points)), points)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_backward_undoes_forward_up_to_the_order_of_the_method(points, method, order):
    def bending(x, t):
        return torch.cos(3 * t)[:, None] * x.flip(-1)

    errors = []
    for n_steps in (16, 64):
        flow = phases(linear(2), velocities(bending), None, 2, n_steps, method)
        errors.append((flow.backward(flow.forward(points)) - points).abs().max())
    assert errors[1] < errors[0] / 4 ** (order - 0.3)


def test_backward_undoes_forward_up_to_eulers_error_with_predicted_times(points):
    def bending(x, t):
        return torch.cos(3 * t)[:, None] * x.flip(-1)

    def start_time(x):
        return 0.3 + 0.1 * torch.tanh(x[:, 0])

    errors = []
    for n_steps in (100, 400, 1600):
        flow = phases(linear(2), velocities(bending), start_time, 2, n_steps)
        errors.append((flow.backward(flow.forward(points)) - points).abs().max())
    assert errors[0] < 0.05
    assert errors[2] < errors[0] / 4


@pytest.mark.parametrize(("method", "per_step"), METHODS.items())
@pytest.mark.parametrize("paper", [False, True])
def test_forward_calls_each_network_as_often_as_its_phase_has_evaluations(
    points, paper, method, per_step
):
    sinkhorn, straight = Counted(constant(FIRST)), Counted(constant(SECOND))
    start_time = Counted(lambda x: x.new_full((len(x),), 0.5)) if paper else None
    phases(sinkhorn, velocities(straight), start_time, 3, 5, method).forward(points)
    assert (sinkhorn.n_calls, straight.n_calls) == (3, 5 * per_step)
    assert start_time is None or start_time.n_calls == 1


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_points_are_carried_on_their_own_and_not_modified(points, direction, paper):
    start_time = (lambda x: torch.sigmoid(x[:, 0])) if paper else None
    flow = phases(linear(3), velocities(linear(-1)), start_time)
    before = points.clone()
    carry = getattr(flow, direction)
    together = carry(points)
    alone = torch.cat([carry(point[None]) for point in points])
    torch.testing.assert_close(together, alone)
    assert torch.equal(points, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("start_time", [None, lambda x: torch.sigmoid(x[:, 0])])
def test_the_dtype_of_the_points_is_kept(points, start_time, direction, dtype):
    straight = partial(velocity_field, linear(2), "endpoint")
    flow = phases(linear(1), straight, start_time)
    assert getattr(flow, direction)(points.to(dtype)).dtype == dtype
