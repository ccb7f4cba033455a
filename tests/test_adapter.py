"""Domain adaptation: which rows move, what the estimator sees, and scikit-learn around it."""

import pickle
from unittest import SkipTest

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier, is_regressor
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted

from sknsgf import NSGFPlusPlus, NSGFSampler, TransportAdapter

CHEAP = {
    "n_flows": 4,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "random_state": 0,
}
CHEAP_PAIRS = {**CHEAP, "n_pairings": 4, "pairing_size": 64}
LONGER = {"max_iter": 300}  # where the flow has to arrive
DIRECTIONS = ["forward", "backward", "inverse"]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)

rng = np.random.default_rng(0)
y = np.repeat([0, 1], 60)
y_target = np.repeat([0, 1], 45)
SHIFT = np.array([4.0, 1.0])
X = rng.normal(size=(120, 2)) + np.outer(y, [6.0, 0.0])
X_target = rng.normal(size=(90, 2)) + np.outer(y_target, [6.0, 0.0]) + SHIFT


class Shift(BaseEstimator):
    """A transport that is known: it gives the source the mean of the target."""

    def fit(self, X, y=None, *, X_target):
        self.source_, self.target_, self.labels_ = X, X_target, y
        self.shift_ = np.mean(X_target, axis=0) - np.mean(X, axis=0)
        return self

    def transform(self, X):
        return X + self.shift_

    def inverse_transform(self, X):
        return X - self.shift_


class OneWay(BaseEstimator):
    """A transport without a way back."""

    def fit(self, X, y=None, *, X_target):
        return self

    def transform(self, X):
        return X


class Witness(ClassifierMixin, BaseEstimator):
    """A classifier that remembers the rows it is given."""

    def fit(self, X, y):
        self.classes_, self.trained_on_ = np.unique(y), X
        return self

    def predict(self, X):
        self.asked_for_ = X
        return np.repeat(self.classes_[:1], len(X))


class Failing(LogisticRegression):
    """A classifier that can't be trained."""

    def fit(self, X, y):
        raise RuntimeError("no memory left")


def fitted(transport=None, estimator=None, direction="forward", **samples):
    adapter = TransportAdapter(
        Shift() if transport is None else transport,
        LogisticRegression() if estimator is None else estimator,
        direction=direction,
    )
    return adapter.fit(**{"X": X, "y": y, "X_target": X_target} | samples)


# Which rows move


def test_forward_trains_on_moved_source_rows_and_predicts_target_rows_as_they_are():
    adapter = fitted(estimator=Witness())
    adapter.predict(X_target)
    np.testing.assert_array_equal(adapter.transport_.source_, X)
    np.testing.assert_array_equal(adapter.transport_.target_, X_target)
    np.testing.assert_array_equal(adapter.estimator_.trained_on_, X + adapter.transport_.shift_)
    np.testing.assert_array_equal(adapter.estimator_.asked_for_, X_target)


def test_backward_trains_on_the_source_and_moves_target_rows_along_a_flow_from_the_target():
    adapter = fitted(estimator=Witness(), direction="backward")
    adapter.predict(X_target)
    np.testing.assert_array_equal(adapter.transport_.source_, X_target)
    np.testing.assert_array_equal(adapter.transport_.target_, X)
    np.testing.assert_array_equal(adapter.estimator_.trained_on_, X)
    moved = X_target + adapter.transport_.shift_
    np.testing.assert_array_equal(adapter.estimator_.asked_for_, moved)


def test_inverse_trains_on_the_source_and_moves_target_rows_back_along_a_flow_from_the_source():
    adapter = fitted(estimator=Witness(), direction="inverse")
    adapter.predict(X_target)
    np.testing.assert_array_equal(adapter.transport_.source_, X)
    np.testing.assert_array_equal(adapter.transport_.target_, X_target)
    np.testing.assert_array_equal(adapter.estimator_.trained_on_, X)
    moved = X_target - adapter.transport_.shift_
    np.testing.assert_array_equal(adapter.estimator_.asked_for_, moved)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "score"])
