import re
import tracemalloc
import warnings

import geomloss
import numpy as np
import ot
import pytest
import scipy.stats
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning

from sknsgf import metrics
from sknsgf.metrics import energy_distance, sinkhorn_divergence, wasserstein_distance

METRICS = [sinkhorn_divergence, wasserstein_distance, energy_distance]
POWER_OF_LENGTH = {sinkhorn_divergence: 2, wasserstein_distance: 1, energy_distance: 1}


def samples(n=60, m=50, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), 0.5 * rng.normal(size=(m, d)) + 1


def weights(n, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 3, size=n)


# Closed forms


def test_metrics_of_a_shifted_copy_are_given_by_the_shift():
    X, _ = samples(d=3)
    shift = np.array([3.0, -4.0, 12.0])
    assert wasserstein_distance(X, X + shift) == pytest.approx(13)
    assert sinkhorn_divergence(X, X + shift) == pytest.approx(13**2 / 2)
    assert sinkhorn_divergence(X, X + shift, blur=5.0) == pytest.approx(13**2 / 2)


def test_metrics_of_single_rows_are_given_by_their_distance():
    X, Y = [[1.0, 1.0]], [[4.0, 5.0]]
    assert wasserstein_distance(X, Y) == pytest.approx(5)
    assert sinkhorn_divergence(X, Y) == pytest.approx(12.5)
    assert energy_distance(X, Y) == pytest.approx(10)


def test_wasserstein_distance_of_one_feature_sorts_the_rows():
    X, Y = samples(n=40, m=40, d=1)
    expected = np.sqrt(np.mean((np.sort(X[:, 0]) - np.sort(Y[:, 0])) ** 2))
    assert wasserstein_distance(X, Y) == pytest.approx(expected)


def test_sinkhorn_divergence_tends_to_half_the_squared_wasserstein_distance():
    X, Y = samples(n=20, m=20, d=1)
    divergence = sinkhorn_divergence(X, Y, blur=0.02, max_iter=20_000)
    assert divergence == pytest.approx(wasserstein_distance(X, Y) ** 2 / 2, rel=1e-2)


@pytest.mark.parametrize("blur", [300.0, 1e100])
def test_sinkhorn_divergence_tends_to_half_the_squared_distance_between_means(blur):
    X, Y = samples()
    expected = np.sum((X.mean(0) - Y.mean(0)) ** 2) / 2
    assert sinkhorn_divergence(X, Y, blur=blur) == pytest.approx(expected, rel=1e-4)


def test_sinkhorn_divergence_between_normal_laws_has_the_closed_form():
    quantiles = scipy.stats.norm.ppf((np.arange(500) + 0.5) / 500)[:, None]
    blur, scale_X, scale_Y = 1.0, 1.0, 2.0

    def cost(s, t):  # Janati et al. 2020, for |x - y|^2 / 2, up to terms that cancel in S
        eps = blur**2
        root = np.sqrt(1 + 4 * (s * t / eps) ** 2)
        return (s**2 + t**2) / 2 - eps / 2 * (root - np.log((1 + root) / 2) - 1)

    expected = cost(scale_X, scale_Y) - cost(scale_X, scale_X) / 2 - cost(scale_Y, scale_Y) / 2
    divergence = sinkhorn_divergence(scale_X * quantiles, scale_Y * quantiles, blur=blur)
    assert divergence == pytest.approx(expected, rel=0.02)


# Other implementations


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("d", "blur"), [(1, 0.3), (2, 0.5), (20, 2.0)])
def test_sinkhorn_divergence_agrees_with_the_primal_costs_of_pot(d, blur, weighted):
    X, Y = samples(d=d)
    a, b = (weights(len(Z), seed=i) if weighted else np.ones(len(Z)) for i, Z in enumerate((X, Y)))
    a, b = a / a.sum(), b / b.sum()
    options = {"method": "sinkhorn_log", "numItermax": 20_000, "stopThr": 1e-10, "warn": False}

    def cost(X, Y, a, b):
        C = ot.dist(X, Y) / 2
        P = ot.sinkhorn(a, b, C, blur**2, **options)
        return np.sum(P * C) + blur**2 * np.sum(P * np.log(P / np.outer(a, b) + 1e-300))

    expected = cost(X, Y, a, b) - cost(X, X, a, a) / 2 - cost(Y, Y, b, b) / 2
    divergence = sinkhorn_divergence(X, Y, blur=blur, X_weight=a, Y_weight=b)
    assert divergence == pytest.approx(expected, rel=1e-5)


