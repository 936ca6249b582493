"""Networks that prune themselves while they learn: developmental plasticity-inspired adaptive pruning (DPAP)."""

from dpap.developer import DPAP, DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.front import find_groups
from dpap.plasticity import Stats

__version__ = "0.1.0"
__all__ = ["DPAP", "DPAPError", "DevelopmentReport", "Stats", "find_groups"]
