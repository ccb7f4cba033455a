"""Ten features and more: our estimators beside OT-CFM and closed forms.

    pip install --no-deps torchcfm==1.0.7
    python benchmarks/bench_dimensions.py --data mixtures10 mixtures50 mixtures200 pbmc census

The mixtures have a known optimal transport (`dimension_data.py`), with which each row's end is
compared; on real data, all that can be compared are the transported rows and held-out rows of the
target. All networks have default sizes and as many gradient steps in total; all else is at its
default. OT-CFM (torchcfm's exact minibatch matcher)
predicts what our estimators do in as many features, at the same learning rate; it is left out where
torchcfm is not installed. A fit's time is CPU time, on one thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from functools import partial
from time import process_time

import numpy as np
import ot
from dimension_data import Census, Mixtures, noise_to_cells
from packages import DataMissingError
from peers import HAS_TORCHCFM, FlowMatching, follow
from results import publish, summary
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf._nsgf_plus_plus import SINKHORN_TRAINING
from sknsgf._training import ENDPOINT_FEATURES, LEARNING_RATES
from sknsgf.metrics import energy_distance

N_STEPS = 4_500  # gradient steps in total
EVALUATIONS = (2, 10, 100)
CLOSE_LOOK = 10  # evaluations whose rows are looked at in more ways than one
MIXTURES = {f"mixtures{n_features}": n_features for n_features in (10, 50, 200)}
DATA = (*MIXTURES, "pbmc", "census")


def identity(X_source, X_target, seed):
    """Carry rows nowhere."""
    return lambda X, n_evaluations: X


def mean_shift(X_source, X_target, seed):
    """Add the difference of the means."""
    shift = X_target.mean(0) - X_source.mean(0)
    return lambda X, n_evaluations: X + shift


def moment_matching(X_source, X_target, seed):
    """Optimal transport between normal laws with the means and covariances of the samples."""
    linear = ot.da.LinearTransport().fit(Xs=X_source, Xt=X_target)
    return lambda X, n_evaluations: linear.transform(Xs=X)


def sampler(X_source, X_target, seed):
    """Fit an NSGFSampler."""
    flow = NSGFSampler(max_iter=N_STEPS, random_state=seed)
    return partial(follow, flow.fit(X_source, X_target))


def two_phases(X_source, X_target, seed):
    """Fit an NSGFPlusPlus."""
    first = SINKHORN_TRAINING[predicted(X_source)]  # share of `max_iter` for the first network
    flow = NSGFPlusPlus(max_iter=int(N_STEPS / (1 + first)), random_state=seed)
    return partial(follow, flow.fit(X_source, X_target))


def ot_cfm(X_source, X_target, seed):
    """Fit OT-CFM, with the prediction and the learning rate that our estimators take."""
    prediction = predicted(X_source)
    kind = {"prediction": prediction, "learning_rate_init": LEARNING_RATES[prediction]}
    flow = FlowMatching(max_iter=N_STEPS, random_state=seed, **kind)
    return partial(follow, flow.fit(X_source, X_target))


def predicted(X):
    """What our estimators predict in as many features."""
    return "endpoint" if X.shape[1] >= ENDPOINT_FEATURES else "velocity"


CONTENDERS = {
    "identity": identity,
    "mean shift": mean_shift,
    "moment matching": moment_matching,
    "NSGFSampler": sampler,
    "NSGFPlusPlus": two_phases,
}
if HAS_TORCHCFM:
    CONTENDERS["OT-CFM"] = ot_cfm


def look_at_mixtures(mixtures, pair, carry):
    """Compare where rows end with where the optimal transport carries them."""
    X = pair.X_source_test
    modes, X_true = mixtures.modes(X), mixtures.transport(X)
    moved = {n: carry(X, n) for n in EVALUATIONS}
    X_moved = moved[CLOSE_LOOK]
    variance, cost = X_true.var(0).sum(), mean_square(X_true - X)
    squeezed, stretched = mixtures.spread_ratios(X_moved, modes)
    shares = np.bincount(mixtures.nearest_modes(X_moved), minlength=4) / len(X)
    return {
        **{
            f"error (%), {n} eval.": 100 * mean_square(Z - X_true) / variance
            for n, Z in moved.items()
        },
        "cost": mean_square(X_moved - X) / cost,
        "variance": X_moved.var(0).sum() / variance,
        "squeezed": squeezed,
        "stretched": stretched,
        "weights": abs(shares - mixtures.weights).sum() / 2,
        "energy distance": energy_distance(X_moved, pair.X_target_test),
    }


def mean_square(displacements):
    """Mean squared length of rows."""
    return np.square(displacements).sum(1).mean()


def look_at_samples(pair, carry, settle=lambda X: X):
    """Compare transported rows, settled at possible values, with held-out rows of the target."""
    moved = {n: settle(carry(pair.X_source_test, n)) for n in EVALUATIONS}
    return compare_samples(moved, pair.X_target_test)


def compare_samples(moved, X):
    """Distances of samples, by number of evaluations, to a sample; and a closer look at one."""
    close = moved[CLOSE_LOOK]
    return {
        **{f"energy distance, {n} eval.": energy_distance(Z, X) for n, Z in moved.items()},
        "sliced W2": ot.sliced_wasserstein_distance(close, X, n_projections=500, seed=0),
        "variance": close.var(0).sum() / X.var(0).sum(),
        "AUC": two_sample_auc(close, X),
    }


def two_sample_auc(X, Y):
    """Area under the curve of trees that tell two samples apart; 0.5 if they can't."""
    labels = np.repeat([0, 1], [len(X), len(Y)])
    trees = HistGradientBoostingClassifier(max_iter=50, random_state=0)
    scores = cross_val_predict(trees, np.concatenate([X, Y]), labels, cv=3, method="predict_proba")
    return roc_auc_score(labels, scores[:, 1])


