import copy
import inspect
import os
import pickle
import pickletools
import random
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from sknsgf import NSGFSampler

CHEAP = {
    "n_flows": 4,
    "max_iter": 100,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "random_state": 0,
}
SHIFT = np.array([4.0, -2.0])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class SmallNetwork(torch.nn.Module):
    """A user's network; its weights come from torch's default generator. Counts its calls."""

    n_calls = 0

    def __init__(self, n_features):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_features + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, n_features)
        )

    def forward(self, x, t):
        type(self).n_calls += 1
        return self.layers(torch.cat([x, t[:, None]], 1))


class NarrowNetwork(SmallNetwork):
    def forward(self, x, t):
        return super().forward(x, t)[:, 0]


class PairNetwork(SmallNetwork):
    def forward(self, x, t):
        return super().forward(x, t), t


class WideningNetwork(SmallNetwork):
    def forward(self, x, t):
        return super().forward(x, t).double()


class SinglePrecisionNetwork(SmallNetwork):
    def forward(self, x, t):
        return super().forward(x.float(), t.float())


class HalfPrecisionNetwork(SmallNetwork):
    def forward(self, x, t):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x, t).float()


class WeightlessNetwork(torch.nn.Module):
    def __init__(self, n_features):
        super().__init__()

    def forward(self, x, t):
        return -x


def make_samples(n_source=200, n_target=150, seed=0):
    rng = np.random.default_rng(seed)
    X_source = rng.normal(size=(n_source, 2))
    return X_source, rng.normal(size=(n_target, 2)) * [1.0, 0.5] + SHIFT


X_source, X_target = make_samples()


@pytest.fixture(scope="module")
def kept_flow():
    return NSGFSampler(**CHEAP).fit(X_source, X_target)


@pytest.fixture
def flow(kept_flow):
    return copy.deepcopy(kept_flow)


@pytest.fixture(autouse=True)
def _few_scored_rows(monkeypatch):
    """Score one sample against fewer draws than the 4096 that users get: it is faster."""
    monkeypatch.setattr("sknsgf._base.SCORE_ROWS", 400)


def assert_same_flow(first, second):
    """Check that two fits are equal bit by bit."""
    assert first.loss_curve_ == second.loss_curve_
    assert first.network_parameters_.keys() == second.network_parameters_.keys()
    for name, weights in first.network_parameters_.items():
        np.testing.assert_array_equal(weights, second.network_parameters_[name])
    rows = np.random.default_rng(9).normal(size=(30, first.n_features_in_))
    np.testing.assert_array_equal(first.transform(rows), second.transform(rows))


def largest_difference(first, second):
    rows = np.random.default_rng(9).normal(size=(30, first.n_features_in_))
    return np.abs(first.transform(rows) - second.transform(rows)).max()


# The target rule


@pytest.mark.parametrize("n_target", [150, 200, 260])
def test_every_way_to_pass_the_target_is_the_same_fit(n_target):
    X_target = make_samples(200, n_target)[1]
    labels = np.arange(200) % 3
    flow = NSGFSampler(**CHEAP).fit(X_source, X_target)
    assert flow.target_sample_.shape == (n_target, 2)
    assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source, y=X_target))
    assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source, X_target=X_target))
    assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source, labels, X_target=X_target))
    assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source, X_source, X_target=X_target))
    assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source.tolist(), X_target.tolist()))


@pytest.mark.parametrize("labels", [np.arange(200) % 3, ["a", "b"] * 100, np.linspace(0, 1, 200)])
def test_labels_alone_are_no_target(labels):
    assert_same_flow(NSGFSampler(**CHEAP).fit(X_source, labels), NSGFSampler(**CHEAP).fit(X_source))


def test_without_a_target_the_source_is_normal_with_the_moments_of_x():
    flow = NSGFSampler(**CHEAP).fit(X_target)
    assert flow.source_sample_ is None
    np.testing.assert_array_equal(flow.target_sample_, X_target)
    np.testing.assert_allclose(flow.source_mean_, X_target.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(flow.source_std_, X_target.std(axis=0), rtol=1e-12)


def test_without_a_target_samples_have_the_moments_of_x():
    sample = NSGFSampler(**CHEAP).fit(X_target).sample(2000)
    np.testing.assert_allclose(sample.mean(axis=0), X_target.mean(axis=0), atol=0.25)
    np.testing.assert_allclose(sample.std(axis=0), X_target.std(axis=0), atol=0.2)


# What the flow does


@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
@pytest.mark.parametrize("time", ["continuous", "discrete"])
def test_rows_move_by_the_shift_to_a_shifted_copy(time, prediction):
    flow = NSGFSampler(**CHEAP).set_params(
        learning_rate_init=0.02, max_iter=300, time=time, prediction=prediction
    )
    moved = flow.fit(X_source, X_source + SHIFT).transform(X_source) - X_source
    np.testing.assert_allclose(moved.mean(axis=0), SHIFT, atol=0.15)
    assert np.sqrt(np.square(moved - SHIFT).sum(axis=1).mean()) < 0.6


def test_inverse_transform_moves_the_target_back_to_the_source():
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02, max_iter=300)
    moved = flow.fit(X_source, X_source + SHIFT).inverse_transform(X_source + SHIFT)
    np.testing.assert_allclose(moved.mean(axis=0), X_source.mean(axis=0), atol=0.15)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_inverse_transform_undoes_transform_up_to_the_order_of_the_method(method, order):
    flow = NSGFSampler(**CHEAP).set_params(activation="tanh").fit(X_source, X_target)
    flow.method_, errors = method, []
    for flow.n_integration_steps_ in (8, 32):
        again = flow.inverse_transform(flow.transform(X_source))
        errors.append(np.abs(again - X_source).max())
    assert errors[1] < 1e-13 + errors[0] / 4 ** (order - 0.5)


