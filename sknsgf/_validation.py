"""What estimators accept: parameters and samples. Every error's wording is here."""

import os
import re
import warnings
from contextlib import contextmanager
from functools import partial
from inspect import signature
from numbers import Integral, Real
from tempfile import gettempdir

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, gen_batches
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    validate_data,
)

from sknsgf._file_rows import in_parts, is_mapped
from sknsgf.flow.regression import DivergenceError

LARGEST_EXPONENT = 1e5  # above, exponents in float32 are wrong by more than 1 %
FLOATS = [np.float64, np.float32]  # kept as they are; everything else becomes the first
CHECKED_ENTRIES = 2**20  # entries of a mapped file that are checked at a time


def whole_number(low=1, high=None):
    """Constraint of a parameter: an int of at least ``low`` and, if given, at most ``high``."""
    if low == high:  # which scikit-learn takes for an empty interval
        return Interval(Integral, low, high + 1, closed="left")
    return Interval(Integral, low, high, closed="left" if high is None else "both")


def real(low, high=None, *, closed):
    """Constraint of a parameter: a number in an interval."""
    return Interval(Real, low, high, closed=closed)


def options(*names):
    """Constraint of a parameter: one of some strings."""
    return StrOptions(set(names))


def methods(*names):
    """Constraint of a parameter: an object with some methods."""
    return HasMethods(list(names))


def check_parameter(name, value, constraint, caller):
    """Raise scikit-learn's error about an invalid argument of a method."""
    validate_parameter_constraints({name: [constraint]}, {name: value}, caller)


def check_path(path, caller):
    """Refuse what is not the name of a file, such as an open file."""
    validate_parameter_constraints({"path": [str, os.PathLike]}, {"path": path}, caller)


@contextmanager
def unchanged_on_failure(estimator):
    """Give the estimator its attributes back if the block raises or is interrupted."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def open_samples(X, y=None, X_target=None):
    """Samples whose files are opened where a path is given; nothing is read yet."""
    return _opened(X, "X"), _opened(y, "y"), _opened(X_target, "X_target")


def check_fit_samples(estimator, X, y, X_target):
    """Source and target rows to fit; the source is None when there is one sample only."""
    check = partial(validate_data, estimator, reset=True, ensure_min_samples=2)
    X = _check_sample(check, X, estimator=estimator, input_name="X")
    target = check_target(estimator, X, y, X_target)
    return (None, X) if target is None else (X, target)


def check_rows(estimator, X):
    """Rows to transport, in float64 or float32; not copied when they are either.

    Rows of a mapped file are checked, and later converted, a part at a time.
    """
    check = partial(validate_data, estimator, reset=False)
    return _check_sample(check, _opened(X, "X"), estimator=estimator, input_name="X")


def _opened(sample, name):
    """Map the file that a path names into memory, read-only; any other sample stays as it is."""
    if not isinstance(sample, str | os.PathLike):
        return sample
    try:
        return np.lib.format.open_memmap(sample, mode="r")
    except ValueError as error:
        raise ValueError(
            f"{name} must be an array, or the path of a .npy file that holds one of numbers. Got "
            f"{os.fspath(sample)!r}, which could not be opened as such a file: {error}"
        ) from error


def _check_sample(check, sample, **options):
    """scikit-learn's ``check`` of a sample, a part at a time if it is in a file."""
    if not is_mapped(sample):
        return check(sample, dtype=FLOATS)
    check(sample, dtype=None, ensure_all_finite=False)
    return _check_parts(sample, **options)


