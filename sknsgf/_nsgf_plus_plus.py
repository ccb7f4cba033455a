"""NSGF++: a few steps of the Sinkhorn flow, then a straight flow."""

import os
from functools import partial
from math import ceil
from numbers import Integral

import torch
from sklearn.utils import gen_batches

from sknsgf._base import BaseFlow, rows_at_a_time
from sknsgf._callbacks import Training, fit_task
from sknsgf._checkpoint import Checkpoint
from sknsgf._minibatches import MINIBATCHES, hold_out
from sknsgf._persistence import persistent
from sknsgf._simulation import PairSimulation, Simulation, make_pools
from sknsgf._state import FLOW_ATTRIBUTES, LOSSES, WEIGHTS, NetworkDesign, by_phase, one_of, whole
from sknsgf._torch_bridge import load_arrays, parameters_to_arrays, training_mode
from sknsgf._training import (
    are_used_whole,
    continues,
    count_batches,
    keep_rows,
    resolve,
    start_network,
    start_transition_network,
    train_on_pools,
    train_transition,
)
from sknsgf._validation import (
    check_fit_samples,
    check_method,
    check_parameter,
    check_same_design,
    hidden_sizes,
    open_samples,
    options,
    real,
    unchanged_on_failure,
    warn_of_inaccuracy,
    whole_number,
)
from sknsgf.flow.external import SOLVERS
from sknsgf.flow.integration import EVALUATIONS_PER_STEP, METHODS, integrate
from sknsgf.flow.networks import ACTIVATIONS, particle_field, velocity_field
from sknsgf.flow.paths import PAIRINGS
from sknsgf.flow.phases import TwoPhases
from sknsgf.flow.regression import SCHEDULES
from sknsgf.flow.trajectories import POOL_DTYPES, flow_step_sizes

PAPER_STEP_SIZE = 0.2  # of the Sinkhorn phase in the paper's mode
SINKHORN_SHARE = 0.7  # of the way, that the Sinkhorn phase goes in consistent mode
CONTINUOUS_FEATURES = 256  # from this many on, phase one is learned at all times
# Share of `max_iter` that phase one's network gets: the next phase makes up for its errors.
SINKHORN_TRAINING = {"velocity": 0.2, "endpoint": 0.5}
NETWORKS = {
    "consistent": ("sinkhorn", "straight"),
    "paper": ("sinkhorn", "straight", "transition"),
}


