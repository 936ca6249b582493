"""Norms and softmaxes: units keep their place; an axis over which statistics are taken is protected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpap.graph.op_rules import elementwise, op_rule
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk

STATISTICS = "a norm takes statistics over this axis"


@op_rule("aten.batch_norm.default")
def _batch_norm(walk: Walk, node: Any, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Value:
    ids = x.units[1]
    if ids is not None:
        for value in (weight, bias, mean, var):
            walk.attach(ids, value, 0)
    return elementwise(x)


@op_rule("aten.instance_norm.default")
def _instance_norm(walk: Walk, node: Any, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Value:
    return _batch_norm(walk, node, x, weight, bias, mean, var)


@op_rule("aten.layer_norm.default", "aten.rms_norm.default")
def _layer_norm(walk: Walk, node: Any, x: Value, shape: Sequence[int], *affine: Any) -> Value:
    first = len(x.units) - len(shape)
    for axis, ids in enumerate(x.units):
        if axis >= first and ids is not None:
            walk.protect(ids, STATISTICS)
            for value in affine:
                walk.attach(ids, value, axis - first)
    return elementwise(x)


@op_rule("aten.group_norm.default")
def _group_norm(
    walk: Walk, node: Any, x: Value, groups: int, weight: Any = None, bias: Any = None, *rest: Any
) -> Value:
    """Each norm group is one unit: its statistics are taken over all its channels."""
    ids = x.units[1]
    if ids is None:
        return elementwise(x)
    if groups == 1:
        walk.protect(ids, STATISTICS)
    elif weight is None:
        walk.protect(ids, "a group norm without parameters has no record of its groups that could follow")
    of_group = ids.reshape(groups, -1)
    walk.tie(of_group, np.broadcast_to(of_group[:, :1], of_group.shape))
    for value in (weight, bias):
        walk.attach(ids, value, 0)
    return elementwise(x)


@op_rule("aten._weight_norm_interface.default", "aten._weight_norm.default")
def _weight_norm(walk: Walk, node: Any, *parts: Any) -> Any:
    """A weight that is computed: the layer that reads it protects its units."""
    made = node.meta["val"]
    return tuple(plain(t.shape) for t in made) if isinstance(made, (tuple, list)) else plain(made.shape)


@op_rule(
    "aten.softmax.int",
    "aten.log_softmax.int",
    "aten._softmax.default",
    "aten._log_softmax.default",
    "aten._safe_softmax.default",
)
def _softmax(walk: Walk, node: Any, x: Value, axis: int, *rest: Any) -> Value:
    walk.protect(x.units[axis], "a softmax takes statistics over this axis")
    return elementwise(x, nonnegative="log" not in str(node.target))
