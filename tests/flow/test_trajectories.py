import math
import weakref
from functools import partial

import pytest
import torch
from threadpoolctl import threadpool_limits

from sknsgf.flow.external import SOLVERS
from sknsgf.flow.integration import integrate
from sknsgf.flow.sinkhorn import SinkhornVelocity, sinkhorn_velocity
from sknsgf.flow.trajectories import (
    POOL_DTYPES,
    PoolInParts,
    TrajectoryPool,
    flow_step_sizes,
    simulate_flow,
)

accurate = partial(sinkhorn_velocity, blur=0.5, tol=1e-5, max_iter=500)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are many times slower when the cores of a busy machine share each."""
    with threadpool_limits(limits=1, user_api="openmp"):
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def random_pool(n=40, n_steps=3, d=2, dtype=torch.float64, **options):
    return TrajectoryPool(normal(n, n_steps + 1, d, dtype=dtype), **options)


def labelled_pool(n, n_steps=1, **options):
    """Pool in which trajectory ``i`` stays at the point ``i``."""
    positions = torch.arange(n, dtype=torch.float64)[:, None, None].expand(n, n_steps + 1, 1)
    return TrajectoryPool(positions, **options)


# Step sizes


@pytest.mark.parametrize("n_steps", [1, 2, 5, 30])
def test_automatic_steps_leave_nothing_of_the_way(n_steps):
    sizes = flow_step_sizes(n_steps, "auto")
    assert len(sizes) == n_steps
    assert math.prod(1 - size for size in sizes) == 0


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_automatic_steps_go_a_share_of_the_way_at_constant_speed(n_steps, share):
    remaining, covered = 1.0, []
    for size in flow_step_sizes(n_steps, "auto", share):
        covered.append(remaining * size)
        remaining *= 1 - size
    assert covered == pytest.approx([share / n_steps] * n_steps)


@pytest.mark.parametrize(("n_steps", "step_size"), [(5, 0.2), (10, 0.3), (3, 1.0)])
def test_equal_steps_leave_a_power_of_the_way(n_steps, step_size):
    sizes = flow_step_sizes(n_steps, step_size)
    assert sizes == [step_size] * n_steps
    assert math.prod(1 - size for size in sizes) == pytest.approx((1 - step_size) ** n_steps)


# Simulated flows


def test_shifted_copy_moves_evenly_to_the_shift_with_automatic_steps():
    x, shift = normal(1, 30, 2), torch.tensor([3.0, -1.0], dtype=torch.float64)
    positions = simulate_flow(x, x + shift, accurate, flow_step_sizes(4, "auto")).positions
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(positions, x[0][:, None] + shares * shift, atol=2e-4, rtol=0)


def test_shifted_copy_is_left_behind_by_a_power_with_equal_steps():
    x, shift = normal(1, 30, 2), torch.tensor([3.0, -1.0], dtype=torch.float64)
    positions = simulate_flow(x, x + shift, accurate, flow_step_sizes(6, 0.3)).positions
    left = 0.7 ** torch.arange(7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(positions, x[0][:, None] + (1 - left) * shift, atol=2e-4, rtol=0)


def test_one_particle_goes_straight_to_one_target_point():
    x, y = torch.zeros(1, 1, 2), torch.tensor([[[4.0, -8.0]]])
    positions = simulate_flow(x, y, accurate, flow_step_sizes(4, "auto")).positions
    expected = torch.tensor([[[0.0, 0.0], [1.0, -2.0], [2.0, -4.0], [3.0, -6.0], [4.0, -8.0]]])
    torch.testing.assert_close(positions, expected)


def test_particles_that_are_the_target_stay():
    x = normal(1, 30, 2)
    positions = simulate_flow(x, x, accurate, flow_step_sizes(3, "auto")).positions
    torch.testing.assert_close(positions, x[0][:, None].expand(30, 4, 2), atol=2e-4, rtol=0)


def test_normal_particles_end_with_the_moments_of_their_normal_target():
    x = normal(1, 400, 2, seed=1)
    factor = torch.tensor([[1.5, 0.0], [0.8, 0.5]], dtype=torch.float64)
    y = normal(1, 400, 2, seed=2) @ factor.mT + torch.tensor([4.0, -2.0], dtype=torch.float64)
    velocity = partial(sinkhorn_velocity, blur=0.1)
    end = simulate_flow(x, y, velocity, flow_step_sizes(5, "auto")).positions[:, -1]
    torch.testing.assert_close(end.mean(0), y[0].mean(0), atol=0.005, rtol=0)
    torch.testing.assert_close(end.mT.cov(), y[0].mT.cov(), atol=0.01, rtol=0)


def test_flow_starts_at_the_particles_in_their_order():
    x, y = normal(3, 10, 2), normal(3, 15, 2, seed=1)
    positions = simulate_flow(x, y, accurate, flow_step_sizes(2, "auto")).positions
    assert positions.shape == (30, 3, 2)
    assert torch.equal(positions[:, 0], x.flatten(0, 1))


def test_flows_simulated_together_are_those_simulated_alone():
    x, y = normal(3, 20, 2), normal(3, 25, 2, seed=1) + 2
    sizes = flow_step_sizes(3, "auto")
    together = simulate_flow(x, y, accurate, sizes).positions
    alone = [simulate_flow(x[i : i + 1], y[i : i + 1], accurate, sizes).positions for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=0)


def test_starting_each_solve_from_the_last_saves_iterations_and_changes_nothing():
    x, y = normal(1, 200, 2), normal(1, 200, 2, seed=1) + 1
    n_iterations = {"warm": 0, "cold": 0}

    def velocity(x, y, *, state, start):
        state = state if start == "warm" else None
        solved = sinkhorn_velocity(x, y, state=state, blur=0.1, tol=1e-3)
        n_iterations[start] += solved.n_iterations
        return solved

    warm, cold = (
        simulate_flow(x, y, partial(velocity, start=start), flow_step_sizes(5, "auto")).positions
        for start in ("warm", "cold")
    )
    torch.testing.assert_close(warm, cold, atol=0.02, rtol=0)
    assert n_iterations["warm"] < n_iterations["cold"] / 1.5


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"native"}))
def test_solvers_of_other_libraries_give_the_same_flow(name):
    x, y = normal(2, 20, 2), normal(2, 20, 2, seed=1) + 3
    sizes = flow_step_sizes(3, 0.4)
    flow = simulate_flow(x, y, partial(SOLVERS[name], blur=0.5, tol=1e-4), sizes)
    ours = simulate_flow(x, y, partial(sinkhorn_velocity, blur=0.5, tol=1e-6), sizes)
    assert (flow.positions - ours.positions).norm(dim=-1).mean() < 0.05  # they move by 2.3


def test_solver_without_a_state_starts_anew_at_each_step():
    states = []

    def velocity(x, y, *, state):
        states.append(state)
        return SinkhornVelocity(y - x, None, x.new_zeros(len(x)), 1)

    simulate_flow(normal(1, 3, 2), normal(1, 3, 2, seed=1), velocity, [0.5] * 3)
    assert states == [None] * 3


@pytest.mark.parametrize(
    ("errors", "expected"),
    [([0.1, 0.3, 0.2], 0.3), ([math.nan] * 3, math.nan), ([0.1, math.nan, 0.2], math.nan)],
)
def test_error_of_a_flow_is_its_largest_and_nan_where_one_is_unknown(errors, expected):
    waiting = iter(errors)

    def velocity(x, y, *, state):
        return SinkhornVelocity(y - x, None, torch.tensor([0.0, next(waiting)]), 1)

    flow = simulate_flow(torch.zeros(2, 1, 1), torch.ones(2, 1, 1), velocity, [0.5] * 3)
    assert flow.error == pytest.approx(expected, nan_ok=True)


def test_flow_ignores_the_default_device_of_the_caller():
    x, y = normal(2, 10, 2), normal(2, 10, 2, seed=1)
    sizes = flow_step_sizes(2, "auto")
    expected = simulate_flow(x, y, accurate, sizes).positions
    with torch.device("meta"):
        positions = simulate_flow(x, y, accurate, sizes).positions
    assert torch.equal(positions, expected)


# Pool of trajectories


def test_pool_keeps_the_positions_it_is_given():
    positions = normal(6, 4, 2)
    pool = TrajectoryPool(positions)
    pool.draw(4, generator())
    assert pool.positions.data_ptr() == positions.data_ptr()
    assert torch.equal(positions, normal(6, 4, 2))
    assert (len(pool), pool.n_steps) == (6, 3)


@pytest.mark.parametrize("n", [5, 64, 300])
def test_each_stratum_of_the_flow_time_has_one_draw(n):
    t = random_pool(64).draw(n, generator())[1]
    assert sorted((t * n).long().tolist()) == list(range(n))


def test_times_are_uniform_within_their_strata():
    pool, g = random_pool(8), generator()
    within = torch.cat([pool.draw(100, g)[1] for _ in range(100)]) * 100 % 1
    assert within.mean().item() == pytest.approx(1 / 2, abs=4 / math.sqrt(12 * 10**4))
    assert within.var().item() == pytest.approx(1 / 12, abs=4 / math.sqrt(180 * 10**4))


def test_times_do_not_depend_on_the_place_in_the_batch():
    pool, g = random_pool(8), generator()
    t = torch.stack([pool.draw(10, g)[1] for _ in range(2000)])
    deviation = 1 / math.sqrt(12 * 2000)
    torch.testing.assert_close(
        t.mean(0), torch.full((10,), 0.5, dtype=t.dtype), atol=5 * deviation, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_never_gives_time_one(dtype, monkeypatch):
    def all_but_one(*shape, **kind):  # far closer to 1 than float32 can tell
        return torch.full(shape, 1 - 2**-53, **{k: v for k, v in kind.items() if k != "generator"})

    monkeypatch.setattr("torch.rand", all_but_one)
    t = random_pool(8, dtype=dtype).draw(4096, generator())[1]
    assert t.dtype == torch.float32
    assert 0 <= t.min() <= t.max() == 1 - 2**-24


def test_points_of_continuous_times_lie_on_the_simulated_polygon():
    knots = torch.tensor([0.0, 1.0, 5.0, 3.0], dtype=torch.float64)
    x, t, velocity = TrajectoryPool(knots[None, :, None]).draw(200, generator())
    step = (3 * t).long()
    share = 3 * t - step
    expected = (1 - share) * knots[step] + share * knots[step + 1]
    torch.testing.assert_close(x[:, 0], expected)
    torch.testing.assert_close(velocity[:, 0], 3 * (knots[step + 1] - knots[step]))
    assert set(step.tolist()) == {0, 1, 2}


def test_every_point_of_a_straight_trajectory_leads_to_its_end():
    end = torch.tensor([2.0, -4.0], dtype=torch.float64)
    positions = torch.linspace(0, 1, 6, dtype=torch.float64)[None, :, None] * end
    x, t, velocity = TrajectoryPool(positions).draw(100, generator())
    torch.testing.assert_close(x + (1 - t)[:, None] * velocity, end.expand(100, 2))
    endpoint = TrajectoryPool(positions, target="endpoint").draw(100, generator())[2]
    torch.testing.assert_close(endpoint, end.expand(100, 2))


@pytest.mark.parametrize("time", ["continuous", "discrete"])
@pytest.mark.parametrize("step_sizes", [[0.2, 0.5, 0.3], [0.7]])
def test_with_step_sizes_an_endpoint_is_where_a_whole_step_leads_to(time, step_sizes):
    end = torch.tensor([2.0, -4.0], dtype=torch.float64)
    left = torch.tensor([1.0, *(1 - size for size in step_sizes)], dtype=torch.float64).cumprod(0)
    positions = (1 - left)[None, :, None] * end
    pool = TrajectoryPool(positions, time=time, target="endpoint", step_sizes=step_sizes)
    torch.testing.assert_close(pool.draw(100, generator())[2], end.expand(100, 2))


def test_steps_of_constant_speed_have_the_same_endpoints_with_and_without_their_sizes():
    options = {"target": "endpoint", "n_steps": 4}
    without = random_pool(**options).draw(100, generator())
    sizes = flow_step_sizes(4, "auto")
    for value, other in zip(
        without, random_pool(**options, step_sizes=sizes).draw(100, generator()), strict=True
    ):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize("time", ["continuous", "discrete"])
def test_endpoint_is_where_the_velocity_leads_to_at_time_one(time):
    x, t, velocity = random_pool(time=time).draw(100, generator())
    same_x, same_t, endpoint = random_pool(time=time, target="endpoint").draw(100, generator())
    assert torch.equal(x, same_x)
    assert torch.equal(t, same_t)
    torch.testing.assert_close(endpoint, x + (1 - t)[:, None] * velocity)


def test_discrete_times_are_those_of_the_steps_equally_often():
    t = random_pool(n_steps=4, time="discrete").draw(100, generator())[1]
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [0, 0.25, 0.5, 0.75]
    assert counts.tolist() == [25] * 4


def test_points_of_discrete_times_are_simulated_positions_with_their_next_move():
    pool = random_pool(n=1, n_steps=5, time="discrete")
    x, t, velocity = pool.draw(50, generator())
    step = (5 * t).round().long()
    torch.testing.assert_close(x, pool.positions[0, step])
    moves = pool.positions[0].diff(dim=0)
    torch.testing.assert_close(velocity, 5 * moves[step])


def test_euler_steps_through_the_drawn_velocities_replay_the_simulation():
    x, y = normal(1, 20, 2), normal(1, 20, 2, seed=1) + 2
    velocity = partial(sinkhorn_velocity, blur=0.5)
    positions = simulate_flow(x, y, velocity, flow_step_sizes(4, 0.3)).positions
    pool = TrajectoryPool(positions, time="discrete")
    records, g = {}, generator()
    while len(records) < 20 * 4:
        for point, t, velocity in zip(*pool.draw(200, g), strict=True):
            at = int((point - positions[:, int(4 * t)]).abs().sum(-1).argmin()), float(t)
            records[at] = velocity

    def field(_, t):
        return torch.stack([records[row, float(t[row])] for row in range(20)])

    end = integrate(field, x[0], n_steps=4).x
    torch.testing.assert_close(end, positions[:, -1])


@pytest.mark.parametrize("n", [1, 3, 7, 20])
def test_each_trajectory_is_drawn_once_an_epoch(n):
    pool, g = labelled_pool(20), generator()
    n_draws = math.lcm(n, 20) // n
    drawn = torch.cat([pool.draw(n, g)[0] for _ in range(n_draws)]).flatten()
    for epoch in drawn.split(20):
        assert sorted(epoch.tolist()) == list(range(20))


def test_a_draw_may_be_larger_than_the_pool():
    x = labelled_pool(4).draw(10, generator())[0]
    counts = x.flatten().unique(return_counts=True)[1]
    assert counts.min() >= 2
    assert counts.sum() == 10


def test_epochs_come_in_different_orders():
    pool, g = labelled_pool(50), generator()
    assert not torch.equal(pool.draw(50, g)[0], pool.draw(50, g)[0])


def test_draws_are_a_function_of_the_generator_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, second, other = (random_pool().draw(30, generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", ["continuous", "discrete"])
def test_draws_have_the_dtype_of_the_positions(time, default, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        drawn = random_pool(time=time, dtype=dtype).draw(5, generator())
    finally:
        torch.set_default_dtype(before)
    assert [part.dtype for part in drawn] == [dtype] * 3


def test_draws_ignore_the_default_device_of_the_caller():
    pool = random_pool()
    with torch.device("meta"):
        drawn = pool.draw(5, torch.Generator(device="cpu").manual_seed(0))
    assert all(
        torch.equal(a, b) for a, b in zip(drawn, random_pool().draw(5, generator()), strict=True)
    )


# Half precision


@pytest.mark.parametrize("time", ["continuous", "discrete"])
@pytest.mark.parametrize("target", ["velocity", "endpoint"])
def test_positions_in_half_precision_are_drawn_as_nearly_the_same_float32(time, target):
    options = {"n": 500, "n_steps": 4, "dtype": torch.float32, "time": time, "target": target}
    exact = random_pool(**options)
    half = TrajectoryPool(exact.positions.to(POOL_DTYPES["float16"]), time=time, target=target)
    drawn, expected = half.draw(2000, generator()), exact.draw(2000, generator())
    assert [part.dtype for part in drawn] == [torch.float32] * 3
    assert half.positions.nbytes == exact.positions.nbytes / 2
    x, t, y = drawn
    assert torch.equal(t, expected[1])
    rounding = exact.positions.abs().max().item() * 2**-11
    assert 0 < (x - expected[0]).abs().max() < 1.01 * rounding
    n_steps = 4  # of which the velocity is the quotient of one move
    assert (y - expected[2]).abs().max() < 2.02 * n_steps * rounding


# Pools in parts


class Maker:
    """Makes parts that stay at the point of their number; notes what is left of earlier ones."""

    def __init__(self):
        self.parts, self.left_when_made = [], []

    def __call__(self, index):
        assert index == len(self.parts)
        self.left_when_made.append([i for i, part in enumerate(self.parts) if part()])
        part = TrajectoryPool(torch.full((5, 2, 1), float(index)))
        self.parts.append(weakref.ref(part))
        return part


def numbers_drawn(pool, n_draws, g):
    numbers = [pool.draw(4, g)[0].unique().tolist() for _ in range(n_draws)]
    assert all(len(parts) == 1 for parts in numbers)
    return [int(number) for (number,) in numbers]


@pytest.mark.parametrize(("n_parts", "n_draws"), [(1, 7), (3, 12), (4, 10), (5, 5)])
def test_each_part_gives_an_equal_share_of_the_draws_in_its_turn(n_parts, n_draws):
    drawn = numbers_drawn(PoolInParts(Maker(), n_parts, n_draws), n_draws, generator())
    assert drawn == sorted(drawn)
    shares = [drawn.count(part) for part in range(n_parts)]
    assert sum(shares) == n_draws
    assert set(shares) <= {n_draws // n_parts, -(-n_draws // n_parts)}


def test_parts_are_made_when_they_are_needed_and_one_is_in_memory_at_a_time():
    make_part, g = Maker(), generator()
    pool = PoolInParts(make_part, 3, 6)
    n_made = [len(make_part.parts)]
    for _ in range(6):
        pool.draw(4, g)
        n_made.append(len(make_part.parts))
    assert n_made == [1, 1, 1, 2, 2, 3, 3]
    assert make_part.left_when_made == [[], [], []]


def test_further_draws_come_from_the_last_part():
    assert numbers_drawn(PoolInParts(Maker(), 2, 4), 9, generator()) == [0, 0, 1, 1] + [1] * 5


def test_after_a_restart_every_part_has_its_turn_again():
    pool = PoolInParts(lambda index: TrajectoryPool(torch.full((5, 2, 1), float(index))), 3, 6)
    assert numbers_drawn(pool, 4, generator()) == [0, 0, 1, 1]
    pool.restart()
    assert numbers_drawn(pool, 7, generator()) == [0, 0, 1, 1, 2, 2, 2]


def test_fewer_draws_than_parts_leave_parts_out():
    make_part = Maker()
    pool = PoolInParts(lambda index: make_part(len(make_part.parts)), 6, 3)
    assert len(numbers_drawn(pool, 3, generator())) == len(make_part.parts) == 3


def test_a_single_part_is_drawn_from_like_a_pool():
    parts, pool = PoolInParts(lambda index: random_pool(), 1, 5), random_pool()
    g, same = generator(), generator()
    for _ in range(7):
        for one, other in zip(parts.draw(30, g), pool.draw(30, same), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("n_steps", [1, 3, 10, 1000])
def test_the_last_time_before_one_belongs_to_the_last_step(n_steps, monkeypatch):
    monkeypatch.setattr(
        TrajectoryPool, "_stratified_times", lambda *_: torch.full((2,), 1 - 2**-24)
    )
    positions = torch.arange(2.0 * (n_steps + 1)).reshape(2, n_steps + 1, 1)
    x, _, velocity = TrajectoryPool(positions).draw(2, torch.Generator())
    torch.testing.assert_close(velocity, torch.full((2, 1), float(n_steps)))
    assert sorted(x.flatten().tolist()) == pytest.approx([n_steps, 2 * n_steps + 1], rel=1e-5)
