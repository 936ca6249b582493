"""Convolutions and linear layers: they produce units and consume those they read."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dpap.errors import DPAPError
from dpap.graph.export import model_line
from dpap.graph.group import FloatArray, IntArray, LayerKind
from dpap.graph.op_rules import op_rule, out_shape
from dpap.graph.values import LayerCall, Seen, Value, no_units, plain
from dpap.graph.walk import Walk


@op_rule("aten.linear.default")
def _linear(walk: Walk, node: Any, x: Value, weight: Value, bias: Value | None = None) -> Value:
    axis = len(x.shape) - 1
    out = plain(out_shape(node))
    out.marks[:-1] = x.marks[:-1]
    keep_other_axes(walk, x, out, axis)
    return _layer(walk, x, weight, bias, out, "linear", axis, kernel=1, fanout=np.ones(()))


@op_rule(*(f"aten.conv{dims}d.{padding}" for dims in (1, 2, 3) for padding in ("default", "padding")))
def _conv(
    walk: Walk,
    node: Any,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    return _convolution(walk, node, x, weight, bias, stride, padding, dilation, groups=groups)


@op_rule("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def _conv_transpose(
    walk: Walk,
    node: Any,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    spatial = (stride, padding, dilation, output_padding)
    return _convolution(walk, node, x, weight, bias, *spatial, groups=groups, transposed=True)


def _convolution(
    walk: Walk,
    node: Any,
    x: Value,
    weight: Value,
    bias: Value | None,
    *spatial: Any,
    groups: int,
    transposed: bool = False,
) -> Value:
    """`spatial`: stride, padding, dilation; for a transposed one also the output padding."""
    if len(x.shape) < len(weight.shape):
        raise DPAPError(
            f"A convolution receives a tensor of shape {x.shape}, which has no axis for samples.",
            where=model_line(node.stack_trace),
            fix="give a convolution whole batches: (B, C, ...).",
        )
    out = plain(out_shape(node))
    out.marks[0] = x.marks[0]
    _mixed_space(walk, x)
    kernel = tuple(weight.shape[2:])
    fanout = _fanout(x.shape[2:], kernel, *(_hashable(setting) for setting in spatial))
    size = int(np.prod(kernel))
    return _layer(
        walk, x, weight, bias, out, "conv", 1, kernel=size, fanout=fanout, groups=groups, transposed=transposed
    )


def keep_other_axes(walk: Walk, x: Value, out: Value, axis: int) -> None:
    """A layer works on one axis; units on another one go through it untouched, but their activity is not theirs."""
    for other, ids in enumerate(x.units):
        if other != axis:
            walk.protect(ids, "lies on an axis that the next layer does not read")
            out.units[other] = ids


def _mixed_space(walk: Walk, x: Value) -> None:
    for axis, ids in enumerate(x.units):
        if axis != 1:
            walk.protect(ids, "lies on an axis that the next layer does not read")


def _layer(
    walk: Walk,
    x: Value,
    weight: Value,
    bias: Value | None,
    out: Value,
    kind: LayerKind,
    axis: int,
    *,
    kernel: int,
    fanout: FloatArray,
    groups: int = 1,
    transposed: bool = False,
) -> Value:
    if weight.parameter is None:
        for value in (x, weight):
            walk.protect_value(value, "read by a weight that is computed, not a parameter")
        return out
    inputs = x.units[axis]
    in_ids: IntArray = np.full(x.shape[axis], -1) if inputs is None else inputs
    ids = _connected(walk, weight, in_ids, no_units(x), out.shape[axis], groups, transposed)
    if bias is not None:
        walk.attach(ids, bias, 0)
    out.units[axis] = ids
    entered = walk.owner(x.entered, weight.parameter)
    if entered is not None and inputs is not None:
        # where no activation module was met, the unit's activity is what arrives here
        walk.activated(x, Seen(entered[0], entered[1], "input", x, axis))
    module = weight.parameter.rpartition(".")[0] if entered is None else entered[0]
    if isinstance(walk.modules.get(module), nn.MultiheadAttention):
        walk.protect(ids, "nn.MultiheadAttention works out the size of its heads by itself")
    walk.add_layer(
        LayerCall(
            name=module,
            call=0 if entered is None else entered[1],
            kind=kind,
            weight=weight.parameter,
            bias=None if bias is None else bias.parameter,
            out_ids=ids,
            in_ids=in_ids,
            kernel=kernel,
            fanout=fanout,
            input=x,
            input_axis=axis,
            output=out,
            output_axis=axis,
            observed=entered is not None,
            groups=groups,
            transposed=transposed,
        )
    )
    return out


def _connected(
    walk: Walk, weight: Value, in_ids: IntArray, why_none: str | None, rows: int, groups: int, transposed: bool
) -> IntArray:
    """Ids of the output features. Each group of a grouped convolution is one unit, with all that it reads and makes."""
    assert weight.parameter is not None
    if groups == 1:
        ids = walk.new_units(rows)
        walk.produce(ids, weight.parameter, int(transposed))
        walk.consume(in_ids, weight.parameter, int(not transposed), why_none)
        return ids
    unit = walk.new_units(groups)
    ids, read = np.repeat(unit, rows // groups), np.repeat(unit, len(in_ids) // groups)
    walk.tie(read, in_ids, "a grouped convolution reads what is no unit")
    walk.produce(read if transposed else ids, weight.parameter)
    return ids


def _hashable(setting: Any) -> Any:
    return tuple(setting) if isinstance(setting, (list, tuple)) else setting


@lru_cache(maxsize=256)
def _fanout(
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    output_padding: Any = None,
) -> FloatArray:
    """How many (kernel position, output position) pairs read each input position; borders exact.

    `output_padding`: given for a transposed convolution.
    """
    dims = len(space) - 1
    weight = torch.ones(1, 1, *kernel, dtype=torch.float64)
    with torch.enable_grad():
        x = torch.zeros(1, 1, *space, dtype=torch.float64, requires_grad=True)
        if output_padding is None:
            conv: Any = (F.conv1d, F.conv2d, F.conv3d)[dims]
            total = conv(x, weight, None, stride, padding, dilation).sum()
        else:
            conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims]
            total = conv(x, weight, None, stride, padding, output_padding, 1, dilation).sum()
        (grad,) = torch.autograd.grad(total, x)
    return np.asarray(grad[0, 0].numpy())
