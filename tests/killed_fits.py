"""Kill fits at random moments, and compare what they end with: ``killed_fits.py --n-fits 200``.

Each fit runs in a process that is killed by SIGKILL after a random time, over and over, until it
ends. What it saved must be, bit by bit, what the same fit saves without a checkpoint.
"""

import argparse
import os
import signal
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from sknsgf import NSGFPlusPlus, NSGFSampler, load

SMALL = {"n_flows": 8, "flow_batch_size": 256, "max_iter": 300, "random_state": 0}
SMALL |= {"checkpoint_every": 100, "hidden_layer_sizes": (32, 32)}
PAIRED = SMALL | {"n_pairings": 8, "pairing_size": 256}
ESTIMATORS = [
    NSGFSampler(**SMALL, pool="online", max_pool_size=0.05),
    NSGFPlusPlus(**PAIRED, early_stopping=True),
    NSGFPlusPlus(**PAIRED, mode="paper"),
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--n-fits", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    rng, n_same, n_kills = np.random.default_rng(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        expected = [uninterrupted(estimator, folder) for estimator in ESTIMATORS]
        for index in range(options.n_fits):
            which = index % len(ESTIMATORS)
            (data, seconds), path = expected[which], folder / f"{index}.safetensors"
            while not fit(ESTIMATORS[which], path, folder / "fit", rng.uniform(0, seconds)):
                n_kills += 1
            n_same += same(path, data) and not (folder / "fit").exists()
            path.unlink()
    print(f"{n_same} of {options.n_fits} fits ended with the same bits after {n_kills} kills")
    return n_same < options.n_fits


def uninterrupted(estimator, folder):
    """Fitted attributes of a fit that nothing happens to, and the seconds that it takes."""
    path, start = folder / "expected.safetensors", time.monotonic()
    fit(estimator, path, None, np.inf)
    return learned(path), time.monotonic() - start


def fit(estimator, path, checkpoint, seconds):
    """Fit and save in a process of its own; tell whether it ended before it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            rng = np.random.default_rng(0)
            X_source = rng.normal(size=(2000, 2))
            X_target = rng.normal(size=(1500, 2)) * [1.0, 0.3] + 4
            estimator.set_params(checkpoint=checkpoint and str(checkpoint))
            estimator.fit(X_source, X_target).save(path)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise SystemExit("a fit failed")
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return path.exists()  # it may have been saved just before


def learned(path):
    """All fitted attributes of a saved estimator."""
    flow = load(path)
    return {name: getattr(flow, name) for name in flow._fitted_attributes if hasattr(flow, name)}


def same(path, expected):
    """Compare fitted attributes, bit by bit."""
    try:
        np.testing.assert_equal(learned(path), expected)
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
