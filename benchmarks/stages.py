"""Seconds of the stages of a fit, as a callback (scikit-learn 1.9 or newer)."""

from time import process_time

# The stages of a fit, by what they do.
FLOWS, PAIRING = ("simulating flows",), ("pairing",)
TRAINING = ("training", "straight training", "transition training")


class StageClock:
    """Callback that adds up the time of each stage of the fits it follows, in ``seconds``.

    By default that is CPU time.
    """

    def __init__(self, clock=process_time):
        self.clock, self.seconds = clock, {}

    def setup(self, estimator, context):
        """Nothing to do."""

    def on_fit_task_begin(self, estimator, context):
        """Start the clock of a stage, which is a task just below the fit."""
        if context.parent is not None and context.parent.parent is None:
            self.start = self.clock()

    def on_fit_task_end(self, estimator, context):
        """Stop it."""
        if context.parent is not None and context.parent.parent is None:
            spent = self.clock() - self.start
            self.seconds[context.task_name] = self.seconds.get(context.task_name, 0.0) + spent

    def totals(self, groups):
        """Seconds of groups of stages, by name."""
        return {
            name: sum(self.seconds.get(stage, 0.0) for stage in stages)
            for name, stages in groups.items()
        }

    def teardown(self, estimator, context):
        """Nothing to do."""