def test_sinkhorn_divergence_agrees_with_geomloss():
    X, Y = samples()
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.5, scaling=0.99, backend="tensorized")
    expected = float(loss(torch.from_numpy(X), torch.from_numpy(Y)))
    assert sinkhorn_divergence(X, Y, blur=0.5) == pytest.approx(expected, rel=1e-2)


def test_wasserstein_distance_agrees_with_a_linear_assignment():
    X, Y = samples(n=50, m=50, d=5)
    cost = ((X[:, None] - Y) ** 2).sum(-1)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    assert wasserstein_distance(X, Y) == pytest.approx(np.sqrt(cost[rows, columns].mean()))


@pytest.mark.parametrize("weighted", [False, True])
def test_energy_distance_of_one_feature_is_the_square_of_that_of_scipy(weighted):
    X, Y = samples(d=1)
    a, b = (weights(60), weights(50)) if weighted else (None, None)
    expected = scipy.stats.energy_distance(X[:, 0], Y[:, 0], a, b) ** 2
    assert energy_distance(X, Y, X_weight=a, Y_weight=b) == pytest.approx(expected)


def test_energy_distance_agrees_with_its_definition():
    X, Y = samples(d=4)

    def mean_distance(X, Y):
        return np.linalg.norm(X[:, None] - Y, axis=-1).mean()

    expected = 2 * mean_distance(X, Y) - mean_distance(X, X) - mean_distance(Y, Y)
    assert energy_distance(X, Y) == pytest.approx(expected)


