"""The rules of ATen operators, one file per subject. `dpap.graph.op_rules` says how to write one."""

from dpap.graph.ops import contractions, elementwise, layers, markers, norms, pooling, select, shape

__all__ = ["contractions", "elementwise", "layers", "markers", "norms", "pooling", "select", "shape"]
