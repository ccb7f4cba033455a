"""The estimators inside scikit-learn's pipelines, searches and parallel tools."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sknsgf import NSGFPlusPlus, NSGFSampler

SINGLE = NSGFSampler(
    n_flows=4, max_iter=100, hidden_layer_sizes=(16,), flow_batch_size=64, random_state=0
)
DOUBLE = NSGFPlusPlus(
    n_flows=4,
    n_pairings=4,
    max_iter=100,
    hidden_layer_sizes=(16,),
    flow_batch_size=64,
    pairing_size=64,
    random_state=0,
)
SHIFT = np.array([4.0, -2.0])
each_estimator = pytest.mark.parametrize(
    "estimator", [pytest.param(flow, id=type(flow).__name__) for flow in (SINGLE, DOUBLE)]
)


class RecordingSampler(NSGFSampler):
    """Notes the sizes of the samples of each fit."""

    sizes = []

    def fit(self, X, y=None, *, X_target=None):
        self.sizes.append((len(X), len(X_target)))
        return super().fit(X, y, X_target=X_target)


def make_samples(n_source=200, n_target=150, seed=0):
    rng = np.random.default_rng(seed)
    X_source = rng.normal(size=(n_source, 2))
    return X_source, rng.normal(size=(n_target, 2)) * [1.0, 0.5] + SHIFT


X_source, X_target = make_samples()


@pytest.fixture(autouse=True)
def _few_scored_rows(monkeypatch):
    """Score one sample against fewer draws than the 4096 that users get: it is faster."""
    monkeypatch.setattr("sknsgf._base.SCORE_ROWS", 400)


def transport(estimator, source, target, rows):
    """Rows moved by a fresh fit of the estimator."""
    return clone(estimator).fit(source, target).transform(rows)


# Pipelines


@each_estimator
def test_a_pipeline_scales_the_target_with_its_earlier_steps(estimator):
    scaler = StandardScaler().fit(X_source)
    scaled = scaler.transform(X_source)
    expected = clone(estimator).fit(scaled, scaler.transform(X_target))
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            StandardScaler(), clone(estimator), transform_input=["X_target"]
        ).fit(X_source, X_target=X_target)
        assert pipeline.score(X_source) == expected.score(scaled)
        moved = pipeline.transform(X_source)
        back = pipeline.inverse_transform(moved)
    np.testing.assert_array_equal(moved, expected.transform(scaled))
    returned = scaler.inverse_transform(expected.inverse_transform(moved))
    np.testing.assert_allclose(back, returned, rtol=1e-10)


@each_estimator
def test_a_pipeline_passes_labels_that_change_nothing(estimator):
    labels = np.arange(150) % 2
    pipeline = make_pipeline(StandardScaler(), clone(estimator)).fit(X_target, labels)
    scaled = StandardScaler().fit_transform(X_target)
    expected = clone(estimator).fit(scaled).transform(scaled)
    np.testing.assert_array_equal(pipeline.transform(X_target), expected)


@pytest.fixture
def tables():
    """Source and target with two columns of numbers and one of categories."""
    kinds = np.array(["red", "green"])
    frames = (pd.DataFrame(X, columns=["a", "b"]) for X in (X_source, X_target))
    return [frame.assign(kind=kinds[np.arange(len(frame)) % 2]) for frame in frames]


@pytest.mark.parametrize("library", ["pandas", "polars"])
@each_estimator
def test_columns_are_prepared_before_the_flow(estimator, library, tables):
    frames = pytest.importorskip(library)
    source, target = tables
    prepare = ColumnTransformer(
        [("numbers", StandardScaler(), ["a", "b"]), ("kinds", OneHotEncoder(), ["kind"])],
        sparse_threshold=0,
    )
    expected = transport(
        estimator,
        prepare.fit_transform(source),
        prepare.transform(target),
        prepare.transform(source),
    )
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(prepare, clone(estimator), transform_input=["X_target"])
        moved = pipeline.fit(source, X_target=target).transform(source)
        np.testing.assert_array_equal(moved, expected)
        # The categories come out of OneHotEncoder as sparse columns, which no data frame takes.
        pipeline.set_params(columntransformer__kinds__sparse_output=False)
        pipeline.set_output(transform=library).fit(source, X_target=target)
        framed = pipeline.transform(source)
    assert isinstance(framed, frames.DataFrame)
    names = ["numbers__a", "numbers__b", "kinds__kind_green", "kinds__kind_red"]
    assert list(framed.columns) == names
    np.testing.assert_allclose(framed.to_numpy(), expected, rtol=1e-12)


@each_estimator
def test_a_flow_moves_some_columns_and_leaves_the_others(estimator, tables):
    source, target = tables
    numbers = ["a", "b"]
    expected = transport(estimator, source[numbers], target[numbers], source[numbers])
    with config_context(enable_metadata_routing=True):
        columns = ColumnTransformer(
            [("flow", clone(estimator), numbers)],
            remainder="passthrough",
            verbose_feature_names_out=False,
        ).set_output(transform="pandas")
        moved = columns.fit(source, X_target=target[numbers]).transform(source)
    np.testing.assert_array_equal(moved[numbers], expected)
    assert moved["kind"].equals(source["kind"])


@each_estimator
def test_rows_flow_back_to_a_classifier_of_the_source(estimator):
    labels = (X_source[:, 0] > 0).astype(int)
    target = X_source * [1, 0.5] + SHIFT
    classifier = GaussianNB().fit(X_source, labels)
    flow = clone(estimator).set_params(learning_rate_init=0.02, max_iter=300)
    pipeline = make_pipeline(flow.fit(target, X_source), FrozenEstimator(classifier))
    assert classifier.score(target, labels) < 0.6
    assert pipeline.score(target, labels) > 0.85


# Model selection


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize(("n_target", "n_in_a_fold"), [(200, 100), (150, 150)])
def test_grid_search_takes_the_target(routing, n_target, n_in_a_fold):
    target = make_samples(200, n_target)[1]
    RecordingSampler.sizes.clear()
    with config_context(enable_metadata_routing=routing):
        sampler = RecordingSampler(**SINGLE.get_params())
        search = GridSearchCV(sampler, {"max_iter": [1, 100]}, cv=2)
        search.fit(X_source, X_target=target)
    assert RecordingSampler.sizes == [(100, n_in_a_fold)] * 4 + [(200, n_target)]
    assert search.best_params_ == {"max_iter": 100}
    assert search.best_score_ < 0
    expected = transport(SINGLE, X_source, target, X_source)
    np.testing.assert_array_equal(search.transform(X_source), expected)


GRID = {"blur": [0.05, 0.2], "hidden_layer_sizes": [(8,), (16, 16)], "n_steps": [1, 2]}
SEARCHES = {
    "randomized": lambda flow: RandomizedSearchCV(flow, GRID, n_iter=3, cv=2, random_state=0),
    "halving": lambda flow: HalvingGridSearchCV(
        flow, {"blur": [0.05, 0.2], "max_iter": [1, 100]}, cv=2, min_resources=60, random_state=0
    ),
    "halving over gradient steps": lambda flow: HalvingGridSearchCV(
        flow, {"blur": [0.05, 0.2]}, cv=2, resource="max_iter", min_resources=20, max_resources=60
    ),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@each_estimator
def test_every_search_finds_an_estimator_of_its_grid(estimator, search):
    found = search(clone(estimator)).fit(X_source, X_target=X_target)
    best = clone(estimator).set_params(**found.best_params_)
    expected = transport(best, X_source, X_target, X_source)
    np.testing.assert_array_equal(found.transform(X_source), expected)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert found.best_params_.get("max_iter") != 1


@each_estimator
def test_a_search_goes_through_a_pipeline(estimator):
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), clone(estimator), transform_input=["X_target"])
        name = f"{type(estimator).__name__.lower()}__max_iter"
        search = GridSearchCV(pipeline, {name: [1, 100]}, cv=2)
        search.fit(X_source, X_target=X_target)
    assert search.best_params_ == {name: 100}


@each_estimator
def test_cross_validation_scores_one_sample(estimator):
    scores = cross_val_score(clone(estimator), X_target, cv=3)
    assert scores.shape == (3,)
    assert np.all(scores < 0)
    assert np.all(scores > -0.5)


@contextmanager
def dask_cluster():
    """A worker process of two threads on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=2, dashboard_address=":0"):
        yield


CLUSTERS = {"loky": nullcontext, "threading": nullcontext, "dask": dask_cluster}


@pytest.mark.parametrize("backend", CLUSTERS)
def test_a_search_in_parallel_finds_the_same(backend):
    grid = {"max_iter": [1, 50], "blur": [0.1, 0.2]}

    def search():
        found = GridSearchCV(clone(SINGLE), grid, cv=2).fit(X_source, X_target=X_target)
        return found.cv_results_["mean_test_score"]

    with CLUSTERS[backend](), parallel_config(backend=backend, n_jobs=2):
        scores = search()
    np.testing.assert_array_equal(scores, search())
