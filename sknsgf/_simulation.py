"""What an estimator's networks are trained on: simulated flows and pairs, in pools.

Each function takes the estimator for its parameters, and says which fitted attributes it sets.
"""

import logging
from abc import ABC, abstractmethod
from copy import copy
from functools import partial
from math import ceil, prod

import numpy as np
import torch
from sklearn.utils import gen_batches

from sknsgf import _distributed
from sknsgf._minibatches import minibatches
from sknsgf._torch_bridge import (
    Frame,
    empty_on_disk,
    flow_chunks,
    one_thread,
    seed_of,
    seed_of_batch,
    thread_map,
    torch_generator,
)
from sknsgf._validation import (
    check_finite_flows,
    check_pool_size,
    megabytes,
    pool_errors,
    pool_folder,
)
from sknsgf.flow.external import SOLVERS, choose_solver
from sknsgf.flow.paths import make_pairing
from sknsgf.flow.trajectories import (
    POOL_DTYPES,
    Flow,
    PoolInParts,
    TrajectoryPool,
    simulate_flow,
)

logger = logging.getLogger(__name__)
PAIRING_TOL = 0.3  # share of `sinkhorn_tol`: the straight flow learns what pairs' marginals lack


class _Simulation(ABC):
    """Records of an estimator's pairs of minibatches, a range of batches at a time.

    Chunks of batches are shared out over threads and processes, and kept in the checkpoint; what is
    simulated depends on none of these.

    Attributes
    ----------
    shape : tuple
        Shape of the positions of all batches.
    held_out : _Simulation or None
        The same of rows that are held out, each of which is in some batch.
    n_at_once : int
        Number of batches that there is room for at once, beside those of rows held out.
    on_disk : bool
        Whether this room is on the disk.
    radius : float
        Largest distance of a particle to the centre until now, in units of `scale_`.
    """

    def __init__(self, estimator, samples, size, n_batches, streams, n_positions, checkpoint):
        self.estimator, self.checkpoint = estimator, checkpoint
        self.size, self.streams, self.n_positions = size, streams, n_positions
        self.name, self.radius, self.held_out = self.stage, 0.0, None
        self._deal(samples, n_batches)

    def _deal(self, samples, n_batches):
        """Have a number of batches of both samples."""
        dealt = minibatches(self.estimator, *samples, self.size, n_batches, self.streams)
        self.particles, self.targets = dealt
        n_features = len(self.estimator.center_)
        self.shape = n_batches, self.particles.size, self.n_positions, n_features

    @property
    def n_bytes(self):
        """Size of the positions of all batches."""
        return prod(self.shape) * POOL_DTYPES[self.estimator.pool_dtype].itemsize

    def _plan(self, samples_held_out):
        """Set what rows held out and the room for positions decide, or refuse what has no room."""
        estimator, n_batches = self.estimator, self.shape[0]
        batch_bytes, held_out_bytes = self.n_bytes // n_batches, 0
        if samples_held_out is not None:
            self.held_out = self._of_rows_held_out(samples_held_out)
            held_out_bytes = self.held_out.n_bytes
        self.n_at_once = check_pool_size(
            estimator, n_batches, batch_bytes, held_out_bytes, self.counted
        )
        # Over the budget, which check_pool_size allows for pool="memmap" only.
        budget = estimator.max_pool_size * 1e6
        self.on_disk = self.n_at_once * batch_bytes + held_out_bytes > budget
        if self.held_out is not None:
            self.held_out.on_disk = self.on_disk

    def _of_rows_held_out(self, samples):
        other = copy(self)
        other.name = f"{self.stage} held out"
        other.streams = [f"held-out {stream}" for stream in self.streams]
        n_rows = max(len(X) for X in samples if X is not None)
        other._deal(samples, ceil(n_rows / self.size))
        return other

    @abstractmethod
    def simulate(self, x, y, first):
        """Flow of a chunk of batches, of which the first has this number."""

    def chunks(self, n_batches):
        """Slices of a number of batches that are simulated together."""
        return flow_chunks(
            n_batches, self.particles.size * self.targets.size, self.estimator.device_
        )

    def __call__(self, batches):
        """Positions of a slice of the batches; `sinkhorn_error_` stays the worst until now."""
        estimator, n_batches = self.estimator, batches.stop - batches.start
        positions, chunks = self._room(n_batches), self.chunks(n_batches)
        names = [f"{self.name} {batches.start + chunk.start}" for chunk in chunks]
        kind = {"dtype": torch.float64, "device": "cpu"}
        marks = torch.zeros(len(chunks), 2, **kind)  # error and radius of each chunk

        def restore(index):
            kept = self.checkpoint.load(names[index])
            if kept is None:
                return False
            positions[chunks[index]], marks[index] = kept["positions"], kept["marks"]
            return True

        def simulate(index):
            chunk = chunks[index]
            here = slice(batches.start + chunk.start, batches.start + chunk.stop)
            flow = self.simulate(*self._clouds(here), here.start)
            positions[chunk] = flow.positions.view(positions[chunk].shape)
            radius = flow.positions.square().sum(-1).max().sqrt()
            marks[index] = torch.tensor([flow.error, radius], **kind)
            self.checkpoint.save(
                names[index], {"positions": positions[chunk], "marks": marks[index]}
            )
            progress.update(chunk.stop - chunk.start)

        missing = [index for index in range(len(chunks)) if not restore(index)]
        mine, owners = _distributed.shares(missing, len(chunks))
        n_mine = sum(chunks[index].stop - chunks[index].start for index in mine)
        title = self.stage.capitalize()
        with _distributed.progress_bar(estimator, title, n_mine) as progress:
            thread_map(simulate, mine, estimator.n_jobs)
        for index, owner in owners:  # nothing happens in a single process
            _distributed.broadcast([positions[chunks[index]], marks[index]], owner)
        error, radius = marks.amax(0).tolist()  # NaN stays
        estimator.sinkhorn_error_ = float(np.fmax(estimator.sinkhorn_error_, error))
        self.radius = float(np.max([self.radius, radius]))
        check_finite_flows(estimator, self.radius)
        return positions.flatten(0, 1)

    def recall(self):
        """Take note of what batches were like that the checkpoint has forgotten."""
        kept = self.checkpoint.load_for_all(f"{self.name} worst")
        if kept is not None:
            self.estimator.sinkhorn_error_ = kept["error"]
            self.radius = kept["radius"]

    def forget(self, batches):
        """Remove a slice of the batches from the checkpoint, but for the worst until now."""
        worst = {"error": self.estimator.sinkhorn_error_, "radius": self.radius}
        self.checkpoint.save(f"{self.name} worst", worst)
        for chunk in self.chunks(batches.stop - batches.start):
            self.checkpoint.forget(f"{self.name} {batches.start + chunk.start}")

    def _clouds(self, batches):
        """Particles and targets of a slice of the batches, as tensors in the flow's units."""
        frame = Frame(self.estimator.center_, self.estimator.scale_)
        rows = self.particles[batches], self.targets[batches]
        return [frame.to_tensor(part, self.estimator.device_) for part in rows]

    def _room(self, n_batches):
        """Tensor for the positions of a number of batches, in memory or on the disk."""
        shape, dtype = (n_batches, *self.shape[1:]), POOL_DTYPES[self.estimator.pool_dtype]
        if self.on_disk:
            with pool_errors(self.estimator, prod(shape) * dtype.itemsize):
                return empty_on_disk(shape, dtype, pool_folder(self.estimator))
        return torch.empty(shape, dtype=dtype, device=self.estimator.device_)


