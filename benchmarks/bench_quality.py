"""Sample quality and fit time of NSGFSampler with default parameters on the five 2-D pairs.

    python benchmarks/bench_quality.py

W2 (exact, POT) between transported quasi-random source points and quasi-random target points, for
several numbers of network evaluations of one fit, beside the floor: two quasi-random samples of the
target. The fit's time is CPU time of the process.
"""

from statistics import mean, stdev
from time import process_time

from results import publish

from sknsgf import NSGFSampler
from sknsgf.datasets import PAIRS, make_pair, quasi_random_pair
from sknsgf.metrics import wasserstein_distance

SEEDS = (0, 1, 2)
EVALUATIONS = (1, 2, 5, 10, 100)
N_ROWS = 2**17  # of the source and of the target


def measure(pair, seed):
    """Fit once; CPU seconds, the floor, and W2 at each number of evaluations."""
    X_source, X_target = make_pair(pair, N_ROWS, random_state=seed)
    start = process_time()
    flow = NSGFSampler(random_state=seed).fit(X_source, X_target)
    seconds = process_time() - start
    source, target = quasi_random_pair(pair, random_state=100 + seed)
    _, other = quasi_random_pair(pair, random_state=200 + seed)
    distances = []
    for n in EVALUATIONS:
        flow.n_integration_steps_ = n
        distances.append(wasserstein_distance(flow.transform(source), target))
    return [seconds, *distances, wasserstein_distance(other, target)]


def main():
    """Measure all pairs with all seeds."""
    names = ["fit (CPU s)", *(f"W2, {n} eval." for n in EVALUATIONS), "floor"]
    rows = []
    for pair in PAIRS:
        runs = zip(*(measure(pair, seed) for seed in SEEDS), strict=True)
        summary = {}
        for name, values in zip(names, runs, strict=True):
            digits = 1 if name.startswith("fit") else 3
            summary[name] = f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
        rows.append({"pair": pair} | summary)
        print(*rows[-1].values(), sep="  ", flush=True)
    publish("quality", rows, "python benchmarks/bench_quality.py")


if __name__ == "__main__":
    main()
