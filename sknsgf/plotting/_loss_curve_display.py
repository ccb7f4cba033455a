"""Training losses of a fitted flow."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np

from sknsgf._nsgf_plus_plus import NSGFPlusPlus
from sknsgf._validation import check_parameter, whole_number
from sknsgf.flow.regression import CHECK_EVERY
from sknsgf.plotting._drawing import (
    BLUE,
    GREEN,
    VERMILION,
    add_legend,
    axes_or_new,
    check_flow,
    import_matplotlib,
)


class LossCurveDisplay:
    """Training losses over the gradient steps.

    Use :meth:`from_estimator` to create and draw it. Read more on the page :doc:`/plotting`.

    Parameters
    ----------
    losses : dict of str to array-like of shape (n_steps,)
        For each network, the loss of the batch at each gradient step.
    validation_losses : dict of str to array-like of shape (n_checks,), default=None
        For some of these networks or none, the loss on held-out rows after every 100 gradient
        steps and after the last one.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes that were drawn on last.
    figure_ : matplotlib Figure
        Their figure.
    lines_, raw_lines_, validation_lines_ : dict of str to Line2D
        For each network, the moving average, the losses themselves and the held-out losses; the
        last are there only for networks that have some.

    See Also
    --------
    FlowDisplay : How the flow moves rows.

    Examples
    --------
    >>> from sknsgf.plotting import LossCurveDisplay
    >>> display = LossCurveDisplay({"network": [4.0, 2.0, 1.0, 1.0]}).plot(smoothing=2)
    >>> display.lines_["network"].get_ydata().tolist()
    [4.0, 2.0, 1.5, 1.0]
    """

    def __init__(self, losses, *, validation_losses=None):
        if not isinstance(losses, Mapping) or not losses:
            raise TypeError(
                "The 'losses' parameter of LossCurveDisplay must be a dict of losses by the name "
                f"of their network. Got {losses!r:.60} instead."
            )
        self.losses = losses
        self.validation_losses = {} if validation_losses is None else validation_losses
        if unknown := set(self.validation_losses) - set(losses):
            raise ValueError(
                "The 'validation_losses' parameter of LossCurveDisplay must have names of "
                f"'losses', {sorted(losses)}. Got {sorted(unknown)} instead."
            )

    @classmethod
    def from_estimator(cls, estimator, *, smoothing=100, ax=None, **kwargs):
        """Draw the losses of a fitted flow.

        Parameters
        ----------
        estimator : NSGFSampler or NSGFPlusPlus
            Fitted flow.
        smoothing : int, default=100
            Gradient steps of the moving average, see :meth:`plot`.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **kwargs : dict
            Properties of the lines, see :meth:`plot`.

        Returns
        -------
        LossCurveDisplay
            The display, drawn. Held-out losses are there after ``early_stopping=True``.

        Raises
        ------
        ValueError
            If a parameter is not valid.
        TypeError
            If the estimator is not a flow.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from sknsgf import NSGFPlusPlus
        >>> from sknsgf.plotting import LossCurveDisplay
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> flow = NSGFPlusPlus(n_pairings=4, max_iter=60, random_state=0)
        >>> display = LossCurveDisplay.from_estimator(flow.fit(X, X + 5), smoothing=20)
        >>> list(display.lines_)
        ['sinkhorn', 'straight']
        """
        caller = f"{cls.__name__}.from_estimator"
        import_matplotlib(caller)
        check_flow(estimator, caller)
        if isinstance(estimator, NSGFPlusPlus):
            losses, held_out = estimator.loss_curves_, estimator.validation_loss_curves_
        else:
            losses = {"network": estimator.loss_curve_}
            held_out = {"network": estimator.validation_loss_curve_}
        return cls(losses, validation_losses=held_out).plot(ax, smoothing=smoothing, **kwargs)

    def plot(self, ax=None, *, smoothing=100, **kwargs):
        """Draw the losses on a logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        smoothing : int, default=100
            Each point of a line is the mean loss of this many gradient steps up to its own, or, at
            the beginning, of the later half of the steps done. The losses themselves are drawn in
            a lighter colour.
        **kwargs : dict
            Properties, such as ``linewidth``, of the lines of moving averages.

        Returns
        -------
        self : LossCurveDisplay
            The display.

        Raises
        ------
        ValueError
            If `smoothing` is not an int of at least 1.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from sknsgf.plotting import LossCurveDisplay
        >>> display = LossCurveDisplay({"network": [4.0, 2.0, 1.0, 1.0]}).plot(linewidth=3)
        >>> display.ax_.get_yscale()
        'log'
        """
        check_parameter("smoothing", smoothing, whole_number(), "LossCurveDisplay.plot")
        self.ax_ = axes_or_new(ax, "LossCurveDisplay.plot")
        self.figure_ = self.ax_.figure
        self.lines_, self.raw_lines_, self.validation_lines_ = {}, {}, {}
        for (name, losses), color in zip(self.losses.items(), cycle([BLUE, VERMILION, GREEN])):
            self._draw(name, np.asarray(losses), color, smoothing, kwargs)
        self.ax_.set(yscale="log", xlabel="gradient step", ylabel="mean squared error")
        add_legend(self.ax_, ncols=len(self.losses))  # a column for each network
        return self

    def _draw(self, name, losses, color, smoothing, style):
        """Draw the lines of a network."""
        steps = np.arange(1, len(losses) + 1)
        first = np.maximum(steps // 2, steps - smoothing)
        sums = np.cumsum([0.0, *losses])
        means = (sums[steps] - sums[first]) / (steps - first)
        (raw,) = self.ax_.plot(steps, losses, color=color, alpha=0.25, linewidth=0.5)
        (line,) = self.ax_.plot(steps, means, color=color, label=name)
        line.set(**style)
        self.raw_lines_[name], self.lines_[name] = raw, line
        held_out = self.validation_losses.get(name, [])
        if len(held_out):
            checks = np.minimum(CHECK_EVERY * np.arange(1, len(held_out) + 1), len(losses))
            self.validation_lines_[name] = self.ax_.plot(
                checks, held_out, "o--", color=color, markersize=3, label=f"{name}, held out"
            )[0]
