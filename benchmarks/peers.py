"""What a user would pick instead, on the same data, network and optimiser as our estimators."""

import importlib.util

import numpy as np
import torch

from sknsgf.flow.integration import integrate
from sknsgf.flow.networks import build_network, velocity_field
from sknsgf.flow.regression import fit_regression

HAS_TORCHCFM = importlib.util.find_spec("torchcfm") is not None


class OTCFM:
    """Flow matching on exact minibatch couplings (Tong et al. 2302.00482), by torchcfm's matcher.

    Data are put into the same units, batches drawn in shuffled passes over the rows, and the field
    is integrated by the same Euler steps as in our estimators. ``prediction="endpoint"`` trains the
    network on the ends of the paths, as ours do in high dimension.
    """

    def __init__(
        self,
        *,
        max_iter,
        hidden_layer_sizes=(128, 128, 128),
        activation="relu",
        prediction="velocity",
        learning_rate_init=4e-3,
        batch_size=256,
        random_state=0,
    ):
        self.max_iter, self.batch_size, self.random_state = max_iter, batch_size, random_state
        self.layers, self.prediction = (hidden_layer_sizes, activation), prediction
        self.learning_rate_init = learning_rate_init

    def fit(self, X, X_target):
        """Train on rows of both samples; a source that is None is the target's normal law."""
        from torchcfm import ExactOptimalTransportConditionalFlowMatcher

        torch.manual_seed(self.random_state)  # the matcher draws from the global generators
        np.random.seed(self.random_state)  # noqa: NPY002
        moments = [(s.mean(0), s.var(0)) for s in (X_target if X is None else X, X_target)]
        (mean_x, var_x), (mean_y, var_y) = moments
        self.center = (mean_x + mean_y) / 2
        self.scale = np.sqrt(np.mean((var_x + var_y) / 2 + (mean_x - mean_y) ** 2 / 4))
        source = None if X is None else _Rows(self._to_tensor(X))
        target = _Rows(self._to_tensor(X_target))
        std = torch.tensor(np.sqrt(var_x) / self.scale, dtype=torch.float32)
        shift = torch.tensor((mean_x - self.center) / self.scale, dtype=torch.float32)
        matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
        n = self.batch_size

        def draw():
            x = torch.randn(n, len(std)) * std + shift if source is None else source.draw(n)
            t, x, u = matcher.sample_location_and_conditional_flow(x, target.draw(n))
            return x, t, x + (1 - t)[:, None] * u if self.prediction == "endpoint" else u

        network = build_network("mlp", len(std), *self.layers, None, (), seed=self.random_state)
        self.network = fit_regression(
            network, draw, n_iterations=self.max_iter, learning_rate=self.learning_rate_init
        ).network
        return self

    def transform(self, X, n_evaluations):
        """Carry rows along the flow."""
        field = velocity_field(self.network, self.prediction, 0.5 / n_evaluations)
        with torch.no_grad():
            x = integrate(field, self._to_tensor(X), n_steps=n_evaluations).x
        return x.double().numpy() * self.scale + self.center

    def _to_tensor(self, X):
        return torch.tensor((X - self.center) / self.scale, dtype=torch.float32)


class _Rows:
    """Rows drawn in shuffled passes."""

    def __init__(self, rows):
        self.rows, self.order = rows, torch.empty(0, dtype=torch.int64)

    def draw(self, n):
        while len(self.order) < n:
            self.order = torch.cat([self.order, torch.randperm(len(self.rows))])
        chosen, self.order = self.order[:n], self.order[n:]
        return self.rows[chosen]
