"""What each default is worth, on data that the defaults were not chosen on.

    python benchmarks/bench_ablation.py

One parameter at a time is changed from its default. W2 (exact, POT) compares 2,048 rows that flows
of 10 network evaluations make of normal noise with as many held-out rows of two circles and of a
swiss roll; floors compare two samples of the target. The fit's time is CPU time on one thread. Each
fit is written to `results/ablation_runs.csv`, and not made again when it is there: delete that file
to start anew.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from time import process_time

import numpy as np
from joblib import Parallel, delayed
from peers import follow
from results import add_run, publish, read_runs, summary
from sklearn.base import clone
from sklearn.datasets import make_circles, make_swiss_roll

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf._base import reference_blur
from sknsgf.metrics import wasserstein_distance

N_ROWS, N_COMPARED, EVALUATIONS = 2**16, 2**11, 10
COLUMNS = ["data", "estimator", "changed", "seed", "W2", "floor", "fit (CPU s)"]
ONE, TWO = NSGFSampler(device="cpu"), NSGFPlusPlus(device="cpu")


def circles(n, seed):
    """Two noisy circles."""
    return make_circles(n, noise=0.05, factor=0.5, random_state=seed)[0].astype(np.float32)


def swiss_roll(n, seed):
    """A rolled-up sheet in three dimensions."""
    return make_swiss_roll(n, noise=0.3, random_state=seed)[0].astype(np.float32)


DATA = {"circles": circles, "swiss roll": swiss_roll}


def changes(n_features):
    """Estimators and what is changed about them."""
    blur = reference_blur(n_features)
    return {
        "NSGFSampler": (
            ONE,
            [
                {},
                *({"blur": factor * blur} for factor in (0.5, 2.0)),
                *({"flow_batch_size": size} for size in (512, 4096)),
                *({"n_flows": n} for n in (16, 256)),
                {"minibatches": "random"},
                *({"n_steps": n} for n in (2, 10)),
                {"n_steps": 10, "step_size": 0.3},
                {"time": "discrete", "n_steps": 10},
                {"prediction": "endpoint"},
                {"ema_decay": 0.0},
                {"learning_rate": "constant"},
            ],
        ),
        "NSGFPlusPlus": (
            TWO,
            [
                {},
                *({"pairing": name} for name in ("independent", "potentials")),
                *({"pairing_size": size} for size in (1024, 8192)),
                *({"n_pairings": n} for n in (16, 128)),
                {"minibatches": "random"},
                {"n_steps": 5},
                {"prediction": "endpoint"},
                {"mode": "paper", "n_steps": 5},
            ],
        ),
    }


def measure(data, estimator, change, seed):
    """W2 and CPU seconds of a fit."""
    make = DATA[data]
    X, held_out, other = (
        make(N_ROWS, seed),
        make(N_COMPARED, 100 + seed),
        make(N_COMPARED, 200 + seed),
    )
    noise = np.random.default_rng(seed).standard_normal(held_out.shape)
    noise = np.float32(noise * X.std(axis=0) + X.mean(axis=0))
    flow, start = clone(estimator).set_params(random_state=seed, **change), process_time()
    flow.fit(X)
    seconds = process_time() - start
    moved = follow(flow, noise, EVALUATIONS)
    return wasserstein_distance(moved, held_out), wasserstein_distance(other, held_out), seconds


def text(change):
    """What was changed, as the table says it."""
    changed = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in change.items())
    return ", ".join(changed) or "nothing"


def run(data, name, estimator, change, seed):
    """Figures of a fit, with what tells it from others."""
    about = (data, name, text(change), seed)
    return dict(zip(COLUMNS, about + measure(data, estimator, change, seed), strict=True))


def main():
    """Measure what is not in the file of runs yet, and report on all."""
    parser = ArgumentParser(description="What each default is worth.")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0 on")
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time")
    arguments = parser.parse_args()
    tasks = [
        (data, name, estimator, change)
        for data, make in DATA.items()
        for name, (estimator, all_changes) in changes(make(2, 0).shape[1]).items()
        for change in all_changes
    ]
    done = {tuple(kept[column] for column in COLUMNS[:4]) for kept in read_runs("ablation")}
    measured = Parallel(n_jobs=arguments.jobs, return_as="generator_unordered")(
        delayed(run)(data, name, estimator, change, seed)
        for seed in range(arguments.seeds)
        for data, name, estimator, change in tasks
        if (data, name, text(change), seed) not in done
    )
    for figures in measured:
        add_run("ablation", figures, COLUMNS)
        print(*figures.values(), sep="  ", flush=True)
    kept = [figures for figures in read_runs("ablation") if figures["seed"] < arguments.seeds]
    rows = []
    for data, name, _, change in tasks:
        about = dict(zip(COLUMNS, (data, name, text(change)), strict=False))
        chosen = [figures for figures in kept if about.items() <= figures.items()]
        distances, floors, seconds = ([figures[c] for figures in chosen] for c in COLUMNS[4:])
        row = about | {"W2": summary(distances, 4), "floor": summary(floors, 4)}
        rows.append(row | {"fit (CPU s)": summary(seconds)})
    publish("ablation", rows, f"python benchmarks/bench_ablation.py --seeds {arguments.seeds}")


if __name__ == "__main__":
    main()