@each_direction
def test_every_method_moves_rows_once(direction, method):
    adapter = fitted(estimator=GaussianNB(), direction=direction)
    moved = {
        "forward": X_target,
        "backward": X_target + adapter.transport_.shift_,
        "inverse": X_target - adapter.transport_.shift_,
    }[direction]
    labels = (y_target,) if method == "score" else ()
    expected = getattr(adapter.estimator_, method)(moved, *labels)
    np.testing.assert_array_equal(getattr(adapter, method)(X_target, *labels), expected)


def test_the_decision_function_is_that_of_the_estimator():
    adapter = fitted(direction="inverse")
    expected = adapter.estimator_.decision_function(X_target - adapter.transport_.shift_)
    np.testing.assert_array_equal(adapter.decision_function(X_target), expected)


def test_labels_reach_a_transport_that_starts_from_the_rows_they_belong_to():
    labels = [fitted(direction=direction).transport_.labels_ for direction in DIRECTIONS]
    np.testing.assert_array_equal(labels[0], y)
    assert labels[1] is None
    np.testing.assert_array_equal(labels[2], y)


@pytest.mark.parametrize(
    "flow", [NSGFSampler(**CHEAP | LONGER), NSGFPlusPlus(**CHEAP_PAIRS | LONGER)]
)
@each_direction
def test_a_flow_recovers_what_the_shift_costs_a_classifier(direction, flow):
    unadapted = LogisticRegression().fit(X, y).score(X_target, y_target)
    adapter = fitted(flow, direction=direction)
    assert unadapted < 0.7
    assert adapter.score(X_target, y_target) > 0.9


@each_direction
def test_a_flow_recovers_what_the_shift_costs_a_regressor(direction):
    slope = np.array([1.0, -2.0])
    unadapted = Ridge().fit(X, X @ slope).score(X_target, (X_target - SHIFT) @ slope)
    adapter = fitted(NSGFSampler(**CHEAP | LONGER), Ridge(), direction, y=X @ slope)
    adapted = adapter.score(X_target, (X_target - SHIFT) @ slope)
    assert unadapted < 0.75
    assert adapted > 0.9


# Guided by labels


class Swapped(ClassifierMixin, BaseEstimator):
    """Takes rows of the target on the right for class 0, and keeps the rows it is trained on."""

    def fit(self, X, y):
        self.X_, self.y_, self.classes_ = X, y, np.unique(y)
        return self

    def predict_proba(self, X):
        right = (X[:, 0] > SHIFT[0] + 3).astype(float)
        return np.stack([right, 1 - right], axis=1)

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)


def test_labels_stand_beside_the_features_that_a_guided_transport_sees():
    adapter = TransportAdapter(Shift(), LogisticRegression(), label_weight=3.0, n_label_rounds=1)
    adapter.fit(X, y, X_target=X_target)
    guesses = LogisticRegression().fit(X + Shift().fit(X, X_target=X_target).shift_, y)
    expected = np.hstack([X, 3 * np.eye(2)[y]])
    np.testing.assert_array_equal(adapter.transport_.source_, expected)
    expected = np.hstack([X_target, 3 * guesses.predict_proba(X_target)])
    np.testing.assert_allclose(adapter.transport_.target_, expected)


def test_classes_of_a_guided_flow_go_where_the_classifier_guesses_them():
    flow = NSGFSampler(**CHEAP | LONGER)
    for weight, ends_right in ((0.0, 1), (30.0, 0)):
        adapter = TransportAdapter(flow, Swapped(), label_weight=weight)
        moved = adapter.fit(X, y, X_target=X_target).estimator_.X_
        on_the_right = moved[:, 0] > SHIFT[0] + 3
        assert moved.shape == X.shape
        assert np.mean(on_the_right == (y == ends_right)) > 0.9


def test_float32_rows_stay_float32_for_a_guided_transport():
    adapter = TransportAdapter(Shift(), GaussianNB(), label_weight=3.0)
    adapter.fit(X.astype(np.float32), y, X_target=X_target.astype(np.float32))
    assert adapter.transport_.source_.dtype == adapter.transport_.target_.dtype == np.float32


