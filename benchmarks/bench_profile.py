"""Where the time of ``fit``, ``transform`` and ``sample`` goes.

    python benchmarks/bench_profile.py

Shares of the time that groups of torch's operators take by themselves (torch's profiler), on one
thread. Fits have an eighth of the default's flows, pairings and gradient steps, so that the record
stays small, and everything else by default: 131,072 rows of a two-dimensional pair, or of 64
features. Transported are 10^5 rows. "Products" are those of matrices, and of coordinates, which
take their place where these are few; "exponentials" are those of Sinkhorn kernels, "activations"
the network's with their gradients, "optimiser" AdamW and the average of the weights. Of the other
operators the one that takes most is named; "outside" is what passes outside of all operators. The
profiler's own cost for each operator makes small ones, and the outside, look larger; the CPU time
is without it.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from time import perf_counter, process_time

from bench_cost import samples
from results import publish
from torch.profiler import ProfilerActivity, profile

from sknsgf import NSGFPlusPlus, NSGFSampler
from sknsgf.datasets import PAIRS, make_pair

N_ROWS, N_TRANSPORTED = 2**17, 10**5
FEWER = {"n_flows": 8, "n_pairings": 8}  # of 64, that are the default for so many rows
GROUPS = {
    "products": ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::addmm", "aten::addcmul"),
    "exponentials": ("aten::exp2", "aten::exp2_"),
    "activations": ("aten::relu", "aten::clamp_min", "aten::threshold_backward"),
    "optimiser": (
        "Optimizer.step#AdamW.step",
        "Optimizer.zero_grad#AdamW.zero_grad",
        "aten::_fused_adamw_",
        "aten::lerp_",
    ),
}


def shares(call):
    """CPU seconds of a call, and shares of its time in percent."""
    start = process_time()
    call()
    seconds = process_time() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = perf_counter()
        call()
        whole = perf_counter() - start
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    groups = {name: sum(spent.pop(key, 0.0) for key in keys) for name, keys in GROUPS.items()}
    largest = max(spent, key=spent.get)
    groups["other operators"] = sum(spent.values())
    groups["outside"] = whole - sum(groups.values())
    row = {name: f"{100 * value / whole:.0f} %" for name, value in groups.items()}
    row["largest other"] = f"{largest.removeprefix('aten::')}, {100 * spent[largest] / whole:.0f} %"
    return {"CPU s": f"{seconds:.2f}"} | row


def main():
    """Profile both estimators."""
    rows = []
    pair, clusters = make_pair(PAIRS[0], N_ROWS, random_state=0), samples(N_ROWS, 64)
    for n_features, (source, target) in ((2, pair), (64, clusters)):
        for kind in (NSGFSampler, NSGFPlusPlus):
            flow = kind(device="cpu", random_state=0)
            fewer = {name: n for name, n in FEWER.items() if name in flow.get_params()}
            flow.set_params(max_iter=flow.max_iter // 8, **fewer)
            flow.fit(source[:100], target[:100])  # what only a first fit costs
            calls = {
                "fit": lambda flow=flow, pair=(source, target): flow.fit(*pair),
                "transform": lambda flow=flow, rows=source[:N_TRANSPORTED]: flow.transform(rows),
                "sample": lambda flow=flow: flow.sample(N_TRANSPORTED, random_state=0),
            }
            for name, call in calls.items():
                head = {"features": n_features, "estimator": kind.__name__, "called": name}
                rows.append(head | shares(call))
                print(*rows[-1].values(), sep="  ", flush=True)
    publish("profile", rows, "python benchmarks/bench_profile.py")


if __name__ == "__main__":
    main()
