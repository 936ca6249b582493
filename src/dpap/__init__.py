"""Networks that prune themselves while they learn: developmental plasticity-inspired adaptive pruning (DPAP)."""

from importlib.metadata import PackageNotFoundError, version

from dpap.developer import DPAP
from dpap.development.report import DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.io import load, save
from dpap.method import rules, scores
from dpap.method.plasticity import Stats

try:
    __version__ = version("dpap")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0+unknown"
__all__ = ["DPAP", "DPAPError", "DevelopmentReport", "Stats", "find_groups", "load", "rules", "save", "scores"]
