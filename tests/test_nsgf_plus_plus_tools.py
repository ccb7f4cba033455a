"""The two-phase estimator in the hands of its users: seeds, failures, scikit-learn, files."""

import copy
import inspect
import pickle
import pickletools

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV

from sknsgf import NSGFPlusPlus

CHEAP = {
    "n_steps": 2,
    "n_straight_steps": 3,
    "n_flows": 4,
    "flow_batch_size": 64,
    "n_pairings": 4,
    "pairing_size": 64,
    "max_iter": 60,
    "hidden_layer_sizes": (16,),
    "random_state": 0,
}
MODES = ["consistent", "paper"]
PHASES = {
    "consistent": ["sinkhorn", "straight"],
    "paper": ["sinkhorn", "straight", "transition"],
}
SHIFT = np.array([4.0, -2.0])
each_mode = pytest.mark.parametrize("mode", MODES)

rng = np.random.default_rng(0)
X_source = rng.normal(size=(200, 2))
X_target = rng.normal(size=(150, 2)) @ [[1.0, 0.5], [0.0, 0.6]] + SHIFT


class SmallNetwork(torch.nn.Module):
    """A user's network; its weights come from torch's default generator."""

    def __init__(self, n_features):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_features + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, n_features)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def fitted(samples=(X_source, X_target), /, **parameters):
    return NSGFPlusPlus(**{**CHEAP, **parameters}).fit(*samples)


@pytest.fixture(scope="module")
def kept_flows():
    return {mode: fitted(mode=mode) for mode in MODES}


@pytest.fixture(params=MODES)
def flow(request, kept_flows):
    return copy.deepcopy(kept_flows[request.param])


def assert_same_flow(first, second):
    """Check that two fits are equal bit by bit."""
    assert first.loss_curves_ == second.loss_curves_
    assert first.network_parameters_.keys() == second.network_parameters_.keys()
    for phase, arrays in first.network_parameters_.items():
        for name, weights in arrays.items():
            np.testing.assert_array_equal(weights, second.network_parameters_[phase][name])
    rows = np.random.default_rng(9).normal(size=(30, first.n_features_in_))
    np.testing.assert_array_equal(first.transform(rows), second.transform(rows))


def largest_difference(first, second):
    return np.abs(first.transform(X_source) - second.transform(X_source)).max()


# Random states, threads and the caller's settings


def test_the_same_seed_gives_the_same_fit_and_another_seed_another(flow):
    again, other = (fitted(mode=flow.mode_, random_state=seed) for seed in (0, 1))
    assert_same_flow(flow, again)
    assert largest_difference(flow, other) > 1e-3


@pytest.mark.parametrize("pairing", ["sinkhorn", "exact"])
@each_mode
def test_settings_of_the_caller_and_threads_change_no_bit(mode, pairing):
    settings = {"mode": mode, "pairing": pairing, "max_iter": 10}
    expected, default = fitted(**settings), torch.get_default_dtype()
    before = torch.get_rng_state().tolist()
    assert_same_flow(expected, fitted(**settings, n_jobs=2))
    torch.set_default_dtype(torch.float64)
    try:
        assert_same_flow(expected, fitted(**settings))
    finally:
        torch.set_default_dtype(default)
    for setting in (lambda: torch.device("meta"), torch.no_grad, torch.inference_mode):
        with setting():
            assert_same_flow(expected, fitted(**settings))
    assert torch.get_rng_state().tolist() == before


# Continuing, failing


def test_warm_start_continues_from_the_last_weights(flow):
    cold = copy.deepcopy(flow)
    flow.set_params(warm_start=True).fit(X_source + 1, X_target + 1)
    for phase, losses in flow.loss_curves_.items():
        assert np.mean(losses[:5]) < 0.9 * np.mean(cold.loss_curves_[phase][:5])
    np.testing.assert_array_equal(flow.center_, cold.center_)
    assert_same_flow(cold, fitted(mode=cold.mode_, warm_start=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_layer_sizes": (8,)}, r"hidden_layer_sizes=\(8,\) \(was \(16,\)\)"),
        ({"network": SmallNetwork}, r"network=.*SmallNetwork.* \(was 'mlp'\)"),
        ({"prediction": "endpoint"}, r"prediction='endpoint' \(was 'velocity'\)"),
    ],
)
def test_warm_start_refuses_another_network(flow, change, message):
    expected = flow.transform(X_source)
    with pytest.raises(ValueError, match=f"warm_start=True continues.*{message}.*warm_start=False"):
        flow.set_params(warm_start=True, **change).fit(X_source, X_target)
    np.testing.assert_array_equal(flow.transform(X_source), expected)