def _check_parts(array, **options):
    """Rows of a mapped file, each part of which scikit-learn has found to be finite numbers."""
    parts = in_parts(array)
    for part in gen_batches(len(array), max(1, CHECKED_ENTRIES // array.shape[1])):
        dtype = check_array(parts[part], dtype=FLOATS, **options).dtype
    return in_parts(array, dtype)


def check_out(out, X, shape):
    """Array that transported rows are put into: new, or what the user gave for it."""
    if out is None:
        return np.empty(shape, dtype=X.dtype)
    wanted = f"out must be a writable NumPy array of shape {shape} and dtype {X.dtype}"
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{wanted}. Got {type(out).__name__}.")
    if out.shape != shape or out.dtype != X.dtype:
        raise ValueError(f"{wanted}, as the result. Got shape {out.shape} and dtype {out.dtype}.")
    if not out.flags.writeable:
        raise ValueError(
            f"{wanted}. Got one that is read-only. Open a file with mode='r+', or make one with "
            "np.lib.format.open_memmap(path, mode='w+', dtype=..., shape=...)."
        )
    rows = getattr(X, "array", X)  # of a mapped file
    if np.shares_memory(rows, out) and not _same_place(rows, out):
        raise ValueError(
            f"{wanted}, that shares no memory with X unless it is X itself. Got one that overlaps "
            "X, whose rows would be replaced before they are read."
        )
    return out


def _same_place(array, other):
    """Whether each row of two arrays of one shape and dtype lies at the same place in memory."""
    same_start = array.ctypes.data == other.ctypes.data
    return same_start and array.strides == other.strides and array.dtype == other.dtype


def check_target(estimator, X, y, X_target):
    """Target rows: ``X_target`` if given, else a two-dimensional ``y``, else None."""
    _, y, X_target = open_samples(X, y, X_target)
    if X_target is None:
        if y is None or _are_labels(X, y):
            return None
        target, name = y, "y"
    else:
        target, name = X_target, "X_target"
    options = {"estimator": estimator, "input_name": name}
    with _naming(name):
        rows = _check_sample(
            partial(check_array, ensure_min_samples=2, **options), target, **options
        )
    named = hasattr(target, "columns") and hasattr(estimator, "feature_names_in_")
    try:  # names are compared where both samples have them
        _check_n_features(estimator, rows, reset=False)
        if named:
            _check_feature_names(estimator, target, reset=False)
    except ValueError as error:
        reason = re.sub("^X has", "It has", str(error))
        raise ValueError(f"The target sample does not match X. {reason}") from None
    return rows


def check_labelled_samples(estimator, X, y, X_target):
    """Source rows with labels and target rows without, for a meta-estimator to fit on."""
    if X_target is None:
        raise ValueError(
            f"{type(estimator).__name__} needs a sample of the target to fit: pass unlabelled rows "
            "like those to predict, fit(X, y, X_target=X_target). Got X_target=None."
        )
    X, y = validate_data(
        estimator,
        _opened(X, "X"),
        y,
        reset=True,
        dtype=FLOATS,
        ensure_min_samples=2,
        multi_output=True,
    )
    return X, y, np.asarray(check_target(estimator, X, None, X_target))  # whole


def check_label_weights(estimator, method, weights, X):
    """Keyword argument for a method of a wrapped estimator: weights, if there are any."""
    if weights is None:
        return {}
    if "sample_weight" not in signature(getattr(estimator, method)).parameters:
        raise ValueError(
            f"sample_weight was given, but {type(estimator).__name__}.{method} does not take it. "
            "Give none, or use another estimator."
        )
    return {"sample_weight": _check_sample_weight(weights, X)}


def check_adapter_transport(adapter):
    """Refuse a transport that lacks what the direction needs, or that changes units."""
    name, transport = type(adapter).__name__, adapter.transport
    if isinstance(transport, Pipeline):
        raise ValueError(
            f"The 'transport' parameter of {name} must return rows in the units of those it is "
            "given. Got a Pipeline, whose other steps change units. Put these steps before the "
            f"adapter: make_pipeline(StandardScaler(), {name}(flow, estimator), "
            "transform_input=['X_target'])."
        )
    if adapter.direction == "inverse" and not hasattr(transport, "inverse_transform"):
        raise ValueError(
            f"direction='inverse' of {name} needs a transport with the method inverse_transform. "
            f"Got {transport!r}. Use direction='forward' or 'backward'."
        )


def check_guidance(adapter, y):
    """Refuse to guide a transport by labels where there is nothing to guess or to guide."""
    needs = f"label_weight={adapter.label_weight!r} of {type(adapter).__name__} needs"
    if adapter.direction != "forward":
        raise ValueError(
            f"{needs} direction='forward', since labels of rows to predict are not known. Got "
            f"{adapter.direction!r}."
        )
    if isinstance(adapter.transport, FrozenEstimator):
        raise ValueError(
            f"{needs} a transport that can be fitted. Got a FrozenEstimator. Give the flow itself."
        )
    if getattr(adapter.transport, "image_shape", None) is not None:
        raise ValueError(
            f"{needs} a transport of rows that are no images: each class stands in a column beside "
            f"the features. Got image_shape={adapter.transport.image_shape!r}."
        )
    if not hasattr(adapter.estimator, "predict_proba"):
        raise ValueError(
            f"{needs} a classifier with the method predict_proba. Got {adapter.estimator!r}."
        )
    if y.size != len(y):
        raise ValueError(f"{needs} one label for each row. Got y of shape {y.shape}.")


@contextmanager
def _naming(name):
    """Say which of several samples scikit-learn's error is about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} is not valid. {error}") from error


def _are_labels(X, y):
    """Whether ``y`` is one label per row, as pipelines pass along, and not a sample."""
    with _naming("y"):
        y = check_array(
            y, dtype=None, ensure_2d=False, allow_nd=True, ensure_all_finite=False, input_name="y"
        )
    if y.ndim == 2:
        return False
    if y.ndim != 1:
        raise ValueError(
            "y must be a target sample of shape (n_samples, n_features) or labels of shape "
            f"(n_samples,). Got an array with {y.ndim} dimensions."
        )
    if len(y) != len(X):
        raise ValueError(
            f"One-dimensional y is taken for labels of X and must have its length {len(X)}. Got "
            f"{len(y)} values. A target sample with one feature must be passed as "
            "y.reshape(-1, 1)."
        )
    if X.shape[1] == 1 and y.dtype.kind == "f":
        warnings.warn(
            "One-dimensional y was taken for labels and ignored. If it is the target sample, "
            "pass y.reshape(-1, 1).",
            UserWarning,
            stacklevel=5,  # whoever called fit
        )
    return True


def check_weights(weights, X, name, sample="X"):
    """Weights of the rows of ``X`` as float64 that sum to one; None stays None."""
    if weights is None:
        return None
    with _naming(name):
        weights = check_array(weights, ensure_2d=False, dtype=np.float64, input_name=name)
    if weights.shape != (len(X),):
        raise ValueError(
            f"{name} must have shape ({len(X)},), one weight per row of {sample}. Got "
            f"{weights.shape}."
        )
    if weights.min() < 0 or weights.max() == 0:
        raise ValueError(
            f"{name} must hold numbers of at least 0, not all of them 0. Got values between "
            f"{weights.min()} and {weights.max()}."
        )
    weights = weights / weights.max()  # whose sum can't overflow
    return weights / weights.sum()


def check_scale(frame):
    """Refuse data whose variance overflows float64."""
    if not np.isfinite(frame.scale):
        raise ValueError(
            "X and the target sample have values too large for their variance to be computed in "
            "float64. Rescale the data, for instance with a StandardScaler."
        )
    return frame


def check_discrete_time(estimator):
    """Refuse an integration that a field at discrete times does not allow."""
    name, method = type(estimator).__name__, estimator.method_
    steps, n_steps = estimator.n_integration_steps_, len(estimator.step_sizes_)
    if estimator.time_ == "discrete" and (method != "euler" or steps != n_steps):
        raise ValueError(
            f"time='discrete' of {name} learns the field at the times of n_steps={n_steps} Euler "
            f"steps only, so that method must be 'euler' and n_integration_steps None or "
            f"{n_steps}. Got method={method!r} and n_integration_steps={steps}. Use "
            "time='continuous'."
        )


def check_method(estimator):
    """Refuse an integration method that the fitted field does not allow."""
    name, method = type(estimator).__name__, estimator.method_
    if estimator.prediction_ == "endpoint" and method == "rk4":
        raise ValueError(
            f"method='rk4' of {name} evaluates the field at time 1, where the velocity to a "
            "predicted endpoint is not defined. Use method='euler' or 'midpoint', or "
            "prediction='velocity'."
        )


def hidden_sizes(sizes):
    """The 'hidden_layer_sizes' parameter as a tuple of ints."""
    sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise ValueError(
            "The 'hidden_layer_sizes' parameter must be a sequence of ints of at least 1. Got "
            f"{sizes!r} instead."
        )
    return tuple(int(size) for size in sizes)


def image_design(estimator):
    """Parameters of an image network: the shape and the channels, as tuples of ints."""
    name, shape = type(estimator).__name__, estimator.image_shape
    n_features = estimator.n_features_in_
    shape = () if shape is None else tuple(shape)
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        raise ValueError(
            f"network='unet' of {name} needs image_shape=(channels, height, width), three ints of "
            f"at least 1. Got {estimator.image_shape!r}."
        )
    if np.prod(shape) != n_features:
        raise ValueError(
            f"image_shape={shape} of {name} describes rows of {np.prod(shape)} features, but X has "
            f"{n_features}. Rows are images (channels, height, width) laid flat in this order."
        )
    channels = tuple(estimator.unet_channels)
    if not channels or not all(isinstance(size, Integral) and size >= 1 for size in channels):
        raise ValueError(
            "The 'unet_channels' parameter must be a sequence of ints of at least 1. Got "
            f"{estimator.unet_channels!r} instead."
        )
    return tuple(map(int, shape)), tuple(map(int, channels))


def check_pool_size(estimator, n_flows, flow_bytes, held_out_bytes, counted):
    """Number of flows that the pool may hold at once; ``counted`` is what makes them large.

    That is all of them, or an error, unless the pool is an online one. Flows of rows that are held
    out are always there.
    """
    budget = estimator.max_pool_size * 1e6
    total = n_flows * flow_bytes + held_out_bytes
    if total <= budget or estimator.pool == "memmap":
        return n_flows
    name = type(estimator).__name__
    if estimator.pool == "memory":
        raise ValueError(
            f"The pool of {name} would take {megabytes(total)}, more than "
            f"max_pool_size={estimator.max_pool_size:g}. Lower {counted}, use "
            "pool_dtype='float16', pool='online' or pool='memmap', or raise max_pool_size."
        )
    smallest = flow_bytes + held_out_bytes
    if smallest > budget:
        large = counted.split(" or ")[-1] + (" or validation_fraction" if held_out_bytes else "")
        raise ValueError(
            f"The smallest part of the pool of {name} takes {megabytes(smallest)}, more than "
            f"max_pool_size={estimator.max_pool_size:g}. Lower {large}, or raise max_pool_size."
        )
    return int((budget - held_out_bytes) // flow_bytes)


def megabytes(n_bytes):
    """Size as text in the unit of `max_pool_size`; a small one is not nothing."""
    size = n_bytes / 1e6
    return f"{size:.1f} MB" if size >= 1 else f"{size:.2g} MB"


def pool_folder(estimator):
    """Folder of a pool on the disk."""
    return estimator.pool_directory or gettempdir()


@contextmanager
def pool_errors(estimator, n_bytes):
    """Say what to do about a pool that the disk has no room for."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"The pool of {type(estimator).__name__} takes {megabytes(n_bytes)} on disk, which "
            f"could not be had: {error.strerror}. Name a folder with more room by pool_directory, "
            "or use pool='online'",
            os.fspath(pool_folder(estimator)),
        ) from error


def checked_network(network):
    """The 'network' parameter; a callable is wrapped so that what it builds is checked."""
    if isinstance(network, str):
        return network
    wanted = "The 'network' parameter must be 'mlp' or a callable that builds a torch.nn.Module"
    if isinstance(network, torch.nn.Module):
        raise TypeError(f"{wanted}. Got a module instead. Pass its class, or a function.")

    def build(n_features):
        module = network(n_features)
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"{wanted}. Got one that returns {type(module).__name__} instead.")
        return module

    return build


