"""A fit that is killed goes on from its checkpoint and ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf import _checkpoint as checkpoints

rng = np.random.default_rng(0)
X_source = rng.normal(size=(300, 2))
X_target = rng.normal(size=(200, 2)) * [1.0, 0.3] + 4
SMALL = {"n_flows": 6, "flow_batch_size": 64, "max_iter": 250, "random_state": 0}
SMALL |= {"hidden_layer_sizes": (16,), "checkpoint_every": 100}
PAIRED = SMALL | {"n_pairings": 5, "pairing_size": 64}
IN_PARTS = {"pool": "online", "max_pool_size": 0.01}


class Dropping(torch.nn.Module):
    """Network that draws from torch's generator in every step."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_features, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.Dropout(),
            torch.nn.Linear(16, n_features),
        )

    def forward(self, x, t):
        return self.layers(x)


ESTIMATORS = {
    "NSGFSampler": NSGFSampler(**SMALL),
    "NSGFSampler in parts": NSGFSampler(**SMALL, **IN_PARTS, early_stopping=True),
    "NSGFSampler of a user's network": NSGFSampler(**SMALL, network=Dropping),
    "NSGFPlusPlus": NSGFPlusPlus(**PAIRED, early_stopping=True),
    "NSGFPlusPlus with potentials": NSGFPlusPlus(**PAIRED, pairing="potentials"),
    "paper": NSGFPlusPlus(**PAIRED, mode="paper"),
    "paper in parts": NSGFPlusPlus(**PAIRED, **IN_PARTS, mode="paper"),
}
QUICK = {"NSGFSampler in parts", "paper in parts"}  # have all that the others have
each_estimator = pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(estimator, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, estimator in ESTIMATORS.items()
    ],
)


class Killed(BaseException):
    """Stands for the end of a process."""


def fitted(estimator, folder=None, **settings):
    flow = clone(estimator).set_params(checkpoint=folder, **settings)
    return flow.fit(X_source, X_target)


def killed_at_write(estimator, folder, n_writes, monkeypatch):
    """Fit until a number of records were written; tell whether it was killed before its end."""
    left = [n_writes]

    def write_or_die(path, data, write=checkpoints.write_file):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_file", write_or_die)
        try:
            fitted(estimator, folder)
        except Killed:
            return True
    return False


def assert_same_fit(flow, expected):
    """Compare all that two fits have learned and recorded, bit by bit."""
    assert vars(flow).keys() == vars(expected).keys()
    for name in flow._fitted_attributes:
        if hasattr(expected, name):
            np.testing.assert_equal(getattr(flow, name), getattr(expected, name), err_msg=name)


@each_estimator
def test_a_checkpoint_changes_nothing_and_is_gone_after_the_fit(estimator, tmp_path):
    assert_same_fit(fitted(estimator, tmp_path / "fit"), fitted(estimator))
    assert list(tmp_path.iterdir()) == []


@each_estimator
def test_a_fit_that_ended_at_any_write_goes_on_to_the_same_result(estimator, tmp_path, monkeypatch):
    expected, n_writes = fitted(estimator), 0
    while killed_at_write(estimator, tmp_path / "fit", n_writes, monkeypatch):
        assert_same_fit(fitted(estimator, tmp_path / "fit"), expected)
        n_writes += 1
    assert n_writes >= 5


@pytest.mark.parametrize("seed", [1, 2])
def test_the_worst_of_parts_that_are_gone_is_known(seed, tmp_path, monkeypatch):
    estimator = clone(ESTIMATORS["NSGFSampler in parts"]).set_params(random_state=seed)
    expected, n_writes = fitted(estimator), 5
    while killed_at_write(estimator, tmp_path / "fit", n_writes, monkeypatch):
        assert fitted(estimator, tmp_path / "fit").sinkhorn_error_ == expected.sinkhorn_error_
        n_writes += 1


@each_estimator
def test_a_fit_that_ends_again_and_again_gets_to_its_end(estimator, tmp_path, monkeypatch):
    n_writes, n_killed = 4 if estimator.pool == "online" else 2, 0
    while killed_at_write(estimator, tmp_path / "fit", n_writes, monkeypatch):
        n_killed += 1
    assert n_killed > 1
    assert not (tmp_path / "fit").exists()


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    losses = []
    estimator = clone(ESTIMATORS["NSGFSampler"]).set_params(device="cpu")  # where each step is seen
    n_records = 1 + 1 + 2  # what fit it is, a chunk of flows, the training at 100 and 200 steps
    assert killed_at_write(estimator, tmp_path / "fit", n_records, monkeypatch)

    def counted(*args, count=torch.optim.AdamW.step, **options):
        losses.append(1)
        return count(*args, **options)

    monkeypatch.setattr("sknsgf._simulation.simulate_flow", None)
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    fitted(estimator, tmp_path / "fit")
    assert len(losses) == 50


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_numbers_of_numpy_are_numbers(schedule, tmp_path, monkeypatch):
    numbers = {"learning_rate_init": 2**-8, "weight_decay": 2**-10, "tol": 2**-12}
    estimator = NSGFSampler(**SMALL | numbers, learning_rate=schedule)
    as_numpy = {name: np.float64(number) for name, number in numbers.items()}
    of_numpy = clone(estimator).set_params(**as_numpy)
    assert killed_at_write(of_numpy, tmp_path / "fit", 3, monkeypatch)
    assert_same_fit(fitted(estimator, tmp_path / "fit"), fitted(estimator))


