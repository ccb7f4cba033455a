"""What the estimators share on the way to a fitted network: pools, images, early stopping."""

import errno
import logging
import os
import pickle
import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf import _simulation as simulation
from sknsgf._minibatches import hold_out
from sknsgf.flow.networks import VelocityUNet

SINGLE = {
    "n_steps": 5,
    "n_flows": 8,
    "flow_batch_size": 64,
    "max_iter": 200,
    "learning_rate_init": 0.02,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
DOUBLE = {**SINGLE, "n_steps": 1, "n_straight_steps": 3, "n_pairings": 8, "pairing_size": 64}
PAPER = {**DOUBLE, "mode": "paper"}
SHIFT = np.array([4.0, -2.0])
FLOW_MB = 64 * 6 * 2 * 4 / 1e6  # one simulated flow of NSGFSampler: particles, times, features
PAIRS_MB = 64 * 2 * 2 * 4 / 1e6  # one of NSGFPlusPlus, with one step, and one batch of pairs
ESTIMATORS = [
    pytest.param(NSGFSampler(**SINGLE), FLOW_MB, id="NSGFSampler"),
    pytest.param(NSGFPlusPlus(**DOUBLE), PAIRS_MB, id="consistent"),
    pytest.param(NSGFPlusPlus(**PAPER), PAIRS_MB, id="paper"),
]
each_estimator = pytest.mark.parametrize(("estimator", "batch_mb"), ESTIMATORS)

X_source = np.random.default_rng(0).normal(size=(200, 2))
X_target = X_source + SHIFT


def fitted(estimator, X=X_source, Y=X_target, **parameters):
    settings = {**estimator.get_params(), **parameters}
    return type(estimator)(**settings).fit(X, Y)


def watched(monkeypatch, look):
    """What is seen of each simulation and its range of batches, in their order, by class."""
    seen = {}
    for kind in (simulation.Simulation, simulation.PairSimulation):

        def noted(self, batches, kind=kind, call=kind.__call__):
            seen.setdefault(kind.__name__, []).append(look(self, batches))
            return call(self, batches)

        monkeypatch.setattr(kind, "__call__", noted)
    return seen


@pytest.fixture
def simulated(monkeypatch):
    """Ranges of flows or batches in the order they are simulated, by class."""
    return watched(monkeypatch, lambda _, batches: (batches.start, batches.stop))


# Pools


@each_estimator
def test_a_pool_in_memory_is_simulated_at_once(estimator, batch_mb, simulated):
    fitted(estimator, max_iter=1)
    assert list(simulated.values()) == [[(0, 8)]] * len(simulated)
    assert len(simulated) == (1 if isinstance(estimator, NSGFSampler) else 2)


@each_estimator
def test_an_online_pool_over_the_budget_uses_all_flows_in_parts(estimator, batch_mb, simulated):
    flow = fitted(estimator, pool="online", max_pool_size=3.5 * batch_mb)
    parts = [(0, 2), (2, 5), (5, 8)]
    assert simulated["Simulation"] == parts
    if isinstance(estimator, NSGFPlusPlus):  # transition times are learned from all pairs again
        again = parts if estimator.mode == "paper" else []
        assert simulated["PairSimulation"] == parts + again
    moved, in_memory = flow.transform(X_source), fitted(estimator).transform(X_source)
    np.testing.assert_allclose(moved.mean(axis=0), in_memory.mean(axis=0), atol=0.2)
    np.testing.assert_allclose(moved.std(axis=0), in_memory.std(axis=0), atol=0.2)
    assert np.abs(moved - in_memory).max() > 0


@each_estimator
def test_an_online_pool_within_the_budget_is_one_in_memory(estimator, batch_mb):
    memory, online = (
        fitted(estimator, pool=pool, max_iter=20, max_pool_size=8 * batch_mb)
        for pool in ("memory", "online")
    )
    np.testing.assert_array_equal(memory.transform(X_source), online.transform(X_source))


@each_estimator
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_pool_on_disk_is_the_one_in_memory(early_stopping, estimator, batch_mb, tmp_path):
    settings = {"max_iter": 20, "early_stopping": early_stopping, "n_jobs": 2}
    small = {"pool": "memmap", "max_pool_size": batch_mb, "pool_directory": tmp_path}
    memory, disk = fitted(estimator, **settings), fitted(estimator, **settings, **small)
    np.testing.assert_array_equal(memory.transform(X_source), disk.transform(X_source))
    assert list(tmp_path.iterdir()) == []


def test_a_pool_on_disk_lies_in_the_folder_and_its_size_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = {"pool": "memmap", "max_pool_size": 0.01, "max_iter": 1}
    with caplog.at_level(logging.INFO, logger="sknsgf"):
        fitted(NSGFSampler(**SINGLE), **settings)
        fitted(NSGFSampler(**SINGLE), **settings, pool_directory=str(tmp_path / "."))
    assert [message.endswith(f"on disk, in {tmp_path}") for message in caplog.messages] == [
        True
    ] * 2


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="takes room in another way")
def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    flow = fitted(NSGFSampler(**SINGLE), max_iter=1)
    before = dict(vars(flow))
    flow.set_params(pool="memmap", max_pool_size=0.01, pool_directory=tmp_path)
    message = (
        "The pool of NSGFSampler takes .* MB on disk, .*: No space left on device. Name a folder"
    )
    with pytest.raises(OSError, match=message) as error:
        flow.fit(X_source, X_target)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    assert flow.network_parameters_ is before["network_parameters_"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    settings = {"pool": "memmap", "max_pool_size": 0.01, "pool_directory": tmp_path / "no"}
    with pytest.raises(FileNotFoundError, match="Name a folder with more room by pool_directory"):
        fitted(NSGFSampler(**SINGLE), **settings)


@each_estimator
def test_a_fit_in_parts_is_reproducible_and_does_not_depend_on_threads(estimator, batch_mb):
    settings = {"pool": "online", "max_pool_size": 2 * batch_mb, "max_iter": 20}
    one, again, threaded = (
        fitted(estimator, **settings, n_jobs=n_jobs).transform(X_source) for n_jobs in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one, threaded)


@each_estimator
def test_flows_of_rows_held_out_are_simulated_once_and_take_their_room(
    estimator, batch_mb, simulated
):
    fitted(
        estimator,
        pool="online",
        max_pool_size=3.5 * batch_mb,
        early_stopping=True,
        validation_fraction=0.25,
        max_iter=20,
    )
    for ranges in simulated.values():
        held_out, *parts = ranges[:5]
        assert held_out == (0, 1)  # of 50 rows, which leave room for two flows of 64
        assert parts == [(0, 2), (2, 4), (4, 6), (6, 8)]


@pytest.mark.parametrize(
    ("estimator", "batch_mb", "counted"),
    [
        (NSGFSampler(**SINGLE), FLOW_MB, "n_flows, n_steps or flow_batch_size"),
        (NSGFPlusPlus(**DOUBLE), PAIRS_MB, "n_flows, n_steps or flow_batch_size"),
        (NSGFPlusPlus(**DOUBLE).set_params(n_flows=7), PAIRS_MB, "n_pairings or pairing_size"),
    ],
)
def test_a_pool_over_the_budget_raises_before_any_simulation_and_says_what_to_do(
    estimator, batch_mb, counted, simulated
):
    name = type(estimator).__name__
    message = (
        rf"^The pool of {name} would take 0\.0*[1-9]\d? MB, more than max_pool_size=0\.\d+\. "
        rf"Lower {counted}, use pool_dtype='float16', pool='online' or pool='memmap', or raise "
        r"max_pool_size\.$"
    )
    with pytest.raises(ValueError, match=message):
        fitted(estimator, max_pool_size=7.5 * batch_mb)
    assert not simulated


def test_a_pool_far_over_the_budget_raises_before_its_rows_are_drawn(monkeypatch):
    monkeypatch.setattr("sknsgf._minibatches.balanced_rows", None)
    with pytest.raises(ValueError, match="would take .* MB, more than max_pool_size"):
        fitted(NSGFSampler(**SINGLE), n_flows=10**9)


@pytest.mark.parametrize(
    ("estimator", "batch_mb", "size"),
    [
        (NSGFSampler(**SINGLE), FLOW_MB, "flow_batch_size"),
        (NSGFPlusPlus(**DOUBLE), PAIRS_MB, "flow_batch_size"),
        (NSGFPlusPlus(**DOUBLE).set_params(flow_batch_size=32), PAIRS_MB, "pairing_size"),
    ],
)
def test_one_batch_over_the_budget_raises_also_online(estimator, batch_mb, size):
    message = (
        rf"^The smallest part of the pool of {type(estimator).__name__} takes [0-9.]+ MB, more "
        rf"than max_pool_size=0\.\d+\. Lower {size}, or raise max_pool_size\.$"
    )
    with pytest.raises(ValueError, match=message):
        fitted(estimator, pool="online", max_pool_size=0.9 * batch_mb)
    held_out = {"early_stopping": True, "validation_fraction": 0.3}
    with pytest.raises(ValueError, match=f"Lower {size} or validation_fraction, or raise"):
        fitted(estimator, pool="online", max_pool_size=1.9 * batch_mb, **held_out)


@each_estimator
def test_half_precision_halves_the_pool_and_changes_little(estimator, batch_mb):
    settings = {"learning_rate_init": 1e-3, "max_iter": 50}
    single = fitted(estimator, **settings)
    half = fitted(estimator, **settings, pool_dtype="float16", max_pool_size=4 * batch_mb)
    difference = np.abs(single.transform(X_source) - half.transform(X_source)).max()
    assert 0 < difference < 0.02


@pytest.mark.parametrize(
    ("estimator", "messages"),
    [
        (NSGFSampler(**SINGLE), ["512 trajectories: 1.2 MB in 3 part(s)"]),
        (NSGFSampler(**SINGLE, pool_dtype="float16"), ["512 trajectories: 0.61 MB in 2 part(s)"]),
        (
            NSGFPlusPlus(**DOUBLE, pairing="independent").set_params(n_pairings=16),
            ["512 trajectories: 0.41 MB in 1 part(s)", "1024 trajectories: 0.82 MB in 2 part(s)"],
        ),
        (
            NSGFSampler(**SINGLE, early_stopping=True),
            ["512 trajectories: 1.2 MB in 3 part(s), and 0.024 MB of rows held out"],
        ),
    ],
)
def test_the_size_of_each_pool_is_logged(estimator, messages, caplog):
    rows = np.random.default_rng(0).normal(size=(100, 100))
    with caplog.at_level(logging.INFO, logger="sknsgf"):
        fitted(estimator, rows, rows, max_iter=1, pool="online", max_pool_size=0.5)
    assert caplog.messages == ["Pool of " + message for message in messages]


# Early stopping


@each_estimator
def test_early_stopping_ends_each_training_when_its_held_out_loss_stays(estimator, batch_mb):
    flow = fitted(estimator, early_stopping=True, n_iter_no_change=2, tol=0.9, max_iter=2000)
    if isinstance(estimator, NSGFSampler):
        curves, held_out = [flow.loss_curve_], [flow.validation_loss_curve_]
    else:
        assert flow.loss_curves_.keys() == flow.validation_loss_curves_.keys()
        curves, held_out = flow.loss_curves_.values(), flow.validation_loss_curves_.values()
    assert flow.n_iter_ == sum(map(len, curves))
    for losses, validation_losses in zip(curves, held_out, strict=True):
        assert len(losses) == 100 * len(validation_losses) < 2000
        assert min(validation_losses) > 0


@pytest.fixture
def dealt(monkeypatch):
    """Rows of the particles and targets of what is simulated, one time after another, by class."""

    def rows(simulated, batches):
        clouds = simulated.particles[batches], simulated.targets[batches]
        return [{tuple(row) for row in np.concatenate(cloud)} for cloud in clouds]

    return watched(monkeypatch, rows)


@each_estimator
@pytest.mark.parametrize("random_state", [0, 1])
def test_rows_held_out_are_trained_on_by_no_network(random_state, estimator, batch_mb, dealt):
    fitted(estimator, early_stopping=True, max_iter=1, random_state=random_state)
    flows = dealt["Simulation"]
    for held_out, trained, sample in zip(*flows, (X_source, X_target), strict=True):
        assert len(held_out) == 20
        assert not held_out & trained
        assert held_out | trained == {tuple(row) for row in sample}
    for pairs in list(dealt.values())[1:]:  # of NSGFPlusPlus, the same rows
        assert pairs[0] == flows[0]
        assert pairs[1] == flows[1]


@each_estimator
def test_rows_held_out_do_not_depend_on_the_seed(estimator, batch_mb, dealt):
    for random_state in (0, 1):
        fitted(estimator, early_stopping=True, max_iter=1, random_state=random_state)
    (first, _, second, _) = dealt["Simulation"]
    assert first == second


@each_estimator
def test_the_noise_of_one_sample_is_other_noise_for_rows_held_out(estimator, batch_mb, dealt):
    fitted(estimator, X_target, None, early_stopping=True, max_iter=1)
    for (noise_held_out, held_out), (noise, trained) in dealt.values():
        assert not noise_held_out & noise
        assert not held_out & trained
        assert len(noise_held_out) == len(held_out) == 20


def test_an_outlier_that_is_held_out_is_warned_of():
    X = X_source.copy()
    _, (held_out, _) = hold_out(NSGFSampler(early_stopping=True), X, X_target)
    X[(X_source == held_out[0]).all(1)] = 300.0
    with pytest.warns(UserWarning, match="blur=0.002 is too small for float32"):
        fitted(NSGFSampler(**SINGLE), X, early_stopping=True, blur=0.002, max_iter=1)


def test_a_fit_that_goes_on_with_early_stopping_keeps_what_is_no_worse():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 150, 20))
    flow = NSGFSampler(hidden_layer_sizes=(64,), max_iter=1000, early_stopping=True, random_state=0)
    kept = flow.fit(X, Y).network_parameters_
    again = flow.set_params(warm_start=True, random_state=1, max_iter=100).fit(X, Y)
    assert again.n_iter_ == 100
    for name, weights in kept.items():
        np.testing.assert_array_equal(again.network_parameters_[name], weights)