def test_warm_start_may_change_the_mode(kept_flows):
    flow = copy.deepcopy(kept_flows["consistent"]).set_params(warm_start=True, mode="paper")
    assert list(flow.fit(X_source, X_target).network_parameters_) == PHASES["paper"]
    flow.set_params(mode="consistent").fit(X_source, X_target)
    assert list(flow.network_parameters_) == PHASES["consistent"]


@pytest.mark.parametrize(
    "stage", ["_simulation.PairSimulation.__call__", "_training.train", "_training.random_rows"]
)
def test_a_failed_fit_leaves_the_estimator_as_it_was(flow, stage, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before, expected = dict(vars(flow)), copy.deepcopy(flow)
    fresh = clone(flow)
    monkeypatch.setattr(f"sknsgf.{stage}", interrupted)
    for estimator in (flow, fresh):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(X_source + 1, X_target)
    monkeypatch.undo()
    assert vars(flow).keys() == before.keys()
    assert all(vars(flow)[name] is before[name] for name in before)
    assert_same_flow(flow, expected)
    with pytest.raises(NotFittedError, match="This NSGFPlusPlus instance is not fitted yet"):
        fresh.transform(X_source)


def test_too_few_sinkhorn_iterations_of_the_pairing_warn():
    message = "Sinkhorn iterations of NSGFPlusPlus did not converge.*sinkhorn_tol=0.0001"
    settings = {"flow_batch_size": 4, "sinkhorn_tol": 1e-4, "sinkhorn_max_iter": 30, "max_iter": 1}
    fitted(**settings, pairing="independent")
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        flow = NSGFPlusPlus(**{**CHEAP, **settings}).fit(X_source, X_target)
    assert caught[0].filename == __file__
    assert flow.sinkhorn_error_ > 2e-4


def test_verbose_shows_progress_of_every_stage(capsys):
    fitted(mode="paper", verbose=True, max_iter=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("Training: 100%") == 3
    assert "Simulating flows: 100%" in shown.err
    assert "Pairing: 100%" in shown.err


# scikit-learn's tools, files, networks of the user


def test_every_parameter_can_be_set_and_fit_changes_none(flow):
    parameters = inspect.signature(NSGFPlusPlus).parameters
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    assert set(flow.get_params()) == set(parameters) == set(NSGFPlusPlus._parameter_constraints)
    before = flow.get_params()
    assert flow.fit(X_source, X_target) is flow
    assert flow.get_params() == before == clone(flow).get_params()


def test_grid_search_chooses_among_numbers_of_steps():
    search = GridSearchCV(NSGFPlusPlus(**CHEAP), {"n_steps": [1, 2]}, cv=2)
    search.fit(X_source, X_target=X_target)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    assert len(search.best_estimator_.step_sizes_) == search.best_params_["n_steps"]
    assert_same_flow(search.best_estimator_, fitted(**search.best_params_))


@each_mode
@pytest.mark.parametrize("network", ["mlp", SmallNetwork])
def test_pickle_and_joblib_keep_every_bit(network, mode, tmp_path):
    flow = fitted(mode=mode, network=network, max_iter=10)
    joblib.dump(flow, tmp_path / "flow.joblib")
    for copied in (
        pickle.loads(pickle.dumps(flow)),
        joblib.load(tmp_path / "flow.joblib", mmap_mode="r"),
    ):
        assert_same_flow(copied, flow)
        np.testing.assert_array_equal(copied.sample(9), flow.sample(9))
        assert_same_flow(copied.fit(X_source, X_target), flow)


def test_a_pickle_holds_nothing_of_torch(flow):
    names = {arg for _, arg, _ in pickletools.genops(pickle.dumps(flow)) if isinstance(arg, str)}
    assert "sknsgf._nsgf_plus_plus" in names
    assert not [name for name in names if "torch" in name]


@each_mode
def test_a_network_of_the_user_learns_and_is_reproducible(mode):
    settings = {"mode": mode, "network": SmallNetwork, "max_iter": 200, "learning_rate_init": 0.02}
    flow = fitted(**settings)
    torch.rand(3)  # whatever torch's generator is at
    assert_same_flow(flow, fitted(**settings))
    assert set(flow.network_parameters_["straight"]) == set(SmallNetwork(2).state_dict())
    way = np.abs(X_target.mean(axis=0) - X_source.mean(axis=0))
    left = np.abs(flow.transform(X_source).mean(axis=0) - X_target.mean(axis=0))
    assert (left < 0.3 * way).all()
