"""Transport flows between two samples, as scikit-learn estimators."""

from importlib.metadata import version

from sknsgf import datasets, metrics
from sknsgf._nsgf import NSGFSampler

__all__ = ["NSGFSampler", "__version__", "datasets", "metrics"]
__version__ = version("sknsgf")
