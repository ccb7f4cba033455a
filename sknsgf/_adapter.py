"""Domain adaptation: an estimator trained on labelled source rows, for rows of a target."""

from copy import deepcopy

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sknsgf._validation import (
    check_adapter_transport,
    check_guidance,
    check_label_weights,
    check_labelled_samples,
    check_rows,
    methods,
    options,
    real,
    unchanged_on_failure,
    whole_number,
)

DIRECTIONS = ("forward", "backward", "inverse")


def _estimator_has(method):
    """Check for `available_if`: the wrapped estimator has the method."""

    def check(adapter):
        getattr(getattr(adapter, "estimator_", adapter.estimator), method)
        return True

    return check


class TransportAdapter(MetaEstimatorMixin, BaseEstimator):
    """Classifier or regressor for a target without labels, from a source with labels.

    A transport flow learns to carry one sample onto the other, so that an estimator trained on rows
    of the source can be used on rows of the target. The target's labels are never needed. Rows
    given to :meth:`fit` are of the source; rows given to :meth:`predict`, :meth:`score` and the
    like are of the *target*.

    Read more on the page :doc:`/domain_adaptation`.

    Parameters
    ----------
    transport : estimator
        Flow between the samples, such as :class:`NSGFSampler`: has ``fit(X, y, X_target=X_target)``
        and ``transform``, and ``inverse_transform`` for ``direction="inverse"``. It must return
        rows in the units of those it is given; put a scaler before the adapter, not in here. A
        fitted flow in a :class:`~sklearn.frozen.FrozenEstimator` is used as it is.
    estimator : estimator
        Classifier or regressor.
    direction : {"forward", "backward", "inverse"}, default="forward"
        Which rows move. "forward": rows of the source, along a flow from source to target, before
        `estimator` is trained on them; rows of the target are predicted as they are. "backward":
        rows of the target, along a flow from target to source, before they are predicted by
        `estimator`, which is trained on the source as it is. "inverse": rows of the target,
        backward along a flow from source to target.
        "forward" is the default since rows to predict do not suffer from errors of the flow.
    label_weight : float, default=0.0
        Length, in units of the features, of labels that the transport sees beside them: one column
        for each class, known in the source and guessed by the classifier in the target. Two rows at
        the same place, but of different classes, are ``sqrt(2) * label_weight`` apart. 0 leaves the
        transport to the features alone. Above 0 only with direction "forward" and a classifier that
        has ``predict_proba``.
    n_label_rounds : int, default=2
        Rounds of guessing with the last classifier, a new transport, and a new classifier; so
        ``n_label_rounds + 1`` transports are fitted. Only used with `label_weight` above 0.

    Attributes
    ----------
    transport_ : estimator
        The fitted flow; with `label_weight` above 0, of features and, in further columns, classes.
    estimator_ : estimator
        The estimator, trained on labelled rows.
    direction_ : str
        The direction that was fitted.
    classes_ : ndarray of shape (n_classes,)
        Class labels, if `estimator` has them.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, when `X` has string column names. `transport` and `estimator` see
        arrays without names.

    See Also
    --------
    NSGFSampler : A flow for `transport`.
    NSGFPlusPlus : The same in two phases.

    Examples
    --------
    Two classes, which the target has elsewhere:

    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sknsgf import NSGFSampler, TransportAdapter
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> X_source, X_target = rng.normal(size=(2, 400, 2)) + np.outer(y, [5.0, 0.0])
    >>> X_target += [3.5, 1.0]
    >>> classifier = LogisticRegression()
    >>> round(classifier.fit(X_source, y).score(X_target, y), 1)
    0.6
    >>> flow = NSGFSampler(max_iter=400, random_state=0)
    >>> adapter = TransportAdapter(flow, classifier).fit(X_source, y, X_target=X_target)
    >>> round(adapter.score(X_target, y), 1)
    1.0
    """

    # X_target is data, as y is: meta-estimators pass it on to fit without being asked to.
    __metadata_request__fit = {"X_target": True}

    _parameter_constraints = {
        "transport": [methods("fit", "transform")],
        "estimator": [methods("fit", "predict")],
        "direction": [options(*DIRECTIONS)],
        "label_weight": [real(0, closed="left")],
        "n_label_rounds": [whole_number()],
    }

    def __init__(
        self, transport, estimator, *, direction="forward", label_weight=0.0, n_label_rounds=2
    ):
        self.transport = transport
        self.estimator = estimator
        self.direction = direction
        self.label_weight = label_weight
        self.n_label_rounds = n_label_rounds

    def fit(self, X, y, *, X_target=None, sample_weight=None):
        """Learn the flow between the samples, and train the estimator.

        Parameters
        ----------
        X : array-like of shape (n_source, n_features), or path of a .npy file
            Rows of the source.
        y : array-like of shape (n_source,) or (n_source, n_outputs)
            Their labels or values.
        X_target : array-like of shape (n_target, n_features), or path of a .npy file
            Rows of the target, with any number of rows.
        sample_weight : array-like of shape (n_source,), default=None
            Weights of the rows of `X` in the training of `estimator`. The flow sees every row once,
            whatever its weight.

        Returns
        -------
        self : TransportAdapter
            The fitted estimator. When `fit` fails or is interrupted, it is left as it was before.

        Raises
        ------
        ValueError
            If a parameter or a sample is not valid, if `X_target` is missing, or if `estimator`
            does not take `sample_weight`.
        TypeError
            If a sample is sparse.
        """
        with unchanged_on_failure(self):
            self._validate_params()
            check_adapter_transport(self)
            X, y, target = check_labelled_samples(self, X, y, X_target)
            if self.label_weight:
                check_guidance(self, y)
            weights = check_label_weights(self.estimator, "fit", sample_weight, X)
            self.direction_ = self.direction
            self.transport_ = clone(self.transport)
            if self.direction == "backward":
                self.transport_.fit(target, None, X_target=X)
            else:
                self.transport_.fit(X, y, X_target=target)
            rows = X
            if self.direction == "forward":
                rows = np.asarray(self.transport_.transform(X))  # no frame, whatever is configured
            self.estimator_ = clone(self.estimator).fit(rows, y, **weights)
            for _ in range(self.n_label_rounds if self.label_weight else 0):
                self._fit_guided(X, y, target, weights)
        return self

    def _fit_guided(self, X, y, target, weights):
        """Learn the flow of rows with their labels, guessed ones in the target; train again."""
        known = y.reshape(-1, 1) == self.classes_
        guessed = self.estimator_.predict_proba(target)
        X_labelled, target_labelled = (
            np.hstack([rows, (self.label_weight * labels).astype(X.dtype)])
            for rows, labels in ((X, known), (target, guessed))
        )
        self.transport_ = clone(self.transport).fit(X_labelled, y, X_target=target_labelled)
        moved = np.asarray(self.transport_.transform(X_labelled))[:, : X.shape[1]]
        self.estimator_ = clone(self.estimator).fit(moved, y, **weights)

    @available_if(_estimator_has("predict"))
    def predict(self, X):
        """Predict labels or values of rows of the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the target, as they are.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            What `estimator` predicts.
        """
        return self._delegate("predict", X)

    @available_if(_estimator_has("predict_proba"))
    def predict_proba(self, X):
        """Predict class probabilities of rows of the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the target, as they are.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities of the classes in `classes_`.
        """
        return self._delegate("predict_proba", X)

    @available_if(_estimator_has("predict_log_proba"))
    def predict_log_proba(self, X):
        """Predict logarithms of class probabilities of rows of the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the target, as they are.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Logarithms of the probabilities of the classes in `classes_`.
        """
        return self._delegate("predict_log_proba", X)

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, X):
        """Decision function of the estimator at rows of the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the target, as they are.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            What the decision function of `estimator` returns.
        """
        return self._delegate("decision_function", X)

    @available_if(_estimator_has("score"))
    def score(self, X, y, sample_weight=None):
        """Score of the estimator on labelled rows of the target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or path of a .npy file
            Rows of the target, as they are.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their true labels or values.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        float
            What `estimator` scores: accuracy for a classifier, R^2 for a regressor, unless it says
            otherwise.
        """
        X = self._rows_to_predict(X)
        weights = check_label_weights(self.estimator_, "score", sample_weight, X)
        return self.estimator_.score(X, y, **weights)

    @property
    def classes_(self):
        """Class labels, if the estimator has them."""
        return self.estimator_.classes_

    def _delegate(self, method, X):
        """Call a method of the fitted estimator with rows of the target."""
        rows = self._rows_to_predict(X)  # first, since it is what asks for a fit
        return getattr(self.estimator_, method)(rows)

    def _rows_to_predict(self, X):
        """Rows of the target, where the estimator knows its way."""
        check_is_fitted(self)
        X = np.asarray(check_rows(self, X))  # whole, for any estimator
        if self.direction_ == "forward":
            return X
        if self.direction_ == "backward":
            return np.asarray(self.transport_.transform(X))
        return np.asarray(self.transport_.inverse_transform(X))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "estimator_")

    def __sklearn_tags__(self):
        tags, of_estimator = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.estimator_type = of_estimator.estimator_type
        tags.classifier_tags = deepcopy(of_estimator.classifier_tags)
        tags.regressor_tags = deepcopy(of_estimator.regressor_tags)
        tags.target_tags = deepcopy(of_estimator.target_tags)
        tags.target_tags.required = True
        return tags
