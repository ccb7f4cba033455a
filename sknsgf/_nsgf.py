"""Neural Sinkhorn gradient flow as a scikit-learn estimator."""

import os
from functools import partial
from numbers import Integral

from sknsgf._base import BaseFlow
from sknsgf._callbacks import Training, fit_task
from sknsgf._checkpoint import Checkpoint
from sknsgf._minibatches import MINIBATCHES, hold_out
from sknsgf._persistence import persistent
from sknsgf._simulation import Simulation, make_pools
from sknsgf._state import FLOW_ATTRIBUTES, LOSSES, WEIGHTS, NetworkDesign, one_of, whole
from sknsgf._torch_bridge import load_arrays, parameters_to_arrays, training_mode
from sknsgf._training import (
    continues,
    keep_rows,
    resolve,
    start_network,
    train_on_pools,
)
from sknsgf._validation import (
    check_discrete_time,
    check_fit_samples,
    check_method,
    check_parameter,
    check_same_design,
    open_samples,
    options,
    real,
    unchanged_on_failure,
    warn_of_inaccuracy,
    whole_number,
)
from sknsgf.flow.external import SOLVERS
from sknsgf.flow.integration import (
    EVALUATIONS_PER_STEP,
    METHODS,
    integrate,
    invert_euler,
    least_remaining_back,
)
from sknsgf.flow.networks import ACTIVATIONS, velocity_field
from sknsgf.flow.regression import SCHEDULES
from sknsgf.flow.trajectories import POOL_DTYPES, TIMES, flow_step_sizes