def test_early_stopping_keeps_a_flow_from_learning_few_rows_by_heart():
    rng = np.random.default_rng(0)
    X, Y, X_new = rng.normal(size=(3, 150, 20))
    options = {"max_iter": 1500, "hidden_layer_sizes": (64, 64), "random_state": 0}
    stopped, not_stopped = (
        NSGFSampler(**options, early_stopping=early_stopping).fit(X, Y + 1)
        for early_stopping in (True, False)
    )
    assert stopped.n_iter_ < 1500
    optimal = X_new + 1
    errors = [np.square(flow.transform(X_new) - optimal).mean() for flow in (stopped, not_stopped)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize(
    ("n_source", "n_target", "options", "n_flows"),
    [
        (50, 40, {}, 1),  # all flows are the same
        (50, 40, {"early_stopping": True}, 1),
        (70, 70, {"early_stopping": True}, 1),
        (50, 70, {}, 128),
        (5000, 40, {"flow_batch_size": 4096}, 32),
        (50, 40, {"n_flows": 3}, 3),
    ],
)
def test_flows_are_as_many_as_make_enough_trajectories(n_source, n_target, options, n_flows):
    rows = np.random.default_rng(0).normal(size=(n_source + n_target, 2))
    settings = {"flow_batch_size": 64, "n_flows": "auto", "n_steps": 1, "max_iter": 1}
    flow = NSGFSampler(blur=10.0, random_state=0, **settings | options)
    flow.fit(rows[:n_source], rows[n_source:])
    assert flow.n_flows_ == n_flows


# Images


IMAGES = {
    "network": "unet",
    "image_shape": (1, 8, 8),
    "unet_channels": (4, 8),
    "n_flows": 2,
    "flow_batch_size": 64,
    "max_iter": 25,
    "batch_size": 32,
    "sinkhorn_max_iter": 1000,
    "random_state": 0,
}
PAIRED_IMAGES = {**IMAGES, "n_steps": 1, "n_pairings": 2, "pairing_size": 64}
IMAGE_ESTIMATORS = [
    pytest.param(NSGFSampler(**IMAGES), id="NSGFSampler"),
    pytest.param(NSGFPlusPlus(**PAIRED_IMAGES), id="consistent"),
    pytest.param(NSGFPlusPlus(**PAIRED_IMAGES, mode="paper"), id="paper"),
]
digits = load_digits().data[:120]
noise = np.random.default_rng(0).normal(size=(80, 64)) * digits.std() + digits.mean()


@pytest.mark.parametrize("estimator", IMAGE_ESTIMATORS)
def test_images_are_carried_sampled_and_pickled(estimator):
    flow = fitted(estimator, noise, digits)
    moved = flow.transform(noise)
    assert moved.shape == noise.shape
    np.testing.assert_allclose(moved[:10], flow.transform(noise[:10]), rtol=1e-9, atol=1e-9)
    start = np.linalg.norm(noise.mean(axis=0) - digits.mean(axis=0))
    assert np.linalg.norm(moved.mean(axis=0) - digits.mean(axis=0)) < 0.7 * start
    assert flow.sample(3).shape == (3, 64)
    opened = pickle.loads(pickle.dumps(flow))
    np.testing.assert_array_equal(opened.transform(noise), moved)


def test_images_are_carried_as_many_at_a_time_as_their_layers_have_room_for(monkeypatch):
    flow, seen = fitted(NSGFSampler(**IMAGES), noise, digits), []

    def forward(self, x, t, call=VelocityUNet.forward):
        seen.append(len(x))
        return call(self, x, t)

    expected = flow.transform(noise)
    monkeypatch.setattr(VelocityUNet, "forward", forward)
    monkeypatch.setattr("sknsgf._base.CPU_ENTRIES", 10 * 8 * 8 * 4)  # those of 10 images
    np.testing.assert_allclose(flow.transform(noise), expected, rtol=1e-9, atol=1e-9)
    assert set(seen) == {10}


@pytest.mark.parametrize("estimator", [NSGFSampler(**IMAGES), NSGFPlusPlus(**PAIRED_IMAGES)])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "needs image_shape=(channels, height, width), three ints of at least 1. Got None."),
        ((8, 8), "needs image_shape=(channels, height, width), three ints of at least 1. Got (8, "),
        ((1, 8, 8.0), "needs image_shape=(channels, height, width), three ints of at least 1."),
        (
            (0, 8, 8),
            "needs image_shape=(channels, height, width), three ints of at least 1. Got (0",
        ),
        ((3, 8, 8), "describes rows of 192 features, but X has 64. Rows are images (channels, "),
    ],
)
def test_a_wrong_image_shape_raises(estimator, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        fitted(estimator, noise, digits, image_shape=shape)
    assert f" of {type(estimator).__name__} " in str(error.value)


@pytest.mark.parametrize("channels", [(), (4, 0), (4, 2.5)])
def test_wrong_channels_raise(channels):
    message = "^The 'unet_channels' parameter must be a sequence of ints of at least 1. Got "
    with pytest.raises(ValueError, match=message):
        fitted(NSGFSampler(**IMAGES), noise, digits, unet_channels=channels)


def test_the_design_of_an_image_network_may_be_given_by_arrays_and_lists():
    settings = {"image_shape": np.array([1, 8, 8]), "unet_channels": [4, 8], "max_iter": 1}
    flow = fitted(NSGFSampler(**IMAGES), noise, digits, **settings)
    expected = fitted(NSGFSampler(**IMAGES), noise, digits, max_iter=1)
    np.testing.assert_array_equal(flow.transform(noise), expected.transform(noise))
