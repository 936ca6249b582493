"""Networks that prune themselves while they learn: developmental plasticity-inspired adaptive pruning (DPAP)."""

from importlib.metadata import version

from dpap.developer import DPAP
from dpap.development import DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.front import find_groups
from dpap.io import load, save
from dpap.plasticity import Stats

__version__ = version("dpap")
__all__ = ["DPAP", "DPAPError", "DevelopmentReport", "Stats", "find_groups", "load", "save"]