class Simulation(_Simulation):
    """Simulated flows of an estimator; sets `solver_` and `sinkhorn_error_`."""

    stage, trains = "simulating flows", "training"
    counted = "n_flows, n_steps or flow_batch_size"  # what makes it large

    def __init__(self, estimator, samples, samples_held_out, checkpoint):
        super().__init__(
            estimator,
            samples,
            estimator.flow_batch_size,
            estimator.n_flows_,
            ("source", "target"),
            estimator.n_steps + 1,
            checkpoint,
        )
        sizes = self.particles.size, self.targets.size, len(estimator.center_)
        estimator.solver_ = choose_solver(estimator.solver, *sizes)
        estimator.sinkhorn_error_ = np.nan
        self.velocity = partial(
            SOLVERS[estimator.solver_],
            blur=estimator.blur_ / estimator.scale_,
            tol=estimator.sinkhorn_tol,
            max_iter=estimator.sinkhorn_max_iter,
        )
        self._plan(samples_held_out)

    def simulate(self, x, y, first):
        """Flows of a chunk of batches."""
        with torch.no_grad():
            return simulate_flow(x, y, self.velocity, self.estimator.step_sizes_)


class PairSimulation(_Simulation):
    """Pairs of an estimator for straight paths, one batch after another.

    ``start_of_paths`` carries points of the source to where their paths start.
    """

    stage, trains = "pairing", "straight training"
    counted = "n_pairings or pairing_size"

    def __init__(self, estimator, samples, samples_held_out, checkpoint, start_of_paths):
        super().__init__(
            estimator,
            samples,
            estimator.pairing_size,
            estimator.n_pairings_,
            ("pairing source", "pairing target", "pairing"),
            2,
            checkpoint,
        )
        self.start_of_paths, self.pairing = start_of_paths, None
        self._plan(samples_held_out)

    def chunks(self, n_batches):
        """Slices of one batch each."""
        return list(gen_batches(n_batches, 1))

    def __call__(self, batches):
        """Ends of the paths of a slice of batches; `sinkhorn_error_` stays the worst until now."""
        if self.pairing is None:
            self.pairing = self._prepared_pairing()
        return super().__call__(batches)

    def _prepared_pairing(self):
        """Pairing, with potentials of the first batch if they are extended to all others."""
        estimator = self.estimator
        pairing = make_pairing(
            estimator.pairing_,
            blur=estimator.blur_ / estimator.scale_,
            tol=PAIRING_TOL * estimator.sinkhorn_tol,
            max_iter=estimator.sinkhorn_max_iter,
        )
        if estimator.pairing_ == "potentials":
            with one_thread():
                self.simulate(*self._clouds(slice(0, 1)), 0, pairing)
        return pairing

    def simulate(self, x, y, first, pairing=None):
        """Ends of the paths of a batch, as a flow of one step."""
        pairing = pairing or copy(self.pairing)  # reports the error of its own solves
        seed = seed_of_batch(seed_of(self.estimator.seed_, self.streams[-1]), first)
        x, y = self.start_of_paths(x[0]), y[0]
        check_finite_flows(self.estimator, float(x.square().sum(-1).max().sqrt()))
        partners = pairing(x, y, torch_generator(seed, self.estimator.device_))
        return Flow(torch.stack([x, partners], 1), getattr(pairing, "error", 0.0))