@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
def test_euler_steps_lead_back_nearly_the_way_they_came(prediction):
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02, max_iter=600)
    flow.set_params(prediction=prediction).fit(X_source, X_source * [1, 0.3] + 4)
    errors = []
    for flow.n_integration_steps_ in (10, 50):
        away = flow.inverse_transform(flow.transform(X_source)) - X_source
        errors.append(np.linalg.norm(away, axis=1).mean())
    assert errors[0] < 0.1
    assert errors[1] < errors[0]


def test_the_inverse_undoes_discrete_steps_one_by_one():
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02, max_iter=300, time="discrete")
    flow.fit(X_source, X_source + SHIFT)
    again = flow.inverse_transform(flow.transform(X_source))
    np.testing.assert_allclose(again, X_source, atol=1e-6)


def test_trajectory_leads_from_the_rows_to_their_transform(flow):
    trajectory = flow.trajectory(X_source)
    assert trajectory.shape == (flow.n_integration_steps_ + 1, 200, 2)
    np.testing.assert_allclose(trajectory[0], X_source, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(trajectory[-1], flow.transform(X_source))


def test_trajectory_is_made_of_the_steps_of_the_integration(flow):
    first, second = (flow.trajectory(X_source[i : i + 1]) for i in (0, 1))
    both = flow.trajectory(X_source[:2])
    np.testing.assert_allclose(both, np.concatenate([first, second], axis=1), rtol=1e-12)


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_rows_are_transported_on_their_own(flow, method):
    transport = getattr(flow, method)
    together = transport(X_source)
    alone = np.concatenate([transport(row[None]) for row in X_source[:20]])
    np.testing.assert_allclose(alone, together[:20], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(transport(X_source[::-1]), together[::-1], rtol=1e-12, atol=1e-12)


def test_more_than_one_chunk_of_rows_is_transported_like_one(flow, monkeypatch):
    whole, path = flow.transform(X_source), flow.trajectory(X_source)
    monkeypatch.setattr("sknsgf._base.CPU_CHUNK", 64)
    np.testing.assert_allclose(flow.transform(X_source), whole, rtol=1e-12)
    np.testing.assert_allclose(flow.trajectory(X_source), path, rtol=1e-12)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "trajectory"])
@pytest.mark.parametrize(
    ("dtype", "returned"),
    [("float32", "float32"), ("float64", "float64"), ("int64", "float64"), ("float16", "float64")],
)
def test_float32_rows_stay_float32_and_others_become_float64(flow, method, dtype, returned):
    rows = (4 * X_source).astype(dtype)
    moved = getattr(flow, method)(rows)
    assert moved.dtype == returned
    np.testing.assert_allclose(moved, getattr(flow, method)(rows.astype("float64")), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_have_the_dtype_of_the_fitted_rows(dtype):
    source, target = X_source.astype(dtype), X_target.astype(dtype)
    assert NSGFSampler(**CHEAP).fit(source, target).sample(3).dtype == dtype
    assert NSGFSampler(**CHEAP).fit(target).sample(3).dtype == dtype


# Sampling


@pytest.mark.parametrize("samples", [(X_source, X_target), (X_target,)])
def test_sample_draws_the_number_of_rows_asked_for(samples):
    flow = NSGFSampler(**CHEAP).fit(*samples)
    assert flow.sample().shape == (1, 2)
    assert flow.sample(7).shape == (7, 2)
    assert flow.sample(np.int64(450)).shape == (450, 2)


def test_sample_uses_every_source_row_once_before_any_again(flow):
    moved = np.unique(flow.transform(X_source).round(9), axis=0)
    rows, counts = np.unique(flow.sample(500).round(9), axis=0, return_counts=True)
    np.testing.assert_allclose(rows, moved, atol=1e-8)
    assert sorted(set(counts)) == [2, 3]


@pytest.mark.parametrize("samples", [(X_source, X_target), (X_target,)])
def test_sample_is_determined_by_its_random_state(samples):
    flow = NSGFSampler(**CHEAP).fit(*samples)
    np.testing.assert_array_equal(flow.sample(20, random_state=1), flow.sample(20, random_state=1))
    assert not np.array_equal(flow.sample(20, random_state=1), flow.sample(20, random_state=2))


def test_sample_falls_back_to_the_random_state_of_the_estimator(flow):
    np.testing.assert_array_equal(flow.sample(20), flow.sample(20, random_state=0))
    flow.random_state = None
    assert not np.array_equal(flow.sample(20), flow.sample(20))


@pytest.mark.parametrize("random_state", [2.5, "seed", -1, np.random.default_rng(0)])
def test_what_rows_cannot_be_drawn_with_raises(flow, random_state):
    with pytest.raises(ValueError, match=r"'random_state' parameter of NSGFSampler\.sample must"):
        flow.sample(2, random_state=random_state)


def test_a_random_state_instance_gives_new_rows_at_each_call(flow):
    state, again = (np.random.RandomState(5) for _ in range(2))  # noqa: NPY002
    first, second = flow.sample(20, random_state=state), flow.sample(20, random_state=state)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, flow.sample(20, random_state=again))


# Random states and threads


def test_the_same_seed_gives_the_same_fit_and_another_seed_another():
    flows = [
        NSGFSampler(**CHEAP).set_params(random_state=s).fit(X_source, X_target) for s in (1, 1, 2)
    ]
    assert_same_flow(*flows[:2])
    assert largest_difference(*flows[1:]) > 1e-3


