"""Several processes that fit one estimator together, on torch's process groups.

All processes hold the same data and the same networks. Whole batches of flows are shared out, never
the rows of one Sinkhorn problem, and every process takes the same gradient steps: then the result
does not depend on the number of processes. (It would if gradients were summed by the processes, in
another order: rounding differs there, and some thousand steps make another network of that.)
"""

import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import count

import torch
import torch.distributed as dist
from tqdm.auto import tqdm

LAUNCHED = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"  # what torchrun sets
_groups = count()  # that this process was in
_shares_batches = ContextVar("shares_batches", default=False)


@contextmanager
def distributed(*, share_batches=False):
    """Fit with all the processes that torchrun started, as a context.

    Within the context, ``fit`` shares its flows and pairings out over the processes of a
    ``torch.distributed`` group. In a script that plain ``python`` runs, it does nothing.

    Parameters
    ----------
    share_batches : bool, default=False
        Whether each gradient step is shared out too, by
        :class:`torch.nn.parallel.DistributedDataParallel`: `batch_size` must be a multiple of the
        number of processes. That pays for large networks on several GPUs. The result then
        depends on the number of processes, as sums in another order do: the networks are other
        ones, no better and no worse. By default every process takes all gradient steps, and the
        result is the same for any number of processes, bit by bit on equal machines.

    Yields
    ------
    int
        Number of this process, its rank: do what is to be done once where it is 0. ``save`` and
        ``verbose`` are silent in all others by themselves.

    Raises
    ------
    RuntimeError
        If a process group was initialised before, by other means: fit notices such a group without
        this context.

    Notes
    -----
    The group is destroyed at the end of the block, whatever happens in it. Each process must call
    every `fit` in it, with the same parameters and data, which `fit` compares (of the data, means
    and variances). With CUDA, ``device="auto"`` and ``"cuda"`` are the GPU of the process's number
    on its machine.

    Examples
    --------
    >>> import numpy as np
    >>> import sknsgf
    >>> X_source = np.random.default_rng(0).normal(size=(100, 2))
    >>> flow = sknsgf.NSGFSampler(max_iter=50, random_state=0)
    >>> with sknsgf.distributed() as rank:
    ...     flow = flow.fit(X_source, X_source + [3.0, 1.0])
    >>> rank
    0
    """
    launched = all(name in os.environ for name in LAUNCHED)
    if launched and is_initialized():
        raise RuntimeError(
            "sknsgf.distributed() initialises a process group, but there is one already. Leave the "
            "context out: fit uses the group that is there."
        )
    token = _shares_batches.set(share_batches)
    try:
        if launched:
            store, number, n_all = rendezvous()
            # A prefix of its own: a second group would meet what the first has left in the store.
            store = dist.PrefixStore(f"sknsgf group {next(_groups)}", store)
            has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
            backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
            dist.init_process_group(backend, store=store, rank=number, world_size=n_all)
        yield rank()
    finally:
        _shares_batches.reset(token)
        if launched and is_initialized():
            dist.destroy_process_group()


@cache
def rendezvous():
    """Store that the launched processes share, the number of this one and of all."""
    return next(dist.rendezvous("env://"))


def is_initialized():
    """Tell whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank():
    """Number of this process in its group."""
    return dist.get_rank() if is_initialized() else 0


def n_processes():
    """Number of processes of the group."""
    return dist.get_world_size() if is_initialized() else 1


def is_first():
    """Tell whether this process saves and prints."""
    return rank() == 0


def progress_bar(estimator, title, total, n_done=0):
    """Progress bar that the first process shows if the estimator is to be verbose."""
    hidden = not (estimator.verbose and is_first())
    return tqdm(desc=title, total=total, initial=n_done, disable=hidden)


def shares_batches():
    """Tell whether gradient steps are shared out."""
    return n_processes() > 1 and _shares_batches.get()


def local_device(device):
    """Device of this process, where a group shares the GPUs of a machine."""
    if device == "cuda" and is_initialized():
        index, n_devices = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
        if index >= n_devices:
            raise ValueError(
                f"Process {index} of this machine has no GPU of its own: there are {n_devices}. "
                "Start as many processes as there are GPUs, or use device='cpu'."
            )
        return f"cuda:{index}"
    return device


def broadcast(tensors, owner):
    """Overwrite tensors with those of one process."""
    if n_processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, owner)


def from_first(value):
    """The first process's value of some plain objects and tensors on the CPU."""
    if n_processes() == 1:
        return value
    values = [value]
    try:
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    except RuntimeError as error:
        if "No backend" not in str(error):
            raise
        raise RuntimeError(
            "fit needs a process group that also has a backend for the CPU. Initialise it by "
            "sknsgf.distributed(), or by init_process_group() with backend='cpu:gloo,cuda:nccl'."
        ) from error
    return values[0]


def wait_for_all():
    """Wait until all processes are here."""
    if n_processes() > 1:
        dist.all_reduce(torch.zeros(1, dtype=torch.float32, device="cpu"))


def shares(missing, n_items):
    """How work on numbered items is shared out: mine, and pairs of each item with its owner.

    ``missing`` are the items that the first process lacks; it owns all others.
    """
    missing = from_first(missing)
    owners = dict.fromkeys(range(n_items), 0)
    owners |= {item: place % n_processes() for place, item in enumerate(missing)}
    mine = [item for item in missing if owners[item] == rank()]
    return mine, owners.items()
