"""Quality and cost on the five 2-D pairs, side by side with what a user would pick instead.

    pip install --no-deps torchcfm==1.0.7
    python benchmarks/bench_quality.py

Each contender (`contenders`) is fitted to the same 131,072 rows of both samples: Sobol points of
both laws, so that which rows happened to be drawn does not matter (else, that is as much as flows
differ by in the end), or, with ``--rows random``, random ones. W2 (exact, POT) compares 4,096
transported quasi-random source points with as many of the target, the sliced W2 32,768 of each, for
several numbers of network evaluations of one fit; the floors compare two quasi-random samples of
the target. The fit's time is CPU time, its memory the peak beyond what was held before;
two fits run at a time, on one thread each. All three seeds take from one and a half to four hours.
Runs are added to ``results/quality_runs.csv`` as they end, and those that are there already are not
repeated, so an interrupted benchmark goes on where it was; tables and the figure are made from this
file. Delete it to start anew, and keep it on one machine.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from argparse import ArgumentParser
from itertools import product
from statistics import mean
from time import process_time

import matplotlib.pyplot as plt
import ot
from joblib import Parallel, delayed
from matplotlib.ticker import FixedLocator, NullLocator
from memory import peak_memory, reset_peak
from peers import HAS_TORCHCFM, FlowMatching, PlanMap, fixed_evaluations, follow
from results import PAGE, add_run, publish, read_runs, summary
from stages import FLOWS, PAIRING, TRAINING, StageClock

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import PAIRS, make_pair, quasi_random_pair
from sknsgf.metrics import wasserstein_distance

N_ROWS = 2**17  # of the source and of the target
EVALUATIONS = (1, 2, 5, 10, 100)
SIZES = {"W2": 2**12, "sliced W2": 2**15}  # points compared
N_PROJECTIONS = 50
CLOSE_LOOK = 10  # evaluations of the variance ratio
DRAWN = ("NSGFSampler", "NSGFPlusPlus", "OT-CFM, 6,000 steps", "OT-CFM, 12,000 steps")
DISTANCE_TICKS = (0.03, 0.05, 0.1, 0.2, 0.4)
ROWS = {"quasi-random": quasi_random_pair, "random": make_pair}  # that flows are fitted to
STAGES = {"pool (s)": FLOWS, "pairing (s)": PAIRING, "training (s)": TRAINING}
COLUMNS = [
    *("rows", "pair", "flow", "seed", "fit (s)", *STAGES, "memory (MB)", "variance ratio"),
    *(f"{name}, {n}" for name in SIZES for n in (*EVALUATIONS, "floor")),
]


def contenders(seed):
    """Estimators by name, with default parameters unless the name says otherwise.

    The recipe is that of the paper as its algorithm reads: velocities of random minibatches of 256
    by GeomLoss (scaling 0.9), ten equal steps, a field learned at their times only; its pool holds
    131,072 trajectories, as many as ours. The paper's mode has random minibatches as well.
    """
    batches = {"flow_batch_size": 256, "n_flows": 512, "minibatches": "random"}
    steps = {"n_steps": 10, "step_size": 0.3, "time": "discrete"}
    recipe = {"solver": "geomloss", **batches, **steps}
    paper = {"mode": "paper", "n_steps": 5, "minibatches": "random"}
    flows = {
        "NSGFSampler": NSGFSampler(random_state=seed),
        "NSGFPlusPlus": NSGFPlusPlus(random_state=seed),
        "NSGFPlusPlus paper": NSGFPlusPlus(**paper, random_state=seed),
        "NSGF, paper's recipe": NSGFSampler(**recipe, random_state=seed),
        "POT map": PlanMap(random_state=seed),
    }
    if HAS_TORCHCFM:
        flows |= {
            "OT-CFM, 6,000 steps": FlowMatching(max_iter=6_000, random_state=seed),
            "OT-CFM, 12,000 steps": FlowMatching(max_iter=12_000, random_state=seed),
            "I-CFM, 12,000 steps": FlowMatching(
                coupling="independent", max_iter=12_000, random_state=seed
            ),
        }
    return flows


def transported(flow, rows, n_evaluations):
    """Rows at the end of the flow, or None if it can't be followed by so few evaluations."""
    if isinstance(flow, PlanMap):
        return flow.transform(rows) if n_evaluations == EVALUATIONS[0] else None
    if isinstance(flow, NSGFSampler) and flow.time_ == "discrete":
        possible = n_evaluations == flow.n_steps
    else:
        possible = not isinstance(flow, NSGFPlusPlus) or n_evaluations > fixed_evaluations(flow)
    return follow(flow, rows, n_evaluations) if possible else None


def sliced_distance(X, Y):
    """Sliced W2 over directions that are the same for all contenders."""
    return ot.sliced_wasserstein_distance(X, Y, n_projections=N_PROJECTIONS, seed=0)


DISTANCES = {"W2": wasserstein_distance, "sliced W2": sliced_distance}


def fit(flow, X_source, X_target):
    """Fit, and return CPU seconds of the whole and of its stages, and the memory it took."""
    clock = StageClock()
    if hasattr(flow, "set_callbacks"):
        flow.set_callbacks(clock)
    reset_peak()
    held, start = peak_memory(), process_time()
    flow.fit(X_source, X_target)
    row = {"fit (s)": process_time() - start, "memory (MB)": peak_memory() - held}
    return row | {name: seconds or None for name, seconds in clock.totals(STAGES).items()}


