"""Few network evaluations: NSGFPlusPlus in both modes, NSGFSampler and OT-CFM on the 2-D pairs.

    pip install --no-deps torchcfm==1.0.7
    python benchmarks/bench_two_phases.py

W2 as in ``bench_quality.py``, at several numbers of network evaluations of one fit. Our estimators
have default parameters, but for the paper's mode, which takes five Sinkhorn steps. OT-CFM
(torchcfm's exact minibatch matcher) has the same network, optimiser and batch size, and as many
gradient steps as the two networks of NSGFPlusPlus together; it is left out where torchcfm is not
installed. Two fits run at a time, on one thread each; a fit's time is CPU time.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from itertools import product
from statistics import mean, stdev
from time import process_time

from joblib import Parallel, delayed
from peers import HAS_TORCHCFM, OTCFM
from results import publish

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import PAIRS, make_pair, quasi_random_pair
from sknsgf.metrics import wasserstein_distance

EVALUATIONS = (1, 2, 5, 10, 100)
N_ROWS = 2**17  # of the source and of the target
CONTENDERS = {
    "NSGFSampler": NSGFSampler,
    "NSGFPlusPlus": NSGFPlusPlus,
    "NSGFPlusPlus paper": lambda **kw: NSGFPlusPlus(mode="paper", n_steps=5, **kw),
}
if HAS_TORCHCFM:
    CONTENDERS["OT-CFM"] = lambda **kw: OTCFM(max_iter=12_000, **kw)


def transported(flow, rows, n_evaluations):
    """Rows at the end of the flow, or None if it can't be followed by so few evaluations."""
    if isinstance(flow, OTCFM):
        return flow.transform(rows, n_evaluations)
    if isinstance(flow, NSGFSampler):
        flow.n_integration_steps_ = n_evaluations
        return flow.transform(rows)
    flow.n_straight_steps_ = 1
    fixed = flow.n_evaluations_ - 1
    flow.n_straight_steps_ = n_evaluations - fixed
    return flow.transform(rows) if n_evaluations > fixed else None


def measure(contender, pair, seed):
    """Fit once; CPU seconds, W2 at each number of evaluations (None if impossible), the floor."""
    X_source, X_target = make_pair(pair, N_ROWS, random_state=seed)
    start = process_time()
    flow = CONTENDERS[contender](random_state=seed).fit(X_source, X_target)
    seconds = process_time() - start
    source, target = quasi_random_pair(pair, random_state=100 + seed)
    _, other = quasi_random_pair(pair, random_state=200 + seed)
    moved = [transported(flow, source, n) for n in EVALUATIONS]
    distances = [None if m is None else wasserstein_distance(m, target) for m in moved]
    return [seconds, *distances, wasserstein_distance(other, target)]


def summary(values, digits):
    """Mean and, of several values, standard deviation; nothing for None."""
    if None in values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main():
    """Measure all contenders on all pairs with all seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    n_seeds = parser.parse_args().seeds
    names = ["fit (CPU s)", *(f"W2, {n} eval." for n in EVALUATIONS), "floor"]
    tasks = list(product(PAIRS, CONTENDERS, range(n_seeds)))
    results = Parallel(n_jobs=2, verbose=5)(
        delayed(measure)(contender, pair, seed) for pair, contender, seed in tasks
    )
    results = dict(zip(tasks, results, strict=True))
    rows = []
    for pair, contender in product(PAIRS, CONTENDERS):
        row = {"pair": pair, "flow": contender}
        runs = zip(*(results[pair, contender, seed] for seed in range(n_seeds)), strict=True)
        for name, values in zip(names, runs, strict=True):
            row[name] = summary(values, 1 if name.startswith("fit") else 3)
        rows.append(row)
        print(*row.values(), sep="  ", flush=True)
    publish("two_phases", rows, f"python benchmarks/bench_two_phases.py --seeds {n_seeds}")


if __name__ == "__main__":
    main()
