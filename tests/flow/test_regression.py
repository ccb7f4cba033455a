import gc
import math

import pytest
import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits
from torch import nn

from sknsgf.flow.networks import VelocityMLP
from sknsgf.flow.regression import (
    CHECK_EVERY,
    SCHEDULES,
    DivergenceError,
    fit_regression,
    mean_squared_error,
)

RATE = 0.01
FAR = 1e6  # seen from there the gradient is constant, and AdamW moves by its learning rate

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices are many times slower when the cores of a busy machine share each."""
    with threadpool_limits(limits=1, user_api="openmp"):
        yield


class Constant(nn.Module):
    """Predicts one number, 0 at the start."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return self.value.expand_as(x)


class Normalised(nn.Module):
    """Network with batch normalisation, so with buffers and another output when it trains."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(2), mlp(1, (8,)).layers)

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], -1))


def mlp(n_features=2, sizes=(16,), seed=0):
    return VelocityMLP(n_features, sizes, "silu", torch.Generator().manual_seed(seed))


def points(n=64, d=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.rand(n, generator=g)


def towards(value, n=4):
    """Batch whose targets are all the same number."""
    return torch.zeros(n, 1), torch.zeros(n), torch.full((n, 1), float(value))


def fit_constant(value, n_iterations, **options):
    """Train a constant, and also return its values after each iteration."""
    network, path = Constant(), []
    options = {"learning_rate": RATE, "schedule": "constant", "ema_decay": 0.0} | options
    result = fit_regression(
        network,
        lambda: towards(value),
        n_iterations=n_iterations,
        on_iteration=lambda _: path.append(network.value.item()),
        **options,
    )
    return result, path


# Learning


def test_affine_map_of_point_and_time_is_learned():
    x, t = points(200, d=2)
    target = x @ torch.tensor([[1.0, 2.0], [-0.5, 0.3]]) + t[:, None] * torch.tensor([1.0, -1.0])
    network = mlp(sizes=())
    result = fit_regression(
        network, lambda: (x, t, target), n_iterations=600, learning_rate=0.05, ema_decay=0.9
    )
    assert result.losses[0] > 1
    assert result.losses[-1] < 1e-6
    assert mean_squared_error(result.network, (x, t, target)) < 1e-6
    weight = result.network.layers[0].weight
    expected = torch.tensor([[1.0, -0.5, 1.0], [2.0, 0.3, -1.0]])
    torch.testing.assert_close(weight.detach(), expected, atol=1e-2, rtol=0)


def test_least_squares_learn_the_conditional_mean():
    g = torch.Generator().manual_seed(0)
    noisy = 3 + torch.randn(2000, 1, generator=g)
    batch = torch.zeros(2000, 1), torch.zeros(2000), noisy
    result = fit_regression(Constant(), lambda: batch, n_iterations=400, learning_rate=0.1)
    assert result.network.value.item() == pytest.approx(noisy.mean().item(), abs=1e-2)
    assert result.losses[-1] == pytest.approx(noisy.var().item(), rel=1e-2)


@pytest.mark.parametrize("n_iterations", [1, 7, CHECK_EVERY, CHECK_EVERY + 1])
def test_each_iteration_draws_a_batch_and_records_its_loss(n_iterations):
    network, drawn = mlp(1), []

    def draw():
        drawn.append((*points(8, seed=len(drawn)), torch.ones(8, 1)))
        return drawn[-1]

    first = mean_squared_error(network, (*points(8), torch.ones(8, 1))).item()
    result = fit_regression(network, draw, n_iterations=n_iterations)
    assert len(drawn) == len(result.losses) == n_iterations
    assert result.losses[0] == pytest.approx(first)
    assert result.validation_losses == []


def test_mean_squared_error_is_the_mean_over_rows_and_features():
    batch = torch.zeros(2, 2), torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert mean_squared_error(Constant(), batch).item() == pytest.approx(30 / 4)


# Schedule and decay


def test_weighted_error_is_the_mean_of_the_weighted_rows():
    x, t = torch.zeros(2, 2), torch.tensor([1.0, 3.0])
    target = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    error = mean_squared_error(lambda x, t: x, (x, t, target), lambda x, t: t)
    assert error == (1 * 5 + 3 * 16) / 4


def test_rows_without_weight_are_not_learned_and_not_looked_at():
    x, t = torch.zeros(2, 1), torch.tensor([0.0, 1.0])
    batch = x, t, torch.tensor([[5.0], [1.0]])
    options = {"loss_weight": lambda x, t: t, "validation": batch, "learning_rate": 0.05}
    result = fit_regression(mlp(1), lambda: batch, n_iterations=300, **options)
    assert result.network(x, t)[1, 0].item() == pytest.approx(1, abs=0.05)
    assert max(result.losses[-1], result.validation_losses[-1]) < 0.01


def test_constant_schedule_moves_by_the_learning_rate_at_each_iteration():
    path = fit_constant(FAR, 50)[1]
    assert path == pytest.approx([RATE * k for k in range(1, 51)], rel=1e-3)


def test_cosine_schedule_lets_the_moves_fall_to_zero():
    path = torch.tensor([0.0, *fit_constant(FAR, 50, schedule="cosine")[1]])
    moves = path.diff().tolist()
    expected = [RATE * (1 + math.cos(math.pi * k / 50)) / 2 for k in range(50)]
    assert moves == pytest.approx(expected, abs=1e-3 * RATE)
    assert moves[0] == pytest.approx(RATE, rel=1e-3)
    assert moves[-1] < 2e-3 * RATE


def test_weight_without_gradient_decays_by_the_rate_times_the_decay():
    class WithIdle(Constant):
        """Has a second number that makes no difference."""

        def __init__(self):
            super().__init__()
            self.idle = nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            return super().forward(x, t) + 0 * self.idle

    network = WithIdle()
    options = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.5}
    fit_regression(network, lambda: towards(0), n_iterations=20, **options)
    assert network.idle.item() == pytest.approx((1 - 0.1 * 0.5) ** 20)


def test_weight_decay_shrinks_the_learned_weights():
    x, t = points(100)
    norms = []
    for weight_decay in (0.0, 1.0, 10.0):
        network = fit_regression(
            mlp(1), lambda: (x, t, 5 * x), n_iterations=200, weight_decay=weight_decay
        ).network
        norms.append(sum(p.square().sum().item() for p in network.parameters()))
    assert norms[0] > 1.1 * norms[1] > 1.1 * norms[2]


# Moving average


def test_without_memory_the_average_is_the_last_network():
    x, t = points(32)
    network = mlp(1)
    result = fit_regression(network, lambda: (x, t, x), n_iterations=30, ema_decay=0.0)
    for averaged, last in zip(result.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(averaged, last)


def test_average_of_weights_that_stay_is_those_weights():
    result, path = fit_constant(0, 50, ema_decay=0.999)
    assert path == [0] * 50
    assert result.network.value.item() == 0


def test_average_lags_behind_a_steady_move_by_its_memory():
    decay = 0.9
    result, path = fit_constant(FAR, 400, ema_decay=decay)
    lag = path[-1] - result.network.value.item()
    assert lag == pytest.approx(RATE * decay / (1 - decay), rel=1e-2)


@pytest.mark.parametrize("n_iterations", [1, 2, 10, 100])
def test_average_over_few_iterations_has_left_the_start(n_iterations):
    result, path = fit_constant(FAR, n_iterations, ema_decay=0.999)
    assert path[-1] / 2 < result.network.value.item() <= path[-1]


def test_average_is_less_noisy_than_the_last_weights():
    errors = {}
    for decay in (0.0, 0.99):
        g = torch.Generator().manual_seed(0)

        def draw(g=g):
            return torch.zeros(1, 1), torch.zeros(1), torch.randn(1, 1, generator=g)

        values = [
            fit_regression(
                Constant(),
                draw,
                n_iterations=600,
                learning_rate=0.05,
                schedule="constant",
                ema_decay=decay,
            ).network.value.item()
            for _ in range(5)
        ]
        errors[decay] = sum(value**2 for value in values)
    assert errors[0.99] < errors[0.0] / 2


def test_training_is_in_place_and_the_result_another_network():
    x, t = points(32)
    network = mlp(1)
    result = fit_regression(network, lambda: (x, t, x), n_iterations=5, ema_decay=0.5)
    assert any(
        not torch.equal(trained, start)
        for trained, start in zip(network.parameters(), mlp(1).parameters(), strict=True)
    )
    kept = [p.clone() for p in result.network.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, result.network.parameters(), strict=True))


# Early stopping


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_when_the_held_out_loss_does_not_fall(patience):
    result, _ = fit_constant(0, 5000, validation=towards(1), n_iter_no_change=patience)
    assert len(result.losses) == (patience + 1) * CHECK_EVERY
    assert result.validation_losses == [1.0] * (patience + 1)


def test_improvements_below_the_tolerance_do_not_count():
    held_out = towards(100)  # each check improves its loss by 2 %
    patient, _ = fit_constant(FAR, 600, validation=held_out, n_iter_no_change=2, tol=1e-3)
    strict, _ = fit_constant(FAR, 600, validation=held_out, n_iter_no_change=2, tol=0.1)
    assert len(patient.losses) == 600
    assert len(strict.losses) == 3 * CHECK_EVERY
    assert strict.network.value.item() == pytest.approx(3 * CHECK_EVERY * RATE, rel=1e-3)


def test_early_stopping_returns_the_network_that_was_best_on_held_out_data():
    result, path = fit_constant(FAR, 5000, validation=towards(2.2), n_iter_no_change=3)
    assert len(result.losses) == 5 * CHECK_EVERY
    expected = [(RATE * CHECK_EVERY * k - 2.2) ** 2 for k in range(1, 6)]
    assert result.validation_losses == pytest.approx(expected, rel=1e-2)
    assert path[-1] == pytest.approx(5, rel=1e-3)
    assert result.network.value.item() == pytest.approx(2, rel=1e-3)


def test_held_out_loss_is_taken_at_every_check_and_at_the_end():
    n_iterations = 2 * CHECK_EVERY + 50
    result, _ = fit_constant(FAR, n_iterations, validation=towards(100))
    assert len(result.losses) == n_iterations
    assert len(result.validation_losses) == 3


@pytest.mark.parametrize("n_held_out", [16, 1300])  # at once, and in parts
def test_held_out_loss_is_that_of_the_returned_network(n_held_out):
    x, t = points(32)
    held_out = (*points(n_held_out, seed=1), torch.zeros(n_held_out, 1))
    result = fit_regression(
        Normalised(), lambda: (x, t, x), n_iterations=CHECK_EVERY, validation=held_out
    )
    loss = mean_squared_error(result.network, held_out).item()
    assert result.validation_losses == [pytest.approx(loss, rel=1e-5)]


# Hook and errors


def test_hook_is_called_after_each_iteration_in_order():
    network, calls = Constant(), []
    fit_regression(
        network,
        lambda: towards(FAR),
        n_iterations=5,
        learning_rate=RATE,
        schedule="constant",
        on_iteration=lambda k: calls.append((k, network.value.item())),
    )
    assert [k for k, _ in calls] == [1, 2, 3, 4, 5]
    assert [value for _, value in calls] == pytest.approx([RATE * k for k, _ in calls], rel=1e-3)


@pytest.mark.parametrize("validation", [None, towards(100)])
def test_each_look_at_the_losses_shows_what_there_is_so_far(validation):
    shown = []
    result, path = fit_constant(
        FAR, 250, validation=validation, on_check=lambda so_far: shown.append(so_far.result())
    )
    assert [len(so_far.losses) for so_far in shown] == [100, 200, 250]
    n_held_out = [0, 0, 0] if validation is None else [1, 2, 3]
    assert [len(so_far.validation_losses) for so_far in shown] == n_held_out
    assert shown[-1].losses == result.losses
    assert shown[-1].network.value.item() == path[-1]


@pytest.mark.parametrize("validation", [None, towards(100)])
def test_a_look_at_the_losses_can_end_the_training(validation):
    result, path = fit_constant(
        FAR, 1000, validation=validation, on_check=lambda so_far: len(so_far.result().losses) == 200
    )
    assert len(result.losses) == len(path) == 200
    assert result.network.value.item() == path[-1]


@pytest.mark.parametrize("validation", [None, (*points(8), torch.zeros(8, 1))])
@pytest.mark.parametrize("look", [0, 1])
def test_a_training_goes_on_from_its_state_bit_by_bit(look, validation):
    def train(state=None, states=None):
        n_done = 0 if state is None else state["iteration"]
        batches = ((*points(16, seed=k), torch.ones(16, 1)) for k in range(n_done, 250))
        return fit_regression(
            Normalised(),
            lambda: next(batches),
            n_iterations=250,
            validation=validation,
            on_check=None if states is None else lambda run: states.append(run.state()),
            state=state,
        )

    states = []
    expected = train(states=states)
    result = train(state=states[look])
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses
    for mine, theirs in zip(
        result.network.state_dict().values(), expected.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_losses_are_not_kept_as_tensors():
    numbers_held = []  # as tensors, which would be scattered between the batches for ever

    def count(_):
        held = (thing for thing in gc.get_objects() if type(thing) is torch.Tensor)
        numbers_held.append(sum(tensor.dim() == 0 for tensor in held))

    fit_constant(FAR, 3 * CHECK_EVERY, on_check=count)
    assert len(numbers_held) == 3
    assert numbers_held[-1] <= numbers_held[0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_targets_that_are_not_finite_are_a_divergence(bad):
    with pytest.raises(DivergenceError, match="the loss is not finite after 3 iterations"):
        fit_constant(bad, 3)


@pytest.mark.parametrize(
    ("first_bad", "n_iterations", "noticed"),
    [(1, 1000, CHECK_EVERY), (CHECK_EVERY + 1, 1000, 2 * CHECK_EVERY), (120, 130, 130)],
)
@pytest.mark.parametrize("validation", [None, towards(0)])
def test_divergence_is_noticed_at_the_next_check(first_bad, n_iterations, noticed, validation):
    done = []

    def draw():
        return towards(math.inf if len(done) + 1 >= first_bad else 1)

    with pytest.raises(DivergenceError, match=f"after {noticed} iterations"):
        fit_regression(
            Constant(),
            draw,
            n_iterations=n_iterations,
            validation=validation,
            on_iteration=done.append,
        )
    assert len(done) == noticed


def test_weights_spoilt_by_the_last_iteration_are_a_divergence():
    class Root(Constant):
        """Predicts the square root of a number: at 0 the loss is finite, its gradient is not."""

        def forward(self, x, t):
            return self.value.sqrt().expand_as(x)

    with pytest.raises(DivergenceError, match="the weights are not finite"):
        fit_regression(Root(), lambda: towards(1), n_iterations=1)


def test_divergence_is_a_value_error():
    assert issubclass(DivergenceError, ValueError)


# Networks of other kinds


def test_buffers_of_a_network_are_carried_to_the_result():
    x, t = points(64)
    x = 3 * x + 5
    network = Normalised()
    result = fit_regression(network, lambda: (x, t, x), n_iterations=60)
    norm, trained = result.network.layers[0], network.layers[0]
    assert norm.num_batches_tracked == 60
    assert torch.equal(norm.running_mean, trained.running_mean)
    assert torch.equal(norm.running_var, trained.running_var)
    assert norm.running_mean[0].item() == pytest.approx(x.mean().item(), rel=1e-2)


def test_held_out_data_do_not_reach_the_buffers():
    x, t = points(64)
    held_out = (points(64)[0] + 1000, t, x)
    buffers = [
        fit_regression(
            Normalised(), lambda: (x, t, x), n_iterations=CHECK_EVERY, validation=validation
        ).network.layers[0]
        for validation in (None, held_out)
    ]
    assert torch.equal(buffers[0].running_mean, buffers[1].running_mean)
    assert buffers[0].num_batches_tracked == buffers[1].num_batches_tracked == CHECK_EVERY


@pytest.mark.parametrize("validation", [None, (*points(8), torch.zeros(8, 1))])
@pytest.mark.parametrize("mode", [True, False])
def test_network_trains_in_training_mode_and_comes_back_for_evaluation(mode, validation):
    x, t = points(32)
    network, modes = Normalised().train(mode), []
    result = fit_regression(
        network,
        lambda: (x, t, x),
        n_iterations=3,
        validation=validation,
        on_iteration=lambda _: modes.append({m.training for m in network.modules()}),
    )
    assert modes == [{True}] * 3
    assert not any(module.training for module in result.network.modules())


def test_frozen_parameters_stay():
    x, t = points(32)
    network = mlp(1)
    network.layers[0].requires_grad_(False)
    result = fit_regression(network, lambda: (x, t, x), n_iterations=20, weight_decay=1.0)
    assert torch.equal(result.network.layers[0].weight, mlp(1).layers[0].weight)
    assert not torch.equal(result.network.layers[-1].weight, mlp(1).layers[-1].weight)


# Global state


def small_fit():
    x = torch.linspace(-1, 1, 32, dtype=torch.float32, device="cpu")[:, None]
    batch = x, torch.zeros(32, dtype=torch.float32, device="cpu"), 2 * x
    network = VelocityMLP(1, (8,), "silu", torch.Generator(device="cpu").manual_seed(0))
    return fit_regression(network, lambda: batch, n_iterations=110, validation=batch)


def test_training_ignores_the_default_dtype_of_the_caller():
    expected = small_fit()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        result = small_fit()
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in result.network.parameters()} == {torch.float32}
    assert result.losses == expected.losses


def test_training_ignores_the_default_device_of_the_caller():
    expected = small_fit()
    with torch.device("meta"):
        result = small_fit()
    assert {p.device.type for p in result.network.parameters()} == {"cpu"}
    assert result.losses == expected.losses
    assert result.validation_losses == expected.validation_losses


def test_training_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    small_fit()
    assert torch.equal(torch.get_rng_state(), before)


def gpu_fit(batches, **options):
    """Train a network on a GPU by steps that are recorded, unless asked otherwise."""
    network, draws = mlp(2, (32, 32)).cuda(), iter(batches)
    options = {"n_iterations": len(batches), "weight_decay": 0.1, "record": True} | options
    return fit_regression(network, lambda: next(draws), **options)


def gpu_batches(sizes):
    drawn = [points(n, 2, seed) for seed, n in enumerate(sizes)]
    return [(x.cuda(), t.cuda(), (x.sin() + t[:, None]).cuda()) for x, t in drawn]


def test_nothing_is_recorded_on_a_cpu():
    batch = (*points(32, 1), points(32, 1, seed=1)[0])
    plain, recorded = (
        fit_regression(mlp(1), lambda: batch, n_iterations=20, record=record)
        for record in (False, True)
    )
    assert recorded.losses == plain.losses


@needs_cuda
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_recorded_steps_are_those_taken_one_by_one(schedule):
    batches = gpu_batches([64] * 30 + [48] + [64] * 9)
    plain, recorded = (gpu_fit(batches, schedule=schedule, record=r) for r in (False, True))
    assert recorded.losses == pytest.approx(plain.losses, rel=1e-4)
    for one, other in zip(recorded.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_cuda
def test_recorded_training_goes_on_from_its_state_bit_by_bit():
    batches, states = gpu_batches([64] * (2 * CHECK_EVERY)), []
    whole = gpu_fit(batches, on_check=lambda run: states.append(run.state()))
    rest = batches[CHECK_EVERY:]
    resumed = gpu_fit(rest, n_iterations=len(batches), state=states[0])
    assert resumed.losses == whole.losses
    for one, other in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(one, other)


@needs_cuda
def test_trainings_in_threads_are_recorded_side_by_side():
    batches = gpu_batches([64] * CHECK_EVERY)
    expected = gpu_fit(batches).losses
    fits = Parallel(n_jobs=4, prefer="threads")(delayed(gpu_fit)(batches) for _ in range(8))
    assert all(fit.losses == expected for fit in fits)
