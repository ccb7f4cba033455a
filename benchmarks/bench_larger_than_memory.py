"""Memory of ``fit`` and ``transform`` where both samples are files, and the result is one.

    python benchmarks/bench_larger_than_memory.py

Both samples are ``.npy`` files of float32 rows, given by path; ``transform`` writes to a third.
Every estimator has a process of its own, and few steps of training and of integration, which cost
time and no memory. Memory is the peak beyond what the process held before: all of it, pages of the
files among it, and what lies in no file, looked at every few milliseconds. The files are written
below the directory of temporary files (``TMPDIR``) and deleted in the end.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter

import numpy as np
from memory import peak_memory, reset_peak
from results import publish

from sknsgf import NSGFPlusPlus, NSGFSampler

N_FEATURES = 16
N_ROWS = (10**6, 10**7)
WRITTEN_ROWS = 10**5  # at a time
SETTINGS = {"n_flows": 64, "max_iter": 100, "random_state": 0, "device": "cpu"}
FEW_STEPS = {
    NSGFSampler: {"n_integration_steps": 1},
    NSGFPlusPlus: {"n_flows": 32, "n_pairings": 32, "n_straight_steps": 1},
}
PAUSE = 0.002  # seconds between two looks at the memory


def write_sample(path, n_rows, shift):
    """Write rows of a normal law to a file, part by part."""
    rng = np.random.default_rng(n_rows)
    shape = (n_rows, N_FEATURES)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, n_rows, WRITTEN_ROWS):
        part = rows[start : start + WRITTEN_ROWS]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) + shift


def anonymous_memory():
    """Resident memory in MB that lies in no file."""
    return int(re.search(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def cost(function, *args, **options):
    """Seconds of a call, and the peaks of memory in MB that it adds: all, and without files."""
    done, seen = Event(), [anonymous_memory()]

    def watch():
        while not done.wait(PAUSE):
            seen.append(anonymous_memory())

    reset_peak()
    before, start, watching = peak_memory(), perf_counter(), Thread(target=watch)
    watching.start()
    function(*args, **options)
    done.set()
    watching.join()
    return perf_counter() - start, peak_memory() - before, max(seen) - seen[0]


def measure(kind, source, target, moved):
    """Cost of a fit to two files, and of a transform from a file to another."""
    options = SETTINGS | FEW_STEPS[kind]
    small = [np.load(path, mmap_mode="r")[:1000] for path in (source, target)]
    warm = kind(**options | {"n_flows": 1, "max_iter": 1}).fit(*small)  # what only a first costs
    warm.transform(small[0])
    flow = kind(**options)
    yield "fit", cost(flow.fit, source, target)
    shape = np.load(source, mmap_mode="r").shape
    out = np.lib.format.open_memmap(moved, mode="w+", dtype=np.float32, shape=shape)
    yield "transform", cost(flow.transform, source, out=out)


def table(kind, n_rows, folder):
    """Rows of the table for one estimator and one number of rows."""
    paths = [folder / f"{name}.npy" for name in ("source", "target", "moved")]
    megabytes = n_rows * N_FEATURES * 4 / 1e6
    return [
        {
            "estimator": kind.__name__,
            "called": called,
            "rows a file": n_rows,
            "a file (MB)": f"{megabytes:.0f}",
            "time (s)": f"{seconds:.1f}",
            "memory (MB)": f"{memory:.0f}",
            "without the files (MB)": f"{anonymous:.0f}",
        }
        for called, (seconds, memory, anonymous) in measure(kind, *paths)
    ]


def main():
    """Measure both estimators at each number of rows."""
    rows, context = [], get_context("spawn")
    for n_rows in N_ROWS:
        with TemporaryDirectory() as folder:
            for shift, name in enumerate(("source", "target")):
                write_sample(Path(folder, f"{name}.npy"), n_rows, shift)
            for kind in (NSGFSampler, NSGFPlusPlus):
                with ProcessPoolExecutor(1, context) as process:
                    rows += process.submit(table, kind, n_rows, Path(folder)).result()
                print(rows[-2:], flush=True)
    publish("larger_than_memory", rows, "python benchmarks/bench_larger_than_memory.py")


if __name__ == "__main__":
    main()
