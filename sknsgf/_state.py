"""What a fitted estimator consists of: the design of its network, and the kinds of its attributes.

``fit`` sets attributes of these kinds only; they are checked where they come from a file.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from math import inf, prod
from numbers import Real
from reprlib import repr as short_repr
from typing import NamedTuple

import numpy as np

from sknsgf._validation import hidden_sizes, image_design, options, real, whole_number
from sknsgf.flow.external import SOLVERS
from sknsgf.flow.networks import build_network, build_transition_network


class NetworkDesign(NamedTuple):
    """What it takes to build a fitted network again."""

    network: str | Callable
    n_features: int
    hidden_layer_sizes: tuple
    activation: str | None
    image_shape: tuple | None
    channels: tuple
    prediction: str

    @classmethod
    def of(cls, estimator):
        """Design that the parameters of an estimator ask for."""
        layers, images = ((), None), (None, ())
        if estimator.network == "mlp":
            layers = hidden_sizes(estimator.hidden_layer_sizes), estimator.activation
        elif estimator.network == "unet":
            images = image_design(estimator)
        size = estimator.n_features_in_
        return cls(estimator.network, size, *layers, *images, estimator.prediction_)

    def build(self, seed=0):
        """Network with fresh weights."""
        return build_network(*self[:-1], seed=seed, prediction=self.prediction)

    def build_transition(self, seed=0):
        """Predictor of transition times with fresh weights."""
        return build_transition_network(*self[:-1], seed=seed)

    @property
    def widest_layer(self):
        """Entries of the widest hidden layer for a row, or 1 where the network is a user's."""
        if self.network == "unet":
            return prod(self.image_shape[1:]) * self.channels[0]
        return max(self.hidden_layer_sizes, default=1)

    def fewest_weights(self):
        """Lower bound on the number of weights, of its order, without building the network."""
        if self.network == "mlp":
            sizes = self.n_features, *self.hidden_layer_sizes, self.n_features
            return sum(before * after for before, after in pairwise(sizes))
        sizes = self.image_shape[0], *self.channels
        between = sum(before * after for before, after in pairwise(sizes))
        return 9 * (between + sum(size**2 for size in self.channels))


class Kind(NamedTuple):
    """What a fitted attribute must be, in words and as ``accepts(value, estimator)``.

    An attribute may rely on those that come before it in the estimator's table.
    """

    words: str
    accepts: Callable
    required: bool = True


def check_state(estimator):
    """Refuse fitted attributes that ``fit`` does not set."""
    kinds = estimator._fitted_attributes
    state = {name: value for name, value in vars(estimator).items() if name in kinds}
    for name, kind in kinds.items():
        if name not in state:
            if kind.required:
                raise ValueError(f"The attribute {name!r} is missing.")
        elif not kind.accepts(state[name], estimator):
            raise ValueError(
                f"The attribute {name!r} must be {kind.words}. Got {short_repr(state[name])} "
                "instead."
            )
    # Names and shapes of weights are compared with a network that is built for it: here is made
    # sure that building it takes no more memory than the weights at hand.
    needed, there = estimator._design.fewest_weights(), _n_weights(estimator.network_parameters_)
    if there < needed:
        raise ValueError(f"The fitted network has at least {needed} weights. Got {there} of them.")


def _kind(constraint):
    """What satisfies a constraint of scikit-learn's."""
    return Kind(str(constraint), lambda value, estimator: constraint.is_satisfied_by(value))


def whole(low=1):
    """Whole number of at least ``low``."""
    return _kind(whole_number(low))


def one_of(*names):
    """One of some strings."""
    return _kind(options(*names))


def _finite(value, dtypes, n_dims, low=-inf):
    """Tell whether a value is a filled array of finite numbers, of one of the dtypes."""
    fits = isinstance(value, np.ndarray) and value.dtype in dtypes and value.ndim == n_dims
    return fits and value.size > 0 and bool(np.isfinite(value).all() and value.min() >= low)


def _vector(words, low=-inf):
    """Vector with a float64 number for each feature."""
    return Kind(
        f"a float64 array with {words} for each feature",
        lambda value, estimator: (
            _finite(value, [np.float64], 1, low) and len(value) == estimator.n_features_in_
        ),
    )


