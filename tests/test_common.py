"""scikit-learn's own checks of an estimator, with no expected failure."""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from sknsgf import NSGFSampler

CHEAP = {
    "n_flows": 4,
    "max_iter": 100,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "sinkhorn_max_iter": 500,  # 15 rows are all corners: now and then 200 iterations are too few
}


def each_check(estimator):
    """Parametrize a test with scikit-learn's checks of an estimator."""
    checks = list(estimator_checks_generator(estimator))
    return pytest.mark.parametrize(
        ("estimator", "check"), checks, ids=[check.func.__name__ for _, check in checks]
    )


def run(check, estimator):
    """Run a check; the only one that may be skipped is that of SciPy's array API, if it is off."""
    try:
        check(estimator)
    except SkipTest as reason:
        if "array_api" not in check.func.__name__:
            pytest.fail(f"The check does not run: {reason}")
        raise


@each_check(NSGFSampler(**CHEAP))
def test_the_estimator_passes_the_checks_of_scikit_learn(estimator, check):
    run(check, estimator)


@pytest.mark.slow
@each_check(NSGFSampler())
def test_the_estimator_passes_the_checks_of_scikit_learn_at_default_settings(estimator, check):
    run(check, estimator)