@pytest.mark.parametrize("state", [None, np.random.RandomState(3)])
def test_a_fit_without_a_fixed_seed_goes_on_with_its_own(state, tmp_path, monkeypatch):
    estimator = NSGFSampler(**SMALL | {"random_state": state})
    assert killed_at_write(estimator, tmp_path / "fit", 3, monkeypatch)
    flow = fitted(estimator, tmp_path / "fit")
    assert_same_fit(flow, fitted(estimator, random_state=flow.seed_))


def test_a_warm_start_goes_on_too(tmp_path, monkeypatch):
    first = fitted(ESTIMATORS["NSGFSampler"])

    def again(folder):
        flow = first.__sklearn_clone__()
        vars(flow).update(vars(first))
        return flow.set_params(warm_start=True, checkpoint=folder)

    expected = again(None).fit(X_source, X_target)
    flow = again(tmp_path / "fit")
    with monkeypatch.context() as patch:
        patch.setattr("sknsgf._training.fit_regression", None)
        with pytest.raises(TypeError):
            flow.fit(X_source, X_target)
    assert_same_fit(flow.fit(X_source, X_target), expected)


# Refusals


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Checkpoint of an unfinished fit."""
    assert killed_at_write(ESTIMATORS["NSGFSampler"], tmp_path / "fit", 3, monkeypatch)
    return tmp_path / "fit"


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"max_iter": 251}, "the parameter max_iter was 250 and is 251"),
        ({"random_state": 1}, "the seed was 0 and is 1"),
        ({"hidden_layer_sizes": (17,)}, r"the parameter hidden_layer_sizes was \(16,\) and is"),
        ({"network": Dropping}, "the network was [0-9a-f]+ and is"),
    ],
)
def test_other_parameters_are_refused(settings, what, folder):
    with pytest.raises(ValueError, match=f"is of another fit: {what}.* delete the folder"):
        fitted(ESTIMATORS["NSGFSampler"], folder, **settings)
    fitted(ESTIMATORS["NSGFSampler"], folder)  # still there


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        ((X_source, X_target + 1), "the target"),
        ((X_source[::-1], X_target), "the source"),
        ((X_source.astype(np.float32), X_target), "the source"),
        ((X_target,), "the source"),
    ],
)
def test_other_data_are_refused(samples, what, folder):
    flow = clone(ESTIMATORS["NSGFSampler"]).set_params(checkpoint=folder)
    with pytest.raises(ValueError, match=f"is of another fit: {what} was "):
        flow.fit(*samples)


def test_it_is_logged_that_a_fit_goes_on(folder, caplog):
    with caplog.at_level("INFO", logger="sknsgf"):
        fitted(ESTIMATORS["NSGFSampler"], folder)
    assert caplog.messages[0] == f"Going on from the checkpoint {folder}"


def test_another_class_is_refused(folder):
    with pytest.raises(ValueError, match="is of another fit: the class was NSGFSampler and is NSG"):
        fitted(ESTIMATORS["NSGFPlusPlus"], folder)


def test_what_makes_no_difference_may_change(folder):
    flow = fitted(ESTIMATORS["NSGFSampler"], folder, n_jobs=2, checkpoint_every=7)
    assert_same_fit(flow, fitted(ESTIMATORS["NSGFSampler"]))


def test_a_folder_of_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = "must name a folder that is of a fit's checkpoint, empty or not there"
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=message):
            fitted(ESTIMATORS["NSGFSampler"], path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_records_of_another_fit_are_not_used(folder):
    (folder / "fit.sknsgf").unlink()
    flow = clone(ESTIMATORS["NSGFSampler"]).set_params(checkpoint=folder)
    expected = clone(ESTIMATORS["NSGFSampler"]).fit(X_target, X_source)
    assert_same_fit(flow.fit(X_target, X_source), expected)
    assert not folder.exists()


def test_files_of_others_are_kept(folder):
    for name in ("flow.sknsgf", ".notes.tmp"):
        (folder / name).write_text("mine")
    fitted(ESTIMATORS["NSGFSampler"], folder)
    assert sorted(path.name for path in folder.iterdir()) == [".notes.tmp", "flow.sknsgf"]


def test_a_fit_that_fails_at_its_end_keeps_its_checkpoint(tmp_path, monkeypatch):
    def failed(*args):
        raise MemoryError

    monkeypatch.setattr("sknsgf._callbacks.Task.end", failed)
    with pytest.raises(MemoryError):
        fitted(ESTIMATORS["NSGFSampler"], tmp_path / "fit")
    assert (tmp_path / "fit").exists()


def test_a_damaged_record_is_refused(folder):
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path.name}' was damaged or changed. Delete "):
            fitted(ESTIMATORS["NSGFSampler"], folder)
        path.write_bytes(bytes(data[: len(data) // 2]))
        with pytest.raises(ValueError, match="was damaged or changed"):
            fitted(ESTIMATORS["NSGFSampler"], folder)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    fitted(ESTIMATORS["NSGFSampler"], folder)


def test_a_failed_fit_keeps_its_checkpoint(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sknsgf._training.fit_regression", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(ESTIMATORS["NSGFSampler"], tmp_path / "fit")
    monkeypatch.setattr("sknsgf._simulation.simulate_flow", None)  # all flows are there
    fitted(ESTIMATORS["NSGFSampler"], tmp_path / "fit")


# Real kills


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks")
@pytest.mark.parametrize(
    "n_fits",
    [pytest.param(9, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.endurance)],
)
def test_killed_processes_go_on_to_the_same_result(n_fits):
    script = Path(__file__).with_name("killed_fits.py")
    command = [sys.executable, script, "--n-fits", str(n_fits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{n_fits} of {n_fits} fits ended with the same bits" in done.stdout
