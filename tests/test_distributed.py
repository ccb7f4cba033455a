"""Several processes fit what one does, whatever their number."""

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import sknsgf
from sknsgf._distributed import LAUNCHED

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "killpg")),
    reason="needs torch with gloo, and groups of processes that can be ended",
)
SCRIPT = Path(__file__).with_name("distributed_fits.py")
NAMES = ["NSGFSampler", "in-parts", "on-disk", "NSGFPlusPlus", "potentials", "paper"]
by_several = pytest.mark.parametrize(
    "n_processes",
    [2, *(pytest.param(n, marks=pytest.mark.endurance) for n in (1, 3))],
)
TIME_LIMIT = 240  # seconds: far below what torch waits for a process that hangs


def launch(n_processes, name, folder):
    """Run a part of the script in some processes; 0 is plain Python."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *(torchrun if n_processes else []), SCRIPT, name, folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # so that all its processes can be ended
    ) as running:
        try:
            output, errors = running.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, running.returncode, output, errors)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Function from a number of processes, 0 for plain Python, to the folder of what they made."""

    @cache
    def made_by(n_processes):
        folder = tmp_path_factory.mktemp(f"by-{n_processes}")
        done = launch(n_processes, "all", folder)
        assert done.returncode == 0, done.stderr
        return folder

    return made_by


def opened(folder, name):
    flow = sknsgf.load(folder / f"{name}.safetensors")
    return {name: getattr(flow, name) for name in flow._fitted_attributes if hasattr(flow, name)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_process_with_a_gpu_fits_what_plain_python_does_there(tmp_path):
    flows = []
    for n_processes in (0, 1):
        folder = tmp_path / str(n_processes)
        folder.mkdir()
        done = launch(n_processes, "gpu", folder)
        assert done.returncode == 0, done.stderr
        flows.append(opened(folder, "gpu"))
    assert [flow.pop("device_") for flow in flows] == ["cuda", "cuda:0"]
    np.testing.assert_equal(*flows)


@by_several
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_that_of_one_process(name, n_processes, results):
    np.testing.assert_equal(opened(results(n_processes), name), opened(results(0), name))


@by_several
@pytest.mark.parametrize("name", [*NAMES, "seed"])
def test_all_processes_have_the_same_flow(name, n_processes, results):
    first, *others = (
        np.load(results(n_processes) / f"{name}-{rank}.npy") for rank in range(n_processes)
    )
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_shared_batches_take_the_same_gradient_steps(results):
    with np.load(results(0) / "shared-0.npz") as one:
        for rank in (0, 1):
            with np.load(results(2) / f"shared-{rank}.npz") as shared:
                for name in one:
                    np.testing.assert_allclose(shared[name], one[name], rtol=0, atol=1e-5)


def test_the_checkpoint_of_several_processes_is_gone_after_the_fit(results):
    assert not (results(2) / "checkpoint").exists()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_error_in_one_process_ends_all_with_its_message(rank, tmp_path):
    done = launch(2, f"fail-in-{rank}", tmp_path)
    assert done.returncode != 0
    assert "MemoryError: no memory in this process" in done.stderr


@pytest.mark.slow
def test_other_data_in_another_process_are_an_error(tmp_path):
    done = launch(2, "other-data", tmp_path)
    assert done.returncode != 0
    assert "ValueError: fit was given other samples than in the first process." in done.stderr


@pytest.mark.slow
def test_other_parameters_in_another_process_are_an_error(tmp_path):
    done = launch(2, "other-parameters", tmp_path)
    assert done.returncode != 0
    assert "the parameter blur is 1.1 here, and 0.1 in the first process." in done.stderr


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.endurance) for name in ("default", "default-two-phases")],
)
def test_fits_of_the_default_size_do_not_depend_on_the_number_of_processes(name, tmp_path):
    folders = {n: tmp_path / str(n) for n in (0, 2)}
    for n_processes, folder in folders.items():
        folder.mkdir()
        done = launch(n_processes, name, folder)
        assert done.returncode == 0, done.stderr
    np.testing.assert_equal(opened(folders[2], name), opened(folders[0], name))


# In this process


def test_plain_python_makes_no_group():
    with sknsgf.distributed() as rank:
        assert rank == 0
        assert not dist.is_initialized()


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Environment of the only process of a group."""
    values = "0", "1", "127.0.0.1", "0"
    for name, value in zip(LAUNCHED, values, strict=True):
        monkeypatch.setenv(name, value)
    store = dist.FileStore(str(tmp_path / "store"), 1)  # a file in place of a port
    monkeypatch.setattr("sknsgf._distributed.rendezvous", lambda: (store, 0, 1))


@pytest.mark.usefixtures("launched")
def test_the_group_is_destroyed_whatever_happens():
    def fail():
        with sknsgf.distributed():
            assert dist.is_initialized()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("launched")
def test_a_context_in_a_context_raises():
    with sknsgf.distributed():
        message = "there is one already. Leave the context out"
        with pytest.raises(RuntimeError, match=message), sknsgf.distributed():
            pass
        assert dist.is_initialized()
    assert not dist.is_initialized()


@pytest.mark.usefixtures("launched")
def test_shares_of_batches_must_be_equal(monkeypatch):
    monkeypatch.setattr("sknsgf._distributed.n_processes", lambda: 3)
    monkeypatch.setattr("sknsgf._distributed.from_first", lambda value: value)
    with sknsgf.distributed(share_batches=True):
        message = "'batch_size' parameter of NSGFSampler must be a multiple of the 3 processes"
        with pytest.raises(ValueError, match=message):
            sknsgf.NSGFSampler(batch_size=256).fit([[0.0], [1.0]], [[1.0], [2.0]])