# Properties


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_a_python_float(metric):
    assert type(metric(*samples())) is float


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_zero_between_a_sample_and_itself_in_another_order(metric):
    X, _ = samples()
    assert 0 <= metric(X, X[::-1]) < 1e-7
    assert metric(X[:1], X[:1]) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_symmetric(metric):
    X, Y = samples()
    swapped = metric(Y, X, X_weight=weights(50), Y_weight=weights(60))
    value = metric(X, Y, X_weight=weights(60), Y_weight=weights(50))
    assert value == pytest.approx(swapped, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factor", [1e-150, 1e-3, 7.0, 1e60])
def test_a_metric_has_the_units_it_says(metric, factor):
    X, Y = samples()
    expected = metric(X, Y) * factor ** POWER_OF_LENGTH[metric]
    assert metric(factor * X, factor * Y) == pytest.approx(expected, rel=1e-6)


def test_a_given_blur_is_in_the_units_of_the_data():
    X, Y = samples()
    scaled = sinkhorn_divergence(10 * X, 10 * Y, blur=5.0)
    assert scaled == pytest.approx(100 * sinkhorn_divergence(X, Y, blur=0.5))


def test_the_default_blur_is_a_tenth_of_the_distance_to_the_common_mean():
    X, Y = samples(n=80, m=80)
    rows = np.vstack([X, Y])
    blur = 0.1 * np.sqrt(np.mean(np.sum((rows - rows.mean(0)) ** 2, axis=1)))
    assert sinkhorn_divergence(X, Y) == pytest.approx(sinkhorn_divergence(X, Y, blur=blur))
    assert sinkhorn_divergence(X, Y) != pytest.approx(sinkhorn_divergence(X, Y, blur=2 * blur))


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_does_not_change_when_both_samples_are_moved(metric):
    X, Y = samples()
    assert metric(X + 1e5, Y + 1e5) == pytest.approx(metric(X, Y), rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_count_like_repeated_rows(metric):
    X, Y = samples(n=20, m=15)
    repeats_X, repeats_Y = np.arange(20) % 4, np.arange(15) % 3
    value = metric(X, Y, X_weight=repeats_X, Y_weight=repeats_Y)
    repeated = metric(np.repeat(X, repeats_X, axis=0), np.repeat(Y, repeats_Y, axis=0))
    assert value == pytest.approx(repeated, rel=1e-5)
    assert value != pytest.approx(metric(X, Y), rel=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_accepts_float32_lists_and_read_only_arrays(metric):
    X, Y = (Z.astype(np.float32) for Z in samples())
    expected = metric(X.astype(float), Y.astype(float))
    X.setflags(write=False)
    assert metric(X, Y) == expected
    assert metric(X.tolist(), Y.tolist()) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_leaves_its_arguments_unchanged(metric):
    arguments = {"X_weight": weights(60), "Y_weight": weights(50)}
    X, Y = samples()
    metric(X, Y, **arguments)
    assert all(map(np.array_equal, (X, Y), samples()))
    assert np.array_equal(arguments["X_weight"], weights(60))


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_does_not_depend_on_the_mode_or_the_default_dtype_of_torch(metric):
    X, Y = samples()
    expected, default = metric(X, Y), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.inference_mode():
            assert metric(X, Y) == expected
    finally:
        torch.set_default_dtype(default)


def test_energy_distance_computes_by_blocks_of_rows():
    X, Y = samples(n=2000, m=2000)
    with sklearn.config_context(working_memory=1):
        tracemalloc.start()
        energy_distance(X, Y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2000 * 2000 * 8 / 4  # a quarter of one matrix of distances


# Convergence


def test_sinkhorn_divergence_warns_once_when_it_did_not_converge():
    X, Y = samples()
    message = (
        r"did not converge: .* instead of tol=0\.0001\. Increase blur \(here 0\.05\) or max_iter"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sinkhorn_divergence(X, Y, blur=0.05, max_iter=2)
    assert [w.category for w in caught] == [ConvergenceWarning]
    assert re.search(message, str(caught[0].message))
    assert caught[0].filename == __file__


def test_sinkhorn_divergence_warns_when_the_error_is_not_a_number(monkeypatch):
    def not_a_number(*args, **options):
        return torch.zeros(1, 50), torch.tensor([torch.nan]), 1

    monkeypatch.setattr(metrics, "cross_potential", not_a_number)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        sinkhorn_divergence(*samples())


def test_a_smaller_tol_changes_the_divergence_by_less_than_it_says():
    X, Y = samples()
    exact = sinkhorn_divergence(X, Y, tol=1e-9, max_iter=5000)
    assert sinkhorn_divergence(X, Y, tol=1e-4) == pytest.approx(exact, rel=1e-6)


def test_wasserstein_distance_warns_when_the_transport_is_not_optimal(monkeypatch):
    monkeypatch.setattr(metrics, "EXACT_MAX_ITER", 3)
    X, Y = samples()
    with pytest.warns(ConvergenceWarning, match="not solved to optimality.*POT says: numItermax"):
        wasserstein_distance(X, Y)


# Errors


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Y": np.ones((5, 3))}, "X.shape[1] == 2 while Y.shape[1] == 3"),
        ({"X": np.ones(5)}, "Expected 2D array, got 1D array instead"),
        ({"Y": [[1.0, np.nan]]}, "Input Y contains NaN"),
        ({"X": [[1.0, np.inf]]}, "Input X contains infinity"),
        ({"X": np.ones((0, 2))}, "Found array with 0 sample(s)"),
        ({"X": [[1e200, 0.0], [0.0, 0.0]]}, "too large for their variance"),
        ({"X_weight": np.ones(59)}, "X_weight must have shape (60,), one weight per row of X."),
        (
            {"Y_weight": np.ones((50, 1))},
            "Y_weight must have shape (50,), one weight per row of Y.",
        ),
        ({"X_weight": -np.ones(60)}, "X_weight must hold numbers of at least 0"),
        ({"Y_weight": np.zeros(50)}, "Y_weight must hold numbers of at least 0, not all of them 0"),
        ({"Y_weight": np.full(50, np.nan)}, "Input Y_weight contains NaN"),
    ],
)
def test_invalid_samples_and_weights_are_refused(metric, changes, message):
    X, Y = samples()
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=re.escape(message)):
        metric(**({"X": X, "Y": Y} | changes))


@pytest.mark.parametrize("value", [0, -1.0, np.nan, "small"])
@pytest.mark.parametrize("name", ["blur", "tol", "max_iter"])
def test_invalid_parameters_are_refused(name, value):
    message = f"The '{name}' parameter of sinkhorn_divergence must be"
    with pytest.raises(ValueError, match=message):
        sinkhorn_divergence(*samples(), **{name: value})
