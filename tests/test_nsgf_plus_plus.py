"""What the two-phase estimator does; what all estimators share is in test_nsgf.py."""

import copy
import pickle
import re
from functools import cache

import numpy as np
import pytest
import torch

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import make_pair, quasi_random_pair
from sknsgf.flow.networks import TransitionMLP, VelocityMLP
from sknsgf.metrics import wasserstein_distance

CHEAP = {
    "n_steps": 2,
    "n_straight_steps": 3,
    "n_flows": 4,
    "flow_batch_size": 64,
    "n_pairings": 4,
    "pairing_size": 64,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
TRAINED = {**CHEAP, "n_flows": 16, "n_pairings": 16, "max_iter": 300, "learning_rate_init": 0.02}
MODES = ["consistent", "paper"]
PHASES = {
    "consistent": ["sinkhorn", "straight"],
    "paper": ["sinkhorn", "straight", "transition"],
}
SHIFT = np.array([4.0, -2.0])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_mode = pytest.mark.parametrize("mode", MODES)

rng = np.random.default_rng(0)
X_source = rng.normal(size=(200, 2))
X_target = rng.normal(size=(150, 2)) @ [[1.0, 0.5], [0.0, 0.6]] + SHIFT


def fitted(samples=(X_source, X_target), /, **parameters):
    return NSGFPlusPlus(**{**CHEAP, **parameters}).fit(*samples)


@cache
def kept_trained(**parameters):
    return fitted(**{**TRAINED, **parameters})


def trained(**parameters):
    """A copy of a flow that was trained longer."""
    return copy.deepcopy(kept_trained(**parameters))


@pytest.fixture(scope="module")
def kept_flows():
    return {mode: fitted(mode=mode) for mode in MODES}


@pytest.fixture(params=MODES)
def flow(request, kept_flows):
    return copy.deepcopy(kept_flows[request.param])


@pytest.fixture(autouse=True)
def _few_scored_rows(monkeypatch):
    """Score one sample against fewer draws than the 4096 that users get: it is faster."""
    monkeypatch.setattr("sknsgf._base.SCORE_ROWS", 400)


@pytest.fixture
def calls(monkeypatch):
    """Numbers of calls of the networks in the order they are first called, by class."""
    made = {VelocityMLP: {}, TransitionMLP: {}}
    for kind, counts in made.items():

        def counted(self, *args, counts=counts, forward=kind.forward):
            counts[self] = counts.get(self, 0) + 1
            return forward(self, *args)

        monkeypatch.setattr(kind, "forward", counted)
    return made


# What the flow does


@pytest.mark.parametrize(("mode", "accuracy"), [("consistent", 0.2), ("paper", 0.6)])
@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
def test_normal_rows_end_with_the_moments_of_their_normal_target(mode, accuracy, prediction):
    flow = trained(mode=mode, prediction=prediction)
    moved = flow.transform(np.random.default_rng(1).normal(size=(1000, 2)))
    np.testing.assert_allclose(moved.mean(axis=0), X_target.mean(axis=0), atol=accuracy)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(X_target.T), atol=accuracy)


def test_at_equal_evaluations_the_consistent_mode_is_closer_than_the_papers():
    source, target = make_pair("8gaussians", 2000, random_state=0)
    rows, expected = quasi_random_pair("8gaussians", 512, random_state=0)
    settings = {
        **CHEAP,
        "n_steps": 1,
        "n_flows": 16,
        "flow_batch_size": 256,
        "n_pairings": 16,
        "pairing_size": 512,
        "max_iter": 800,
        "batch_size": 128,
        "hidden_layer_sizes": (64, 64),
        "learning_rate_init": 0.01,
    }
    consistent = fitted((source, target), **{**settings, "n_straight_steps": 4})
    paper = fitted((source, target), **settings, mode="paper")
    assert consistent.n_evaluations_ == paper.n_evaluations_ == 5
    distances = [wasserstein_distance(f.transform(rows), expected) for f in (consistent, paper)]
    assert distances[0] < 0.95 * distances[1]


def test_the_straight_phase_makes_up_for_steps_that_leave_a_share_of_the_way():
    settings = {**TRAINED, "n_steps": 2, "step_size": 0.3}
    flow = fitted((X_source, X_source + SHIFT), **settings)
    shift = (flow.transform(X_source) - X_source).mean(axis=0)
    np.testing.assert_allclose(shift, SHIFT, atol=0.15)
    flow.n_straight_steps_ = 0
    shift = (flow.transform(X_source) - X_source).mean(axis=0)
    np.testing.assert_allclose(shift, (1 - 0.7**2) * SHIFT, atol=0.15)