def check_network_output(module, n_features, dtype="float32"):
    """Refuse a user's module that has nothing to train, or returns other rows than it should.

    It is called with points of a type that its weights have.
    """
    if not any(weights.requires_grad for weights in module.parameters()):
        raise ValueError(
            "The 'network' parameter must build a module with weights to train. Got none."
        )
    kind = {"dtype": getattr(torch, dtype), "device": "cpu"}
    x, t = torch.zeros(2, n_features, **kind), torch.zeros(2, **kind)
    mode = module.training
    with torch.no_grad(), _network_errors(dtype):
        output = module.eval()(x, t)
    module.train(mode)
    wanted, got = f"torch.{dtype} and shape (2, {n_features})", type(output).__name__
    if isinstance(output, torch.Tensor):
        got = f"{output.dtype} and shape {tuple(output.shape)}"
    if got != wanted:
        raise ValueError(
            "The 'network' parameter must build a module that returns one row per point, of the "
            f"type of the points: here, a tensor of type {wanted}. Got {got} instead."
        )


@contextmanager
def _network_errors(dtype):
    """Say why a module is called with float64 points."""
    try:
        yield
    except RuntimeError as error:
        if dtype == "float32":
            raise
        raise ValueError(
            "The 'network' parameter must build a module that, once turned into float64, takes "
            "float64 points, since the samples are of that type and are transported in it. Got one "
            "that does not, perhaps because it turns times or points into float32 itself. Change "
            f"that, or fit to float32 samples. torch says: {error}"
        ) from error


