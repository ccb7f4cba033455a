"""What users read when their samples or parameters are not valid."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from sknsgf import NSGFSampler

CHEAP = {
    "n_flows": 2,
    "max_iter": 5,
    "hidden_layer_sizes": (4,),
    "flow_batch_size": 32,
    "random_state": 0,
}
rng = np.random.default_rng(0)
X_source, X_target = rng.normal(size=(60, 2)), rng.normal(size=(50, 2)) + 2
SOURCE_FRAME = pd.DataFrame(X_source, columns=["a", "b"])
TARGET_FRAME = pd.DataFrame(X_target, columns=["a", "b"])


@pytest.fixture(scope="module")
def flow():
    return NSGFSampler(**CHEAP).fit(X_source, X_target)


def with_entry(value):
    rows = X_source.copy()
    rows[3, 1] = value
    return rows


BAD_ROWS = {
    "NaN": (with_entry(np.nan), ValueError, "Input {} contains NaN"),
    "infinity": (with_entry(-np.inf), ValueError, "Input {} contains infinity"),
    "sparse": (scipy.sparse.csr_matrix(X_source), TypeError, "Sparse data was passed for {}"),
    "empty": (X_source[:0], ValueError, r"Found array with 0 sample\(s\)"),
    "no feature": (X_source[:, :0], ValueError, r"Found array with 0 feature\(s\)"),
    "complex": (X_source + 1j, ValueError, "Complex data not supported"),
    "strings": ([["a", "b"], ["c", "d"]], ValueError, "could not convert string to float"),
    "objects": ([[object(), 1.0], [2.0, 3.0]], TypeError, "float.* argument must be a .*number"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "inhomogeneous shape"),
}
ONE_ROW = {"one row": (X_source[:1], ValueError, "1 sample.*a minimum of 2 is required")}
ONE_DIMENSION = {"1-D": (X_source[:, 0], ValueError, "Expected 2D array, got 1D array instead")}
THREE_DIMENSIONS = {"3-D": (X_source[None], ValueError, "Found array with dim 3")}
CUBE = {
    "3-D": (
        X_source[None],
        ValueError,
        "y must be a target sample of shape .* or labels of shape .* 3 dimensions",
    ),
    "scalar": (3.0, TypeError, "at least 1 dimension"),
}


def each(cases):
    return pytest.mark.parametrize(("rows", "error", "message"), cases.values(), ids=list(cases))


# Samples


@each(BAD_ROWS | ONE_ROW | ONE_DIMENSION | THREE_DIMENSIONS)
def test_bad_rows_to_fit_raise(rows, error, message):
    with pytest.raises(error, match=message.format("X")):
        NSGFSampler(**CHEAP).fit(rows)
    with pytest.raises(error, match=message.format("X")):
        NSGFSampler(**CHEAP).fit(rows, X_target)


@each(BAD_ROWS | ONE_ROW | ONE_DIMENSION | THREE_DIMENSIONS)
def test_a_bad_target_raises_and_is_named(rows, error, message, flow):
    message = "^X_target is not valid. .*" + message.format("X_target")
    with pytest.raises(error, match=message):
        NSGFSampler(**CHEAP).fit(X_source, X_target=rows)
    with pytest.raises(error, match=message):
        flow.score(X_source, X_target=rows)


@each(BAD_ROWS | ONE_ROW | CUBE)
def test_a_bad_target_passed_as_y_raises_and_is_named(rows, error, message, flow):
    message = r"^y (is not valid\. )?.*" + message.format("y").removeprefix("y ")
    with pytest.raises(error, match=message):
        NSGFSampler(**CHEAP).fit(X_source, rows)
    with pytest.raises(error, match=message):
        flow.score(X_source, rows)


@each(BAD_ROWS | ONE_DIMENSION | THREE_DIMENSIONS)
@pytest.mark.parametrize("method", ["transform", "inverse_transform", "trajectory", "score"])
def test_bad_rows_to_transport_raise(flow, method, rows, error, message):
    with pytest.raises(error, match=message.format("X")):
        getattr(flow, method)(rows)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "trajectory", "score"])
def test_rows_of_another_width_raise(flow, method):
    message = "X has 3 features, but NSGFSampler is expecting 2 features as input"
    with pytest.raises(ValueError, match=message):
        getattr(flow, method)(np.zeros((5, 3)))


@pytest.mark.parametrize("keyword", ["y", "X_target"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_target_of_another_width_raises(flow, keyword, width):
    target = {keyword: np.zeros((60, width))}
    message = (
        rf"The target sample does not match X\. It has {width} features, but NSGFSampler is "
        "expecting 2 features"
    )
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP).fit(X_source, **target)
    with pytest.raises(ValueError, match=message):
        flow.score(X_source, **target)


@pytest.mark.parametrize("keyword", ["y", "X_target"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["b", "a"], "Feature names must be in the same order as they were in fit"),
        (["a", "c"], "Feature names unseen at fit time:\n- c"),
    ],
)
def test_other_column_names_raise(columns, message, keyword):
    flow = NSGFSampler(**CHEAP).fit(SOURCE_FRAME, TARGET_FRAME)
    target = {keyword: TARGET_FRAME.set_axis(columns, axis=1)}
    for fit_or_score in (NSGFSampler(**CHEAP).fit, flow.score):
        with pytest.raises(ValueError, match=message) as error:
            fit_or_score(SOURCE_FRAME, **target)
        assert str(error.value).startswith("The target sample does not match X. The feature names")
    with pytest.raises(ValueError, match=message):
        flow.transform(SOURCE_FRAME.set_axis(columns, axis=1))


@pytest.mark.parametrize("y", [np.zeros(50), ["label"] * 50, pd.Series(range(50))])
def test_one_dimensional_y_of_another_length_raises(flow, y):
    message = (
        r"One-dimensional y is taken for labels of X and must have its length 60\. Got 50 values\. "
        r".*y\.reshape\(-1, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP).fit(X_source, y)
    with pytest.raises(ValueError, match=message):
        flow.score(X_source, y)


def test_one_dimensional_floats_beside_one_feature_warn_where_fit_is_called():
    message = r"One-dimensional y was taken for labels and ignored\. .*y\.reshape\(-1, 1\)"
    with pytest.warns(UserWarning, match=message) as caught:
        NSGFSampler(**CHEAP).fit(X_source[:, :1], X_source[:, 1])
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("y", [np.zeros(60, dtype=int), ["a", "b", "c"] * 20])
def test_labels_beside_one_feature_do_not_warn(y):
    assert NSGFSampler(**CHEAP).fit(X_source[:, :1], y).source_sample_ is None


@pytest.mark.parametrize("value", [1e200, 1e308])
def test_values_whose_variance_overflows_raise(value):
    rows = np.array([[-value, 1.0], [value, 2.0], [0.0, 3.0]])
    with pytest.raises(ValueError, match=r"too large for their variance .* StandardScaler"):
        NSGFSampler(**CHEAP).fit(rows)


# Arguments of the methods


@pytest.mark.parametrize("n_samples", [0, -1, 2.0, "3", None])
def test_a_bad_number_of_draws_raises(flow, n_samples):
    message = (
        "The 'n_samples' parameter of NSGFSampler.sample must be an int in the range "
        f"[1, inf). Got {n_samples!r} instead."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        flow.sample(n_samples)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            np.ones(59),
            r"sample_weight must have shape \(60,\), one weight per row of X\. Got",
        ),
        (np.ones((60, 1)), r"sample_weight must have shape \(60,\).*Got \(60, 1\)"),
        (np.zeros(60), r"sample_weight must hold numbers of at least 0, not all of them 0\. Got"),
        (np.linspace(-1, 1, 60), r"sample_weight must hold .* Got values between -1\.0 and 1\.0"),
        (np.full(60, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_bad_weights_raise(flow, weights, message):
    with pytest.raises(ValueError, match=message):
        flow.score(X_source, sample_weight=weights)


def test_a_number_as_weights_raises_and_is_named(flow):
    with pytest.raises(TypeError, match=r"sample_weight is not valid\..* scalar"):
        flow.score(X_source, sample_weight=0.5)


@pytest.mark.parametrize(
    ("attribute", "value", "wanted"),
    [
        ("n_integration_steps_", 0, "an int in the range [1, inf)"),
        ("n_integration_steps_", 2.5, "an int in the range [1, inf)"),
        ("method_", "heun", "a str among {"),
    ],
)
def test_a_bad_integration_assigned_after_fit_raises(attribute, value, wanted):
    flow = NSGFSampler(**CHEAP).fit(X_source, X_target)
    setattr(flow, attribute, value)
    message = re.escape(f"The '{attribute}' parameter of NSGFSampler must be {wanted}")
    with pytest.raises(ValueError, match=f"{message}.*Got {value!r} instead"):
        flow.transform(X_source)


# Parameters

COUNTS = [
    "n_steps",
    "n_flows",
    "sinkhorn_max_iter",
    "max_iter",
    "batch_size",
    "n_iter_no_change",
    "n_integration_steps",
]
BAD_PARAMETERS = [
    *[(name, value, "an int in the range [1, inf)") for name in COUNTS for value in (0, -3, 2.5)],
    ("flow_batch_size", 1, "an int in the range [2, inf)"),
    ("flow_batch_size", 64.0, "an int in the range [2, inf)"),
    ("step_size", 0, "a float in the range (0.0, 1.0] or a str among {'auto'}"),
    ("step_size", 1.5, "a float in the range (0.0, 1.0] or a str among {'auto'}"),
    ("step_size", "small", "a float in the range (0.0, 1.0] or a str among {'auto'}"),
    ("blur", 0, "a float in the range [0.001, 1000.0] or a str among {'auto'}"),
    ("blur", np.nan, "a float in the range [0.001, 1000.0] or a str among {'auto'}"),
    ("learning_rate_init", -1e-3, "a float in the range (0.0, inf) or a str among {'auto'}"),
    ("sinkhorn_tol", 0, "a float in the range (0.0, inf)"),
    ("weight_decay", -1, "a float in the range [0.0, inf)"),
    ("ema_decay", 1, "a float in the range [0.0, 1.0)"),
    ("validation_fraction", 1, "a float in the range (0.0, 1.0)"),
    ("tol", -1, "a float in the range [0.0, inf)"),
    ("network", "cnn", "a str among {"),
    ("network", None, "a str among {"),
    ("hidden_layer_sizes", "ab", "an array-like or an int in the range [1, inf)"),
    ("hidden_layer_sizes", None, "an array-like or an int in the range [1, inf)"),
    ("hidden_layer_sizes", 0, "an array-like or an int in the range [1, inf)"),
    ("early_stopping", "yes", "an instance of 'bool'"),
    ("warm_start", 1.0, "an instance of 'bool'"),
    ("verbose", "no", "an int in the range [0, inf), an instance of 'bool'"),
    ("random_state", -1, "an int in the range [0, 4294967295]"),
    ("n_jobs", 1.5, "an instance of 'int' or None"),
    ("device", None, "an instance of 'str'"),
]
BAD_NAMES = {
    "activation": ["elu", "gelu", "relu", "silu", "tanh"],
    "method": ["euler", "midpoint", "rk4"],
    "time": ["continuous", "discrete"],
    "solver": ["auto", "geomloss", "native", "pot"],
    "prediction": ["auto", "endpoint", "velocity"],
    "learning_rate": ["constant", "cosine"],
}


@pytest.mark.parametrize(("name", "value", "wanted"), BAD_PARAMETERS)
def test_a_bad_parameter_raises(name, value, wanted):
    start = re.escape(f"The '{name}' parameter of NSGFSampler must be {wanted}")
    with pytest.raises(ValueError, match=rf"^{start}.*Got {re.escape(repr(value))} instead\.$"):
        NSGFSampler(**{**CHEAP, name: value}).fit(X_source, X_target)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_unknown_name_raises_with_the_known_ones(name):
    message = (
        rf"^The '{name}' parameter of NSGFSampler must be a str among {{(.*)}}\. "
        r"Got 'other' instead\.$"
    )
    with pytest.raises(ValueError, match=message) as error:
        NSGFSampler(**{**CHEAP, name: "other"}).fit(X_source, X_target)
    known = re.search(message, str(error.value))[1]
    assert sorted(known.split(", ")) == [repr(known) for known in BAD_NAMES[name]]


@pytest.mark.parametrize("sizes", [(0,), (8, -1), (8.0,), [["a"]], np.array([[8, 8]])])
def test_bad_layer_sizes_raise(sizes):
    message = "The 'hidden_layer_sizes' parameter must be a sequence of ints of at least 1. Got"
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**{**CHEAP, "hidden_layer_sizes": sizes}).fit(X_source, X_target)


@pytest.mark.parametrize("sizes", [8, (8,), [8], np.array([8]), (np.int64(8),)])
def test_layer_sizes_may_be_an_int_or_any_sequence(sizes):
    flow = NSGFSampler(**{**CHEAP, "hidden_layer_sizes": sizes}).fit(X_source, X_target)
    shapes = [weights.shape for weights in flow.network_parameters_.values()]
    assert shapes == [(8, 3), (8,), (2, 8), (2,)]


@pytest.mark.parametrize("device", ["gpu", "mps", "cpu:1", "cuda:", "cuda:-1", "CPU"])
def test_an_unknown_device_raises(device):
    message = rf"'device' parameter must be 'auto', 'cpu', 'cuda' or .* Got '{device}' instead"
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP, device=device).fit(X_source, X_target)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_a_gpu_that_is_not_there_raises(device):
    message = f"device='{device}' was asked for, but torch .* sees 0 CUDA devices here.*'cpu'"
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP, device=device).fit(X_source, X_target)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_auto_is_the_cpu_without_a_gpu(flow):
    assert flow.device_ == "cpu"


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"method": "rk4"}, "method='rk4' and n_integration_steps=5"),
        ({"n_integration_steps": 7}, "method='euler' and n_integration_steps=7"),
    ],
)
def test_discrete_time_with_another_integration_raises(change, got):
    message = (
        "time='discrete' of NSGFSampler learns the field at the times of n_steps=5 Euler steps "
        r"only, so that method must be 'euler' and n_integration_steps None or 5\. "
        rf"Got {got}\. Use time='continuous'"
    )
    with pytest.raises(ValueError, match=message):
        NSGFSampler(**CHEAP, time="discrete", **change).fit(X_source, X_target)


def test_discrete_time_accepts_its_own_number_of_steps():
    flow = NSGFSampler(**CHEAP, time="discrete", n_integration_steps=5).fit(X_source, X_target)
    assert flow.n_integration_steps_ == 5


def test_rk4_with_endpoints_raises():
    X = np.random.default_rng(0).normal(size=(30, 2))
    message = "method='rk4' of NSGFSampler evaluates the field at time 1"
    with pytest.raises(ValueError, match=message):
        NSGFSampler(method="rk4", prediction="endpoint").fit(X, X)


def test_an_integration_assigned_after_a_discrete_fit_is_refused():
    X = np.random.default_rng(0).normal(size=(30, 2))
    flow = NSGFSampler(time="discrete", n_flows=2, max_iter=2, hidden_layer_sizes=(4,)).fit(X, X)
    flow.n_integration_steps_ = 50
    with pytest.raises(ValueError, match="n_integration_steps=50"):
        flow.transform(X)


def test_names_in_one_sample_only_give_no_warning():
    pd = pytest.importorskip("pandas")
    X = np.random.default_rng(0).normal(size=(30, 2))
    frame = pd.DataFrame(X, columns=["a", "b"])
    flow = NSGFSampler(n_flows=2, max_iter=2, hidden_layer_sizes=(4,))
    flow.fit(frame, X)
    flow.fit(X, frame)