@pytest.mark.parametrize("prediction", ["velocity", "endpoint"])
def test_a_large_step_from_many_dimensions_keeps_what_it_does_not_move(prediction):
    # Noise of more dimensions than the network has units: it can't be learned, only kept.
    X, y = np.random.default_rng(0).normal(size=(2, 400, 30))
    settings = {**TRAINED, "hidden_layer_sizes": (8,), "step_size": 0.1, "n_steps": 1}
    flow = fitted((X, 0.01 * y), **settings, prediction=prediction)
    flow.n_straight_steps_ = 0
    moved = flow.transform(X)
    kept = [np.corrcoef(before, after)[0, 1] for before, after in zip(X.T, moved.T, strict=True)]
    assert min(kept) > 0.95


@pytest.mark.parametrize("pairing", ["sinkhorn", "potentials", "exact", "independent"])
@each_mode
def test_every_pairing_leads_to_the_target(mode, pairing):
    flow = fitted(mode=mode, pairing=pairing, max_iter=200, learning_rate_init=0.02)
    assert flow.pairing_ == pairing
    way = np.abs(X_target.mean(axis=0) - X_source.mean(axis=0))
    left = np.abs(flow.transform(X_source).mean(axis=0) - X_target.mean(axis=0))
    assert (left < 0.3 * way).all()


@pytest.mark.parametrize(
    ("mode", "pairing", "left"), [("consistent", "sinkhorn", 0.3), ("paper", "independent", 0.8**2)]
)
def test_automatic_choices_are_those_of_the_mode(kept_flows, mode, pairing, left):
    flow = kept_flows[mode]
    assert (flow.mode_, flow.pairing_, flow.prediction_) == (mode, pairing, "velocity")
    assert np.prod(1 - np.array(flow.step_sizes_)) == pytest.approx(left)
    assert flow.blur_ == pytest.approx(0.1 * flow.scale_)
    assert list(flow.network_parameters_) == list(flow.loss_curves_) == PHASES[mode]
    steps = [12] + [60] * (len(PHASES[mode]) - 1)  # a fifth of them for the Sinkhorn phase
    assert [len(losses) for losses in flow.loss_curves_.values()] == steps
    assert flow.n_iter_ == sum(steps)
    assert set(map(len, flow.validation_loss_curves_.values())) == {0}


@pytest.mark.parametrize(
    ("mode", "n_source", "n_target", "pairing"),
    [
        ("consistent", 100, 90, "potentials"),
        ("consistent", 101, 90, "sinkhorn"),
        ("consistent", 90, 101, "sinkhorn"),
        ("consistent", None, 90, "sinkhorn"),
        ("paper", 100, 90, "independent"),
    ],
)
def test_automatic_pairing_extends_potentials_where_samples_are_used_whole(
    mode, n_source, n_target, pairing
):
    samples = [sample[:n] for sample, n in ((X_source, n_source), (X_target, n_target)) if n]
    assert fitted(samples, mode=mode, pairing_size=100, max_iter=5).pairing_ == pairing


def test_phase_one_alone_is_the_discrete_flow_of_the_sampler():
    sampler_settings = CHEAP.keys() - {"n_straight_steps", "n_pairings", "pairing_size"}
    settings = {name: CHEAP[name] for name in sampler_settings}
    sampler = NSGFSampler(**settings, time="discrete", step_size=0.6).fit(X_source, X_target)
    flow = fitted(step_size=0.6, max_iter=5 * CHEAP["max_iter"])
    flow.n_straight_steps_ = 0
    np.testing.assert_array_equal(flow.transform(X_source), sampler.transform(X_source))
    assert flow.loss_curves_["sinkhorn"] == sampler.loss_curve_


