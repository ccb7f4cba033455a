"""Few rows in ten features and more: flows with and without early stopping.

    python benchmarks/bench_early_stopping.py

Between two mixtures with a known optimal transport (`dimension_data.py`), and from normal noise to
the second of them. All parameters have defaults but `early_stopping`. A fit's time is CPU time on
one thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from itertools import product
from time import process_time

import numpy as np
from dimension_data import Mixtures
from joblib import Parallel, delayed
from results import publish, summary

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.metrics import energy_distance

ESTIMATORS = {"NSGFSampler": NSGFSampler, "NSGFPlusPlus": NSGFPlusPlus}
PAIRS = ("mixture", 10), ("mixture", 50), ("noise", 10)  # of source and features
ROWS = 300, 2000
N_NEW = 2000  # rows that no fit sees


def draw(mixtures, source, n_rows, rng):
    """Rows of a source and of the target."""
    X_target = mixtures.draw_target(n_rows, rng)
    if source == "mixture":
        return mixtures.draw_source(n_rows, rng), X_target
    return X_target.std() * rng.standard_normal(X_target.shape), X_target


def measure(source, n_features, n_rows, name, early_stopping, seed):
    """CPU seconds, gradient steps, share of the way that rows end from the optimum, distance."""
    mixtures, rng = Mixtures(n_features), np.random.default_rng(seed)
    X_source, X_target = draw(mixtures, source, n_rows, rng)
    X_new, X_target_new = draw(mixtures, source, N_NEW, rng)
    flow = ESTIMATORS[name](early_stopping=early_stopping, device="cpu", random_state=seed)
    start = process_time()
    flow.fit(X_source, X_target)
    seconds, moved = process_time() - start, flow.transform(X_new)
    error = None
    if source == "mixture":
        optimal = mixtures.transport(X_new)
        error = np.sqrt(np.square(moved - optimal).mean() / np.square(X_new - optimal).mean())
    return seconds, flow.n_iter_, error, energy_distance(moved, X_target_new)


def main():
    """Measure all and publish."""
    parser = ArgumentParser(description="Few rows, with and without early stopping.")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0 on")
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time")
    arguments = parser.parse_args()
    tasks = [(*pair, *rest) for pair, *rest in product(PAIRS, ROWS, ESTIMATORS, (False, True))]
    runs = Parallel(n_jobs=arguments.jobs, return_as="generator")(
        delayed(measure)(*task, seed) for task in tasks for seed in range(arguments.seeds)
    )
    rows = []
    for source, n_features, n_rows, name, early_stopping in tasks:
        figures = zip(*(next(runs) for _ in range(arguments.seeds)), strict=True)
        seconds, steps, errors, distances = figures
        row = {"source": source, "features": n_features, "rows": n_rows, "estimator": name}
        row |= {"early stopping": early_stopping, "off the optimum": summary(errors, 3)}
        row |= {"energy distance": summary(distances), "steps": summary(steps, 0)}
        rows.append(row | {"fit (CPU s)": summary(seconds)})
        print(*rows[-1].values(), sep="  ", flush=True)
    command = f"python benchmarks/bench_early_stopping.py --seeds {arguments.seeds}"
    publish("early_stopping", rows, command)


if __name__ == "__main__":
    main()
