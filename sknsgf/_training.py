"""The stages of a fit that the flow estimators share: units, simulation, pools, training.

Each function takes the estimator for its parameters, and says which fitted attributes it sets.
"""

import logging
from contextlib import nullcontext
from functools import partial
from math import ceil, prod

import numpy as np
import torch
from tqdm.auto import tqdm

from sknsgf._base import reference_blur
from sknsgf._torch_bridge import (
    Frame,
    NormalBatches,
    RowBatches,
    flow_chunks,
    load_arrays,
    mean_and_variance,
    one_thread,
    pooled_frame,
    random_rows,
    seed_of,
    thread_map,
    torch_generator,
)
from sknsgf._validation import (
    check_finite_flows,
    check_network_output,
    check_pool_size,
    check_scale,
    checked_network,
    resolve_device,
    training_errors,
)
from sknsgf.flow.external import SOLVERS, choose_solver
from sknsgf.flow.networks import EndpointMLP, seeded_layers
from sknsgf.flow.paths import make_pairing
from sknsgf.flow.regression import CHECK_EVERY, fit_regression
from sknsgf.flow.trajectories import (
    POOL_DTYPES,
    PoolInParts,
    TrajectoryPool,
    simulate_flow,
)

logger = logging.getLogger(__name__)

KEPT_ROWS = 10_000  # rows of each sample that a fitted estimator keeps
ENDPOINT_FEATURES = 16  # from this many features on, endpoints are learned better than velocities
LEARNING_RATES = {"velocity": 4e-3, "endpoint": 2e-3}
POOL_ROWS, MOST_BATCHES = 2**17, 128  # of an automatic number of batches
VALIDATION_POINTS = 8_192  # points of the held-out flows that early stopping looks at


def resolve(estimator, X_source, X_target):
    """Turn parameters and the samples' moments into what a fit uses.

    Sets `device_`, `source_mean_`, `source_std_`, `center_`, `scale_`, `blur_`, `n_flows_`,
    `prediction_` and `learning_rate_init_`.
    """
    estimator.device_ = resolve_device(estimator.device)
    moments = mean_and_variance(X_target)
    source_moments = moments if X_source is None else mean_and_variance(X_source)
    estimator.source_mean_, estimator.source_std_ = source_moments[0], np.sqrt(source_moments[1])
    if not continues(estimator):
        frame = check_scale(pooled_frame(*source_moments, *moments))
        estimator.center_, estimator.scale_ = frame
    n_features = len(estimator.center_)
    blur = reference_blur(n_features) if estimator.blur == "auto" else estimator.blur
    estimator.blur_ = estimator.scale_ * blur
    estimator.n_flows_ = count_flows(estimator, X_source, X_target)
    estimator.prediction_ = estimator.prediction
    if estimator.prediction == "auto":
        estimator.prediction_ = "endpoint" if n_features >= ENDPOINT_FEATURES else "velocity"
    estimator.learning_rate_init_ = estimator.learning_rate_init
    if estimator.learning_rate_init == "auto":
        estimator.learning_rate_init_ = LEARNING_RATES[estimator.prediction_]


def count_flows(estimator, X_source, X_target):
    """Number of flows; "auto" is one, or two to hold one out, where all would be the same."""
    size = estimator.flow_batch_size
    used_whole = X_source is not None and max(len(X_source), len(X_target)) <= size
    if estimator.n_flows == "auto" and used_whole:
        return 2 if estimator.early_stopping else 1
    return count_batches(estimator.n_flows, size, X_source, X_target)


def count_batches(n_batches, size, X_source, X_target):
    """Number of batches of a size; "auto" makes enough rows in all."""
    if n_batches != "auto":
        return n_batches
    n_rows = min(size, len(X_target if X_source is None else X_source))
    return min(max(2, ceil(POOL_ROWS / n_rows)), MOST_BATCHES)  # one may be held out


def continues(estimator):
    """Tell whether a fit goes on from the last one."""
    return estimator.warm_start and estimator.__sklearn_is_fitted__()


def minibatches(estimator, X_source, X_target, size, n_batches, streams):
    """Minibatches of both samples; a source that is None is a normal law."""
    seed = estimator.random_state
    targets = RowBatches(X_target, size, n_batches, seed, streams[1])
    if X_source is None:
        moments = estimator.source_mean_, estimator.source_std_
        return NormalBatches(*moments, targets.size, seed, streams[0]), targets
    return RowBatches(X_source, size, n_batches, seed, streams[0]), targets


