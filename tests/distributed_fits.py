"""Fits for torchrun: ``torchrun --nproc-per-node 2 distributed_fits.py NAME FOLDER``."""

import os
import sys
from pathlib import Path

import numpy as np

import sknsgf
from sknsgf import _simulation

SMALL = {"n_flows": 7, "flow_batch_size": 1024, "max_iter": 250, "random_state": 0}
SMALL |= {"hidden_layer_sizes": (16, 16), "device": "cpu"}  # GPUs may be fewer than processes
PAIRED = SMALL | {"n_pairings": 5, "pairing_size": 512}
ESTIMATORS = {
    "NSGFSampler": sknsgf.NSGFSampler(**SMALL, early_stopping=True),
    "in-parts": sknsgf.NSGFSampler(**SMALL, pool="online", max_pool_size=0.1),
    "on-disk": sknsgf.NSGFSampler(**SMALL, pool="memmap", max_pool_size=0.1),
    "NSGFPlusPlus": sknsgf.NSGFPlusPlus(**PAIRED, early_stopping=True),
    "potentials": sknsgf.NSGFPlusPlus(**PAIRED, pairing="potentials"),
    "paper": sknsgf.NSGFPlusPlus(**PAIRED, mode="paper"),
    "gpu": sknsgf.NSGFPlusPlus(**PAIRED | {"device": "cuda"}),
    "default": sknsgf.NSGFSampler(random_state=0, device="cpu"),
    "default-two-phases": sknsgf.NSGFPlusPlus(random_state=0, device="cpu"),
}


def samples(n=1200):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) * [1.0, 0.3] + 4


def fit(name, folder):
    X_source, X_target = samples(20_000 if name.startswith("default") else 1200)
    flow = ESTIMATORS[name]
    if name == "NSGFPlusPlus":
        flow.set_params(checkpoint=folder / "checkpoint", checkpoint_every=100)
    with sknsgf.distributed() as rank:
        flow.fit(X_source, X_target)
        flow.save(folder / f"{name}.safetensors")  # by the first process only
        np.save(folder / f"{name}-{rank}.npy", flow.transform(X_source))


def share_batches(folder):
    X_source, X_target = samples()
    with sknsgf.distributed(share_batches=True) as rank:
        flow = sknsgf.NSGFSampler(**SMALL | {"max_iter": 20, "batch_size": 252})
        flow.fit(X_source, X_target)
        np.savez(folder / f"shared-{rank}.npz", *flow.network_parameters_.values())


def fail_in(process):
    X_source, X_target = samples()
    with sknsgf.distributed() as rank:
        if rank == process:
            _simulation.simulate_flow = run_out_of_memory
        sknsgf.NSGFSampler(**SMALL).fit(X_source, X_target)


def run_out_of_memory(*args):
    raise MemoryError("no memory in this process")


def other_data():
    X_source, X_target = samples()
    with sknsgf.distributed() as rank:
        sknsgf.NSGFSampler(**SMALL).fit(X_source + rank, X_target)


def other_parameters():
    X_source, X_target = samples()
    with sknsgf.distributed() as rank:
        sknsgf.NSGFSampler(**SMALL, blur=0.1 + rank).fit(X_source, X_target)


def no_seed(folder):
    X_source, X_target = samples()
    with sknsgf.distributed() as rank:
        flow = sknsgf.NSGFSampler(**SMALL | {"random_state": None}).fit(X_source, X_target)
        np.save(folder / f"seed-{rank}.npy", flow.transform(X_source))


def main(name, folder):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(folder)
    if name in ESTIMATORS:
        fit(name, folder)
    elif name == "all":
        for each in ESTIMATORS:
            if each != "gpu" and not each.startswith("default"):
                fit(each, folder)
        share_batches(folder)
        no_seed(folder)
    elif name == "other-data":
        other_data()
    elif name == "other-parameters":
        other_parameters()
    elif name.startswith("fail-in-"):
        fail_in(int(name.removeprefix("fail-in-")))
    else:
        raise SystemExit(f"unknown: {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
