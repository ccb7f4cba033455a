"""What the displays share: matplotlib, axes, a fitted flow, colours, the place of legends."""

from sklearn.utils.validation import check_is_fitted

from sknsgf._base import BaseFlow

# Colours that those who see few of them can tell apart (Okabe and Ito).
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"


def import_matplotlib(caller):
    """Return matplotlib with the modules that displays use, or say how to install it."""
    try:
        import matplotlib.animation
        import matplotlib.collections
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib. Install it with `pip install 'sknsgf[plot]'`."
        ) from error
    return matplotlib


def axes_or_new(ax, caller):
    """Return the axes of the caller, or those of a new figure."""
    mpl = import_matplotlib(caller)
    return mpl.pyplot.subplots(layout="constrained")[1] if ax is None else ax


def check_flow(estimator, caller):
    """Refuse what is no fitted flow."""
    if not isinstance(estimator, BaseFlow):
        raise TypeError(
            f"The 'estimator' parameter of {caller} must be a fitted NSGFSampler or NSGFPlusPlus. "
            f"Got {type(estimator).__name__} instead. Of a pipeline, pass the step that is one."
        )
    check_is_fitted(estimator)


def add_legend(ax, *, ncols, title=None):
    """Add a legend above the axes, where it hides nothing, in full colours."""
    legend = ax.legend(
        title=title,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=ncols,
        markerscale=1.5,
        frameon=False,
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