def test_fitting_again_with_a_seed_is_the_same_fit(flow):
    before = copy.deepcopy(flow)
    assert_same_flow(before, flow.fit(X_source, X_target))


def test_without_a_seed_every_fit_differs():
    flows = [
        NSGFSampler(**CHEAP).set_params(random_state=None).fit(X_source, X_target) for _ in range(2)
    ]
    assert largest_difference(*flows) > 1e-3


def test_equal_random_state_instances_give_the_same_fit():
    flows = [
        NSGFSampler(**CHEAP)
        .set_params(random_state=np.random.RandomState(3))  # noqa: NPY002
        .fit(X_source, X_target)
        for _ in range(2)
    ]
    assert_same_flow(*flows)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_the_number_of_threads_changes_no_bit(n_samples):
    samples = make_samples(600, 500)[:n_samples]
    settings = {**CHEAP, "flow_batch_size": 500, "n_flows": 12, "sinkhorn_tol": 0.1}
    rows = np.random.default_rng(0).normal(size=(40_000, 2))
    one, two = (NSGFSampler(**settings, n_jobs=n_jobs).fit(*samples) for n_jobs in (1, 2))
    assert_same_flow(one, two)
    np.testing.assert_array_equal(one.transform(rows), two.transform(rows))
    np.testing.assert_array_equal(one.sample(40_000), two.sample(40_000))


def test_joblib_settings_of_the_caller_change_no_bit(flow):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert_same_flow(flow, NSGFSampler(**CHEAP).fit(X_source, X_target))


def test_threads_may_transport_at_once(flow):
    batches = np.random.default_rng(0).normal(size=(64, 100, 2))
    expected = [flow.transform(rows) for rows in batches]
    with ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(list(pool.map(flow.transform, batches)), expected)


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_of_torch_is_left_as_it_was(flow):
    for n_jobs in (1, 2):
        NSGFSampler(**CHEAP, n_jobs=n_jobs).fit(X_source, X_target).score(X_source)
        flow.sample(5)
        assert torch.get_num_threads() == 2


# The caller's global state


def global_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.empty(0).device,
    )


@pytest.mark.parametrize("network", ["mlp", SmallNetwork])
@pytest.mark.parametrize("random_state", [0, None])
def test_no_global_generator_is_touched(random_state, network):
    before = global_states()
    flow = NSGFSampler(**CHEAP).set_params(
        random_state=random_state, network=network, early_stopping=True
    )
    for samples in [(X_source, X_target), (X_target,)]:
        flow.fit(*samples)
        flow.transform(X_source)
        flow.inverse_transform(X_source)
        flow.sample(5)
        flow.score(X_source)
        assert global_states() == before


