"""Cost of ``transform`` on 10^6 rows beyond the network evaluations that it consists of.

    python benchmarks/bench_transform.py

The bare evaluations run on a network of the same size, with the same chunks, dtype and thread. Both
are timed in turn, round after round; the peak of memory is that of one transform, less its input
and output.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from statistics import median
from time import perf_counter

import numpy as np
import torch
from memory import peak_memory, reset_peak
from results import publish

from sknsgf import NSGFSampler
from sknsgf._base import CPU_CHUNK
from sknsgf.datasets import make_pair
from sknsgf.flow.networks import build_network

N_ROWS = 10**6
ROUNDS = 2


def bare_evaluations(network, rows, n_evaluations):
    """Evaluate the network on all rows, chunk by chunk, as often as the flow does."""
    with torch.no_grad():
        for chunk in torch.from_numpy(rows).split(CPU_CHUNK):
            for k in range(n_evaluations):
                network(chunk, torch.full((len(chunk),), k / n_evaluations, dtype=chunk.dtype))


def seconds(function, *args):
    """Wall time of a call."""
    start = perf_counter()
    function(*args)
    return perf_counter() - start


def measure(flow, dtype):
    """Compare both ways on rows of one dtype."""
    rows = np.random.default_rng(0).standard_normal((N_ROWS, 2)).astype(dtype)
    sizes = flow.hidden_layer_sizes
    network = build_network("mlp", 2, sizes, flow.activation, None, (), seed=0)
    network = network.to(torch.from_numpy(rows[:1]).dtype)
    reset_peak()
    before = peak_memory()
    flow.transform(rows)
    memory = peak_memory() - before - rows.nbytes / 2**20
    pairs = [
        (
            seconds(flow.transform, rows),
            seconds(bare_evaluations, network, rows, flow.n_evaluations_),
        )
        for _ in range(ROUNDS)
    ]
    return {
        "dtype": np.dtype(dtype).name,
        "transform (s)": f"{median(ours for ours, _ in pairs):.2f}",
        "bare (s)": f"{median(bare for _, bare in pairs):.2f}",
        "ratio": f"{median(ours / bare for ours, bare in pairs):.2f}",
        "extra memory (MB)": f"{memory:.0f}",
    }


def main():
    """Fit once, briefly, and measure float32 and float64 rows."""
    flow = NSGFSampler(n_flows=8, max_iter=100, random_state=0)
    flow.fit(*make_pair("moons", random_state=0))
    rows = [measure(flow, dtype) for dtype in (np.float32, np.float64)]
    for row in rows:
        print(*row.values(), sep="  ")
    publish("transform", rows, "python benchmarks/bench_transform.py")


if __name__ == "__main__":
    main()
