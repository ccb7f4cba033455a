"""scikit-learn's own checks of an estimator, with no expected failure."""

from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sknsgf import NSGFSampler

CHEAP = {
    "n_flows": 4,
    "max_iter": 100,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "sinkhorn_max_iter": 500,  # 15 rows are all corners: now and then 200 iterations are too few
}


def run(check, estimator):
    try:
        check(estimator)
    except SkipTest as reason:
        if "array_api" not in check.func.__name__:
            pytest.fail(f"The check does not run: {reason}")
        raise


@parametrize_with_checks([NSGFSampler(**CHEAP)])
def test_estimators_pass_the_checks_of_scikit_learn(estimator, check):
    run(check, estimator)


@pytest.mark.slow
@parametrize_with_checks([NSGFSampler()])
def test_estimators_pass_the_checks_of_scikit_learn_at_default_settings(estimator, check):
    run(check, estimator)
