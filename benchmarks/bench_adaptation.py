"""Domain adaptation: a classifier for rows of a target without labels, by ours and other ways.

    python benchmarks/bench_adaptation.py

Accuracy on labelled rows of the target that nothing else sees, for the pairs in
`adaptation_data.py`. Every method gets the same rows: it moves those of the source, a classifier is
trained on them, and predicts rows of the target as they are; the directions "backward" and
"inverse" of ours move the rows to predict instead. POT's SinkhornLpl1Transport and our guided flow
also use the labels of the source for the transport. Settings were chosen with ``--development``,
which splits rows for scoring off those that are seen otherwise, and publishes nothing. A fit's time
is CPU time, classifiers included.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from functools import partial
from itertools import product
from time import process_time

from adaptation_data import digits_shift, instrument_shift, whole_digits_shift
from adaptation_peers import MomentMatching, PotTransport, Unadapted
from ot.da import EMDTransport, MappingTransport, SinkhornLpl1Transport, SinkhornTransport
from results import publish, summary
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sknsgf import NSGFSampler, TransportAdapter

SHIFTS = {
    "MNIST to digits": digits_shift,
    "MNIST to digits, whole target": whole_digits_shift,
    "MNIST to digits, not cropped": partial(digits_shift, crop=False),
    "two instruments": instrument_shift,
}
CLASSIFIERS = {
    "1-NN": KNeighborsClassifier(n_neighbors=1),
    "logistic regression": LogisticRegression(max_iter=2_000),
}
TUNED = {
    "blur": 3.0,
    "n_steps": 1,
    "time": "discrete",
    "flow_batch_size": 64,
    "n_flows": 256,
    "max_iter": 2_500,
    "prediction": "velocity",
}
GUIDED = "NSGFSampler, tuned, guided by labels"
LABEL_WEIGHT = 3.0  # of guided flows


def make_transports(seed):
    """Transports to compare, each with the direction it is used in, by name."""
    tuned = NSGFSampler(random_state=seed, **TUNED)
    others = {
        "none": Unadapted(),
        "mean shift": MomentMatching(),
        "CORAL": MomentMatching(covariance=True),
        "POT EMDTransport": PotTransport(EMDTransport(norm="max")),
        "POT SinkhornTransport, 0.05": PotTransport(SinkhornTransport(reg_e=0.05, norm="max")),
        "POT SinkhornTransport, 0.02": PotTransport(SinkhornTransport(reg_e=0.02, norm="max")),
        "POT MappingTransport": PotTransport(MappingTransport(bias=True, max_iter=5)),
        "POT SinkhornLpl1Transport": PotTransport(
            SinkhornLpl1Transport(reg_e=0.05, reg_cl=0.1, norm="max")
        ),
        "NSGFSampler, defaults": NSGFSampler(random_state=seed),
        "NSGFSampler, early stopping": NSGFSampler(early_stopping=True, random_state=seed),
    }
    ours = {f"NSGFSampler, tuned, {d}": (tuned, d) for d in ("forward", "backward", "inverse")}
    return {name: (transport, "forward") for name, transport in others.items()} | ours


def guided_scores(flow, shift):
    """Accuracy of each classifier around a flow that is guided by its guesses for the target."""
    source, labels, target, X_test, y_test = shift
    for classifier in CLASSIFIERS.values():
        adapter = TransportAdapter(flow, classifier, label_weight=LABEL_WEIGHT)
        yield adapter.fit(source, labels, X_target=target).score(X_test, y_test)


def scores(transport, direction, shift):
    """Accuracy of each classifier around a transport."""
    source, labels, target, X_test, y_test = shift
    if direction == "backward":
        transport.fit(target, None, X_target=source)
    else:
        transport.fit(source, labels, X_target=target)
    for classifier in CLASSIFIERS.values():
        adapter = TransportAdapter(FrozenEstimator(transport), classifier, direction=direction)
        yield adapter.fit(source, labels, X_target=target).score(X_test, y_test)


def measure(contender, shift, seed):
    """CPU seconds, and accuracy of each classifier."""
    start = process_time()
    if contender == GUIDED:
        figures = list(guided_scores(NSGFSampler(random_state=seed, **TUNED), shift))
    else:
        figures = list(scores(*make_transports(seed)[contender], shift))
    return [process_time() - start, *figures]


def main():
    """Measure all contenders on all pairs with all seeds."""
    parser = ArgumentParser(description="Domain adaptation by transport.")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--development", action="store_true", help="where settings are chosen")
    arguments = parser.parse_args()
    rows = []
    for pair, contender in product(SHIFTS, [*make_transports(0), GUIDED]):
        runs = []
        for seed in range(arguments.seeds):
            shift = SHIFTS[pair](seed, development=arguments.development)
            runs.append(measure(contender, shift, seed))
        seconds, *accuracies = zip(*runs, strict=True)
        row = {"pair": pair, "method": contender}
        row |= {name: summary(a, 3) for name, a in zip(CLASSIFIERS, accuracies, strict=True)}
        rows.append(row | {"fit (CPU s)": summary(seconds, 1)})
        print(*rows[-1].values(), sep="  ", flush=True)
    if not arguments.development:
        publish(
            "adaptation", rows, f"python benchmarks/bench_adaptation.py --seeds {arguments.seeds}"
        )


if __name__ == "__main__":
    main()
