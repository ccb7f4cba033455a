"""Transport flows between two samples, as scikit-learn estimators."""

from importlib.metadata import version

from sknsgf._nsgf import NSGFSampler

__all__ = ["NSGFSampler", "__version__"]
__version__ = version("sknsgf")
