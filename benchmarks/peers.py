"""What a user would pick instead, on the same data, network and optimiser as our estimators."""

import importlib.util

import numpy as np
import torch
from ot.da import SinkhornTransport

from sknsgf import NSGFSampler
from sknsgf.flow.integration import integrate
from sknsgf.flow.networks import build_network, velocity_field
from sknsgf.flow.regression import fit_regression

HAS_TORCHCFM = importlib.util.find_spec("torchcfm") is not None


class FlowMatching:
    """Conditional flow matching (Tong et al. 2302.00482) with torchcfm's matchers.

    ``coupling`` is "exact" (minibatch optimal transport, OT-CFM) or "independent" (I-CFM). Data are
    put into the same units, batches drawn in shuffled passes over the rows, and the field is
    integrated by the same Euler steps as in our estimators. ``prediction="endpoint"`` trains the
    network on the ends of the paths, with the same network and loss as ours in high dimension.
    """

    def __init__(
        self,
        *,
        max_iter,
        coupling="exact",
        hidden_layer_sizes=(128, 128, 128),
        activation="relu",
        prediction="velocity",
        learning_rate_init=4e-3,
        batch_size=256,
        random_state=0,
    ):
        self.max_iter, self.batch_size, self.random_state = max_iter, batch_size, random_state
        self.layers, self.prediction = (hidden_layer_sizes, activation), prediction
        self.coupling, self.learning_rate_init = coupling, learning_rate_init

    def fit(self, X, X_target):
        """Train on rows of both samples; a source that is None is the target's normal law."""
        import torchcfm

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
        matchers = {
            "exact": torchcfm.ExactOptimalTransportConditionalFlowMatcher,
            "independent": torchcfm.ConditionalFlowMatcher,
        }
        matcher = matchers[self.coupling](sigma=0.0)
        n = self.batch_size

        def draw():
            x = torch.randn(n, len(std)) * std + shift if source is None else source.draw(n)
            t, x, u = matcher.sample_location_and_conditional_flow(x, target.draw(n))
            return x, t, x + (1 - t)[:, None] * u if self.prediction == "endpoint" else u

        kind = {"seed": self.random_state, "prediction": self.prediction}
        network = build_network("mlp", len(std), *self.layers, None, (), **kind)
        self.network = fit_regression(
            network,
            draw,
            n_iterations=self.max_iter,
            learning_rate=self.learning_rate_init,
            loss_weight=getattr(network, "loss_weight", None),
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


def follow(flow, rows, n_evaluations):
    """Carry rows along a fitted flow with a number of network evaluations, without another fit."""
    if isinstance(flow, FlowMatching):
        return flow.transform(rows, n_evaluations)
    if isinstance(flow, NSGFSampler):
        flow.n_integration_steps_ = n_evaluations
    else:
        flow.n_straight_steps_ = n_evaluations - fixed_evaluations(flow)
    return flow.transform(rows)


def fixed_evaluations(flow):
    """Evaluations that an NSGFPlusPlus takes besides those of its straight steps."""
    flow.n_straight_steps_ = 1
    return flow.n_evaluations_ - 1


class PlanMap:
    """Out-of-sample map of POT: the barycentric map of an entropic plan between two samples.

    It takes as many rows, and as little blur, as it can in a time like that of the other fits.
    """

    def __init__(self, *, n_rows=2048, blur=0.2, random_state=0):
        self.n_rows, self.blur, self.random_state = n_rows, blur, random_state

    def fit(self, X, X_target):
        """Solve for the plan between rows drawn from both samples."""
        rng = np.random.default_rng(self.random_state)
        X, X_target = (rng.choice(rows, self.n_rows, replace=False) for rows in (X, X_target))
        square = self.blur**2 * (X.var(0).mean() + X_target.var(0).mean())
        self.map = SinkhornTransport(reg_e=square, tol=1e-5)
        self.map.fit(Xs=X, Xt=X_target)
        return self

    def transform(self, X):
        """Carry rows."""
        return self.map.transform(Xs=X, batch_size=1024)


class _Rows:
    """Rows drawn in shuffled passes."""

    def __init__(self, rows):
        self.rows, self.order = rows, torch.empty(0, dtype=torch.int64)

    def draw(self, n):
        while len(self.order) < n:
            self.order = torch.cat([self.order, torch.randperm(len(self.rows))])
        chosen, self.order = self.order[:n], self.order[n:]
        return self.rows[chosen]
