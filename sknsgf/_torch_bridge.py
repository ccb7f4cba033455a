"""Between arrays and tensors: units, devices, random streams, threads."""

import ctypes
import os
from contextlib import contextmanager
from functools import cache
from math import prod
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.utils import check_random_state, gen_batches
from threadpoolctl import ThreadpoolController

STREAMS = (
    *("source", "target", "network", "training", "kept", "sampling", "scoring"),
    *("pairing source", "pairing target", "pairing"),
    *("straight network", "straight training", "transition network", "transition training"),
    "plotting",
    *("held out", "held-out source", "held-out target"),
    *("held-out pairing source", "held-out pairing target", "held-out pairing"),
)
CPU_KERNEL = 2**20  # entries of the kernels that one task simulates flows with
CUDA_KERNEL = 2**28
WRITTEN_BYTES = 2**24  # zeros written at a time
STATISTICS_ENTRIES = 2**20  # entries of an array read at a time for means and variances
_loading = Lock()


class Frame(NamedTuple):
    """Units of the flow: rows minus ``center``, over one ``scale`` that keeps the geometry.

    Attributes
    ----------
    center : ndarray of shape (n_features,), float64
    scale : float
    """

    center: np.ndarray
    scale: float

    def to_tensor(self, rows, device, dtype=torch.float32):
        """Tensor of centred and scaled rows; the statistics are applied in float64."""
        scaled = (np.asarray(rows, dtype=np.float64) - self.center) / self.scale
        return torch.tensor(scaled, dtype=dtype, device=device)

    def to_array(self, points, dtype):
        """Rows in the units of the data."""
        return (points.double().cpu().numpy() * self.scale + self.center).astype(dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore")  # a scale that is not finite is refused later
def mean_and_variance(X):
    """Per-feature mean and variance in float64, a block of rows at a time.

    The deviations are taken from the first row, so that a large offset costs no accuracy.
    """
    first = np.asarray(X[0], dtype=np.float64)
    total, squares = np.zeros_like(first), np.zeros_like(first)
    for block in gen_batches(len(X), max(1, STATISTICS_ENTRIES // len(first))):
        deviation = np.asarray(X[block], dtype=np.float64) - first
        total += deviation.sum(axis=0)
        squares += np.einsum("ij,ij->j", deviation, deviation)
    shift = total / len(X)
    return first + shift, np.maximum(squares / len(X) - shift**2, 0)


@np.errstate(over="ignore", invalid="ignore")
def pooled_frame(mean_source, variance_source, mean_target, variance_target):
    """Frame in which both samples together have mean 0 and mean square 1 per feature."""
    center = (mean_source + mean_target) / 2
    half_gap = (mean_source - mean_target) / 2
    scale = np.sqrt(np.mean((variance_source + variance_target) / 2 + half_gap**2))
    return Frame(center, float(scale) or 1.0)


def seed_from(random_state):
    """An int that, as ``random_state``, has the same draws from now on.

    ``None`` takes fresh entropy, which leaves NumPy's global generator untouched.
    """
    if isinstance(random_state, Integral):
        return int(random_state)
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(random_state.randint(2**31 - 1))


def seed_of(random_state, stream):
    """Seed of one of the separate streams that belong to a ``random_state``."""
    base = check_random_state(seed_from(random_state)).randint(2**31 - 1)
    return _seed(int(base), STREAMS.index(stream))


def seed_of_batch(seed, batch):
    """Seed of what belongs to one batch of a stream, whichever batches come before."""
    return _seed(seed, batch)


def _seed(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def balanced_rows(n_rows, n_draws, seed):
    """Indices of shuffled passes over the rows: each is drawn equally often, give or take one."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(n_rows) for _ in range(n_draws // n_rows)]
    return np.concatenate([*passes, rng.choice(n_rows, n_draws % n_rows, replace=False)])


def random_rows(n_rows, n_wanted, seed):
    """Indices of a random subset in their order, or of all rows where fewer are there."""
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, n_wanted, replace=False))


def flow_chunks(n_flows, n_pairs, device):
    """Slices of the flows that are simulated together; they do not depend on `n_jobs`."""
    kernel = CUDA_KERNEL if torch.device(device).type == "cuda" else CPU_KERNEL
    return list(gen_batches(n_flows, max(1, kernel // n_pairs)))


def empty_on_disk(shape, dtype, folder):
    """Tensor of zeros in a nameless file of a folder: it is gone with the process, however it ends.

    The space is taken at once, so that a full disk is an error here and not a crash later on.
    """
    n_bytes = prod(shape) * dtype.itemsize
    with TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            for start in range(0, n_bytes, WRITTEN_BYTES):
                file.write(bytes(min(WRITTEN_BYTES, n_bytes - start)))
            file.flush()
        mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=n_bytes)
    return torch.from_numpy(mapped).view(dtype).view(shape)


def torch_generator(seed, device="cpu"):
    """Generator of its own with the given seed."""
    return torch.Generator(device=device).manual_seed(seed)


def available_device(device):
    """The device itself, or what comes next to it where a fitted model is opened without it."""
    device = torch.device(device)
    if device.type == "cpu" or (device.index or 0) < torch.cuda.device_count():
        return str(device)
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_linear_algebra(device):
    """Let torch load its solvers for GPUs, if need be: it fails where two threads do so at once."""
    if torch.device(device).type == "cuda":
        with _loading:
            _load_cuda_solvers(device)


@cache
def _load_cuda_solvers(device):
    one = torch.ones(1, 1, dtype=torch.float32, device=device)
    torch.linalg.solve(one, one)


def parameters_to_arrays(network):
    """Parameters and buffers of a network by name, as NumPy arrays."""
    state = network.state_dict()
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def load_arrays(network, arrays):
    """Put arrays into a network of the same architecture, and return it in evaluation mode."""
    network.load_state_dict(
        {name: torch.tensor(array, device="cpu") for name, array in arrays.items()}
    )
    return network.eval()


@contextmanager
def training_mode():
    """Autograd and precision as training needs them, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        yield


@contextmanager
def full_precision():
    """No automatic casts to types of fewer digits, whatever the caller has asked for.

    A network may ask for them itself. Weights that were cast must then not be kept: torch keeps
    them until the outermost context ends, which is this one, and training would not change them.
    """
    off = {"enabled": False, "cache_enabled": False}
    with torch.autocast("cpu", **off), torch.autocast("cuda", **off):
        yield


@cache
def _thread_pools():
    return ThreadpoolController()


@cache
def _mkl_limit():
    """Function that sets MKL's own limit for the calling thread, and returns the last one."""
    try:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        return ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # torch has no MKL here
        return lambda n_threads: 0


@contextmanager
def one_thread():
    """Context in which torch uses one thread of the calling thread's.

    Small matrices are 7 to 80 times slower when every core works on each, and products depend on
    the number of threads by rounding. The limits are the calling thread's, so other threads of the
    program are not affected. MKL has one of its own, since ``torch.set_num_threads`` gives it a
    count that goes before that of OpenMP.
    """
    torch.get_num_threads()  # sets torch up in a new thread, which would undo the limit
    limit_mkl = _mkl_limit()
    with _thread_pools().limit(limits=1, user_api="openmp"):
        before = limit_mkl(1)
        try:
            yield
        finally:
            limit_mkl(before)


def thread_map(function, items, n_jobs):
    """Apply a function to items in joblib threads, each on one core; results keep the order."""

    def call(item):
        with one_thread():
            return function(item)

    return Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(call)(item) for item in items)