@pytest.mark.parametrize(
    ("parameters", "labels", "message"),
    [
        ({"direction": "backward"}, y, "needs direction='forward', since labels .* 'backward'"),
        ({"transport": FrozenEstimator(Shift())}, y, "needs a transport that can be fitted"),
        (
            {"transport": NSGFSampler(image_shape=(1, 1, 2))},
            y,
            r"no images: .* Got image_shape=\(1, 1, 2\)",
        ),
        ({"estimator": Ridge()}, y, r"needs a classifier with the method predict_proba. .*Ridge"),
        ({"estimator": KNeighborsClassifier()}, np.stack([y, y], axis=1), r"of shape \(120, 2\)"),
    ],
)
def test_guidance_is_refused_where_nothing_can_be_guessed(parameters, labels, message):
    adapter = TransportAdapter(Shift(), LogisticRegression(), label_weight=2.0)
    with pytest.raises(ValueError, match=f"label_weight=2.0 of TransportAdapter .*{message}"):
        adapter.set_params(**parameters).fit(X, labels, X_target=X_target)


# What follows the wrapped estimator


def test_the_kind_of_estimator_is_that_of_the_wrapped_one():
    classifier = TransportAdapter(Shift(), LogisticRegression())
    regressor = TransportAdapter(Shift(), Ridge())
    assert (is_classifier(classifier), is_regressor(classifier)) == (True, False)
    assert (is_classifier(regressor), is_regressor(regressor)) == (False, True)


def test_labels_are_required_also_where_the_wrapped_estimator_needs_none():
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        fitted(estimator=KMeans(2), y=None)


@pytest.mark.parametrize("fit", [False, True])
def test_a_method_is_there_if_the_estimator_has_it(fit):
    def adapter(estimator):
        return fitted(estimator=estimator) if fit else TransportAdapter(Shift(), estimator)

    assert hasattr(adapter(LogisticRegression()), "decision_function")
    assert not hasattr(adapter(GaussianNB()), "decision_function")
    assert hasattr(adapter(GaussianNB()), "predict_proba")
    assert hasattr(adapter(GaussianNB()), "predict_log_proba")
    assert not hasattr(adapter(SVC()), "predict_proba")
    assert not hasattr(adapter(SVC()), "predict_log_proba")


def test_classes_are_there_for_a_fitted_classifier_only():
    names = np.array(["left", "right"])
    adapter = fitted(y=names[y])
    assert list(adapter.classes_) == ["left", "right"]
    assert set(adapter.predict(X_target)) == {"left", "right"}
    assert not hasattr(TransportAdapter(Shift(), LogisticRegression()), "classes_")
    assert not hasattr(fitted(estimator=Ridge()), "classes_")


def test_several_outputs_are_predicted_at_once():
    values = np.column_stack([X.sum(axis=1), X[:, 0], X[:, 1]])
    adapter = fitted(estimator=LinearRegression(), direction="inverse", y=values)
    moved = X_target - adapter.transport_.shift_
    expected = np.column_stack([moved.sum(axis=1), moved[:, 0], moved[:, 1]])
    np.testing.assert_allclose(adapter.predict(X_target), expected)
    assert adapter.score(X_target, expected) == pytest.approx(1.0)


def test_weights_of_source_rows_reach_the_estimator_and_not_the_flow():
    weights = rng.uniform(0.1, 5.0, len(X))
    adapter = fitted(sample_weight=weights)
    shift = X_target.mean(axis=0) - X.mean(axis=0)
    np.testing.assert_allclose(adapter.transport_.shift_, shift)
    expected = LogisticRegression().fit(X + shift, y, weights)
    np.testing.assert_allclose(adapter.estimator_.coef_, expected.coef_)
    assert np.abs(expected.coef_ - fitted().estimator_.coef_).max() > 1e-2


def test_weights_of_target_rows_reach_the_score():
    adapter = fitted(estimator=Witness())  # says 0 whatever it is asked
    assert adapter.score(X_target, y_target) == 0.5
    assert adapter.score(X_target, y_target, sample_weight=1 + 2 * y_target) == 0.25