@persistent
class NSGFPlusPlus(BaseFlow):
    """Transport flow in two phases, for few network evaluations (NSGF++).

    Phase one takes at most a few Euler steps with a network that learned the velocity of the
    Sinkhorn flow, as in :class:`NSGFSampler`. Phase two follows a *straight flow*, regressed on
    straight paths between pairs of points, to the target ([1]_, with the modes below).

    Read more on the page :doc:`/two_phases`.

    Parameters
    ----------
    mode : {"consistent", "paper"}, default="consistent"
        Where the straight flow starts. "consistent": at the points that phase one, as learned,
        ends at; it is trained on pairs of such points and targets, and so also corrects what phase
        one left undone. "paper": it is trained on pairs of source and target points, and entered
        at the *transition time* that another network predicts for each point that leaves phase
        one, as in [1]_.
    blur : float or "auto", default="auto"
        Square root of the entropic temperature, over the scale of the data, of the Sinkhorn flow
        and of the pairing. "auto" is 0.1 for two features and grows with the square root of their
        number. Between 1e-3 and 1e3.
    n_steps : int, default=1
        Steps of the Sinkhorn phase: simulated, learned and taken.
    step_size : float in (0, 1] or "auto", default="auto"
        Step of the particle scheme. "auto" goes 0.7 of the way at constant speed in consistent
        mode, and is 0.2 in the paper's, which goes ``1 - 0.8 ** n_steps`` of it. One step of size 1
        goes all the way: for samples after a single evaluation (`n_straight_steps_` 0).
    flow_batch_size : int, default=2048
        Particles, and target rows, of one simulated flow. A few large steps average what the flows
        of different batches do, so larger is sharper, and costs more. A smaller sample is used
        whole; ``fit(X)`` draws as many particles as it uses rows.
    n_flows : int or "auto", default="auto"
        Simulated flows. "auto" moves 131,072 particles, in at most 128 flows; where both samples
        are used whole, all flows would be the same, and it is one.
    minibatches : {"stratified", "random"}, default="stratified"
        How rows of a sample that is larger than a batch are dealt to batches. "stratified": each
        batch has its share of every region, so that batches are much alike, and far clusters that
        hold equal shares of both samples do so in their batches. "random": by chance, as a single
        batch is. All rows are used equally often either way. Draws of the normal law of ``fit(X)``
        are quasi-random in the eight features of the largest spread, or all at random.
    solver : {"auto", "native", "geomloss", "pot"}, default="auto"
        Who computes Sinkhorn velocities. "auto" is the native batched solver, except for flows of
        1e8 pairs of rows or more, such as 10,000 by 10,000, in at most 3 dimensions when KeOps is
        installed: geomloss then. GeomLoss derives its `scaling` from `sinkhorn_tol` and reports no
        error; POT takes 20 plain iterations for one of `sinkhorn_max_iter`.
    sinkhorn_tol : float, default=1e-2
        L1 error of the marginals at which Sinkhorn iterations stop; those of pairs, whose error the
        straight flow would learn, at 0.3 of it.
    sinkhorn_max_iter : int, default=200
        Bound on these iterations at each step and temperature (a solve that stalls is cooled down
        slowly); a warning says when it was too low.
    pairing : {"auto", "sinkhorn", "potentials", "exact", "independent"}, default="auto"
        Who is paired for the straight flow. "sinkhorn": partners are drawn from the entropic plan
        between two batches of `pairing_size` rows; "potentials": the same, but only the first two
        batches are solved for and their potentials extended to the others; "exact": exact
        transport between two batches (POT); "independent": no choice. "auto" is "sinkhorn" in
        consistent mode ("potentials" where both samples are used whole, since all batches are the
        same then) and "independent" in the paper's.
    pairing_size : int, default=2048
        Rows of the two batches that are paired at a time. Larger is sharper, and costs more. A
        smaller sample is used whole.
    n_pairings : int or "auto", default="auto"
        Pairs of batches. "auto" makes 131,072 pairs of rows, in at most 128 pairs of batches.
    pool : {"memory", "memmap", "online"}, default="memory"
        What to do with simulated positions that take more than `max_pool_size`: "memory" raises,
        "memmap" puts them in a nameless file on disk, which is gone with the fit, however it ends,
        and "online" simulates them in parts, trains on each for an equal share of the gradient
        steps, and discards it.
    pool_dtype : {"float32", "float16"}, default="float32"
        Precision that simulated positions are stored in; float16 halves their memory.
    max_pool_size : float, default=2048
        Memory for simulated positions or pairs, in MB.
    pool_directory : str, os.PathLike or None, default=None
        Folder for what ``pool="memmap"`` puts on disk; None is the system's for temporary files.
    network : {"mlp", "unet"} or callable, default="mlp"
        "unet" is a convolutional network for rows that are images. A callable builds your own
        :class:`torch.nn.Module` from the number of features; ``module(x, t)`` takes points
        (n, n_features) and times (n,), and returns (n, n_features) of the same type: float32, or
        float64 once the module is turned into it, as it is for rows of that type.
        The callable must be importable (not a lambda) for the estimator to be pickled.
    hidden_layer_sizes : int or tuple of int, default=(128, 128, 128)
        Units of each hidden layer of the "mlp" network, and of the predictor of transition times.
        Not used with ``network="unet"``.
    activation : {"relu", "silu", "gelu", "elu", "tanh"}, default="relu"
        Activation of the "mlp" network, and of the predictor of transition times.
        Not used with ``network="unet"``.
    image_shape : tuple of 3 int or None, default=None
        Channels, height and width of the images that rows hold, flattened in this order. Only
        used, and needed, with ``network="unet"``.
    unet_channels : tuple of int, default=(32, 64)
        Channels of the "unet" network at each resolution, from the full one downwards. Only used
        with ``network="unet"``.
    prediction : {"auto", "velocity", "endpoint"}, default="auto"
        What the networks predict: the velocity, or the point it leads to; in the Sinkhorn phase,
        the point that a step of size 1 would lead to. "auto" is "endpoint" from 16 features on.
        The "mlp" network adds what it predicts of an endpoint to learned shares of the point's
        coordinates (:class:`~sknsgf.flow.networks.EndpointMLP`), and late endpoints weigh more in
        its loss.
    max_iter : int, default=10000
        Gradient steps of the training of each network; the network of the Sinkhorn phase, whose
        errors the next phase makes up for, takes a fifth as many, or half as many where it
        predicts endpoints.
    batch_size : int, default=256
        Points of one gradient step.
    learning_rate_init : float or "auto", default="auto"
        Learning rate of AdamW at the start. "auto" is 4e-3 for velocities and 2e-3 for endpoints.
    learning_rate : {"cosine", "constant"}, default="cosine"
        "cosine" lets the learning rate fall to 0 over the training of each network.
    weight_decay : float, default=0.0
        Decoupled weight decay of AdamW.
    ema_decay : float, default=0.999
        Decay of the moving average of the weights that is kept; 0 keeps the last weights.
    early_stopping : bool, default=False
        Train on a part of the rows of both samples, stop each training when the loss of flows, or
        pairs, of the other rows no longer falls, and keep the best weights. For samples of a few
        thousand rows or less in more than a few features, which are soon learned by heart: see
        :doc:`/progress`.
    validation_fraction : float, default=0.1
        Share of the rows of each sample, at most 8,192, that is held out. Only used when
        ``early_stopping=True``.
    n_iter_no_change : int, default=10
        Checks (one every 100 steps) without improvement before stopping. Only used when
        ``early_stopping=True``.
    tol : float, default=1e-4
        Relative improvement of the held-out loss that counts. Only used when
        ``early_stopping=True``.
    method : {"euler", "midpoint", "rk4"}, default="euler"
        Integration method of the straight phase: 1, 2 or 4 network evaluations per step. "rk4"
        evaluates the field at time 1 and does not go with `prediction` "endpoint".
    n_straight_steps : int, default=4
        Steps of the straight phase.
    warm_start : bool, default=False
        Start training from the weights, and in the units (`center_`, `scale_`), of the last fit.
    checkpoint : str, os.PathLike or None, default=None
        Folder where `fit` keeps what it has done. A fit that was killed, called again with the same
        parameters and data, goes on from there and ends with the same result, bit by bit; other
        data, or parameters that matter to it, are refused. A fit that ends removes the folder.
    checkpoint_every : int, default=1000
        Gradient steps between two checkpoints, rounded up to a hundred. Only used with
        `checkpoint`; simulated flows are kept as they come.
    random_state : int, RandomState instance or None, default=None
        Determines minibatches, weights and batches. The same int gives the same fit, bit by bit,
        on the same machine.
    device : str, default="auto"
        "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:1". A model fitted on a GPU opens
        on machines without.
    n_jobs : int or None, default=None
        Threads that simulate flows and transport rows; the result does not depend on it. None
        means 1 unless in a context ``joblib.parallel_config(backend="threading", n_jobs=...)``, -1
        all cores.
    verbose : bool, default=False
        Show progress bars.

    Attributes
    ----------
    network_parameters_ : dict of str to dict
        Weights of the fitted networks: "sinkhorn", "straight" and, in the paper's mode,
        "transition".
    center_ : ndarray of shape (n_features,)
        Point the data are centred on.
    scale_ : float
        Number they are divided by: the pooled root mean square per feature.
    blur_ : float
        Blur in units of the data.
    step_sizes_ : list of float
        Step sizes of the particle scheme.
    n_flows_ : int
        Flows that were simulated.
    solver_ : str
        The solver of the Sinkhorn phase.
    mode_, pairing_ : str
        The mode that was fitted and the pairing it used.
    n_pairings_ : int
        Pairs of batches that were paired.
    learning_rate_init_ : float
        Learning rate at the start.
    prediction_ : str
        What the networks predict.
    seed_ : int
        Number that, as `random_state`, makes this fit again; of use where that was None.
    device_ : str
        Where the flow was simulated and trained, and is evaluated if that device is there.
    sinkhorn_error_ : float
        Largest marginal error of the solves that report one, those of pairs among them.
    loss_curves_ : dict of str to list of float
        For each network, the mean squared error of the batch at each gradient step; in squared
        units of `scale_`, or of time for "transition". That of endpoints of the "mlp" network is
        weighted by time, from about 1 to 32.
    validation_loss_curves_ : dict of str to list of float
        The same on held-out rows, every 100 steps; empty without early stopping.
    n_iter_ : int
        Gradient steps done for all networks.
    method_, n_straight_steps_ : str, int
        The integration of the straight phase. Both may be assigned to, to transport with more or
        fewer network evaluations without fitting again; 0 steps end after the Sinkhorn phase.
    n_evaluations_ : int
        Network evaluations per row of :meth:`transform`.
    phase_evaluations_ : dict of str to int
        The same for each network.
    source_sample_, target_sample_ : ndarray
        Up to 10,000 rows of each sample, kept for :meth:`sample` and :meth:`score`;
        `source_sample_` is None after ``fit(X)``.
    source_mean_, source_std_ : ndarray of shape (n_features,)
        Normal law of the source after ``fit(X)``; after a two-sample fit its sample's moments.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, when `X` has string column names.

    See Also
    --------
    NSGFSampler : The Sinkhorn flow alone.

    References
    ----------
    .. [1] Zhu, Wang, Zhang, Zhao, Qian, "Neural Sinkhorn Gradient Flow", arXiv:2401.14069, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from sknsgf import NSGFPlusPlus
    >>> rng = np.random.default_rng(0)
    >>> X_source = rng.normal(size=(500, 2))
    >>> X_target = rng.normal(size=(400, 2)) * [1.0, 0.5] + [4.0, 2.0]
    >>> flow = NSGFPlusPlus(max_iter=400, random_state=0).fit(X_source, X_target)
    >>> flow.transform(X_source).mean(axis=0).round()
    array([4., 2.])
    >>> flow.n_evaluations_
    5
    """

    _parameter_constraints = {
        "mode": [options(*NETWORKS)],
        "blur": [real(1e-3, 1e3, closed="both"), options("auto")],
        "n_steps": [whole_number()],
        "step_size": [real(0, 1, closed="right"), options("auto")],
        "flow_batch_size": [whole_number(2)],
        "n_flows": [whole_number(), options("auto")],
        "minibatches": [options(*MINIBATCHES)],
        "solver": [options("auto", *SOLVERS)],
        "sinkhorn_tol": [real(0, closed="neither")],
        "sinkhorn_max_iter": [whole_number()],
        "pairing": [options("auto", *PAIRINGS)],
        "pairing_size": [whole_number(2)],
        "n_pairings": [whole_number(), options("auto")],
        "pool": [options("memory", "memmap", "online")],
        "pool_dtype": [options(*POOL_DTYPES)],
        "max_pool_size": [real(0, closed="neither")],
        "pool_directory": [str, os.PathLike, None],
        "network": [options("mlp", "unet"), callable],
        "hidden_layer_sizes": ["array-like", whole_number()],
        "activation": [options(*ACTIVATIONS)],
        "image_shape": ["array-like", None],
        "unet_channels": ["array-like"],
        "prediction": [options("auto", "velocity", "endpoint")],
        "max_iter": [whole_number()],
        "batch_size": [whole_number()],
        "learning_rate_init": [real(0, closed="neither"), options("auto")],
        "learning_rate": [options(*SCHEDULES)],
        "weight_decay": [real(0, closed="left")],
        "ema_decay": [real(0, 1, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [real(0, 1, closed="neither")],
        "n_iter_no_change": [whole_number()],
        "tol": [real(0, closed="left")],
        "method": [options(*METHODS)],
        "n_straight_steps": [whole_number()],
        "warm_start": ["boolean"],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [whole_number()],
        "random_state": ["random_state"],
        "device": [str],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    _fitted_attributes = {
        **FLOW_ATTRIBUTES,
        "mode_": one_of(*NETWORKS),
        "pairing_": one_of(*PAIRINGS),
        "n_pairings_": whole(),
        "method_": one_of(*METHODS),
        "n_straight_steps_": whole(0),
        "network_parameters_": by_phase(WEIGHTS, NETWORKS),
        "loss_curves_": by_phase(LOSSES, NETWORKS),
        "validation_loss_curves_": by_phase(LOSSES, NETWORKS),
    }

    def __init__(
        self,
        *,
        mode="consistent",
        blur="auto",
        n_steps=1,
        step_size="auto",
        flow_batch_size=2048,
        n_flows="auto",
        minibatches="stratified",
        solver="auto",
        sinkhorn_tol=1e-2,
        sinkhorn_max_iter=200,
        pairing="auto",
        pairing_size=2048,
        n_pairings="auto",
        pool="memory",
        pool_dtype="float32",
        max_pool_size=2048,
        pool_directory=None,
        network="mlp",
        hidden_layer_sizes=(128, 128, 128),
        activation="relu",
        image_shape=None,
        unet_channels=(32, 64),
        prediction="auto",
        max_iter=10_000,
        batch_size=256,
        learning_rate_init="auto",
        learning_rate="cosine",
        weight_decay=0.0,
        ema_decay=0.999,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        method="euler",
        n_straight_steps=4,
        warm_start=False,
        checkpoint=None,
        checkpoint_every=1000,
        random_state=None,
        device="auto",
        n_jobs=None,
        verbose=False,
    ):
        self.mode = mode
        self.blur = blur
        self.n_steps = n_steps
        self.step_size = step_size
        self.flow_batch_size = flow_batch_size
        self.n_flows = n_flows
        self.minibatches = minibatches
        self.solver = solver
        self.sinkhorn_tol = sinkhorn_tol
        self.sinkhorn_max_iter = sinkhorn_max_iter
        self.pairing = pairing
        self.pairing_size = pairing_size
        self.n_pairings = n_pairings
        self.pool = pool
        self.pool_dtype = pool_dtype
        self.max_pool_size = max_pool_size
        self.pool_directory = pool_directory
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.image_shape = image_shape
        self.unet_channels = unet_channels
        self.prediction = prediction
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.method = method
        self.n_straight_steps = n_straight_steps
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.random_state = random_state
        self.device = device
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X, y=None, *, X_target=None):
        """Learn the flow from a source sample to a target sample: ``fit(X_source, X_target)``.

        Parameters
        ----------
        X : array-like of shape (n_source, n_features), or path of a .npy file
            Rows of the source. If no target is given, `X` is the target, and the source is the
            normal law with the mean and variance of each feature of `X`.
        y : array-like of shape (n_target, n_features) or (n_source,), or path, default=None
            Two-dimensional: the target. One-dimensional: labels from a pipeline, ignored.
        X_target : array-like of shape (n_target, n_features), or path, default=None
            The target, with any number of rows; `y` is then ignored. Rows of files stay there, see
            :doc:`/large_data`.

        Returns
        -------
        self : NSGFPlusPlus
            The fitted estimator. When `fit` fails or is interrupted, it is left as it was before.

        Raises
        ------
        ValueError
            If a parameter or a sample is not valid, or if the training diverges.
        TypeError
            If a sample is sparse, or if `network` is no function that builds a module.
        OSError
            If the file that a path names cannot be read, or a pool or a checkpoint not be written.

        Warns
        -----
        ConvergenceWarning
            If the error of a Sinkhorn solve is more than twice `sinkhorn_tol`.
        UserWarning
            If the blur is too small for the samples' precision, or if a one-dimensional `y` of
            floats beside rows of one feature may have been meant as a target.
        """
        n_stages = 5 if self.mode == "paper" else 4  # flows, pairs, and a training per network
        X, y, X_target = open_samples(X, y, X_target)
        with (
            unchanged_on_failure(self),
            fit_task(self, X, y, X_target, n_stages) as task,
            training_mode(),
        ):
            self._validate_params()
            X_source, X_target = check_fit_samples(self, X, y, X_target)
            checkpoint = Checkpoint(self)
            self.seed_ = checkpoint.seed(self.random_state)
            self._resolve(X_source, X_target)
            keep_rows(self, X_source, X_target)
            networks = self._start_networks()
            checkpoint.claim(self, X_source, X_target, networks.values())
            learned = {}

            def learn(phase, stream, pools, train=train_on_pools):
                def attributes(result):
                    return self._learned(learned | {phase: result})

                training = Training(task, stream, attributes)
                learned[phase] = train(self, networks[phase], *pools, training, checkpoint)

            samples, held_out = hold_out(self, X_source, X_target)
            shared = samples, held_out, checkpoint
            flows = Simulation(self, *shared)
            pairs = PairSimulation(self, *shared, partial(self._start_of_paths, learned))
            time, step_sizes = self._sinkhorn_time(), self.step_sizes_
            n_draws = ceil(SINKHORN_TRAINING[self.prediction_] * self.max_iter)
            pools = make_pools(flows, task, time=time, n_draws=n_draws, step_sizes=step_sizes)
            learn("sinkhorn", "training", pools)
            del pools  # before there is one of pairs
            pools = make_pools(pairs, task, time="continuous", n_draws=self.max_iter)
            learn("straight", "straight training", pools)
            if self.mode == "paper":
                learn("transition", "transition training", pools, train_transition)
            vars(self).update(self._learned(learned))
            warn_of_inaccuracy(self, max(flows.radius, pairs.radius))
        checkpoint.remove()
        return self

    @property
    def phase_evaluations_(self):
        """Network evaluations per transported row, for each network."""
        straight = self.n_straight_steps_ * EVALUATIONS_PER_STEP[self.method_]
        counts = {"sinkhorn": len(self.step_sizes_), "straight": straight}
        return counts | ({"transition": min(straight, 1)} if self.mode_ == "paper" else {})

    @property
    def n_evaluations_(self):
        """Network evaluations per transported row."""
        return sum(self.phase_evaluations_.values())

    @property
    def n_iter_(self):
        """Gradient steps done for all networks."""
        return sum(map(len, self.loss_curves_.values()))

    @property
    def _n_times(self):
        return len(self.step_sizes_) + self.n_straight_steps_ + 1

    def _resolve(self, X_source, X_target):
        """Turn parameters and the samples' moments into what this fit uses."""
        paper = self.mode == "paper"
        step_size = PAPER_STEP_SIZE if paper and self.step_size == "auto" else self.step_size
        resolve(self, X_source, X_target)
        self.step_sizes_ = flow_step_sizes(self.n_steps, step_size, SINKHORN_SHARE)
        self.mode_, self.pairing_, size = self.mode, self.pairing, self.pairing_size
        if self.pairing == "auto":
            if paper:
                self.pairing_ = "independent"
            elif are_used_whole(self, size, X_source, X_target):
                self.pairing_ = "potentials"
            else:
                self.pairing_ = "sinkhorn"
        self.n_pairings_ = count_batches(self, self.n_pairings, size, X_source, X_target)
        self.method_, self.n_straight_steps_ = self.method, self.n_straight_steps
        check_method(self)

    def _sinkhorn_time(self):
        """Times at which the Sinkhorn flow is learned, although only those of its steps are used.

        In very many dimensions a network learns little from source points alone, and points on
        their way tell where they go. It can't follow a speed that jumps from step to step, though.
        """
        constant_speed = self.step_size == "auto" or self.n_steps == 1
        many = self.n_features_in_ >= CONTINUOUS_FEATURES and self.mode == "consistent"
        return "continuous" if many and constant_speed else "discrete"

    def _start_networks(self):
        """Networks with fresh weights, or with those of the last fit under warm start."""
        design, arrays = NetworkDesign.of(self), {}
        if not isinstance(self.network, str):  # the transition network is of the library's own
            sizes = hidden_sizes(self.hidden_layer_sizes)
            design = design._replace(hidden_layer_sizes=sizes, activation=self.activation)
        if continues(self):
            check_same_design(design, self._design)
            arrays = self.network_parameters_
        self._design = design
        networks = {
            "sinkhorn": start_network(self, design, arrays.get("sinkhorn"), "network"),
            "straight": start_network(self, design, arrays.get("straight"), "straight network"),
        }
        if self.mode == "paper":
            start = arrays.get("transition")
            networks["transition"] = start_transition_network(self, design, start)
        return networks

    def _start_of_paths(self, learned, points):
        """Where the straight paths of points of the source start."""
        if self.mode == "paper":
            return points
        n_steps = len(self.step_sizes_)
        network = learned["sinkhorn"].network.eval()
        field = particle_field(network, self.prediction_, self.step_sizes_)
        size = rows_at_a_time(self._design, self.device_)
        with torch.no_grad():
            chunks = [points[rows] for rows in gen_batches(len(points), size)]
            return torch.cat([integrate(field, x, n_steps=n_steps).x for x in chunks])

    def _learned(self, learned):
        """Attributes that trainings lead to, or None while a network is still to be trained."""
        if tuple(learned) != NETWORKS[self.mode]:
            return None
        return {
            "network_parameters_": {
                phase: parameters_to_arrays(result.network) for phase, result in learned.items()
            },
            "loss_curves_": {phase: result.losses for phase, result in learned.items()},
            "validation_loss_curves_": {
                phase: result.validation_losses for phase, result in learned.items()
            },
        }

    def _networks(self):
        return {
            phase: load_arrays(self._build(phase), arrays)
            for phase, arrays in self.network_parameters_.items()
        }

    def _follow(self):
        name = type(self).__name__
        check_parameter("n_straight_steps_", self.n_straight_steps_, whole_number(0), name)
        check_parameter("method_", self.method_, options(*METHODS), name)
        check_method(self)
        return partial(
            _follow_phases,
            prediction=self.prediction_,
            step_sizes=self.step_sizes_,
            n_straight_steps=self.n_straight_steps_,
            method=self.method_,
        )

    def _build(self, phase):
        """Network of a phase with fresh weights."""
        return self._design.build_transition() if phase == "transition" else self._design.build()


def _follow_phases(
    networks, *, prediction, step_sizes, n_straight_steps, method, backward=False, **options
):
    """Function that carries a tensor of points through both phases, or back."""
    phases = TwoPhases(
        particle_field(networks["sinkhorn"], prediction, step_sizes),
        partial(velocity_field, networks["straight"], prediction),
        networks.get("transition"),
        len(step_sizes),
        n_straight_steps,
        method,
    )
    return phases.backward if backward else partial(phases.forward, **options)