def _are_rows(value, estimator):
    floats = [np.float32, np.float64]
    return _finite(value, floats, 2) and value.shape[1] == estimator.n_features_in_


def _are_names(value, estimator):
    fits = isinstance(value, np.ndarray) and value.shape == (estimator.n_features_in_,)
    return fits and all(isinstance(name, str) for name in value)


def _are_step_sizes(value, estimator):
    return bool(value) and _are_numbers(value, estimator) and all(0 < step <= 1 for step in value)


def _are_numbers(value, estimator):
    return isinstance(value, list) and all(isinstance(number, Real) for number in value)


def _is_design(value, estimator):
    """Tell whether a design is what parameters of the fitted features can ask for."""
    if not isinstance(value, NetworkDesign) or any(isinstance(v, np.ndarray) for v in value):
        return False
    asking = type(estimator)(
        network=value.network,
        hidden_layer_sizes=value.hidden_layer_sizes,
        activation=value.activation or "relu",
        image_shape=value.image_shape,
        unet_channels=value.channels,
    )
    asking._validate_params()
    asking.n_features_in_, asking.prediction_ = estimator.n_features_in_, estimator.prediction_
    return NetworkDesign.of(asking) == value


def _are_weights(value, estimator):
    fits = isinstance(value, dict)
    return fits and all(_finite(array, [np.float32], np.ndim(array)) for array in value.values())


def _n_weights(arrays):
    """Number of weights in a dict of arrays, or of such dicts."""
    return arrays.size if isinstance(arrays, np.ndarray) else sum(map(_n_weights, arrays.values()))


def or_none(kind):
    """Something or None."""
    return Kind(
        f"{kind.words}, or None",
        lambda value, estimator: value is None or kind.accepts(value, estimator),
    )


def by_phase(kind, phases):
    """Dict of the same kind for each phase; ``phases`` names them for each mode."""
    return Kind(
        f"a dict that holds {kind.words} for each phase of mode_",
        lambda value, estimator: (
            isinstance(value, dict)
            and tuple(value) == phases[estimator.mode_]
            and all(kind.accepts(part, estimator) for part in value.values())
        ),
    )


POSITIVE = _kind(real(0, closed="neither"))
ERROR = Kind(
    "a number of at least 0, or NaN",
    lambda value, estimator: isinstance(value, Real) and not value < 0,
)
DEVICE = Kind(
    "'cpu', 'cuda' or 'cuda:' followed by a number",
    lambda value, estimator: (
        isinstance(value, str) and re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", value) is not None
    ),
)
POINT = _vector("a finite number")
SPREAD = _vector("a finite number of at least 0", low=0)
ROWS = Kind("a float32 or float64 array of finite rows with n_features_in_ columns", _are_rows)
NAMES = Kind("an array with a string for each feature", _are_names, required=False)
STEP_SIZES = Kind("a list of numbers in the range (0, 1]", _are_step_sizes)
LOSSES = Kind("a list of numbers", _are_numbers)
DESIGN = Kind("the design of a network for n_features_in_ features and prediction_", _is_design)
WEIGHTS = Kind("a dict of finite float32 arrays", _are_weights)
OUTPUT = Kind(
    "what set_output sets",
    lambda value, estimator: value in [{"transform": n} for n in ("default", "pandas", "polars")],
    required=False,
)

FLOW_ATTRIBUTES = {  # of every flow estimator
    "n_features_in_": whole(),
    "feature_names_in_": NAMES,
    "_sklearn_output_config": OUTPUT,
    "seed_": whole(0),
    "device_": DEVICE,
    "source_mean_": POINT,
    "source_std_": SPREAD,
    "center_": POINT,
    "scale_": POSITIVE,
    "blur_": POSITIVE,
    "step_sizes_": STEP_SIZES,
    "n_flows_": whole(),
    "solver_": one_of(*SOLVERS),
    "sinkhorn_error_": ERROR,
    "learning_rate_init_": POSITIVE,
    "prediction_": one_of("velocity", "endpoint"),
    "_design": DESIGN,
    "source_sample_": or_none(ROWS),
    "target_sample_": ROWS,
}