# Data frames


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
@each_direction
def test_data_frames_give_what_arrays_give(direction, frame):
    names = ["length", "width"]
    frames = (
        frame({name: X[:, i] for i, name in enumerate(names)}),
        frame({name: X_target[:, i] for i, name in enumerate(names)}),
    )
    adapter = fitted(direction=direction, X=frames[0], X_target=frames[1])
    assert list(adapter.feature_names_in_) == names
    assert adapter.n_features_in_ == 2
    expected = fitted(direction=direction).predict_proba(X_target)
    np.testing.assert_allclose(adapter.predict_proba(frames[1]), expected)


def test_other_column_names_are_refused():
    source = pd.DataFrame(X, columns=["length", "width"])
    target = pd.DataFrame(X_target, columns=["width", "length"])
    with pytest.raises(ValueError, match="(?s)The target sample does not match X.*same order"):
        fitted(X=source, X_target=target)
    adapter = fitted(X=source)
    with pytest.raises(ValueError, match="(?s)feature names should match.*same order"):
        adapter.predict(target)


@pytest.mark.parametrize("container", ["pandas", "polars"])
@each_direction
def test_the_configured_output_of_transformers_changes_nothing(direction, container):
    expected = fitted(NSGFSampler(**CHEAP), direction=direction).predict_proba(X_target)
    with sklearn.config_context(transform_output=container):
        adapter = fitted(NSGFSampler(**CHEAP), direction=direction)
        np.testing.assert_array_equal(adapter.predict_proba(X_target), expected)


# Input that is refused


def test_a_missing_target_is_refused():
    message = r"TransportAdapter needs a sample of the target to fit.*Got X_target=None"
    with pytest.raises(ValueError, match=message):
        TransportAdapter(Shift(), LogisticRegression()).fit(X, y)


def test_target_rows_of_another_width_are_refused():
    message = "The target sample does not match X. It has 1 features, but TransportAdapter is"
    with pytest.raises(ValueError, match=message):
        fitted(X_target=X_target[:, :1])


def test_a_target_that_is_not_valid_is_named():
    with pytest.raises(ValueError, match="X_target is not valid.*contains NaN"):
        fitted(X_target=np.full((5, 2), np.nan))
    with pytest.raises(TypeError, match="X_target is not valid.*[Ss]parse"):
        fitted(X_target=csr_array(X_target))
    with pytest.raises(ValueError, match="(?s)X_target is not valid.*1D array"):
        fitted(X_target=X_target[:, 0])


def test_labels_of_another_length_are_refused_before_the_flow_is_fitted():
    class Untouched(OneWay):
        def fit(self, X, y=None, *, X_target):
            pytest.fail("The flow is fitted.")

    with pytest.raises(ValueError, match="inconsistent numbers of samples: .120, 119."):
        fitted(Untouched(), y=y[1:])


def test_a_direction_that_does_not_exist_is_refused():
    message = "The 'direction' parameter of TransportAdapter must be a str among .* Got 'there'"
    with pytest.raises(ValueError, match=message):
        fitted(direction="there")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"transport": Ridge()}, "'transport' .* must be an object implementing 'fit' and 'tra"),
        ({"estimator": PCA()}, "'estimator' .* must be an object implementing 'fit' and 'predict'"),
    ],
)
def test_what_is_wrapped_must_have_the_methods_that_are_used(parameters, message):
    with pytest.raises(ValueError, match=message):
        fitted(**parameters)


def test_the_inverse_direction_is_refused_for_a_transport_without_a_way_back():
    message = r"direction='inverse' of TransportAdapter needs .* inverse_transform. Got OneWay\(\)"
    with pytest.raises(ValueError, match=message):
        fitted(OneWay(), direction="inverse")
    fitted(OneWay(), direction="backward")


def test_a_pipeline_is_refused_as_transport():
    flow = Pipeline([("scale", StandardScaler()), ("flow", NSGFSampler())])
    message = r"'transport' .* units of those it is given. Got a Pipeline.*make_pipeline\(Standard"
    with pytest.raises(ValueError, match=message):
        fitted(flow)