@contextmanager
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "mode",
    [
        float64_by_default,
        lambda: torch.device("meta"),
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["float64", "meta device", "no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("samples", [(X_source, X_target), (X_target,)])
def test_torch_defaults_of_the_caller_change_no_bit(samples, mode):
    expected = NSGFSampler(**CHEAP).fit(*samples)
    with mode():
        before = global_states()
        flow = NSGFSampler(**CHEAP).fit(*samples)
        assert_same_flow(flow, expected)
        sample, score = flow.sample(10), flow.score(X_source)
        moved = flow.transform(X_source.astype("float32"))
        assert global_states() == before
    np.testing.assert_array_equal(sample, expected.sample(10))
    np.testing.assert_array_equal(moved, expected.transform(X_source.astype("float32")))
    assert score == expected.score(X_source)


def test_arrays_of_the_caller_are_neither_changed_nor_needed_writable():
    samples = [X_source.copy(), X_target.copy()]
    for rows in samples:
        rows.setflags(write=False)
    flow = NSGFSampler(**CHEAP).fit(*samples)
    flow.score(samples[0])
    flow.transform(samples[0])
    np.testing.assert_array_equal(samples[0], X_source)
    np.testing.assert_array_equal(samples[1], X_target)


def test_which_rows_are_kept_does_not_depend_on_the_seed_of_the_fit():
    rows = np.random.default_rng(0).normal(size=(12_000, 2))
    flows = [NSGFSampler(**CHEAP | {"random_state": seed}).fit(rows, rows + 3) for seed in (0, 1)]
    np.testing.assert_array_equal(flows[0].source_sample_, flows[1].source_sample_)
    np.testing.assert_array_equal(flows[0].target_sample_, flows[1].target_sample_)


def test_rows_kept_by_fit_are_copies():
    source, target = X_source.copy(), X_target.copy()
    flow = NSGFSampler(**CHEAP).fit(source, target)
    before = flow.score(X_source), flow.sample(5)
    source[:], target[:] = 0, 0
    assert flow.score(X_source) == before[0]
    np.testing.assert_array_equal(flow.sample(5), before[1])


def test_a_memory_map_is_not_copied(tmp_path):
    n_rows, n_features = 5_000_000, 10
    block = np.random.default_rng(0).normal(size=(n_rows // 20, n_features)).astype(np.float32)
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(n_rows, n_features))
    for start in range(0, n_rows, len(block)):
        rows[start : start + len(block)] = block
    rows.flush()
    rows = np.memmap(tmp_path / "rows", np.float32, "r", shape=(n_rows, n_features))
    tracemalloc.start()
    try:
        flow = NSGFSampler(**CHEAP).fit(rows, rows)
        flow.score(rows[:1000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.nbytes == 200_000_000
    assert peak < rows.nbytes / 4
    assert len(pickle.dumps(flow)) < 2_000_000


def test_at_most_ten_thousand_rows_of_each_sample_are_kept():
    source, target = make_samples(10_500, 12_000)
    flow = NSGFSampler(**CHEAP).fit(source, target)
    for kept, rows in [(flow.source_sample_, source), (flow.target_sample_, target)]:
        assert kept.shape == (10_000, 2)
        assert len(np.unique(kept, axis=0)) == 10_000
        assert {tuple(row) for row in kept} <= {tuple(row) for row in rows}


# Integration


@pytest.mark.parametrize(
    ("method", "n_steps", "n_calls"), [("euler", 10, 10), ("midpoint", 3, 6), ("rk4", 2, 8)]
)
@pytest.mark.parametrize("direction", ["transform", "inverse_transform", "trajectory"])
def test_n_evaluations_counts_the_calls_of_the_network(direction, method, n_steps, n_calls):
    flow = NSGFSampler(**CHEAP).set_params(
        network=SmallNetwork, max_iter=1, method=method, n_integration_steps=n_steps
    )
    flow.fit(X_source, X_target)
    SmallNetwork.n_calls = 0
    getattr(flow, direction)(X_source)
    solves = direction == "inverse_transform" and method == "euler"  # with two calls for each step
    assert SmallNetwork.n_calls == n_calls * (2 if solves else 1)
    assert flow.n_evaluations_ == n_calls


def test_the_integration_may_be_assigned_after_fit(flow):
    ten_euler = flow.transform(X_source)
    flow.n_integration_steps_ = 200
    many_euler = flow.transform(X_source)
    flow.method_, flow.n_integration_steps_ = "rk4", 20
    assert flow.n_evaluations_ == 80
    error = np.abs(ten_euler - flow.transform(X_source)).max()
    assert 0 < np.abs(many_euler - flow.transform(X_source)).max() < error / 10


def test_ten_euler_steps_are_the_default(flow):
    assert (flow.method_, flow.n_integration_steps_, flow.n_evaluations_) == ("euler", 10, 10)


def test_discrete_time_is_integrated_at_the_steps_of_the_scheme():
    flow = NSGFSampler(**CHEAP).set_params(time="discrete", n_steps=3).fit(X_source, X_target)
    assert (flow.method_, flow.n_integration_steps_) == ("euler", 3)


@pytest.mark.parametrize("step_size", ["auto", 0.5, 1])
def test_step_sizes_are_those_of_the_particle_scheme(step_size):
    flow = NSGFSampler(**CHEAP).set_params(step_size=step_size, n_steps=4).fit(X_source, X_target)
    expected = [1 / 4, 1 / 3, 1 / 2, 1] if step_size == "auto" else [step_size] * 4
    np.testing.assert_allclose(flow.step_sizes_, expected)


def test_short_steps_leave_a_share_of_the_way():
    flow = NSGFSampler(**CHEAP).set_params(
        step_size=0.2, n_steps=3, learning_rate_init=0.02, max_iter=300
    )
    flow.fit(X_source, X_source + SHIFT)
    moved = (flow.transform(X_source) - X_source).mean(axis=0)
    np.testing.assert_allclose(moved, (1 - 0.8**3) * SHIFT, atol=0.15)


def test_setting_parameters_after_fit_changes_no_result(flow):
    expected = flow.transform(X_source), flow.inverse_transform(X_target), flow.score(X_source)
    flow.set_params(
        blur=3.0,
        n_steps=2,
        time="discrete",
        network=SmallNetwork,
        hidden_layer_sizes=(3, 3),
        activation="tanh",
        prediction="endpoint",
        method="rk4",
        n_integration_steps=1,
        random_state=7,
    )
    np.testing.assert_array_equal(flow.transform(X_source), expected[0])
    np.testing.assert_array_equal(flow.inverse_transform(X_target), expected[1])
    assert flow.score(X_source) == expected[2]


# Score


def test_the_best_score_is_zero(flow):
    moved = flow.transform(X_source)
    assert flow.score(X_source, X_target=moved) == pytest.approx(0, abs=1e-6)
    assert flow.score(X_source) < -1e-3


@pytest.mark.parametrize("samples", [(X_source, X_target), (X_target,)])
def test_training_raises_the_score(samples):
    target = make_samples(seed=5)[1]
    skewed = np.exp(samples[-1] / 2)  # nothing that the normal source is already
    samples = (*samples[:-1], skewed)
    rows = np.exp(target / 2) if len(samples) == 1 else make_samples(seed=5)[0]
    settings = {**CHEAP, "learning_rate_init": 0.02}
    start, end = (
        NSGFSampler(**{**settings, "max_iter": max_iter}).fit(*samples).score(rows)
        for max_iter in (1, 300)
    )
    assert start < 1.5 * end < 0


def test_score_does_not_depend_on_the_blur_of_the_estimator(flow):
    expected = flow.score(X_source)
    flow.blur_ *= 10
    assert flow.set_params(blur=5.0).score(X_source) == expected


def test_score_is_minus_the_divergence_at_a_blur_relative_to_the_spread_of_the_target(flow):
    from sknsgf.metrics import sinkhorn_divergence

    blur = 0.1 * np.sqrt(X_target.var(axis=0).mean())
    expected = sinkhorn_divergence(flow.transform(X_source), X_target, blur=blur)
    assert flow.score(X_source) == pytest.approx(-expected, rel=1e-3)


@pytest.mark.parametrize("samples", [(X_source, X_target), (X_target,)])
def test_score_is_deterministic_without_a_seed(samples):
    flow = NSGFSampler(**CHEAP).set_params(random_state=None).fit(*samples)
    assert flow.score(X_source) == flow.score(X_source)


def test_score_follows_the_target_rule_and_defaults_to_the_kept_target(flow):
    expected = flow.score(X_source)
    assert flow.score(X_source, X_target) == expected
    assert flow.score(X_source, X_target=X_target) == expected
    assert flow.score(X_source, np.zeros(200, dtype=int)) == expected
    assert flow.score(X_source, X_source, X_target=X_target) == expected
    assert flow.score(X_source, X_target[:50]) != expected


def same_score(score):
    """The same to rounding, which may make a solve stop an iteration sooner or later."""
    return pytest.approx(score, rel=1e-5)


def test_rows_without_weight_do_not_count(flow):
    rows = np.concatenate([X_source, X_source[:30] + 50])
    weights = np.repeat([2.0, 0.0], [200, 30])
    assert flow.score(rows, sample_weight=weights) == same_score(flow.score(X_source))


def test_equal_weights_are_no_weights_and_weights_are_repeated_rows(flow):
    assert flow.score(X_source, sample_weight=np.full(200, 3)) == same_score(flow.score(X_source))
    weights = 1 + np.arange(200) % 2
    repeated = np.repeat(X_source, weights, axis=0)
    assert flow.score(X_source, sample_weight=weights) == pytest.approx(
        flow.score(repeated), rel=1e-3
    )


def test_a_few_weighted_rows_among_many_are_found(flow):
    rows = np.concatenate([np.zeros((20_000, 2)), X_source])
    weights = np.repeat([0, 1], [20_000, 200])
    assert flow.score(rows, sample_weight=weights) == same_score(flow.score(X_source))


def test_score_of_one_sample_compares_its_rows_with_draws():
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02).fit(X_target)
    score = flow.score(X_target)
    assert -0.1 < score < 0
    assert flow.score(X_target + 1) == pytest.approx(score - 1, abs=0.3)  # |(1, 1)|^2 / 2 farther
    assert flow.score(X_source, X_target=flow.transform(X_source)) == pytest.approx(0, abs=1e-6)


# Units and shapes of the data


@pytest.mark.parametrize("exponent", [-100, 10, 100])
def test_the_flow_in_other_units_is_the_same_flow(flow, exponent):
    factor = 2.0**exponent  # changes no digit of a float
    scaled = NSGFSampler(**CHEAP).fit(factor * X_source, factor * X_target)
    assert scaled.loss_curve_ == flow.loss_curve_
    assert scaled.scale_ == factor * flow.scale_
    assert scaled.blur_ == factor * flow.blur_
    np.testing.assert_array_equal(
        scaled.transform(factor * X_source), factor * flow.transform(X_source)
    )
    assert scaled.score(factor * X_source) == pytest.approx(factor**2 * flow.score(X_source))


@pytest.mark.parametrize("offset", [-3.0, 1e6])
def test_moving_both_samples_moves_the_flow(flow, offset):
    moved = NSGFSampler(**CHEAP).fit(X_source + offset, X_target + offset)
    np.testing.assert_allclose(moved.center_, flow.center_ + offset)
    np.testing.assert_allclose(
        moved.transform(X_source + offset) - offset, flow.transform(X_source), atol=1e-3
    )
    assert moved.score(X_source + offset) == pytest.approx(flow.score(X_source), abs=1e-3)


def test_the_frame_gives_both_samples_mean_zero_and_mean_square_one(flow):
    assert flow.blur_ == pytest.approx(0.1 * flow.scale_)
    moments = [
        ((rows - flow.center_) / flow.scale_, np.full(len(rows), 0.5 / len(rows)))
        for rows in (X_source, X_target)
    ]
    rows, weights = (np.concatenate(parts) for parts in zip(*moments, strict=True))
    np.testing.assert_allclose(weights @ rows, 0, atol=1e-12)
    assert weights @ np.square(rows).mean(axis=1) == pytest.approx(1)


def test_one_feature():
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02)
    flow.fit(X_source[:, :1], X_source[:, :1] + 4)
    assert flow.transform(X_source[:, :1]).mean() == pytest.approx(4, abs=0.5)
    assert flow.sample(3).shape == (3, 1)


def test_constant_features_stay_constant():
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02, max_iter=300)
    constant = np.full((200, 1), 7.0)
    flow.fit(np.hstack([X_source, constant]), np.hstack([X_source + SHIFT, constant]))
    np.testing.assert_allclose(flow.sample(50)[:, 2], 7, atol=0.6)


def test_equal_rows_everywhere_are_a_flow_that_stands_still():
    rows = np.full((20, 2), 3.0)
    flow = NSGFSampler(**CHEAP).set_params(max_iter=300).fit(rows, rows)
    assert flow.scale_ == 1
    np.testing.assert_allclose(flow.transform(rows), rows, atol=0.05)
    assert flow.score(rows) > -0.01


def test_an_atom_moves_to_an_atom():
    flow = NSGFSampler(**CHEAP).set_params(max_iter=300, learning_rate_init=0.02)
    flow.fit(np.zeros((20, 2)), np.full((30, 2), [1.0, 2.0]))
    np.testing.assert_allclose(flow.transform([[0.0, 0.0]]), [[1.0, 2.0]], atol=0.15)


def test_two_rows_are_enough():
    flow = NSGFSampler(**CHEAP).fit(X_source[:2], X_target[:2])
    assert np.isfinite(flow.sample(5)).all()
    assert flow.score(X_source[:2]) <= 0
    assert np.isfinite(NSGFSampler(**CHEAP).fit(X_target[:2]).sample(5)).all()


def test_repeated_rows_are_welcome():
    source, target = np.repeat(X_source[:40], 5, axis=0), np.repeat(X_target[:50], 3, axis=0)
    flow = NSGFSampler(**CHEAP).set_params(learning_rate_init=0.02, max_iter=300)
    flow.fit(source, target)
    np.testing.assert_allclose(flow.transform(source).mean(axis=0), target.mean(axis=0), atol=0.3)


def test_many_features_are_learned_as_endpoints():
    rows = np.random.default_rng(0).normal(size=(100, 16))
    flow = NSGFSampler(**CHEAP).set_params(sinkhorn_max_iter=1000)
    assert flow.fit(rows, rows + 1).prediction_ == "endpoint"
    assert flow.fit(rows[:, :15], rows[:, :15] + 1).prediction_ == "velocity"


def test_a_spread_of_many_features_is_carried_closer_than_it_was():
    rng, shift = np.random.default_rng(0), np.repeat([3.0, 0.0], 100)
    rows, others, unseen = (rng.normal(size=(512, 200)) for _ in range(3))
    flow = NSGFSampler(max_iter=300, hidden_layer_sizes=32, device="cpu", random_state=0)
    moved = flow.fit(rows, others + shift).transform(unseen)
    left = np.square(moved - unseen - shift).sum(axis=1).mean()
    assert left < np.square(shift).sum() / 5  # of what the identity leaves


# scikit-learn's tools


def test_a_clone_has_the_parameters_and_is_not_fitted(flow):
    fresh = clone(flow)
    assert fresh.get_params() == flow.get_params()
    with pytest.raises(NotFittedError):
        fresh.transform(X_source)


def test_every_parameter_can_be_set_and_fit_changes_none(flow):
    parameters = inspect.signature(NSGFSampler).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert set(flow.get_params()) == set(parameters)
    for name in parameters:
        value = object()
        assert NSGFSampler(**{name: value}).get_params()[name] is value
    before = flow.get_params()
    assert flow.fit(X_source, X_target) is flow
    assert flow.get_params() == before


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_of_the_features_come_in_and_go_out(flow, library):
    frames = pytest.importorskip(library)
    source, target = (pd.DataFrame(X, columns=["a", "b"]) for X in (X_source, X_target))
    other = NSGFSampler(**CHEAP).set_output(transform=library).fit(source, target)
    moved = other.transform(source)
    assert isinstance(moved, frames.DataFrame)
    assert list(moved.columns) == ["a", "b"]
    np.testing.assert_allclose(moved.to_numpy(), flow.transform(X_source), rtol=1e-12)
    assert other.get_feature_names_out().tolist() == ["a", "b"]
    assert other.feature_names_in_.tolist() == ["a", "b"]
    assert other.score(source, X_target=target) == same_score(flow.score(X_source))


def test_polars_frames_come_in(flow):
    frames = pytest.importorskip("polars")
    source, target = (frames.DataFrame(X, schema=["a", "b"]) for X in (X_source, X_target))
    moved = NSGFSampler(**CHEAP).fit(source, target).transform(source)
    np.testing.assert_allclose(moved, flow.transform(X_source), rtol=1e-12)


def test_features_without_names_are_numbered(flow):
    assert flow.get_feature_names_out().tolist() == ["x0", "x1"]


def test_a_score_request_is_off_by_default_and_can_be_set():
    with config_context(enable_metadata_routing=True):
        flow = NSGFSampler(**CHEAP)
        assert flow.get_metadata_routing().fit.requests["X_target"] is True
        assert flow.get_metadata_routing().score.requests["X_target"] is False
        flow.set_score_request(X_target=True)
        assert flow.get_metadata_routing().score.requests["X_target"] is True


# Continuing and stopping


def test_warm_start_continues_from_the_last_weights(flow):
    cold, centre = flow.loss_curve_, flow.center_
    flow.set_params(warm_start=True).fit(X_source + 1, X_target + 1)
    assert np.mean(flow.loss_curve_[:5]) < 0.5 * np.mean(cold[:5])
    np.testing.assert_array_equal(flow.center_, centre)
    assert_same_flow(
        NSGFSampler(**CHEAP, warm_start=True).fit(X_source, X_target),
        NSGFSampler(**CHEAP).fit(X_source, X_target),
    )


def test_a_cold_start_forgets_the_last_fit(flow):
    flow.fit(X_source + 9, X_target - 5)
    assert_same_flow(flow.fit(X_source, X_target), NSGFSampler(**CHEAP).fit(X_source, X_target))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_layer_sizes": (8,)}, r"hidden_layer_sizes=\(8,\) \(was \(16,\)\)"),
        ({"activation": "tanh"}, r"activation='tanh' \(was 'relu'\)"),
        ({"prediction": "endpoint"}, r"prediction='endpoint' \(was 'velocity'\)"),
        ({"network": SmallNetwork}, r"network=.*SmallNetwork.* \(was 'mlp'\)"),
    ],
)
def test_warm_start_refuses_another_network(flow, change, message):
    with pytest.raises(ValueError, match=f"warm_start=True continues.*{message}.*warm_start=False"):
        flow.set_params(warm_start=True, **change).fit(X_source, X_target)