def resolve_device(device):
    """The device that a parameter names, checked to be there; "auto" is CUDA when there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(
            "The 'device' parameter must be 'auto', 'cpu', 'cuda' or 'cuda:' followed by a "
            f"number. Got {device!r} instead."
        )
    index = int(device.partition(":")[2] or 0)
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} was asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here. Use device='auto' or 'cpu', or "
            "install a torch build for your GPU."
        )
    return device


def check_same_samples(moments, of_first):
    """Refuse other samples than those of the first process, known by their moments."""
    if not all(
        np.allclose(*pair, rtol=1e-9, atol=0, equal_nan=True)
        for pair in zip(moments, of_first, strict=True)
    ):
        raise ValueError(
            "fit was given other samples than in the first process. Give each process the same "
            "rows: load them from the same files, or draw them with the same seed."
        )


def check_same_parameters(estimator, parameters, of_first):
    """Refuse other parameters than those of the first process, given by name as text."""
    for name, value in parameters.items():
        if of_first.get(name) != value:
            raise ValueError(
                f"fit of {type(estimator).__name__} needs the same parameters in all processes: "
                f"{name} is {value} here, and {of_first.get(name)} in the first process."
            )


def check_equal_shares(estimator, n_processes):
    """Refuse batches that the processes cannot share equally."""
    if estimator.batch_size % n_processes:
        raise ValueError(
            f"The 'batch_size' parameter of {type(estimator).__name__} must be a multiple of the "
            f"{n_processes} processes that share batches. Got {estimator.batch_size}."
        )


def check_same_design(design, fitted):
    """Refuse to continue training with another network than the fitted one."""
    differences = [
        f"{field}={new!r} (was {old!r})"
        for field, new, old in zip(design._fields, design, fitted, strict=True)
        if new != old
    ]
    if differences:
        raise ValueError(
            "warm_start=True continues with the network of the last fit, which must stay the "
            f"same. Got {', '.join(differences)}. Set warm_start=False to start anew."
        )


@contextmanager
def training_errors(estimator):
    """Say what to do about a training that diverged."""
    try:
        yield
    except DivergenceError as error:
        raise ValueError(
            f"Training of {type(estimator).__name__} diverged: {error}. Lower "
            f"learning_rate_init (got {estimator.learning_rate_init_:g}), or rescale the data if "
            "it holds extreme values."
        ) from error


def check_finite_flows(estimator, radius):
    """Refuse simulated flows that are no longer finite numbers.

    ``radius`` is the largest distance of a particle to the centre, in units of `scale_`.
    """
    if not np.isfinite(radius):
        raise ValueError(
            f"The flows of {type(estimator).__name__} could not be simulated: "
            f"blur={estimator.blur_ / estimator.scale_:g} is too small for rows that lie as far "
            "apart as these. Increase blur, or remove outliers."
        )


def warn_of_inaccuracy(estimator, radius):
    """Warn the caller of fit of Sinkhorn solves that are inaccurate; ``radius`` as above."""
    name, error = type(estimator).__name__, estimator.sinkhorn_error_
    blur = estimator.blur_ / estimator.scale_
    # Particles that have arrived keep what earlier steps left of the tolerance: twice it is no
    # failure. NaN, from a solver that reports no error, compares as False.
    if error > 2 * estimator.sinkhorn_tol:
        warnings.warn(
            f"Sinkhorn iterations of {name} did not converge: the marginal error of the worst "
            f"solve is {error:.1e} instead of sinkhorn_tol={estimator.sinkhorn_tol:g}. Increase "
            "sinkhorn_max_iter or blur, or accept a larger sinkhorn_tol.",
            ConvergenceWarning,
            stacklevel=3,
        )
    if (radius / blur) ** 2 > LARGEST_EXPONENT and estimator.solver_ != "pot":
        warnings.warn(
            f"blur={blur:g} is too small for float32: rows lie up to {radius:.1f} scale_ from the "
            "centre, and velocities there are inaccurate. Increase blur, or remove outliers.",
            UserWarning,
            stacklevel=3,
        )