def test_weights_are_refused_where_the_estimator_takes_none():
    weights = np.ones(len(X))
    message = "sample_weight was given, but KNeighborsClassifier.fit does not take it"
    with pytest.raises(ValueError, match=message):
        fitted(estimator=KNeighborsClassifier(), sample_weight=weights)


def test_weights_are_refused_where_the_score_takes_none():
    class Unweighted(KNeighborsRegressor):
        def score(self, X, y):
            return 1.0

    adapter = fitted(estimator=Unweighted())
    message = "sample_weight was given, but Unweighted.score does not take it"
    with pytest.raises(ValueError, match=message):
        adapter.score(X_target, y_target, sample_weight=y_target)


def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(3,\), expected \(120,\)"):
        fitted(sample_weight=np.ones(3))


# State


def test_parameters_are_neither_fitted_nor_changed():
    transport, estimator = Shift(), LogisticRegression()
    adapter = fitted(transport, estimator)
    assert adapter.transport is transport
    assert adapter.estimator is estimator
    for inner in (transport, estimator):
        with pytest.raises(NotFittedError):
            check_is_fitted(inner)


def test_parameters_of_what_is_wrapped_are_parameters():
    adapter = TransportAdapter(NSGFSampler(**CHEAP), LogisticRegression())
    adapter.set_params(transport__blur=0.5, estimator__C=3.0, direction="inverse")
    parameters = clone(adapter).get_params()
    assert (parameters["transport__blur"], parameters["estimator__C"]) == (0.5, 3.0)
    assert parameters["direction"] == "inverse"


def test_parameters_set_after_the_fit_do_not_change_what_was_fitted():
    adapter = fitted(direction="inverse")
    before = adapter.predict_proba(X_target)
    adapter.set_params(direction="forward", transport=OneWay(), estimator__C=1e-6)
    np.testing.assert_array_equal(adapter.predict_proba(X_target), before)


@each_direction
def test_a_pickled_adapter_predicts_the_same(direction):
    adapter = fitted(NSGFSampler(**CHEAP), direction=direction)
    again = pickle.loads(pickle.dumps(adapter))
    np.testing.assert_array_equal(again.predict_proba(X_target), adapter.predict_proba(X_target))


def test_a_fit_that_fails_leaves_the_adapter_as_it_was():
    adapter = fitted()
    before = adapter.predict_proba(X_target)
    adapter.set_params(estimator=Failing())
    wider = np.hstack([X, X]), y
    with pytest.raises(RuntimeError, match="no memory left"):
        adapter.fit(*wider, X_target=np.hstack([X_target, X_target]))
    np.testing.assert_array_equal(adapter.predict_proba(X_target), before)
    unfitted = TransportAdapter(Shift(), Failing())
    with pytest.raises(RuntimeError, match="no memory left"):
        unfitted.fit(X, y, X_target=X_target)
    with pytest.raises(NotFittedError):
        unfitted.predict(X_target)


def test_a_frozen_flow_is_used_as_it_is():
    flow = NSGFSampler(**CHEAP).fit(X, X_target)
    adapter = fitted(FrozenEstimator(flow), direction="inverse")
    expected = adapter.estimator_.predict_proba(flow.inverse_transform(X_target))
    np.testing.assert_array_equal(adapter.predict_proba(X_target), expected)


# Model selection and pipelines


def stacked(n_labelled):
    """Source rows and some labelled target rows, and the one split that tests on the latter."""
    labelled = np.random.default_rng(1).permutation(len(X_target))[:n_labelled]
    rows, labels = np.vstack([X, X_target[labelled]]), np.append(y, y_target[labelled])
    return rows, labels, [(np.arange(len(X)), np.arange(len(X), len(rows)))]


@pytest.mark.parametrize("routing", [False, True])
def test_a_grid_search_chooses_by_labelled_target_rows(routing):
    rows, labels, split = stacked(20)
    grid = {"transport__blur": [0.1, 500.0], "estimator__C": [1e-8, 1.0], "direction": DIRECTIONS}
    adapter = TransportAdapter(NSGFSampler(**CHEAP), LogisticRegression())
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(adapter, grid, cv=split, refit=False, error_score="raise")
        search.fit(rows, labels, X_target=X_target)
    best = clone(adapter).set_params(**search.best_params_)
    assert best.fit(X, y, X_target=X_target).score(X_target, y_target) > 0.9