def test_warm_start_refuses_another_number_of_features(flow):
    rows = np.hstack([X_source, X_source])
    with pytest.raises(ValueError, match=r"warm_start=True continues.*n_features=4 \(was 2\)"):
        flow.set_params(warm_start=True).fit(rows, rows)
    assert flow.n_features_in_ == 2


def test_early_stopping_stops_when_the_held_out_loss_stays():
    flow = NSGFSampler(**CHEAP).set_params(
        early_stopping=True, n_iter_no_change=2, tol=0.9, max_iter=2000
    )
    flow.fit(X_source, X_target)
    assert flow.n_iter_ < 2000
    assert flow.n_iter_ == len(flow.loss_curve_) == 100 * len(flow.validation_loss_curve_)
    assert min(flow.validation_loss_curve_) > 0


def test_without_early_stopping_every_iteration_is_done(flow):
    assert flow.n_iter_ == len(flow.loss_curve_) == 100
    assert flow.validation_loss_curve_ == []
    assert np.mean(flow.loss_curve_[-10:]) < np.mean(flow.loss_curve_[:10])


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_early_stopping_goes_with_a_single_flow_and_any_share_of_the_rows(fraction):
    flow = NSGFSampler(**CHEAP).set_params(
        early_stopping=True, n_flows=1, validation_fraction=fraction
    )
    assert len(flow.fit(X_source, X_target).validation_loss_curve_) == 1