def test_trajectory_leads_from_the_rows_to_their_transform(flow):
    for flow.n_straight_steps_ in (3, 1, 0):
        trajectory = flow.trajectory(X_source)
        assert trajectory.shape == (2 + flow.n_straight_steps_ + 1, 200, 2)
        np.testing.assert_allclose(trajectory[0], X_source, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(trajectory[-1], flow.transform(X_source))


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_rows_are_transported_on_their_own(flow, method, monkeypatch):
    transport = getattr(flow, method)
    together = transport(X_source)
    alone = np.concatenate([transport(row[None]) for row in X_source[:20]])
    np.testing.assert_allclose(alone, together[:20], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("sknsgf._base.CPU_CHUNK", 64)
    np.testing.assert_allclose(transport(X_source[::-1]), together[::-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "trajectory"])
def test_float32_rows_stay_float32_and_others_become_float64(flow, method):
    transport = getattr(flow, method)
    expected = transport(X_source)
    for dtype, returned in [("float32", "float32"), ("float64", "float64"), ("int64", "float64")]:
        assert transport((4 * X_source).astype(dtype)).dtype == returned
    np.testing.assert_allclose(transport(X_source.astype("float32")), expected, atol=1e-3)


# The inverse


def test_in_consistent_mode_the_inverse_returns_to_the_rows():
    flow = trained(mode="consistent", prediction="velocity")
    ends, errors = flow.transform(X_source), []
    for flow.n_straight_steps_ in (3, 30):
        again = flow.inverse_transform(flow.transform(X_source))
        errors.append(np.linalg.norm(again - X_source, axis=1).mean())
    way = np.linalg.norm(ends - X_source, axis=1).mean()
    assert errors[0] < 0.1 * way
    assert errors[1] < 0.01 * way
    np.testing.assert_allclose(flow.inverse_transform(X_target).mean(axis=0), 0, atol=0.3)


def test_in_the_papers_mode_the_inverse_finds_rows_that_lead_where_it_started():
    flow, errors = trained(mode="paper", prediction="velocity"), []
    for flow.n_straight_steps_ in (3, 30, 300):
        again = flow.transform(flow.inverse_transform(X_target))
        errors.append(np.linalg.norm(again - X_target, axis=1).mean())
    assert errors[0] < 0.5
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4


def test_in_the_papers_mode_every_method_takes_euler_steps_back():
    flow = trained(mode="paper", prediction="endpoint")
    expected = flow.inverse_transform(X_target)
    flow.method_ = "midpoint"
    np.testing.assert_array_equal(flow.inverse_transform(X_target), expected)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_inverse_is_exact_up_to_the_order_of_the_method(method, order):
    flow, errors = trained(activation="tanh"), []
    flow.method_ = method
    for flow.n_straight_steps_ in (4, 16):
        again = flow.inverse_transform(flow.transform(X_source))
        errors.append(np.abs(again - X_source).max())
    assert errors[1] < 1e-8 + errors[0] / 4 ** (order - 0.5)


# Evaluations


@pytest.mark.parametrize(("method", "per_step"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("n_straight_steps", [0, 1, 3])
@pytest.mark.parametrize("direction", ["transform", "trajectory"])
def test_evaluations_are_the_calls_of_each_network(
    flow, direction, n_straight_steps, method, per_step, calls
):
    flow.method_, flow.n_straight_steps_ = method, n_straight_steps
    getattr(flow, direction)(X_source)
    sinkhorn, *straight = calls[VelocityMLP].values()
    transition = sum(calls[TransitionMLP].values())
    counts = {"sinkhorn": sinkhorn, "straight": sum(straight), "transition": transition}
    assert counts == {"transition": 0, **flow.phase_evaluations_}
    assert (sinkhorn, sum(straight)) == (2, n_straight_steps * per_step)
    assert transition == (flow.mode_ == "paper" and n_straight_steps > 0)
    assert flow.n_evaluations_ == sum(counts.values())


def test_every_chunk_of_rows_has_the_same_evaluations(flow, calls, monkeypatch):
    for chunk in ("CPU_CHUNK", "CUDA_CHUNK"):
        monkeypatch.setattr(f"sknsgf._base.{chunk}", 64)
    flow.transform(X_source)
    n_calls = sum(sum(counts.values()) for counts in calls.values())
    assert n_calls == 4 * flow.n_evaluations_


def test_more_straight_steps_converge(flow):
    ends = []
    for flow.n_straight_steps_ in (3, 100, 200):
        ends.append(flow.transform(X_source))
    differences = [np.abs(end - ends[-1]).max() for end in ends]
    assert 0 < differences[1] < differences[0] / 10


@pytest.mark.parametrize(
    ("attribute", "value", "wanted"),
    [
        ("n_straight_steps_", -1, "an int in the range [0, inf)"),
        ("n_straight_steps_", 2.5, "an int in the range [0, inf)"),
        ("method_", "heun", "a str among {'euler', 'midpoint', 'rk4'}"),
    ],
)
def test_a_bad_integration_assigned_after_fit_raises(kept_flows, attribute, value, wanted):
    flow = copy.deepcopy(kept_flows["consistent"])
    setattr(flow, attribute, value)
    start = f"The '{attribute}' parameter of NSGFPlusPlus must be {wanted}"
    options = re.escape(start).replace("euler", r"\w+").replace("midpoint", r"\w+")
    options = options.replace("rk4", r"\w+")  # in whatever order
    with pytest.raises(ValueError, match=f"^{options}. Got {value!r} instead"):
        flow.transform(X_source)


def test_rk4_with_endpoints_raises_also_after_fit():
    message = "^method='rk4' of NSGFPlusPlus evaluates the field at time 1.*Use method='euler'"
    with pytest.raises(ValueError, match=message):
        fitted(method="rk4", prediction="endpoint")
    flow = fitted(prediction="endpoint", max_iter=1)
    flow.method_ = "rk4"
    with pytest.raises(ValueError, match=message):
        flow.transform(X_source)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("mode", "thesis", "a str among {"),
        ("pairing", "best", "a str among {"),
        ("n_straight_steps", 0, "an int in the range [1, inf)"),
        ("n_pairings", 0, "an int in the range [1, inf)"),
        ("pairing_size", 1, "an int in the range [2, inf)"),
    ],
)
def test_a_bad_parameter_raises(name, value, wanted):
    start = re.escape(f"The '{name}' parameter of NSGFPlusPlus must be {wanted}")
    with pytest.raises(ValueError, match=rf"^{start}.*Got {value!r} instead\.$"):
        fitted(**{name: value})


@pytest.mark.parametrize(("n_rows", "n_pairings"), [(64, 128), (2048, 64), (5000, 32)])
def test_pairings_are_as_many_as_make_enough_pairs(n_rows, n_pairings):
    rows = np.random.default_rng(0).normal(size=(n_rows, 2))
    settings = {"n_pairings": "auto", "pairing_size": 4096, "pairing": "independent", "max_iter": 1}
    assert fitted((rows, rows), **settings).n_pairings_ == n_pairings


def test_phase_one_that_predicts_endpoints_is_trained_for_half_of_the_steps():
    flow = fitted(prediction="endpoint")
    assert [len(losses) for losses in flow.loss_curves_.values()] == [30, 60]


def test_setting_parameters_after_fit_changes_no_result(flow):
    expected = flow.transform(X_source), flow.inverse_transform(X_target), flow.score(X_source)
    evaluations = flow.phase_evaluations_
    other_mode = {"consistent": "paper", "paper": "consistent"}[flow.mode_]
    flow.set_params(
        mode=other_mode,
        blur=3.0,
        n_steps=5,
        step_size=0.9,
        pairing="exact",
        network="unet",
        hidden_layer_sizes=(3, 3),
        activation="tanh",
        prediction="endpoint",
        method="rk4",
        n_straight_steps=9,
        random_state=7,
    )
    np.testing.assert_array_equal(flow.transform(X_source), expected[0])
    np.testing.assert_array_equal(flow.inverse_transform(X_target), expected[1])
    assert flow.score(X_source) == expected[2]
    assert flow.phase_evaluations_ == evaluations


# One sample, score, units


@each_mode
def test_one_sample_is_modelled_and_sampled(mode):
    flow = fitted((X_target,), **{**TRAINED, "mode": mode})
    assert flow.source_sample_ is None
    assert flow.sample().shape == (1, 2)
    sample = flow.sample(1000)
    np.testing.assert_allclose(sample.mean(axis=0), X_target.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(sample.std(axis=0), X_target.std(axis=0), atol=0.3)
    np.testing.assert_array_equal(flow.sample(20, random_state=1), flow.sample(20, random_state=1))
    assert -1 < flow.score(X_target) < 0


def test_samples_are_transported_rows_of_the_source(flow):
    moved = {tuple(row) for row in flow.transform(X_source).round(9)}
    assert {tuple(row) for row in flow.sample(50).round(9)} <= moved


def test_training_raises_the_score(flow):
    untrained = fitted(mode=flow.mode_, max_iter=1)
    later = trained(mode=flow.mode_, prediction="velocity")
    assert untrained.score(X_source) < 1.5 * later.score(X_source) < 0


def test_the_flow_in_other_units_is_the_same_flow(flow):
    factor = 2.0**10  # changes no digit of a float
    scaled = fitted((factor * X_source, factor * X_target), mode=flow.mode_)
    assert scaled.loss_curves_ == flow.loss_curves_
    np.testing.assert_array_equal(
        scaled.transform(factor * X_source), factor * flow.transform(X_source)
    )


# GPUs


@needs_cuda
@each_mode
@pytest.mark.parametrize("pairing", ["sinkhorn", "potentials", "exact", "independent"])
def test_a_fit_on_the_gpu_is_about_that_on_the_cpu_and_opens_without_one(
    mode, pairing, monkeypatch
):
    settings = {**TRAINED, "mode": mode, "pairing": pairing}
    on_cpu, on_gpu = (fitted(**settings, device=device) for device in ("cpu", "cuda"))
    assert on_gpu.device_ == "cuda"
    assert on_gpu.score(X_source) == pytest.approx(on_cpu.score(X_source), abs=0.3)
    expected = on_gpu.transform(X_source)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    opened = pickle.loads(pickle.dumps(on_gpu))
    np.testing.assert_allclose(opened.transform(X_source), expected, rtol=1e-6, atol=1e-6)