def measure(rows, contender, pair, seed):
    """Fit once, and compare what comes out with the target."""
    flow = contenders(seed)[contender]
    row = {"rows": rows, "pair": pair, "flow": contender, "seed": seed}
    row |= fit(flow, *ROWS[rows](pair, N_ROWS, random_state=seed))
    for name, distance in DISTANCES.items():
        source, target = quasi_random_pair(pair, SIZES[name], random_state=100 + seed)
        _, other = quasi_random_pair(pair, SIZES[name], random_state=200 + seed)
        for n in EVALUATIONS:
            moved = transported(flow, source, n)
            row[f"{name}, {n}"] = None if moved is None else distance(moved, target)
            if moved is not None and (n == CLOSE_LOOK or isinstance(flow, PlanMap)):
                row["variance ratio"] = moved.var(0).sum() / target.var(0).sum()
        row[f"{name}, floor"] = distance(other, target)
    return row


def select(runs, **wanted):
    """Runs with these values."""
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def distance_table(runs, name):
    """Rows of the table of a distance: itself, or of the sliced one the excess over the floor."""
    rows = []
    for pair, flow in product(PAIRS, contenders(0)):
        chosen = select(runs, pair=pair, flow=flow)
        if not chosen:
            continue
        row, digits = {"pair": pair, "flow": flow}, 3 if name == "W2" else 4
        for n in EVALUATIONS:
            values = [run[f"{name}, {n}"] for run in chosen]
            if name != "W2":
                floors = [run[f"{name}, floor"] for run in chosen]
                values = [v and v - floor for v, floor in zip(values, floors, strict=True)]
            row[f"{n} eval."] = summary(values, digits)
        row["floor"] = summary([run[f"{name}, floor"] for run in chosen], digits)
        if name == "W2":
            row["variance ratio"] = summary([run["variance ratio"] for run in chosen], 3)
        rows.append(row)
    return rows


def cost_table(runs):
    """Rows of the table of costs, over all pairs and seeds."""
    rows = []
    for flow in contenders(0):
        chosen = select(runs, flow=flow)
        columns = {"fit (s)": 1, **dict.fromkeys(STAGES, 1), "memory (MB)": 0}
        figures = {c: summary([run[c] for run in chosen], digits) for c, digits in columns.items()}
        if chosen:
            rows.append({"flow": flow} | figures)
    return rows


def draw(runs):
    """Draw W2 against the number of evaluations for each pair, with the floor."""
    pairs = [pair for pair in PAIRS if select(runs, pair=pair)]
    figure, axes = plt.subplots(1, len(pairs), figsize=(13, 3), layout="constrained", squeeze=False)
    for ax, pair in zip(axes[0], pairs, strict=True):
        for flow in DRAWN:
            chosen = select(runs, pair=pair, flow=flow)
            points = [(n, [run[f"W2, {n}"] for run in chosen]) for n in EVALUATIONS]
            points = [(n, mean(values)) for n, values in points if values and None not in values]
            if points:
                ax.plot(*zip(*points, strict=True), "o-", ms=3, label=flow)
        floors = [run["W2, floor"] for run in select(runs, pair=pair)]
        ax.axhline(mean(floors), color="0.5", ls=":", label="floor")
        ax.set(title=pair, xscale="log", yscale="log", xlabel="network evaluations")
        for axis, ticks in ((ax.xaxis, EVALUATIONS), (ax.yaxis, DISTANCE_TICKS)):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylabel("W2")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    with plt.rc_context({"svg.hashsalt": "quality"}):  # the same figure again is the same file
        figure.savefig(PAGE.parent / "images" / "quality.svg", metadata={"Date": None})


def report(rows, runs):
    """Tables of the docs and, of quasi-random rows, the figure and the costs."""
    command, name = "python benchmarks/bench_quality.py", "quality"
    if rows != "quasi-random":
        command, name = f"{command} --rows {rows}", f"quality_{rows}"
    publish(name, distance_table(runs, "W2"), command)
    publish(f"{name}_sliced", distance_table(runs, "sliced W2"), command)
    if rows == "quasi-random":
        publish("quality_cost", cost_table(runs), command)
        draw(runs)


def main():
    """Measure what is not in the file of runs yet, and report on all."""
    parser = ArgumentParser(description="Quality and cost on the five 2-D pairs.")
    parser.add_argument("--rows", choices=ROWS, default="quasi-random", help="of the samples")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS)
    parser.add_argument("--flows", nargs="+", choices=list(contenders(0)), default=contenders(0))
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time")
    arguments = parser.parse_args()
    rows = arguments.rows
    done = {
        (run["flow"], run["pair"], run["seed"]) for run in select(read_runs("quality"), rows=rows)
    }
    tasks = [
        (rows, flow, pair, seed)
        for seed, pair, flow in product(arguments.seeds, arguments.pairs, arguments.flows)
        if (flow, pair, seed) not in done
    ]
    measured = Parallel(n_jobs=arguments.jobs, return_as="generator_unordered")(
        delayed(measure)(*task) for task in tasks
    )
    for run in measured:
        add_run("quality", run, COLUMNS)
        print(*(f"{v:.4g}" if isinstance(v, float) else v for v in run.values()), flush=True)
    report(rows, select(read_runs("quality"), rows=rows))


if __name__ == "__main__":
    main()
