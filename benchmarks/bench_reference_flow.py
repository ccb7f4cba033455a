"""A pool without minibatch bias: particles carried through one large flow by its potentials.

    python benchmarks/bench_reference_flow.py

The idea is tried here and is not in the library. One flow of 8,192 particles is simulated; all
trajectories of the pool are of other particles, which follow it by its potentials, extended to
where they are, without further solves. `NSGFSampler` learns from that pool and from its own, on two
of the 2-D pairs, with seed 0. W2 (exact, POT) compares 4,096 rows, after 10 and 100 evaluations;
the pool's time is CPU time on one thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import torch
from peers import follow
from results import publish
from stages import StageClock

from sknsgf import NSGFSampler
from sknsgf._simulation import Simulation
from sknsgf._torch_bridge import Frame
from sknsgf.datasets import make_pair, quasi_random_pair
from sknsgf.flow.sinkhorn import barycentric_projection, sinkhorn_velocity
from sknsgf.flow.trajectories import Flow
from sknsgf.metrics import wasserstein_distance

PAIRS = ("8gaussians-moons", "moons")
N_ROWS, N_REFERENCE, N_COMPARED = 2**17, 2**13, 2**12


class ReferenceFlow:
    """A flow that is simulated once, and that other particles follow."""

    def __init__(self, simulation):
        estimator = simulation.estimator
        frame, rng = Frame(estimator.center_, estimator.scale_), np.random.default_rng(1)
        x, self.y = (
            frame.to_tensor(
                batches.X[rng.choice(len(batches.X), N_REFERENCE, replace=False)], "cpu"
            )
            for batches in (simulation.particles, simulation.targets)
        )
        x, self.y, state = x[None], self.y[None], None
        self.options = {"blur": estimator.blur_ / estimator.scale_}
        limits = {"tol": estimator.sinkhorn_tol, "max_iter": estimator.sinkhorn_max_iter}
        self.steps, self.error = [], 0.0
        for size in estimator.step_sizes_:
            solved = sinkhorn_velocity(x, self.y, state=state, **self.options, **limits)
            self.steps.append((size, x, *solved.state))
            self.error = max(self.error, float(solved.error))
            x, state = x + size * solved.velocity, solved.state.after_step(size)

    def carry(self, z):
        """Trajectories of particles of shape (1, n, d)."""
        positions = [z]
        for size, x, g, f in self.steps:
            to_target = barycentric_projection(z, self.y, g, **self.options)
            z = z + size * (to_target - barycentric_projection(z, x, f, **self.options))
            positions.append(z)
        return torch.stack(positions, 2).flatten(0, 1)


@torch.no_grad()
def follow_the_reference(simulation, x, y, first):
    """What a simulation does with a chunk of batches, here: their targets are not used."""
    if not hasattr(simulation, "reference"):
        simulation.reference = ReferenceFlow(simulation)
    return Flow(simulation.reference.carry(x.flatten(0, 1)[None]), simulation.reference.error)


def main():
    """Fit from both pools and publish."""
    rows = []
    for pair in PAIRS:
        X_source, X_target = make_pair(pair, N_ROWS, random_state=0)
        source, target = quasi_random_pair(pair, N_COMPARED, random_state=100)
        for pool in ("minibatches", "one reference flow"):
            other = patch.object(Simulation, "simulate", follow_the_reference)
            flow, clock = NSGFSampler(random_state=0, device="cpu"), StageClock()
            with nullcontext() if pool == "minibatches" else other:
                flow.set_callbacks(clock).fit(X_source, X_target)
            row = {"pair": pair, "pool": pool}
            row["pool (CPU s)"] = f"{clock.seconds['simulating flows']:.1f}"
            for n in (10, 100):
                distance = wasserstein_distance(follow(flow, source, n), target)
                row[f"W2, {n} eval."] = f"{distance:.3f}"
            print(*row.values(), sep="  ", flush=True)
            rows.append(row)
    publish("reference_flow", rows, "python benchmarks/bench_reference_flow.py")


if __name__ == "__main__":
    main()