def test_verbose_shows_progress_and_silence_is_silent(capsys):
    NSGFSampler(**CHEAP, verbose=True).fit(X_source, X_target)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Simulating flows: 100%" in shown.err
    assert "Training: 100%" in shown.err
    NSGFSampler(**CHEAP).fit(X_source, X_target).score(X_source)
    assert capsys.readouterr() == ("", "")


# Files


@pytest.mark.parametrize("network", ["mlp", SmallNetwork])
def test_pickle_and_joblib_keep_every_bit(network, tmp_path):
    flow = NSGFSampler(**CHEAP).set_params(network=network).fit(X_source, X_target)
    joblib.dump(flow, tmp_path / "flow.joblib")
    for copied in (
        pickle.loads(pickle.dumps(flow)),
        joblib.load(tmp_path / "flow.joblib"),
        joblib.load(tmp_path / "flow.joblib", mmap_mode="r"),
    ):
        assert_same_flow(copied, flow)
        np.testing.assert_array_equal(copied.sample(9), flow.sample(9))
        assert copied.score(X_source) == flow.score(X_source)
        assert_same_flow(copied.fit(X_source, X_target), flow)


def test_a_pickle_holds_nothing_of_torch(flow):
    names = {arg for _, arg, _ in pickletools.genops(pickle.dumps(flow)) if isinstance(arg, str)}
    assert "sknsgf._nsgf" in names
    assert not [name for name in names if "torch" in name]


