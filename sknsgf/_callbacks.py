"""Callbacks of scikit-learn 1.9 or newer: a fit as tasks that they follow and may stop.

The tasks of a fit are its stages, one after the other; those of a training are its parts, each of
as many gradient steps as lie between two looks at the losses. Older versions have no callbacks.
"""

from contextlib import contextmanager

import numpy as np

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class _Unfollowed:
        """Stands for the context of a task that no callback follows."""

        def subcontext(self, **task):
            return self

        def call_on_fit_task_begin(self, **data):
            return self

        def call_on_fit_task_end(self, **data):
            return False

    class CallbackSupportMixin:
        """Stands for scikit-learn's, without ``set_callbacks``."""

        def _init_callback_context(self, **task):
            return _Unfollowed()

    def with_callbacks(method):
        """Stand for scikit-learn's."""
        return method


ATTRIBUTES = {  # that scikit-learn sets on an estimator for its callbacks; nothing that is fitted
    *("_skl_callbacks", "_skl_callbacks_to_teardown"),
    *("_callback_fit_ctx", "_parent_callback_ctx"),
}


class Task:
    """A task of a fit, which begins when it is made.

    ``data`` is what callbacks may ask for: the source as `X`, the target as `y`.
    """

    def __init__(self, estimator, context, data):
        self.estimator, self.context, self.data = estimator, context, data
        context.call_on_fit_task_begin(estimator=estimator, **data)

    def begin(self, name, n_subtasks=0):
        """Begin the next subtask, with a number of subtasks of its own; None is an unknown one."""
        context = self.context.subcontext(task_name=name, max_subtasks=n_subtasks)
        return Task(self.estimator, context, self.data)

    def end(self, attributes=None):
        """End the task, and tell whether a callback asks to stop.

        ``attributes`` are what the estimator lacks to be a fitted one, a dict or a function that
        returns it; None if it lacks more.
        """
        return self.context.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=attributes, **self.data
        )

    @contextmanager
    def stage(self, name, n_subtasks=None):
        """Run a block as the next subtask."""
        task = self.begin(name, n_subtasks)
        yield task
        task.end()


class Training:
    """A training as a stage of a fit, its parts as subtasks.

    ``stream`` names the stage and its random draws. ``attributes(result)`` complete the estimator
    with what the training has come to; they are None while another network is still to be trained.
    """

    def __init__(self, task, stream, attributes):
        self.task, self.stream, self.attributes = task, stream, attributes
        self.part = None

    @contextmanager
    def stage(self, n_parts):
        """Run a block as the training."""
        with self.task.stage(self.stream, n_parts) as self.running:
            yield

    def before_batch(self):
        """Begin the next part, unless one is under way."""
        if self.part is None:
            self.part = self.running.begin("gradient steps")

    def at_check(self, result):
        """End the part, and tell whether a callback asks to stop; ``result()`` is what there is."""
        part, self.part = self.part, None
        return part.end(lambda: self.attributes(result()))


@contextmanager
def fit_task(estimator, X, y, X_target, n_stages):
    """Run a block as the fit of an estimator on these samples, with callbacks around it."""

    def labels():
        return np.zeros(len(X), dtype=np.int64)

    target = y if X_target is None else X_target
    if target is None:
        target = labels  # ScoringMonitor scores nothing without a y, and score ignores labels
    try:
        context = estimator._init_callback_context(max_subtasks=n_stages)
        task = Task(estimator, context, {"X": X, "y": target})
        yield task
        task.end({})
    finally:
        _tear_down(estimator)


@with_callbacks
def _tear_down(estimator):
    """Do nothing: scikit-learn tears callbacks down after whatever it decorates."""