@pytest.mark.parametrize(("n_labelled", "n_seen"), [(20, 140), (21, 120)])
def test_a_grid_search_splits_the_target_only_if_it_is_as_long_as_the_rows(n_labelled, n_seen):
    rows, labels, split = stacked(n_labelled)
    target = np.resize(X_target, (141, 2))  # as long as the rows with 21 labelled ones
    seen = []

    class Counting(Shift):
        def fit(self, X, y=None, *, X_target):
            seen.append(len(X_target))
            return super().fit(X, y, X_target=X_target)

    adapter = TransportAdapter(Counting(), LogisticRegression())
    search = GridSearchCV(adapter, {"estimator__C": [1.0]}, cv=split, refit=False)
    search.fit(rows, labels, X_target=target)
    assert seen == [n_seen if n_labelled == 21 else len(target)]


def test_cross_validation_over_source_rows_rewards_the_flow_that_does_not_move_them():
    still = TransportAdapter(OneWay(), LogisticRegression())
    moving = TransportAdapter(Shift(), LogisticRegression())
    over_source = [
        cross_val_score(adapter, X, y, params={"X_target": X_target}, cv=3, error_score="raise")
        for adapter in (still, moving)
    ]
    on_target = [
        clone(adapter).fit(X, y, X_target=X_target).score(X_target, y_target)
        for adapter in (still, moving)
    ]
    assert over_source[0].mean() > over_source[1].mean() + 0.2
    assert on_target[0] < on_target[1] - 0.2


@each_direction
def test_a_scaler_before_the_adapter_scales_both_samples(direction):
    units = np.array([1e3, 1e-3])
    adapter = TransportAdapter(Shift(), LogisticRegression(), direction=direction)
    with sklearn.config_context(enable_metadata_routing=True):
        model = make_pipeline(StandardScaler(), adapter, transform_input=["X_target"])
        model.fit(X * units, y, X_target=X_target * units)
        assert model.score(X_target * units, y_target) > 0.9
    scaled = [model[0].transform(sample * units) for sample in (X, X_target)]
    flow = model[-1].transport_
    ends = [flow.target_, flow.source_] if direction == "backward" else [flow.source_, flow.target_]
    np.testing.assert_array_equal(ends[0], scaled[0])
    np.testing.assert_array_equal(ends[1], scaled[1])


# scikit-learn's own checks, which know one sample only


class SelfAdapter(TransportAdapter):
    """Takes the source for the target where there is none."""

    def fit(self, X, y, *, X_target=None, sample_weight=None):
        target = X if X_target is None else X_target
        return super().fit(X, y, X_target=target, sample_weight=sample_weight)


class UnweightedSelfAdapter(SelfAdapter):
    """The same without weights.

    A row of weight two is to be the same as two rows, which holds for a flow in law only.
    """

    def fit(self, X, y, *, X_target=None):
        return super().fit(X, y, X_target=X_target)


def each_check(**adapters):
    cases = [
        pytest.param(adapter, check, id=f"{name}-{check.func.__name__}")
        for name, adapter in adapters.items()
        for adapter, check in estimator_checks_generator(adapter)
    ]
    return pytest.mark.parametrize(("adapter", "check"), cases)


FLOW = NSGFSampler(**CHEAP, sinkhorn_max_iter=500)


@each_check(
    classifier=SelfAdapter(Shift(), LogisticRegression()),
    regressor=SelfAdapter(Shift(), Ridge(), direction="backward"),
    guided=SelfAdapter(Shift(), LogisticRegression(), label_weight=1.0),
    flow_classifier=UnweightedSelfAdapter(FLOW, LogisticRegression()),
    flow_regressor=UnweightedSelfAdapter(FLOW, Ridge(), direction="inverse"),
)
def test_the_adapter_passes_the_checks_of_scikit_learn(adapter, check):
    try:
        check(adapter)
    except SkipTest as reason:
        if "array_api" not in check.func.__name__:
            pytest.fail(f"The check does not run: {reason}")
        raise
