"""Time of the stages of a fit by one and by two processes.

    python benchmarks/bench_distributed.py

Starts itself by torchrun, with one process and with two in turn, round after round, each on one
thread; the fastest of each counts. Needs two idle cores.
"""

import json
import os
import subprocess
import sys
from time import perf_counter

import numpy as np

ROUNDS = 3
FEATURES = (2, 64)
STAGES = ("simulating flows", "pairing")


def fit(n_features):
    """Fit once, in one of the processes; the first prints the seconds of the stages."""
    from stages import StageClock

    import sknsgf

    rng = np.random.default_rng(0)
    X_source = rng.standard_normal((20_000, n_features), dtype=np.float32)
    X_target = np.abs(rng.standard_normal((20_000, n_features), dtype=np.float32)) + 1
    clock = StageClock(perf_counter)
    flow = sknsgf.NSGFPlusPlus(max_iter=10, random_state=0)
    with sknsgf.distributed() as rank:
        flow.set_callbacks(clock).fit(X_source, X_target)
    if rank == 0:
        print(json.dumps(clock.seconds))


def measured(n_processes, n_features):
    """Seconds of the stages by a number of processes."""
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    done = subprocess.run(
        [sys.executable, "-m", *command, __file__, str(n_features)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main():
    """Measure all numbers of features and publish the fastest times."""
    from results import publish

    rows = []
    for n_features in FEATURES:
        rounds = [[measured(n, n_features) for n in (1, 2)] for _ in range(ROUNDS)]
        for stage in STAGES:
            one, two = (min(times[stage] for times in runs) for runs in zip(*rounds, strict=True))
            rows.append(
                {
                    "stage": stage,
                    "features": n_features,
                    "one process (s)": f"{one:.2f}",
                    "two processes (s)": f"{two:.2f}",
                    "ratio": f"{one / two:.2f}",
                }
            )
            print(*rows[-1].values(), sep="  ", flush=True)
    publish("distributed", rows, "python benchmarks/bench_distributed.py")


if __name__ == "__main__":
    fit(int(sys.argv[1])) if len(sys.argv) > 1 else main()
