"""Pictures of a fitted flow: how it moves rows, and how its training went.

The displays follow scikit-learn's: ``from_estimator`` computes and draws, ``plot`` draws again, and
what was drawn is kept for changes by hand. They need matplotlib, the extra ``plot``.
"""

from sknsgf.plotting._flow_display import FlowDisplay
from sknsgf.plotting._loss_curve_display import LossCurveDisplay

__all__ = ["FlowDisplay", "LossCurveDisplay"]
