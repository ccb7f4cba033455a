"""Cost of ``fit`` as its work grows: CPU time of each stage, and memory.

    python benchmarks/bench_cost.py

One quantity varies at a time; the others are those of ``BASE``, with default parameters but for
``n_flows`` and ``n_pairings``, which are lower so that the whole takes minutes. The minibatch is
``flow_batch_size`` and ``pairing_size``. Each fit has a process of its own, and its memory is the
peak beyond what that process held before, the samples among it. The exponent of a cost is the slope
of a line through its logarithms; the last one is that between the two largest values.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import process_time

import numpy as np
from memory import peak_memory, reset_peak
from results import publish
from stages import FLOWS, PAIRING, TRAINING, StageClock

from sknsgf import NSGFPlusPlus, NSGFSampler

BASE = {"rows": 10**4, "features": 2, "minibatch": 512, "max_iter": 500}
VARIED = {
    "rows": (10**3, 10**4, 10**5, 10**6, 4 * 10**6),
    "features": (2, 8, 64, 512, 3072),
    "minibatch": (128, 512, 2048, 8192),
    "n_steps": (1, 2, 4, 8, 16),
    "max_iter": (250, 500, 1000, 2000),
}
N_BATCHES = 4  # simulated flows, and pairs of batches
CLUSTERS = 8
STAGES = {"flows (CPU s)": FLOWS, "pairing (CPU s)": PAIRING, "training (CPU s)": TRAINING}


def samples(n_rows, n_features):
    """Draw a source from a normal law and a target from clusters."""
    rng = np.random.default_rng(0)
    source, target = rng.standard_normal((2, n_rows, n_features))
    centers = 3 * rng.standard_normal((CLUSTERS, n_features))
    return source, target / 2 + centers[rng.integers(CLUSTERS, size=n_rows)]


def measure(kind, *, rows, features, minibatch, **options):
    """CPU seconds of the stages of a fit and of all of it, and its memory in MB."""
    options |= {"n_flows": N_BATCHES, "flow_batch_size": minibatch}
    if kind is NSGFPlusPlus:
        options |= {"n_pairings": N_BATCHES, "pairing_size": minibatch}
    X_source, X_target = samples(rows, features)
    kind(n_flows=1, max_iter=1).fit(X_source[:100], X_target[:100])  # what only a first fit costs
    clock = StageClock()
    flow = kind(random_state=0, device="cpu", **options).set_callbacks(clock)
    reset_peak()
    before, start = peak_memory(), process_time()
    flow.fit(X_source, X_target)
    seconds, memory = process_time() - start, peak_memory() - before
    return clock.totals(STAGES) | {"fit (CPU s)": seconds, "memory (MB)": memory}


def in_a_fresh_process(kind, sizes):
    """Measure where no earlier fit has left memory behind."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["sknsgf", "torch._dynamo"])  # which optimisers import
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(measure, kind, **sizes).result()


def exponent(values, costs):
    """Exponent of the power of the value that a cost grows with."""
    return np.polyfit(np.log(values), np.log(costs), 1)[0]


def series(kind, varied):
    """Rows of the table for one estimator and one quantity, its exponents last."""
    head, values = {"estimator": kind.__name__, "varied": varied}, VARIED[varied]
    costs = [in_a_fresh_process(kind, BASE | {varied: value}) for value in values]
    rows = [
        head
        | {"value": value}
        | {name: f"{cost:.2f}" if cost else "" for name, cost in at_value.items()}
        for value, at_value in zip(values, costs, strict=True)
    ]
    for title, last in (("exponent", len(values)), ("last exponent", 2)):
        found = {}
        for name in costs[0]:
            column = [at_value[name] for at_value in costs]
            grows = min(column) > 0
            found[name] = f"{exponent(values[-last:], column[-last:]):.2f}" if grows else ""
        rows.append(head | {"value": title} | found)
    return rows


def main():
    """Measure both estimators along each quantity."""
    rows = []
    for kind in (NSGFSampler, NSGFPlusPlus):
        for varied in VARIED:
            for row in series(kind, varied):
                print(*row.values(), sep="  ", flush=True)
                rows.append(row)
    publish("cost", rows, "python benchmarks/bench_cost.py")


if __name__ == "__main__":
    main()