@persistent
class NSGFSampler(BaseFlow):
    """Transport flow between two samples by neural Sinkhorn gradient flow.

    The Wasserstein gradient flow of the Sinkhorn divergence moves particles of the source to the
    target. ``fit`` simulates it for many minibatches of particles, with velocities from a Sinkhorn
    solver, and regresses a network on these trajectories (velocity-field matching, [1]_). New rows
    are then carried by integrating the network's field over the flow time from 0 to 1.

    Data are centred and divided by one number (`scale_`) inside, which keeps the geometry of
    transport; put a :class:`~sklearn.preprocessing.StandardScaler` in front where features have
    different units.

    Read more in the :doc:`user guide </user_guide>`.

    Parameters
    ----------
    blur : float or "auto", default="auto"
        Square root of the entropic temperature of the Sinkhorn divergence, over the scale of the
        data: the length below which details of the target are blurred during the flow. "auto" is
        0.1 for two features and grows with the square root of their number. Between 1e-3 and 1e3.
    n_steps : int, default=5
        Steps of the simulated flow.
    step_size : float in (0, 1] or "auto", default="auto"
        Step of the particle scheme. "auto" takes ``1 / (n_steps - k)`` at step ``k``: constant
        speed, and the flow ends at the target. With a number, a share of about
        ``(1 - step_size) ** n_steps`` of the way is left.
    time : {"continuous", "discrete"}, default="continuous"
        Whether the network learns the field at all times, or only at the ``n_steps`` times of the
        particle scheme (as in [1]_; `method` must be "euler" with `n_steps` steps). The way back
        then solves for where each step began, by 50 evaluations of each.
    flow_batch_size : int, default=2048
        Particles, and target rows, of one simulated flow. Larger is less biased and costs more. A
        smaller sample is used whole; ``fit(X)`` draws as many particles as it uses rows.
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
        L1 error of the marginals at which Sinkhorn iterations stop.
    sinkhorn_max_iter : int, default=200
        Bound on these iterations at each step and temperature (a solve that stalls is cooled down
        slowly); a warning says when it was too low.
    pool : {"memory", "memmap", "online"}, default="memory"
        What to do with simulated positions that take more than `max_pool_size`: "memory" raises,
        "memmap" puts them in a nameless file on disk, which is gone with the fit, however it ends,
        and "online" simulates them in parts, trains on each for an equal share of the gradient
        steps, and discards it.
    pool_dtype : {"float32", "float16"}, default="float32"
        Precision that simulated positions are stored in; float16 halves their memory.
    max_pool_size : float, default=2048
        Memory for simulated positions, in MB.
    pool_directory : str, os.PathLike or None, default=None
        Folder for what ``pool="memmap"`` puts on disk; None is the system's for temporary files.
    network : {"mlp", "unet"} or callable, default="mlp"
        "unet" is a convolutional network for rows that are images. A callable builds your own
        :class:`torch.nn.Module` from the number of features; ``module(x, t)`` takes points
        (n, n_features) and times (n,), and returns (n, n_features) of the same type: float32, or
        float64 once the module is turned into it, as it is for rows of that type.
        The callable must be importable (not a lambda) for the estimator to be pickled.
    hidden_layer_sizes : int or tuple of int, default=(128, 128, 128)
        Units of each hidden layer of the "mlp" network. Only used with ``network="mlp"``.
    activation : {"relu", "silu", "gelu", "elu", "tanh"}, default="relu"
        Activation of the "mlp" network. Only used with ``network="mlp"``.
    image_shape : tuple of 3 int or None, default=None
        Channels, height and width of the images that rows hold, flattened in this order. Only
        used, and needed, with ``network="unet"``.
    unet_channels : tuple of int, default=(32, 64)
        Channels of the "unet" network at each resolution, from the full one downwards. Only used
        with ``network="unet"``.
    prediction : {"auto", "velocity", "endpoint"}, default="auto"
        What the network predicts: the velocity, or the point it leads to at time 1. "auto" is
        "endpoint" from 16 features on. The "mlp" network adds what it predicts of an endpoint to
        learned shares of the point's coordinates
        (:class:`~sknsgf.flow.networks.EndpointMLP`), and late endpoints weigh more in its loss.
    max_iter : int, default=6000
        Gradient steps of the training.
    batch_size : int, default=256
        Points of one gradient step.
    learning_rate_init : float or "auto", default="auto"
        Learning rate of AdamW at the start. "auto" is 4e-3 for velocities and 2e-3 for endpoints.
    learning_rate : {"cosine", "constant"}, default="cosine"
        "cosine" lets the learning rate fall to 0 over `max_iter` steps.
    weight_decay : float, default=0.0
        Decoupled weight decay of AdamW.
    ema_decay : float, default=0.999
        Decay of the moving average of the weights that is kept; 0 keeps the last weights.
    early_stopping : bool, default=False
        Train on a part of the rows of both samples, stop when the loss of flows of the other rows
        no longer falls, and keep the best weights. For samples of a few thousand rows or less in
        more than a few features, which are soon learned by heart: see :doc:`/progress`.
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
        Integration method: 1, 2 or 4 network evaluations per step. "rk4" evaluates the field at
        time 1 and does not go with `prediction` "endpoint".
    n_integration_steps : int or None, default=None
        Steps of the integration; None takes 10, or `n_steps` for discrete time.
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
    network_parameters_ : dict of str to ndarray
        Weights of the fitted network.
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
        The solver used.
    time_ : str
        Value of `time` that was fitted.
    learning_rate_init_ : float
        Learning rate at the start.
    prediction_ : str
        What the network predicts.
    seed_ : int
        Number that, as `random_state`, makes this fit again; of use where that was None.
    device_ : str
        Where the flow was simulated and trained, and is evaluated if that device is there.
    sinkhorn_error_ : float
        Largest marginal error of all solves (NaN where the solver reports none).
    loss_curve_ : list of float
        Mean squared error of the batch at each gradient step, in squared units of `scale_`;
        that of endpoints of the "mlp" network is weighted by time, from about 1 to 32.
    validation_loss_curve_ : list of float
        The same on flows of held-out rows, every 100 steps; empty without early stopping.
    n_iter_ : int
        Gradient steps done.
    method_, n_integration_steps_ : str, int
        The integration in use. Both may be assigned to, to transport with more or fewer network
        evaluations without fitting again (not with ``time="discrete"``).
    n_evaluations_ : int
        Network evaluations per row of :meth:`transform`.
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
    sknsgf.metrics : Distances between samples.

    References
    ----------
    .. [1] Zhu, Wang, Zhang, Zhao, Qian, "Neural Sinkhorn Gradient Flow", arXiv:2401.14069, 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from sknsgf import NSGFSampler
    >>> rng = np.random.default_rng(0)
    >>> X_source = rng.normal(size=(500, 2))
    >>> X_target = rng.normal(size=(400, 2)) * [1.0, 0.5] + [4.0, 2.0]
    >>> flow = NSGFSampler(max_iter=400, random_state=0).fit(X_source, X_target)
    >>> flow.transform(X_source).mean(axis=0).round()
    array([4., 2.])
    >>> flow.sample(3).shape
    (3, 2)
    """

    _parameter_constraints = {
        "blur": [real(1e-3, 1e3, closed="both"), options("auto")],
        "n_steps": [whole_number()],
        "step_size": [real(0, 1, closed="right"), options("auto")],
        "time": [options(*TIMES)],
        "flow_batch_size": [whole_number(2)],
        "n_flows": [whole_number(), options("auto")],
        "minibatches": [options(*MINIBATCHES)],
        "solver": [options("auto", *SOLVERS)],
        "sinkhorn_tol": [real(0, closed="neither")],
        "sinkhorn_max_iter": [whole_number()],
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
        "n_integration_steps": [whole_number(), None],
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
        "time_": one_of(*TIMES),
        "method_": one_of(*METHODS),
        "n_integration_steps_": whole(),
        "network_parameters_": WEIGHTS,
        "loss_curve_": LOSSES,
        "validation_loss_curve_": LOSSES,
    }

    def __init__(
        self,
        *,
        blur="auto",
        n_steps=5,
        step_size="auto",
        time="continuous",
        flow_batch_size=2048,
        n_flows="auto",
        minibatches="stratified",
        solver="auto",
        sinkhorn_tol=1e-2,
        sinkhorn_max_iter=200,
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
        max_iter=6000,
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
        n_integration_steps=None,
        warm_start=False,
        checkpoint=None,
        checkpoint_every=1000,
        random_state=None,
        device="auto",
        n_jobs=None,
        verbose=False,
    ):
        self.blur = blur
        self.n_steps = n_steps
        self.step_size = step_size
        self.time = time
        self.flow_batch_size = flow_batch_size
        self.n_flows = n_flows
        self.minibatches = minibatches
        self.solver = solver
        self.sinkhorn_tol = sinkhorn_tol
        self.sinkhorn_max_iter = sinkhorn_max_iter
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
        self.n_integration_steps = n_integration_steps
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
        self : NSGFSampler
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
        X, y, X_target = open_samples(X, y, X_target)
        with (
            unchanged_on_failure(self),
            fit_task(self, X, y, X_target, n_stages=2) as task,
            training_mode(),
        ):
            self._validate_params()
            X_source, X_target = check_fit_samples(self, X, y, X_target)
            checkpoint = Checkpoint(self)
            self.seed_ = checkpoint.seed(self.random_state)
            self._resolve(X_source, X_target)
            keep_rows(self, X_source, X_target)
            network = self._start_network()
            checkpoint.claim(self, X_source, X_target, [network])
            samples, held_out = hold_out(self, X_source, X_target)
            flows = Simulation(self, samples, held_out, checkpoint)
            pools = make_pools(flows, task, time=self.time, n_draws=self.max_iter)
            training = Training(task, "training", self._learned)
            result = train_on_pools(self, network, *pools, training, checkpoint)
            vars(self).update(self._learned(result))
            warn_of_inaccuracy(self, flows.radius)
        checkpoint.remove()
        return self

    @property
    def n_evaluations_(self):
        """Network evaluations per transported row."""
        return self.n_integration_steps_ * EVALUATIONS_PER_STEP[self.method_]

    @property
    def n_iter_(self):
        """Gradient steps done."""
        return len(self.loss_curve_)

    @property
    def _n_times(self):
        return self.n_integration_steps_ + 1

    def _resolve(self, X_source, X_target):
        """Turn parameters and the samples' moments into what this fit uses."""
        resolve(self, X_source, X_target)
        self.step_sizes_ = flow_step_sizes(self.n_steps, self.step_size)
        self.time_ = self.time
        self.method_, self.n_integration_steps_ = self.method, self.n_integration_steps
        if self.n_integration_steps is None:
            self.n_integration_steps_ = self.n_steps if self.time == "discrete" else 10
        check_discrete_time(self)
        check_method(self)

    def _start_network(self):
        """Network with fresh weights, or with those of the last fit under warm start."""
        design, arrays = NetworkDesign.of(self), None
        if continues(self):
            check_same_design(design, self._design)
            arrays = self.network_parameters_
        self._design = design
        return start_network(self, design, arrays, "network")

    def _learned(self, result):
        """Attributes that the training leads to; with them the estimator is complete."""
        return {
            "network_parameters_": parameters_to_arrays(result.network),
            "loss_curve_": result.losses,
            "validation_loss_curve_": result.validation_losses,
        }

    def _networks(self):
        return {"velocity": load_arrays(self._design.build(), self.network_parameters_)}

    def _follow(self):
        steps, method = self.n_integration_steps_, self.method_
        check_parameter("n_integration_steps_", steps, whole_number(), type(self).__name__)
        check_parameter("method_", method, options(*METHODS), type(self).__name__)
        check_discrete_time(self)
        check_method(self)
        return partial(
            _follow_field,
            prediction=self._design.prediction,
            discrete=self.time_ == "discrete",
            n_steps=steps,
            method=method,
        )


def _follow_field(networks, *, prediction, discrete, n_steps, method, backward=False, **options):
    """Function that carries a tensor of points along the learned field, or back."""
    bound = least_remaining_back(method, n_steps) if backward else 0.5 / n_steps
    field = velocity_field(networks["velocity"], prediction, bound)
    if discrete and backward:  # at time 1, where the way back would begin, nothing was learned
        return partial(invert_euler, field, n_steps=n_steps)
    options |= {"n_steps": n_steps, "method": method, "backward": backward}
    return lambda points: integrate(field, points, **options).x
