"""Cost of ``transform`` and ``sample`` beyond the network evaluations that they consist of.

    python benchmarks/bench_transform.py

The bare evaluations run on a network of the same size, with the same chunks, dtype and thread. Both
are timed in turn, round after round, and the fastest of each counts, since other programs can only
slow it down. The peak of memory is that of a call before them, less the rows that it returns.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from time import process_time

import numpy as np
import torch
from memory import peak_memory, reset_peak
from results import publish

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf._base import CPU_CHUNK
from sknsgf.datasets import make_pair
from sknsgf.flow.networks import build_network

CALLS = (  # estimator, method, rows, rounds
    (NSGFSampler, "transform", 10**6, 2),
    (NSGFSampler, "transform", 10**5, 6),
    (NSGFSampler, "sample", 10**5, 6),
    (NSGFPlusPlus, "transform", 10**5, 6),
    (NSGFPlusPlus, "sample", 10**5, 6),
)


def bare_evaluations(network, rows, n_evaluations):
    """Evaluate the network on all rows, chunk by chunk, as often as the flow does."""
    with torch.no_grad():
        for chunk in torch.from_numpy(rows).split(CPU_CHUNK):
            for k in range(n_evaluations):
                network(chunk, torch.full((len(chunk),), k / n_evaluations, dtype=chunk.dtype))


def seconds(function, *args):
    """CPU time of a call."""
    start = process_time()
    function(*args)
    return process_time() - start


def memory(function, *args):
    """Peak of memory of a call in MB."""
    reset_peak()
    before = peak_memory()
    function(*args)
    return peak_memory() - before


def measure(kind, method, n_rows, n_rounds, dtype):
    """Compare a call with its bare evaluations, on rows of one dtype."""
    X_source, X_target = (rows.astype(dtype) for rows in make_pair("moons", random_state=0))
    flow = kind(n_flows=8, max_iter=100, random_state=0).fit(X_source, X_target)
    rows = np.random.default_rng(0).standard_normal((n_rows, 2)).astype(dtype)
    sizes = flow.hidden_layer_sizes
    network = build_network("mlp", 2, sizes, flow.activation, None, (), seed=0)
    network = network.to(torch.from_numpy(rows[:1]).dtype)
    call, given = getattr(flow, method), rows if method == "transform" else n_rows
    held = memory(call, given)
    ours, bare = zip(
        *(
            (seconds(call, given), seconds(bare_evaluations, network, rows, flow.n_evaluations_))
            for _ in range(n_rounds)
        ),
        strict=True,
    )
    return {
        "estimator": kind.__name__,
        "called": method,
        "rows": n_rows,
        "dtype": np.dtype(dtype).name,
        "call (CPU s)": f"{min(ours):.2f}",
        "bare (CPU s)": f"{min(bare):.2f}",
        "ratio": f"{min(ours) / min(bare):.2f}",
        "extra memory (MB)": f"{held - rows.nbytes / 2**20:.0f}",
    }


def main():
    """Measure all calls on float32 and on float64 rows."""
    rows = []
    for call in CALLS:
        for dtype in (np.float32, np.float64):
            rows.append(measure(*call, dtype))
            print(*rows[-1].values(), sep="  ", flush=True)
    publish("transform", rows, "python benchmarks/bench_transform.py")


if __name__ == "__main__":
    main()
