"""What goes wrong outside the mathematics: disks, numbers, threads, processes, memory."""

import copy
import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sknsgf import NSGFPlusPlus, NSGFSampler

CHEAP = {
    "n_steps": 2,
    "n_flows": 4,
    "flow_batch_size": 64,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
ESTIMATORS = {
    "sampler": NSGFSampler(**CHEAP),
    "plus_plus": NSGFPlusPlus(**CHEAP, n_pairings=4, pairing_size=64),
}
each_kind = pytest.mark.parametrize("kind", ESTIMATORS)

rng = np.random.default_rng(0)
X_source, X_target = rng.normal(size=(80, 3)), rng.normal(size=(70, 3)) * 2 + 4


@pytest.fixture(scope="module")
def fitted():
    """Fitted estimators, not to be changed."""
    return {kind: clone(e).fit(X_source, X_target) for kind, e in ESTIMATORS.items()}


def results(flow, seed=0):
    """What a fitted estimator returns for rows of its own."""
    rows = np.random.default_rng(seed).normal(size=(30, 3))
    return (
        flow.transform(rows),
        flow.inverse_transform(rows),
        flow.trajectory(rows),
        flow.sample(20, random_state=seed),
        flow.score(rows),
    )


def assert_same_bits(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other, strict=isinstance(one, np.ndarray))


def run_in_process(script, *arguments):
    """Output of a script in a fresh process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Disks

SAVE_TO_A_SMALL_DISK = """
import os, resource, sys
import sknsgf
flow = sknsgf.load(sys.argv[1])
half = os.path.getsize(sys.argv[1]) // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))
try:
    flow.save(sys.argv[1])
except OSError as error:
    print(error.errno, error.filename)
"""


@each_kind
def test_where_the_system_stops_the_writing_the_older_file_stays(kind, fitted, tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / "flow.safetensors"
    fitted[kind].save(path)
    before = path.read_bytes()
    assert run_in_process(SAVE_TO_A_SMALL_DISK, path) == f"{errno.EFBIG} {path}\n"
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


POOL_ON_A_SMALL_DISK = """
import os, resource, sys
import sknsgf
flow = sknsgf.load(sys.argv[1])
flow.set_params(pool="memmap", max_pool_size=0.001, pool_directory=sys.argv[2])
before = dict(vars(flow))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    flow.fit(flow.source_sample_, flow.target_sample_)
except OSError as error:
    print(error.errno, error.filename)
    print("Name a folder with more room by pool_directory" in str(error))
print(all(vars(flow)[name] is value for name, value in before.items()))
"""


@each_kind
def test_where_the_system_has_no_room_for_a_pool_the_fit_stops_and_the_older_one_stays(
    kind, fitted, tmp_path
):
    pytest.importorskip("resource")
    path, folder = tmp_path / "flow.safetensors", tmp_path / "pool"
    fitted[kind].save(path)
    folder.mkdir()
    said = run_in_process(POOL_ON_A_SMALL_DISK, path, folder)
    assert said.splitlines() == [f"{errno.EFBIG} {folder}", "True", "True"]
    assert os.listdir(folder) == []


# Numbers


class FailingNetwork(torch.nn.Module):
    """A linear velocity that is no number from a call on, in training or in evaluation."""

    def __init__(self, n_features, bad, first, training):
        super().__init__()
        self.layer = torch.nn.Linear(n_features + 1, n_features)
        self.bad, self.first, self.when, self.n_calls = bad, first, training, 0

    def forward(self, x, t):
        velocity = self.layer(torch.cat([x, t[:, None]], 1))
        if self.training is not self.when:
            return velocity
        self.n_calls += 1
        return self.bad * velocity if self.n_calls >= self.first else velocity


@each_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [1, 37])
def test_a_network_that_stops_giving_numbers_in_training_is_an_error(
    kind, bad, first, fitted, monkeypatch
):
    def network(n_features):
        return FailingNetwork(n_features, bad, first, training=True)

    flow = copy.deepcopy(fitted[kind]).set_params(network=network)
    before = dict(vars(flow))
    with pytest.raises(ValueError, match="diverged: the loss is not finite after"):
        flow.fit(X_source, X_target)
    assert vars(flow).keys() == before.keys()
    assert all(vars(flow)[name] is value for name, value in before.items())
    assert_same_bits(results(flow), results(fitted[kind]))


@each_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_on_rows_held_out_is_an_error(kind, bad):
    def network(n_features):
        return FailingNetwork(n_features, bad, 1, training=False)

    flow = clone(ESTIMATORS[kind]).set_params(network=network, early_stopping=True)
    with pytest.raises(ValueError, match="diverged: the held-out loss is not finite after"):
        flow.fit(X_source, X_target)
    assert not flow.__sklearn_is_fitted__()


# Threads and processes


@each_kind
def test_eight_threads_may_use_one_estimator_in_every_way_at_once(kind, fitted):
    flow, seeds = fitted[kind], range(16)
    expected = [results(flow, seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: results(flow, seed), seeds))
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


@each_kind
def test_worker_processes_return_the_same_bits(kind, fitted):
    flow, seeds = fitted[kind], range(4)
    found = joblib.Parallel(n_jobs=2, backend="loky")(
        joblib.delayed(results)(flow, seed) for seed in seeds
    )
    for one, seed in zip(found, seeds, strict=True):
        assert_same_bits(one, results(flow, seed))


@each_kind
def test_a_search_in_worker_processes_finds_the_same_bits(kind):
    grid = {"blur": [0.1, 0.3], "learning_rate_init": [0.01]}
    one, two = (
        GridSearchCV(clone(ESTIMATORS[kind]), grid, cv=2, n_jobs=n_jobs).fit(
            X_source, X_target=X_target
        )
        for n_jobs in (1, 2)
    )
    scores = [
        [search.cv_results_[f"split{fold}_test_score"] for fold in (0, 1)] for search in (one, two)
    ]
    np.testing.assert_array_equal(*scores)
    assert_same_bits(results(one.best_estimator_), results(two.best_estimator_))


# Memory

MEMORY_OF_FITS = """
import gc, os, sys
import numpy as np
import sknsgf
X = np.random.default_rng(0).normal(size=(200, 3))
cheap = {"n_steps": 2, "n_flows": 4, "flow_batch_size": 64, "max_iter": 20, "random_state": 0}

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def fits(n):
    for _ in range(n):
        sknsgf.NSGFSampler(**cheap).fit(X, X + 3).transform(X)
        sknsgf.NSGFPlusPlus(**cheap, n_pairings=4).fit(X, X + 3).transform(X)

fits(10)
before = resident()
fits(int(sys.argv[1]))
print((resident() - before) / 1e6)
"""


def check_memory(n_fits, most_mb):
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell the memory of a process")
    assert float(run_in_process(MEMORY_OF_FITS, n_fits)) < most_mb


@pytest.mark.slow
def test_twenty_fits_keep_no_memory():
    check_memory(10, most_mb=10)


@pytest.mark.endurance
def test_two_hundred_fits_keep_no_memory():
    check_memory(100, most_mb=10)
