"""The stages of a fit that the flow estimators share: units, networks, training.

Each function takes the estimator for its parameters, and says which fitted attributes it sets.
"""

from contextlib import nullcontext
from math import ceil

import numpy as np

from sknsgf import _distributed
from sknsgf._base import reference_blur
from sknsgf._minibatches import n_training_rows
from sknsgf._torch_bridge import (
    load_arrays,
    load_linear_algebra,
    mean_and_variance,
    one_thread,
    pooled_frame,
    random_rows,
    seed_of,
    torch_generator,
)
from sknsgf._validation import (
    check_equal_shares,
    check_network_output,
    check_same_samples,
    check_scale,
    checked_network,
    resolve_device,
    training_errors,
)
from sknsgf.flow.networks import (
    EndpointMLP,
    TransitionCNN,
    TransitionMLP,
    VelocityMLP,
    VelocityUNet,
    layer_states,
    seeded_layers,
)
from sknsgf.flow.regression import CHECK_EVERY, fit_regression

KEPT_ROWS = 10_000  # rows of each sample that a fitted estimator keeps
ENDPOINT_FEATURES = 16  # from this many features on, endpoints are learned better than velocities
LEARNING_RATES = {"velocity": 4e-3, "endpoint": 2e-3}
POOL_ROWS, MOST_BATCHES = 2**17, 128  # of an automatic number of batches
OWN_NETWORKS = {EndpointMLP, TransitionCNN, TransitionMLP, VelocityMLP, VelocityUNet}
VALIDATION_POINTS = 8_192  # points of the held-out flows that early stopping looks at


def resolve(estimator, X_source, X_target):
    """Turn parameters and the samples' moments into what a fit uses.

    Sets `device_`, `source_mean_`, `source_std_`, `center_`, `scale_`, `blur_`, `n_flows_`,
    `prediction_` and `learning_rate_init_`.
    """
    estimator.device_ = _distributed.local_device(resolve_device(estimator.device))
    load_linear_algebra(estimator.device_)
    moments = mean_and_variance(X_target)
    source_moments = moments if X_source is None else mean_and_variance(X_source)
    own = source_moments + moments
    of_first = _distributed.from_first(own)
    check_same_samples(own, of_first)
    source_moments, moments = of_first[:2], of_first[2:]
    if _distributed.shares_batches():
        check_equal_shares(estimator, _distributed.n_processes())
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
    """Number of flows; "auto" is one where all would be the same."""
    size = estimator.flow_batch_size
    if estimator.n_flows == "auto" and are_used_whole(estimator, size, X_source, X_target):
        return 1
    return count_batches(estimator, estimator.n_flows, size, X_source, X_target)


def are_used_whole(estimator, size, X_source, X_target):
    """Tell whether batches of a size are all rows that are trained on, and so all the same."""
    if X_source is None:
        return False
    return max(n_training_rows(estimator, X) for X in (X_source, X_target)) <= size


def count_batches(estimator, n_batches, size, X_source, X_target):
    """Number of batches of a size; "auto" makes enough rows in all."""
    if n_batches != "auto":
        return n_batches
    n_rows = n_training_rows(estimator, X_target if X_source is None else X_source)
    return min(ceil(POOL_ROWS / min(size, n_rows)), MOST_BATCHES)


def continues(estimator):
    """Tell whether a fit goes on from the last one."""
    return estimator.warm_start and estimator.__sklearn_is_fitted__()


def start_network(estimator, design, arrays, stream):
    """Network with fresh weights from a stream, or with those of the last fit, if given."""
    seed = seed_of(estimator.seed_, stream)
    checked = design._replace(network=checked_network(design.network))
    with own_layers(estimator, stream):
        network = checked.build(seed)
        check_network_output(network, design.n_features)
    samples = estimator.source_sample_, estimator.target_sample_
    double = any(sample is not None and sample.dtype == np.float64 for sample in samples)
    if not isinstance(design.network, str) and double:
        # Another one, since some modules keep what they are first given.
        with own_layers(estimator, stream):
            check_network_output(checked.build(seed).double(), design.n_features, "float64")
    return network if arrays is None else load_arrays(network, arrays)


def start_transition_network(estimator, design, arrays):
    """Predictor with fresh weights, or with those of the last fit, if given."""
    network = design.build_transition(seed_of(estimator.seed_, "transition network"))
    return network if arrays is None else load_arrays(network, arrays)