def load(name):
    """Pairs of a data set by seed, what looks at a map of rows, and what looks at the true one."""
    if name in MIXTURES:
        mixtures = Mixtures(MIXTURES[name])
        look = partial(look_at_mixtures, mixtures)
        return mixtures.pair, look, lambda pair: look(pair, lambda X, n: mixtures.transport(X))
    if name == "census":
        census = Census()
        return census.pair, partial(look_at_samples, settle=census.settle), real_rows
    return noise_to_cells, look_at_samples, real_rows


def real_rows(pair):
    """Figures of as many rows of the target's other half as are held out."""
    X = pair.X_target[: len(pair.X_target_test)]
    return compare_samples(dict.fromkeys(EVALUATIONS, X), pair.X_target_test)


def measure(contender, pair, look, seed):
    """Fit a contender, and look at what it does."""
    start = process_time()
    carry = CONTENDERS[contender](pair.X_source, pair.X_target, seed)
    return {"fit (CPU s)": process_time() - start} | look(pair, carry)


def table_row(name, runs):
    """What a table says of several runs."""
    row = {"map": name}
    for key in runs[0]:
        row[key] = summary([run[key] for run in runs], 1 if key.startswith("fit") else None)
    print(*row.values(), sep="  ", flush=True)
    return row


def compare(name, seeds):
    """Measure all contenders on a data set, and publish."""
    draw, look, floor = load(name)
    pairs = {seed: draw(seed) for seed in seeds}
    rows = [table_row("floor", [{"fit (CPU s)": 0.0} | floor(pair) for pair in pairs.values()])]
    for contender in CONTENDERS:
        runs = [measure(contender, pair, look, seed) for seed, pair in pairs.items()]
        rows.append(table_row(contender, runs))
    options = f"--data {name} --seeds {' '.join(map(str, seeds))}"
    publish(f"dimensions_{name}", rows, f"python benchmarks/bench_dimensions.py {options}")


def main():
    """Compare on each data set that is to be had."""
    parser = ArgumentParser(description="Ten features and more: our estimators and peers.")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    for name in arguments.data:
        try:
            compare(name, arguments.seeds)
        except DataMissingError as error:
            print(f"Skipped: {error}")


if __name__ == "__main__":
    main()