def test_a_pickle_opens_in_a_fresh_process(flow, tmp_path):
    script = (
        "import sys, pickle, numpy\n"
        "flow, rows = pickle.load(open(sys.argv[1], 'rb'))\n"
        "numpy.save(sys.argv[2], flow.transform(rows))\n"
    )
    with open(tmp_path / "flow.pickle", "wb") as file:
        pickle.dump((flow, X_source), file)
    files = [str(tmp_path / name) for name in ("flow.pickle", "moved.npy")]
    done = subprocess.run(
        [sys.executable, "-c", script, *files], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(files[1]), flow.transform(X_source), rtol=1e-12)


# Networks of the user


def test_a_network_of_the_user_is_reproducible():
    flows = [
        NSGFSampler(**CHEAP).set_params(network=SmallNetwork, random_state=s) for s in (0, 0, 1)
    ]
    for flow, drawn in zip(flows, (0, 3, 5), strict=True):
        torch.rand(drawn)  # whatever torch's generator is at
        flow.fit(X_source, X_target)
    assert_same_flow(*flows[:2])
    assert largest_difference(*flows[1:]) > 1e-3
    assert set(flows[0].network_parameters_) == set(SmallNetwork(2).state_dict())


def test_a_network_of_the_user_learns():
    flow = NSGFSampler(**CHEAP).set_params(
        network=SmallNetwork, learning_rate_init=0.02, max_iter=300
    )
    moved = flow.fit(X_source, X_source + SHIFT).transform(X_source) - X_source
    np.testing.assert_allclose(moved.mean(axis=0), SHIFT, atol=0.15)


def test_a_network_of_float32_is_enough_for_rows_of_float32():
    rows = X_source.astype("float32")
    flow = NSGFSampler(**CHEAP).set_params(network=SinglePrecisionNetwork, max_iter=5)
    assert flow.fit(rows, rows + 3).transform(rows).dtype == np.float32


def test_a_network_of_float32_is_refused_where_one_sample_is_float64():
    flow = NSGFSampler(**CHEAP).set_params(network=SinglePrecisionNetwork)
    with pytest.raises(ValueError, match=r"takes float64 points.* Got one that does not"):
        flow.fit(X_source, X_target.astype("float32"))


def test_a_network_that_casts_its_weights_is_trained():
    rows = X_source.astype("float32")
    flow = NSGFSampler(**CHEAP).set_params(network=HalfPrecisionNetwork).fit(rows, rows + 3)
    assert np.mean(flow.loss_curve_[-10:]) < 0.2 * np.mean(flow.loss_curve_[:10])


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (lambda n_features: 3, TypeError, r"builds a torch.nn.Module\. Got .* int instead"),
        (SmallNetwork(2), TypeError, r"Got a module instead\. Pass its class"),
        (NarrowNetwork, ValueError, r"float32 and shape \(2, 2\)\. Got .* shape \(2,\) instead"),
        (PairNetwork, ValueError, r"float32 and shape \(2, 2\)\. Got tuple instead"),
        (WideningNetwork, ValueError, r"float32 and shape .* Got torch\.float64 and shape"),
        (SinglePrecisionNetwork, ValueError, r"takes float64 points.* Got one that does not"),
        (WeightlessNetwork, ValueError, r"a module with weights to train\. Got none"),
    ],
)
def test_a_wrong_network_raises(network, error, message):
    with pytest.raises(error, match=f"The 'network' parameter must .*{message}"):
        NSGFSampler(**CHEAP).set_params(network=network).fit(X_source, X_target)


# Solvers