def train(estimator, network, pool, draw, validation, training, checkpoint):
    """Regress a network on batches ``draw(generator)``; ``validation(generator)`` or None.

    Goes on from the checkpoint, if it is there, and keeps one now and then and at the end.
    """
    stream, n_iterations = training.stream, pool.n_draws
    generator = torch_generator(seed_of(estimator.seed_, stream), estimator.device_)

    def on_device(batch):
        return [part.to(estimator.device_) for part in batch]  # from a pool on disk

    held_out = validation and on_device(validation(generator))
    kept = checkpoint.load_for_all(stream)
    n_kept = 0
    if kept is not None:
        n_kept = kept["run"]["iteration"]
        pool.load_state(kept["pool"])
        generator.set_state(kept["generator"])

    def next_batch():
        training.before_batch()
        return on_device(draw(generator))

    def at_check(run):
        nonlocal n_kept
        asked_to_stop = training.at_check(run.result)
        run.is_stopped = _distributed.from_first(asked_to_stop or run.is_stopped)
        is_last = run.is_stopped or run.iteration == n_iterations
        if checkpoint.is_due(run.iteration - n_kept, is_last):
            states = {"pool": pool.state(), "generator": generator.get_state()}
            states |= {"run": run.state(), "layers": own_layers_states(estimator)}
            checkpoint.save(stream, states)
            n_kept = run.iteration
        return run.is_stopped

    with (
        one_thread(),
        own_layers(estimator, stream, kept and kept["layers"]),
        training_errors(estimator),
        training.stage(ceil(n_iterations / CHECK_EVERY)),
        _distributed.progress_bar(estimator, "Training", n_iterations, n_kept) as progress,
    ):
        result = fit_regression(
            network.to(estimator.device_),
            next_batch,
            n_iterations=n_iterations,
            learning_rate=estimator.learning_rate_init_,
            schedule=estimator.learning_rate,
            weight_decay=estimator.weight_decay,
            ema_decay=estimator.ema_decay,
            loss_weight=network.loss_weight if isinstance(network, EndpointMLP) else None,
            validation=held_out,
            tol=estimator.tol,
            n_iter_no_change=estimator.n_iter_no_change,
            pretrained=continues(estimator),
            on_iteration=lambda _: progress.update(),
            on_check=at_check,
            state=kept and kept["run"],
            share_batches=_distributed.shares_batches(),
            record=type(network) in OWN_NETWORKS,  # a user's may look at values
        )
        # Machines of different kinds round differently.
        _distributed.broadcast(result.network.state_dict().values(), 0)
        return result


def train_on_pools(estimator, network, pool, held_out, training, checkpoint):
    """Velocity-field matching: regress a network on trajectories."""

    def draw(generator):
        return pool.draw(estimator.batch_size, generator)

    def draw_held_out(generator):
        return held_out.draw(VALIDATION_POINTS, generator)

    validation = held_out and draw_held_out
    return train(estimator, network, pool, draw, validation, training, checkpoint)


def train_transition(estimator, network, pool, held_out, training, checkpoint):
    """Regress a predictor of the time at which a point lies on its straight path."""
    pool.restart()  # velocities were learned from it before

    def draw(generator, pool=pool, size=estimator.batch_size):
        x, t, _ = pool.draw(size, generator)
        return x, t

    def draw_held_out(generator):
        return draw(generator, held_out, VALIDATION_POINTS)

    validation = held_out and draw_held_out
    return train(estimator, network, pool, draw, validation, training, checkpoint)


def own_layers(estimator, stream, states=None):
    """Context for what the layers of a user's network draw, from the start or from states on."""
    if isinstance(estimator.network, str):
        return nullcontext()
    return seeded_layers(seed_of(estimator.seed_, stream), estimator.device_, states)


def own_layers_states(estimator):
    """States of what the layers of a user's network draw from."""
    return None if isinstance(estimator.network, str) else layer_states(estimator.device_)


def keep_rows(estimator, X_source, X_target):
    """Keep a bounded part of the samples, for sample and score.

    Sets `source_sample_` and `target_sample_`.
    """
    seed = seed_of(0, "kept")  # the same for each estimator that is fitted to them
    estimator.target_sample_ = X_target[random_rows(len(X_target), KEPT_ROWS, seed)]
    estimator.source_sample_ = None
    if X_source is not None:
        estimator.source_sample_ = X_source[random_rows(len(X_source), KEPT_ROWS, seed)]
