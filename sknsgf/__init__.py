"""Transport flows between two samples, as scikit-learn estimators."""

from importlib.metadata import version

from sknsgf import datasets, metrics, plotting
from sknsgf._adapter import TransportAdapter
from sknsgf._distributed import distributed
from sknsgf._nsgf import NSGFSampler
from sknsgf._nsgf_plus_plus import NSGFPlusPlus
from sknsgf._persistence import load

__all__ = [
    "NSGFPlusPlus",
    "NSGFSampler",
    "TransportAdapter",
    "__version__",
    "datasets",
    "distributed",
    "load",
    "metrics",
    "plotting",
]
__version__ = version("sknsgf")
