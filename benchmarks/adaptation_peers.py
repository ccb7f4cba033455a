"""What a user would pick instead to adapt rows of a source: transports for TransportAdapter."""

import numpy as np
from sklearn.base import BaseEstimator, clone


class Unadapted(BaseEstimator):
    """Leaves the source where it is."""

    def fit(self, X, y=None, *, X_target=None):
        """Learn nothing."""
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        """Return the rows as they are."""
        return X


class MomentMatching(BaseEstimator):
    """Gives the source the target's mean and, for CORAL, its covariance.

    CORAL (Sun, Feng, Saenko 1511.05547) whitens and recolours with identity matrices added to both
    covariances, as its authors do; without it, rows are shifted by the difference of the means.
    """

    def __init__(self, *, covariance=False):
        self.covariance = covariance

    def fit(self, X, y=None, *, X_target=None):
        """Compute the moments."""
        self.means_ = X.mean(axis=0), X_target.mean(axis=0)
        self.matrix_ = np.eye(X.shape[1])
        if self.covariance:
            source, target = (np.cov(rows.T) + self.matrix_ for rows in (X, X_target))
            self.matrix_ = _power(source, -0.5) @ _power(target, 0.5)
        return self

    def transform(self, X):
        """Move rows of the source."""
        return (X - self.means_[0]) @ self.matrix_ + self.means_[1]


class PotTransport(BaseEstimator):
    """A transport of POT, such as ``ot.da.SinkhornTransport(reg_e=0.05)``."""

    def __init__(self, transport):
        self.transport = transport

    def fit(self, X, y=None, *, X_target=None):
        """Compute the plan; only transports with a label cost look at the labels."""
        self.transport_ = clone(self.transport).fit(Xs=X, ys=y, Xt=X_target)
        return self

    def transform(self, X):
        """Move rows of the source: those of `fit` to their barycentres."""
        return self.transport_.transform(Xs=X)


def _power(matrix, exponent):
    """Power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T