class Simulation:
    """Simulated flows of an estimator, a range of them at a time; sets `solver_`.

    Attributes
    ----------
    shape : tuple
        Shape of the positions of all flows.
    radius : float
        Largest distance of a particle to the centre until now, in units of `scale_`.
    """

    stage = "simulating flows"
    counted = "n_flows, n_steps or flow_batch_size"  # what makes it large

    def __init__(self, estimator, X_source, X_target):
        n_flows, n_features = estimator.n_flows_, len(estimator.center_)
        self.estimator = estimator
        self.particles, self.targets = minibatches(
            estimator, X_source, X_target, estimator.flow_batch_size, n_flows, ("source", "target")
        )
        sizes = self.particles.size, self.targets.size, n_features
        estimator.solver_ = choose_solver(estimator.solver, *sizes)
        self.velocity = partial(
            SOLVERS[estimator.solver_],
            blur=estimator.blur_ / estimator.scale_,
            tol=estimator.sinkhorn_tol,
            max_iter=estimator.sinkhorn_max_iter,
        )
        self.shape = n_flows, self.particles.size, estimator.n_steps + 1, n_features
        self.errors, self.radius = [], 0.0

    def __call__(self, flows):
        """Positions of the flows of a slice; sets `sinkhorn_error_`, the worst until now."""
        estimator = self.estimator
        frame, device = Frame(estimator.center_, estimator.scale_), estimator.device_
        dtype = POOL_DTYPES[estimator.pool_dtype]
        n_flows = flows.stop - flows.start
        positions = torch.empty((n_flows, *self.shape[1:]), dtype=dtype, device=device)

        def simulate(chunk):
            here = slice(flows.start + chunk.start, flows.start + chunk.stop)
            x, y = (frame.to_tensor(rows[here], device) for rows in (self.particles, self.targets))
            with torch.no_grad():
                flow = simulate_flow(x, y, self.velocity, estimator.step_sizes_)
            positions[chunk] = flow.positions.view(positions[chunk].shape)
            progress.update(len(x))
            return flow.error, float(flow.positions.square().sum(-1).max().sqrt())

        chunks = flow_chunks(n_flows, self.particles.size * self.targets.size, device)
        with tqdm(
            total=n_flows, desc="Simulating flows", disable=not estimator.verbose
        ) as progress:
            errors, radii = zip(*thread_map(simulate, chunks, estimator.n_jobs), strict=True)
        self.errors += errors
        estimator.sinkhorn_error_ = float(np.max(self.errors))
        self.radius = float(np.max([self.radius, *radii]))
        check_finite_flows(estimator, self.radius)
        return positions.flatten(0, 1)


class PairSimulation:
    """Pairs of an estimator for straight paths, a range of batches at a time.

    ``start_of_paths`` carries points of the source to where their paths start. The attributes are
    those of :class:`Simulation`.
    """

    stage = "pairing"
    counted = "n_pairings or pairing_size"

    def __init__(self, estimator, X_source, X_target, start_of_paths):
        n_batches, seed = estimator.n_pairings_, estimator.random_state
        self.estimator, self.start_of_paths = estimator, start_of_paths
        self.particles, self.targets = minibatches(
            estimator,
            X_source,
            X_target,
            estimator.pairing_size,
            n_batches,
            ("pairing source", "pairing target"),
        )
        self.pairing = make_pairing(
            estimator.pairing_,
            blur=estimator.blur_ / estimator.scale_,
            tol=estimator.sinkhorn_tol,
            max_iter=estimator.sinkhorn_max_iter,
        )
        self.generator = torch_generator(seed_of(seed, "pairing"), estimator.device_)
        self.shape = n_batches, self.particles.size, 2, len(estimator.center_)
        self.radius = 0.0

    def __call__(self, batches):
        """Ends of the paths of a slice of batches; `sinkhorn_error_` stays the worst until now."""
        estimator = self.estimator
        frame, device = Frame(estimator.center_, estimator.scale_), estimator.device_
        n_batches, dtype = batches.stop - batches.start, POOL_DTYPES[estimator.pool_dtype]
        ends = torch.empty((n_batches, *self.shape[1:]), dtype=dtype, device=device)
        hidden = not estimator.verbose
        with one_thread():
            for batch in tqdm(range(n_batches), desc="Pairing", disable=hidden):
                here = slice(batches.start + batch, batches.start + batch + 1)
                x, y = (frame.to_tensor(r[here][0], device) for r in (self.particles, self.targets))
                x = self.start_of_paths(x)
                radius = float(torch.cat([x, y]).square().sum(-1).max().sqrt())
                self.radius = float(np.max([self.radius, radius]))  # NaN stays
                check_finite_flows(estimator, self.radius)
                ends[batch, :, 0], ends[batch, :, 1] = x, self.pairing(x, y, self.generator)
        error = getattr(self.pairing, "error", 0.0)
        estimator.sinkhorn_error_ = float(np.fmax(estimator.sinkhorn_error_, error))
        return ends.flatten(0, 1)


