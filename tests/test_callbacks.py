"""Callbacks of scikit-learn that follow a fit, and may stop its trainings."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sknsgf
from sknsgf import NSGFPlusPlus, NSGFSampler, TransportAdapter

callback = pytest.importorskip("sklearn.callback")  # scikit-learn 1.9

CHEAP = {
    "n_flows": 4,
    "max_iter": 250,
    "hidden_layer_sizes": (16,),
    "flow_batch_size": 64,
    "random_state": 0,
}
# Endpoints, so that the first training has more than one part.
DOUBLE = {**CHEAP, "n_pairings": 4, "pairing_size": 64, "prediction": "endpoint"}
SINGLE = NSGFSampler(**CHEAP)
FLOWS = {
    "NSGFSampler": SINGLE,
    "consistent": NSGFPlusPlus(**DOUBLE),
    "paper": NSGFPlusPlus(**DOUBLE, mode="paper"),
}
each_flow = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
SCORE = {"score": lambda flow, X, y: flow.score(X, y)}

rng = np.random.default_rng(0)
X_source = rng.normal(size=(200, 2))
X_target = rng.normal(size=(150, 2)) * [1.0, 0.5] + [4.0, -2.0]


class Recorder:
    """Keeps what its hooks are called with; a subclass acts on it."""

    def __init__(self):
        self.events, self.given, self.fitted = [], [], []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.task_name, context.task_id))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.events.append(("end", context.task_name, context.task_id))
        self.given.append((X, y))
        self.fitted.append((context.task_name, context.parent, fitted_estimator))


class Propagated(Recorder):
    """Goes on from a meta-estimator to what it fits."""

    max_propagation_depth = None


class Stop(Recorder):
    """Stops each training after a number of its parts."""

    def __init__(self, n_parts):
        super().__init__()
        self.n_parts = n_parts

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        super().on_fit_task_end(estimator, context, fitted_estimator=fitted_estimator)
        return context.task_id + 1 == self.n_parts


class StopAlways(Recorder):
    def on_fit_task_end(self, estimator, context):
        super().on_fit_task_end(estimator, context)
        return True


class Failing(Recorder):
    """Raises an error in one of its hooks."""

    def __init__(self, hook, error):
        super().__init__()
        self.hook, self.error = hook, error

    def _fail(self, hook):
        if hook == self.hook:
            raise self.error("asked for")

    def setup(self, estimator, context):
        super().setup(estimator, context)
        self._fail("setup")

    def teardown(self, estimator, context):
        super().teardown(estimator, context)
        self._fail("teardown")

    def on_fit_task_begin(self, estimator, context):
        super().on_fit_task_begin(estimator, context)
        self._fail(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context):
        super().on_fit_task_end(estimator, context)
        self._fail(f"end {context.task_name}")


def stage_tasks(index, name, n_parts=0):
    parts = [(when, "gradient steps", k) for k in range(n_parts) for when in ("begin", "end")]
    return [("begin", name, index), *parts, ("end", name, index)]


def fit_tasks(*stages):
    inside = [event for k, stage in enumerate(stages) for event in stage_tasks(k, *stage)]
    return ["setup", ("begin", "fit", 0), *inside, ("end", "fit", 0), "teardown"]


STAGES = {
    "NSGFSampler": [("simulating flows",), ("training", 3)],
    "consistent": [
        *[("simulating flows",), ("training", 2)],
        *[("pairing",), ("straight training", 3)],
    ],
}
STAGES["paper"] = [*STAGES["consistent"], ("transition training", 3)]


def assert_same_fit(first, second):
    """Check that two fits left the same, bit by bit."""
    names = [name for name in vars(first) if name.endswith("_")]
    assert names == [name for name in vars(second) if name.endswith("_")]
    states = [pickle.dumps([vars(flow)[name] for name in names]) for flow in (first, second)]
    assert states[0] == states[1]
    np.testing.assert_array_equal(first.transform(X_source), second.transform(X_source))


# Tasks


@pytest.mark.parametrize("name", FLOWS)
def test_a_fit_is_its_stages_and_a_training_its_parts(name):
    recorder = Recorder()
    clone(FLOWS[name]).set_callbacks(recorder).fit(X_source, X_target)
    assert recorder.events == fit_tasks(*STAGES[name])


def test_parts_of_the_pool_that_are_made_later_belong_to_the_training():
    recorder = Recorder()
    flow = clone(SINGLE).set_params(pool="online", max_pool_size=0.004)
    flow.set_callbacks(recorder).fit(X_source, X_target)
    assert recorder.events == fit_tasks(*STAGES["NSGFSampler"])


def test_no_part_begins_after_early_stopping():
    recorder = Recorder()
    flow = clone(SINGLE).set_params(early_stopping=True, n_iter_no_change=1, tol=10.0)
    flow.set_callbacks(recorder).fit(X_source, X_target)
    assert recorder.events == fit_tasks(("simulating flows",), ("training", 1))


@each_flow
def test_callbacks_change_nothing_of_a_fit(flow):
    with_callbacks = clone(flow).set_callbacks(Recorder(), callback.ScoringMonitor(scoring=SCORE))
    assert_same_fit(with_callbacks.fit(X_source, X_target), clone(flow).fit(X_source, X_target))


class DropoutNetwork(torch.nn.Module):
    def __init__(self, n_features):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_features + 1, 8), torch.nn.Dropout(), torch.nn.Linear(8, n_features)
        )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def test_callbacks_change_nothing_of_what_a_users_network_draws():
    flow = clone(SINGLE).set_params(network=DropoutNetwork)
    with_callbacks = clone(flow).set_callbacks(callback.ScoringMonitor(scoring=SCORE))
    assert_same_fit(with_callbacks.fit(X_source, X_target), flow.fit(X_source, X_target))


@each_flow
def test_a_fitted_estimator_is_there_once_nothing_is_missing(flow):
    recorder = Recorder()
    flow = clone(flow).set_callbacks(recorder).fit(X_source, X_target)
    *_, last = (task for name, task, _ in recorder.fitted if name == "gradient steps")
    for name, parent, fitted in recorder.fitted:
        complete = name == "fit" or (name == "gradient steps" and parent is last)
        assert (fitted is not None) == complete
        if complete:
            assert fitted is not flow
            assert np.isfinite(fitted.transform(X_source)).all()
            assert np.isfinite(fitted.sample(10)).all()
    assert_same_fit(recorder.fitted[-1][-1], flow)


FRAMES = [pd.DataFrame(X, columns=["a", "b"]) for X in (X_source, X_target)]
LABELS = np.arange(len(X_source))


@pytest.mark.parametrize(
    ("arguments", "y"),
    [
        ((X_source, X_target), X_target),
        ((X_source, LABELS, X_target), X_target),
        ((X_source, LABELS), LABELS),
        ((X_source,), np.zeros(len(X_source))),
        (FRAMES, FRAMES[1]),
    ],
    ids=["target", "labels and target", "labels", "one sample", "frames"],
)
def test_callbacks_are_given_the_samples_that_a_score_needs(arguments, y):
    recorder, monitor = Recorder(), callback.ScoringMonitor(scoring=SCORE)
    flow = clone(SINGLE).set_callbacks(recorder, monitor)
    X, *others = arguments
    flow.fit(X, **dict(zip(("y", "X_target"), others, strict=False)))
    for given in recorder.given:
        assert given[0] is X
        assert type(given[1]) is type(y)
        np.testing.assert_array_equal(given[1], y)
    scores = [row["score"] for row in monitor.get_logs().data]
    assert scores[0] == scores[-1] == flow.score(X, y)


# Stopping


@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_stopped_training_has_the_weights_of_that_time(n_parts):
    constant = clone(SINGLE).set_params(learning_rate="constant")
    short = clone(constant).set_params(max_iter=100 * n_parts).fit(X_source, X_target)
    stop = Stop(n_parts)
    stopped = clone(constant).set_callbacks(stop).fit(X_source, X_target)
    assert stopped.n_iter_ == 100 * n_parts
    assert stop.events == fit_tasks(("simulating flows",), ("training", n_parts))
    assert_same_fit(stopped, short)
    assert_same_fit(stopped, [fitted for *_, fitted in stop.fitted if fitted][-1])


def test_each_training_is_stopped_on_its_own():
    flow = clone(FLOWS["paper"]).set_callbacks(StopAlways()).fit(X_source, X_target)
    n_steps = {name: len(losses) for name, losses in flow.loss_curves_.items()}
    assert n_steps == {"sinkhorn": 100, "straight": 100, "transition": 100}
    assert np.isfinite(flow.transform(X_source)).all()


def test_a_stopped_training_can_be_continued():
    flow = clone(SINGLE).set_callbacks(Stop(1)).fit(X_source, X_target)
    first = flow.loss_curve_
    flow.set_callbacks().set_params(warm_start=True).fit(X_source, X_target)
    assert flow.n_iter_ == 250
    assert np.mean(flow.loss_curve_[:20]) < np.mean(first[:20]) / 2


def test_a_stopped_training_keeps_the_best_weights_of_early_stopping():
    flow = clone(SINGLE).set_params(early_stopping=True, learning_rate_init=0.5, ema_decay=0)
    stop = Stop(2)
    flow.set_callbacks(stop).fit(X_source, X_target)
    assert len(flow.validation_loss_curve_) == 2
    best = int(np.argmin(flow.validation_loss_curve_))
    at_best = [fitted for *_, fitted in stop.fitted if fitted][best]
    np.testing.assert_array_equal(flow.transform(X_source), at_best.transform(X_source))


# Failures

HOOKS = [
    *("setup", "teardown", "begin fit", "end fit", "begin training", "end simulating flows"),
    *("begin gradient steps", "end gradient steps"),
]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_in_a_callback_leaves_the_estimator_as_it_was(hook, error):
    failing, other = Failing(hook, error), Recorder()
    flow = clone(SINGLE).set_callbacks(failing)
    before = dict(vars(flow))
    with pytest.raises(error, match="asked for"):
        flow.fit(X_source, X_target)
    assert vars(flow) == before
    assert failing.events[-1] == "teardown"
    flow.set_callbacks(other).fit(X_source, X_target)
    before = dict(vars(flow.set_callbacks(failing)))
    with pytest.raises(error, match="asked for"):
        flow.fit(X_source + 1, X_target)
    assert vars(flow).keys() == before.keys()
    assert all(vars(flow)[name] is value for name, value in before.items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_callbacks_are_torn_down_after_a_failed_fit(error, monkeypatch):
    def failed(*args, **kwargs):
        raise error

    monkeypatch.setattr("sknsgf._training.fit_regression", failed)
    recorder = Recorder()
    flow = clone(SINGLE).set_callbacks(recorder)
    with pytest.raises(error):
        flow.fit(X_source, X_target)
    assert recorder.events[-2:] == [("begin", "training", 1), "teardown"]


def test_callbacks_are_torn_down_after_invalid_input():
    recorder = Recorder()
    flow = clone(SINGLE).set_callbacks(recorder)
    with pytest.raises(ValueError, match="does not match X"):
        flow.fit(X_source, X_target[:, :1])
    assert recorder.events == ["setup", ("begin", "fit", 0), "teardown"]


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="FitCallback"):
        clone(SINGLE).set_callbacks("progress")


# In pipelines and searches


def test_a_pipeline_hands_its_callbacks_to_the_flow():
    recorder = Propagated()
    pipeline = make_pipeline(StandardScaler(), clone(SINGLE))
    pipeline.set_callbacks(recorder).fit(X_source, nsgfsampler__X_target=X_target)
    of_the_flow = recorder.events[recorder.events.index(("begin", "fit", 1)) + 1 :]
    assert of_the_flow[:-3] == fit_tasks(*STAGES["NSGFSampler"])[2:-2]
    assert recorder.events.count("setup") == recorder.events.count("teardown") == 1
    assert not any("callback" in name for name in vars(pipeline[-1]))


def test_a_failed_fit_in_a_pipeline_takes_its_callbacks_back():
    pipeline = make_pipeline(clone(SINGLE).set_params(blur=-1.0)).set_callbacks(Propagated())
    before = dict(vars(pipeline[-1]))
    with pytest.raises(ValueError, match="blur"):
        pipeline.fit(X_source, nsgfsampler__X_target=X_target)
    assert vars(pipeline[-1]) == before


def test_a_flow_in_a_pipeline_has_callbacks_of_its_own():
    recorder = Recorder()
    flow = clone(SINGLE).set_callbacks(recorder)
    make_pipeline(StandardScaler(), flow).fit(X_source, nsgfsampler__X_target=X_target)
    assert [event[1] for event in recorder.events if event[0] == "end"][-2:] == ["training", "fit"]


def test_a_search_hands_its_callbacks_to_every_fit():
    recorder = Propagated()
    search = GridSearchCV(clone(SINGLE), {"max_iter": [1, 100]}, cv=2).set_callbacks(recorder)
    search.fit(X_source, X_target=X_target)
    assert [event[:2] for event in recorder.events].count(("end", "training")) == 5
    assert recorder.events.count("setup") == recorder.events.count("teardown") == 1


def test_one_monitor_scores_every_fit_of_a_search():
    monitor = callback.ScoringMonitor(scoring=SCORE)
    flow = clone(SINGLE).set_callbacks(monitor)
    search = GridSearchCV(flow, {"max_iter": [1, 200]}, cv=2).fit(X_source, X_target=X_target)
    n_scored = [(1 + 1), (1 + 1), (1 + 2), (1 + 2), (1 + 2)]  # the fit and its parts
    runs = {row["task_id_path"][:2] for row in monitor.get_logs().data}
    assert len(monitor.get_logs().data) == sum(n_scored)
    assert len(runs) == 2  # the search and the refit
    assert search.best_params_ == {"max_iter": 200}


def test_an_adapter_fits_its_transport_with_the_callbacks_of_that():
    recorder = Recorder()
    adapter = TransportAdapter(clone(SINGLE).set_callbacks(recorder), GaussianNB())
    adapter.fit(X_source, X_source[:, 0] > 0, X_target=X_target)
    assert recorder.events == fit_tasks(*STAGES["NSGFSampler"])


# scikit-learn's callbacks


@each_flow
def test_progress_bars_name_the_stages(flow, capsys):
    pytest.importorskip("rich")
    clone(flow).set_callbacks(callback.ProgressBar()).fit(X_source, X_target)
    lines = capsys.readouterr().out.splitlines()
    name = type(flow).__name__
    stages = STAGES[next(key for key in FLOWS if FLOWS[key] is flow)]
    titles = [f"{name} - fit", *(f"{name} - {stage[0]} #{k}" for k, stage in enumerate(stages))]
    bars = [line for line in lines if line.strip()][-len(titles) :]
    for title, bar in zip(titles, bars, strict=True):
        assert bar.strip().startswith(title)
        assert "100%" in bar


def test_the_monitored_score_rises():
    monitor = callback.ScoringMonitor(scoring=SCORE)
    flow = clone(SINGLE).set_callbacks(monitor).fit(X_source, X_target)
    *parts, _ = sorted(monitor.get_logs().data, key=lambda row: -len(row["task_id_path"]))
    scores = [row["score"] for row in parts]
    assert len(scores) == 3
    assert scores == sorted(scores)
    assert scores[-1] > 0.9 * scores[0]
    assert scores[-1] == flow.score(X_source, X_target)


# What is kept


def test_files_leave_callbacks_out(tmp_path):
    flow = clone(SINGLE).fit(X_source, X_target)
    flow.save(tmp_path / "without")
    flow.set_callbacks(Recorder()).save(tmp_path / "with")
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()
    assert vars(sknsgf.load(tmp_path / "with")).keys() < vars(flow).keys()


def test_a_callback_can_save_what_is_fitted_so_far(tmp_path):
    class Checkpoint(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name == "gradient steps":
                fitted_estimator.save(tmp_path / f"part-{context.task_id}")

    flow = clone(SINGLE).set_callbacks(Checkpoint()).fit(X_source, X_target)
    flows = [sknsgf.load(tmp_path / f"part-{k}") for k in range(3)]
    assert [opened.n_iter_ for opened in flows] == [100, 200, 250]
    assert_same_fit(flows[-1], flow)


def test_clones_and_pickles_and_copies_keep_callbacks():
    monitor = callback.ScoringMonitor(scoring=None)
    flow = clone(SINGLE).set_callbacks(monitor)
    assert clone(flow)._skl_callbacks == [monitor]
    for again in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert [type(kept) for kept in again._skl_callbacks] == [callback.ScoringMonitor]


def test_no_callbacks_leave_no_attribute():
    flow = clone(SINGLE).set_callbacks(Recorder()).set_callbacks()
    assert vars(flow).keys() == vars(SINGLE).keys()
    fitted = flow.fit(X_source, X_target)
    assert not any("callback" in name for name in vars(fitted))