@pytest.mark.parametrize("solver", ["geomloss", "pot"])
def test_other_solvers_give_about_the_same_flow(solver):
    settings = {
        **CHEAP,
        "n_flows": 2,
        "flow_batch_size": 32,
        "blur": 0.3,
        "sinkhorn_tol": 1e-3,
        "sinkhorn_max_iter": 500,
    }
    native = NSGFSampler(**settings, solver="native").fit(X_source, X_target)
    other = NSGFSampler(**settings, solver=solver).fit(X_source, X_target)
    assert (native.solver_, other.solver_) == ("native", solver)
    assert 0 < largest_difference(native, other) < 0.05


def test_too_few_sinkhorn_iterations_warn():
    flow = NSGFSampler(**CHEAP).set_params(sinkhorn_max_iter=1)
    message = (
        "Sinkhorn iterations of NSGFSampler did not converge.*instead of sinkhorn_tol=0.01"
        ".*Increase sinkhorn_max_iter or blur"
    )
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        flow.fit(X_source, X_target)
    assert caught[0].filename == __file__
    assert flow.sinkhorn_error_ > 0.01


def test_a_converged_fit_reports_its_error(flow):
    assert 0 < flow.sinkhorn_error_ < 0.01


def test_a_blur_too_small_for_float32_warns():
    flow = NSGFSampler(**CHEAP).set_params(blur=1e-3, sinkhorn_tol=3.0, sinkhorn_max_iter=5)
    with pytest.warns(UserWarning, match=r"blur=0.001 is too small for float32: rows lie up to"):
        flow.fit(X_source, X_target)


def test_flows_of_rows_too_far_apart_for_the_blur_raise_and_say_so():
    rows = np.random.default_rng(0).normal(size=(1200, 2))
    rows[0] = 200
    settings = {**CHEAP, "flow_batch_size": 2048, "sinkhorn_max_iter": 20, "blur": 1e-3}
    with pytest.raises(ValueError, match="could not be simulated: blur=0.001 is too small"):
        NSGFSampler(**settings).fit(rows, -rows[1:])


# Failures


def bad_input(flow, monkeypatch):
    flow.fit(X_source, np.full((3, 2), np.nan))


def bad_parameter(flow, monkeypatch):
    flow.set_params(n_flows=0).fit(X_source + 1, X_target)


def divergence(flow, monkeypatch):
    flow.set_params(learning_rate_init=1e30).fit(X_source + 1, X_target)


def interruption_in_training(flow, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sknsgf._training.fit_regression", interrupted)
    flow.fit(X_source + 1, X_target)


def interruption_in_simulation(flow, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sknsgf._simulation.simulate_flow", interrupted)
    flow.fit(X_source + 1, X_target)


def failure_at_the_end(flow, monkeypatch):
    def failed(*args):
        raise MemoryError

    monkeypatch.setattr("sknsgf._nsgf.warn_of_inaccuracy", failed)
    flow.fit(X_source + 1, X_target)


FAILURES = [
    (bad_input, ValueError),
    (bad_parameter, ValueError),
    (divergence, ValueError),
    (interruption_in_training, KeyboardInterrupt),
    (interruption_in_simulation, KeyboardInterrupt),
    (failure_at_the_end, MemoryError),
]


@pytest.mark.parametrize(("fail", "error"), FAILURES)
def test_a_failed_first_fit_leaves_the_estimator_unfitted(fail, error, monkeypatch):
    flow = NSGFSampler(**CHEAP)
    before = set(vars(flow))
    with pytest.raises(error):
        fail(flow, monkeypatch)
    assert set(vars(flow)) == before
    with pytest.raises(NotFittedError):
        flow.transform(X_source)


@pytest.mark.parametrize(("fail", "error"), FAILURES)
def test_a_failed_second_fit_keeps_the_first(flow, fail, error, monkeypatch):
    before, parameters, expected = dict(vars(flow)), flow.get_params(), copy.deepcopy(flow)
    with pytest.raises(error):
        fail(flow, monkeypatch)
    monkeypatch.undo()
    assert set(vars(flow)) == set(before)
    assert all(vars(flow)[name] is before[name] for name in before if name not in parameters)
    assert_same_flow(flow, expected)
    assert flow.score(X_source) == expected.score(X_source)


def test_divergence_says_what_to_do():
    message = r"Training of NSGFSampler diverged: .*Lower learning_rate_init \(got 1e\+30\)"
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP, learning_rate_init=1e30).fit(X_source, X_target)


@pytest.mark.parametrize(
    "call",
    [
        lambda flow: flow.transform(X_source),
        lambda flow: flow.inverse_transform(X_source),
        lambda flow: flow.trajectory(X_source),
        lambda flow: flow.sample(),
        lambda flow: flow.score(X_source),
    ],
)
def test_an_unfitted_estimator_says_so(call):
    with pytest.raises(NotFittedError, match="This NSGFSampler instance is not fitted yet"):
        call(NSGFSampler())


# GPUs


@needs_cuda
def test_a_fit_on_the_gpu_is_about_that_on_the_cpu(flow):
    on_gpu = NSGFSampler(**CHEAP, device="cuda").fit(X_source, X_target)
    assert on_gpu.device_ == "cuda"
    assert on_gpu.score(X_source) == pytest.approx(flow.score(X_source), abs=0.1)


@needs_cuda
def test_a_flow_fitted_on_the_gpu_opens_without_one(monkeypatch):
    flow = NSGFSampler(**CHEAP, device="cuda").fit(X_source, X_target)
    expected = flow.transform(X_source)
    opened = pickle.loads(pickle.dumps(flow))
    np.testing.assert_array_equal(opened.transform(X_source), expected)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    np.testing.assert_allclose(opened.transform(X_source), expected, rtol=1e-6, atol=1e-6)