def make_pools(estimator, simulate, task, *, time, n_draws, step_sizes=None):
    """Pool for a number of gradient steps and, for early stopping, a pool of flows held out.

    The pool is simulated at once, as a stage of the fit's ``task``; or in parts, of which the stage
    is the first, where ``pool="online"`` and it is over the budget.
    """
    n_flows, *flow_shape = simulate.shape
    flow_bytes = prod(flow_shape) * POOL_DTYPES[estimator.pool_dtype].itemsize
    at_once = check_pool_size(estimator, n_flows, flow_bytes, simulate.counted)
    n_held_out = 0
    if estimator.early_stopping:  # of both kinds, one flow at least
        n_held_out = min(ceil(estimator.validation_fraction * at_once), at_once - 1)
    n_train = n_flows - n_held_out
    n_parts = ceil(n_train / (at_once - n_held_out))
    logger.info(
        "Pool of %d trajectories: %.1f MB in %d part(s)",
        n_flows * flow_shape[0],
        n_flows * flow_bytes / 1e6,
        n_parts,
    )
    pool = partial(TrajectoryPool, time=time, target=estimator.prediction_, step_sizes=step_sizes)
    bounds = [n_train * part // n_parts for part in range(n_parts + 1)]

    def part(index):
        return pool(simulate(slice(bounds[index], bounds[index + 1])))

    with task.stage(simulate.stage):
        held_out = pool(simulate(slice(n_train, n_flows))) if n_held_out else None
        return PoolInParts(part, n_parts, n_draws), held_out


def start_network(estimator, design, arrays, stream):
    """Network with fresh weights from a stream, or with those of the last fit, if given."""
    seed = seed_of(estimator.random_state, stream)
    checked = design._replace(network=checked_network(design.network))
    with own_layers(estimator, stream):
        network = checked.build(seed)
        check_network_output(network, design.n_features)
    return network if arrays is None else load_arrays(network, arrays)


def start_transition_network(estimator, design, arrays):
    """Predictor with fresh weights, or with those of the last fit, if given."""
    network = design.build_transition(seed_of(estimator.random_state, "transition network"))
    return network if arrays is None else load_arrays(network, arrays)


def train(estimator, network, draw, n_iterations, validation, training):
    """Regress a network on batches ``draw(generator)``; ``validation(generator)`` or None."""
    stream = training.stream
    generator = torch_generator(seed_of(estimator.random_state, stream), estimator.device_)

    def next_batch():
        training.before_batch()
        return draw(generator)

    with (
        one_thread(),
        own_layers(estimator, stream),
        training_errors(estimator),
        training.stage(ceil(n_iterations / CHECK_EVERY)),
        tqdm(total=n_iterations, desc="Training", disable=not estimator.verbose) as progress,
    ):
        return fit_regression(
            network.to(estimator.device_),
            next_batch,
            n_iterations=n_iterations,
            learning_rate=estimator.learning_rate_init_,
            schedule=estimator.learning_rate,
            weight_decay=estimator.weight_decay,
            ema_decay=estimator.ema_decay,
            loss_weight=network.loss_weight if isinstance(network, EndpointMLP) else None,
            validation=validation and validation(generator),
            tol=estimator.tol,
            n_iter_no_change=estimator.n_iter_no_change,
            on_iteration=lambda _: progress.update(),
            on_check=training.at_check,
        )


def train_on_pools(estimator, network, pool, held_out, training):
    """Velocity-field matching: regress a network on trajectories."""

    def draw(generator):
        return pool.draw(estimator.batch_size, generator)

    def draw_held_out(generator):
        return held_out.draw(VALIDATION_POINTS, generator)

    return train(estimator, network, draw, pool.n_draws, held_out and draw_held_out, training)


def train_transition(estimator, network, pool, held_out, training):
    """Regress a predictor of the time at which a point lies on its straight path."""
    pool.restart()  # velocities were learned from it before

    def draw(generator, pool=pool, size=estimator.batch_size):
        x, t, _ = pool.draw(size, generator)
        return x, t

    def draw_held_out(generator):
        return draw(generator, held_out, VALIDATION_POINTS)

    return train(estimator, network, draw, pool.n_draws, held_out and draw_held_out, training)


def own_layers(estimator, stream):
    """Context for what the layers of a user's network draw."""
    if isinstance(estimator.network, str):
        return nullcontext()
    return seeded_layers(seed_of(estimator.random_state, stream))


def keep_rows(estimator, X_source, X_target):
    """Keep a bounded part of the samples, for sample and score.

    Sets `source_sample_` and `target_sample_`.
    """
    seed = seed_of(estimator.random_state, "kept")
    estimator.target_sample_ = X_target[random_rows(len(X_target), KEPT_ROWS, seed)]
    estimator.source_sample_ = None
    if X_source is not None:
        estimator.source_sample_ = X_source[random_rows(len(X_source), KEPT_ROWS, seed)]
