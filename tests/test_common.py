"""scikit-learn's own checks of an estimator, with no expected failure."""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from sknsgf import NSGFPlusPlus, NSGFSampler

CHEAP = {
    "n_flows": 4,
    "max_iter": 100,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "sinkhorn_max_iter": 500,  # 15 rows are all corners: now and then 200 iterations are too few
}
CHEAP_PAIRS = {**CHEAP, "n_flows": 2, "max_iter": 20, "n_pairings": 2, "pairing_size": 32}


def each_check(**estimators):
    """Parametrize a test with scikit-learn's checks of each estimator."""
    cases = [
        pytest.param(estimator, check, id=f"{name}-{check.func.__name__}")
        for name, estimator in estimators.items()
        for estimator, check in estimator_checks_generator(estimator)
    ]
    return pytest.mark.parametrize(("estimator", "check"), cases)


def run(check, estimator):
    """Run a check; the only one that may be skipped is that of SciPy's array API, if it is off."""
    try:
        check(estimator)
    except SkipTest as reason:
        if "array_api" not in check.func.__name__:
            pytest.fail(f"The check does not run: {reason}")
        raise


@each_check(
    NSGFSampler=NSGFSampler(**CHEAP),
    consistent=NSGFPlusPlus(**CHEAP_PAIRS),
    paper=NSGFPlusPlus(**CHEAP_PAIRS, mode="paper"),
)
def test_the_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    run(check, estimator)


@pytest.mark.slow
@each_check(
    NSGFSampler=NSGFSampler(max_iter=200), NSGFPlusPlus=NSGFPlusPlus(max_iter=200, n_pairings=8)
)
def test_the_estimator_passes_the_checks_with_networks_and_batches_of_the_default_size(
    estimator, check
):
    run(check, estimator)


@pytest.mark.endurance
@each_check(NSGFSampler=NSGFSampler(), NSGFPlusPlus=NSGFPlusPlus())
def test_the_estimator_passes_the_checks_of_scikit_learn_at_default_settings(estimator, check):
    run(check, estimator)