def make_pools(simulate, task, *, time, n_draws, step_sizes=None):
    """Pool for a number of gradient steps and, for early stopping, a pool of rows held out.

    The pool is simulated at once, as a stage of the fit's ``task``: in memory or, where it is over
    the budget and ``pool="memmap"``, on the disk. Where ``pool="online"`` and it is over the
    budget, it is simulated in parts, of which the stage is the first.
    """
    estimator, held_out, n_flows = simulate.estimator, simulate.held_out, simulate.shape[0]
    n_parts = ceil(n_flows / simulate.n_at_once)
    logger.info(
        "Pool of %d trajectories: %s in %d part(s)%s%s",
        prod(simulate.shape[:2]),
        megabytes(simulate.n_bytes),
        n_parts,
        f", and {megabytes(held_out.n_bytes)} of rows held out" if held_out else "",
        f" on disk, in {pool_folder(estimator)}" if simulate.on_disk else "",
    )
    pool = partial(TrajectoryPool, time=time, target=estimator.prediction_, step_sizes=step_sizes)
    bounds = [n_flows * part // n_parts for part in range(n_parts + 1)]

    def part(index):
        if index:
            simulate.forget(slice(*bounds[index - 1 : index + 1]))
        return pool(simulate(slice(*bounds[index : index + 2])))

    simulate.recall()
    kept = simulate.checkpoint.load_for_all(simulate.trains)
    n_drawn = max(0, kept["pool"]["n_drawn"] - 1) if kept else 0
    with task.stage(simulate.stage):
        pool_held_out = None
        if held_out is not None:
            pool_held_out = pool(held_out(slice(0, held_out.shape[0])))
            simulate.radius = max(simulate.radius, held_out.radius)
        return PoolInParts(part, n_parts, n_draws, n_drawn), pool_held_out
