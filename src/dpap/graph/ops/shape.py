"""Operators that move entries: every index is followed to where it lands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dpap.graph.export import model_line
from dpap.graph.group import IntArray
from dpap.graph.op_rules import elementwise, op_rule, out_shape
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk


@op_rule(
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
    "aten.view_as.default",
    "aten.reshape_as.default",
)
def _reshape(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    """Row-major reshape: follow every index along every axis to where it lands."""
    x = walk.own(x)
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    out.units = [None] * len(out.shape)
    out.marks = [{} for _ in out.shape]
    out.divisor = None if x.divisor is None else x.divisor.reshape(out.shape)
    for source, target in _blocks(x.shape, out.shape):
        for axis in source:
            for name, index in x.marks[axis].items():
                _land_mark(out, target, name, _along(index, source, axis, x.shape))
            ids = x.units[axis]
            if ids is not None:
                land(walk, out, target, _along(ids, source, axis, x.shape), key=f"{node.name} {axis}")
                if len(source) > 1:
                    walk.folds.append((ids, model_line(node.stack_trace)))
    return out


def _along(index: IntArray, source: list[int], axis: int, shape: tuple[int, ...]) -> IntArray:
    """The index along one axis, for every element of the block in row-major order."""
    view = index.reshape([-1 if a == axis else 1 for a in source])
    return np.broadcast_to(view, [shape[a] for a in source]).reshape(-1)


def _lines(shape: tuple[int, ...], target: list[int], index: IntArray) -> dict[int, IntArray]:
    """Axis of the target -> (size, rest): the index along it, for every place along the others."""
    block = index.reshape([shape[a] for a in target])
    return {a: np.moveaxis(block, position, 0).reshape(shape[a], -1) for position, a in enumerate(target)}


def _land_mark(out: Value, target: list[int], name: str, index: IntArray) -> None:
    """A mark stays on the axis along which alone it varies, if there is one."""
    lines = _lines(out.shape, target, index)
    single = [a for a in target if out.shape[a] == 1] if (index == index[:1]).all() else []  # one index stays one
    for axis, line in lines.items():
        if axis == single[0] if single else len(target) == 1 or (out.shape[axis] > 1 and (line == line[:, :1]).all()):
            out.marks[axis] = {**out.marks[axis], name: line[:, 0]}
            return


def land(walk: Walk, out: Value, target: list[int], ids: IntArray, key: str) -> None:
    """Put units on the axis along which alone they vary; where they vary along several, one is chosen and the units
    along the others are tied.

    Args:
        ids: One for each element of the target axes, in row-major order.
        key: Names the choice.
    """
    lines = _lines(out.shape, target, ids)
    wide = {axis: line for axis, line in lines.items() if out.shape[axis] > 1} or dict(list(lines.items())[:1])
    if not wide:
        walk.protect(ids, "its axis is squeezed away")
        return
    axis = next((a for a, line in wide.items() if (line == line[:, :1]).all()), None)
    if axis is None:
        axis = walk.splits.choose(key, {a: out.shape[a] for a in wide}, {a: line[:, 0] for a, line in wide.items()})
        walk.tie(wide[axis], wide[axis][:, :1])
        for other in wide:
            if other != axis:
                mark = walk.splits.mark(key, other)
                out.marks[other] = {**out.marks[other], mark: np.arange(out.shape[other])}
    if out.units[axis] is None:
        out.units[axis] = wide[axis][:, 0]
    else:
        for several in (ids, out.units[axis]):
            walk.protect(several, "a reshape folds two axes of units into one")


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes with equal products, as short as can be: (2, 3, 4) -> (2, 12) gives ([0], [0]) and ([1, 2], [1])."""
    blocks, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        source, target = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        while (p := math.prod(before[a] for a in source)) != (q := math.prod(after[a] for a in target)):
            if p < q:
                source.append(source[-1] + 1 if source else i)
            else:
                target.append(target[-1] + 1 if target else j)
        i, j = i + len(source), j + len(target)
        blocks.append((source, target))
    return blocks


@op_rule("aten.permute.default")
def _permute(walk: Walk, node: Any, x: Value, order: Sequence[int]) -> Value:
    x = walk.own(x)
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    out.units = [x.units[d] for d in order]
    out.marks = [x.marks[d] for d in order]
    out.divisor = None if x.divisor is None else x.divisor.transpose([d % len(order) for d in order])
    return out


@op_rule("aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def _turned(walk: Walk, node: Any, x: Value) -> Value:
    order = list(range(len(x.shape)))
    swapped = order[::-1] if "mT" not in str(node.target) else [*order[:-2], order[-1], order[-2]]
    return _permute(walk, node, x, swapped)


@op_rule("aten.movedim.int")
def _movedim(walk: Walk, node: Any, x: Value, source: int, target: int) -> Value:
    order = list(range(len(x.shape)))
    order.insert(target % len(order), order.pop(source % len(order)))
    return _permute(walk, node, x, order)


@op_rule("aten.transpose.int", "aten.swapaxes.default")
def _transpose(walk: Walk, node: Any, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return _permute(walk, node, x, order)


@op_rule("aten.expand.default", "aten.expand_as.default")
def _expand(walk: Walk, node: Any, x: Value, size: Sequence[int], **options: Any) -> Value:
    """Every axis that is made or stretched gets a mark of its own: it may turn out to be time."""
    x = walk.own(x)
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    new = len(out.shape) - len(x.shape)
    out.units = [*[None] * new, *x.units]
    out.marks = [{} for _ in range(new)] + list(x.marks)
    for axis in range(len(out.shape)):
        if axis < new or x.shape[axis - new] != out.shape[axis]:
            out.marks[axis] = {walk.new_mark(): np.arange(out.shape[axis])}
            walk.protect(out.units[axis], "a single unit is repeated")
            out.units[axis] = None
    out.divisor = None if x.divisor is None else np.broadcast_to(x.divisor, out.shape)
    return out


@op_rule("aten.repeat.default")
def _repeat(walk: Walk, node: Any, x: Value, times: Sequence[int]) -> Value:
    new = len(times) - len(x.shape)
    shape = (1,) * new + x.shape
    if all(t == 1 or s == 1 for t, s in zip(times, shape, strict=True)):
        return _expand(walk, node, x, out_shape(node))
    walk.protect_value(x, "repeated along its own axis")
    return plain(out_shape(node))


@op_rule("aten.pad.default", "aten.constant_pad_nd.default")
@op_rule(*(f"aten.{kind}_pad{dims}d.default" for kind in ("reflection", "replication") for dims in (1, 2, 3)))
def _pad(walk: Walk, node: Any, x: Value, widths: Sequence[int], *rest: Any, **options: Any) -> Value:
    """What is added along an axis of units is no unit; should it be copies of them, they stay."""
    name = str(node.target)
    copies = rest[:1] not in ((), ("constant",)) if name == "aten.pad.default" else "constant" not in name
    out = elementwise(walk.own(x), nonnegative=False)
    x = out
    out = dataclasses.replace(out, units=list(out.units), marks=list(out.marks), shape=out_shape(node))
    for pair in range(len(widths) // 2):
        before, after = widths[2 * pair], widths[2 * pair + 1]
        axis = len(x.shape) - 1 - pair
        ids = x.units[axis]
        if before or after:
            out.marks[axis] = {}
            if ids is not None and min(before, after) >= 0 and not copies:
                out.units[axis] = np.pad(ids, (before, after), constant_values=-1)
            elif ids is not None:
                out.units[axis] = None
                walk.protect(ids, "repeated along its own axis" if copies else "single units are selected by number")
    return out


@op_rule("aten.pixel_shuffle.default")
def _pixel_shuffle(walk: Walk, node: Any, x: Value, factor: int) -> Value:
    """r * r channels make one: they are tied."""
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = out_shape(node)
    ids = x.units[-3]
    if ids is not None:
        squares = ids.reshape(-1, factor * factor)
        walk.tie(squares, squares[:, :1])
        out.units[-3] = squares[:, 0]
    return _space_rearranged(walk, x, out)


@op_rule("aten.pixel_unshuffle.default")
def _pixel_unshuffle(walk: Walk, node: Any, x: Value, factor: int) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = out_shape(node)
    ids = x.units[-3]
    out.units[-3] = None if ids is None else np.repeat(ids, factor * factor)
    return _space_rearranged(walk, x, out)


def _space_rearranged(walk: Walk, x: Value, out: Value) -> Value:
    for axis in (-1, -2):
        walk.protect(x.units[axis], "moved along its own axis")
        out.units[axis] = None
    out.marks[-3:] = [{}, {}, {}]
    return out


@op_rule("aten.channel_shuffle.default")
def _channel_shuffle(walk: Walk, node: Any, x: Value, groups: int) -> Value:
    """(groups, rest) turned round: as a reshape, a transposition and a reshape would."""
    ids = x.units[1]
    out = elementwise(x, nonnegative=x.nonnegative)
    out.marks[1] = {}
    if ids is not None:
        split = plain((groups, x.shape[1] // groups))
        land(walk, split, [0, 1], ids, key=node.name)
        for axis, carried in enumerate(split.units):
            if carried is not None:
                line = carried.reshape([-1 if a == axis else 1 for a in (1, 0)])
                out.units[1] = np.broadcast_to(line, split.shape[::-1]).reshape(-1)
    if x.divisor is not None and len(np.unique(x.divisor)) == 1:
        out.divisor = x.divisor
    return out


@op_rule("aten.repeat_interleave.self_int")
def _repeat_interleave(walk: Walk, node: Any, x: Value, times: int, axis: int | None = None, **options: Any) -> Value:
    x = walk.own(x)
    if axis is None:
        walk.protect_value(x, "repeated along its own axis")
        return plain(out_shape(node))
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    ids = x.units[axis]
    out.units[axis] = None if ids is None else np.repeat(ids, times)
    out.marks[axis] = {name: np.repeat(index, times) for name, index in x.marks[axis].items()}
    out.divisor = None if x.divisor is None else np.repeat(np.broadcast_to(x.divisor, x.shape), times, axis)
    return out


@op_rule(*(f"aten.{name}_like.default" for name in ("ones", "full", "empty", "rand", "randn")))
def _like(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    """As wide as its model, and no unit's activity."""
    return dataclasses.replace(elementwise(x), awaiting=frozenset())


@op_rule("aten.zeros_like.default")
def _zeros_like(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    """Likewise; and no spikes, where spikes are read: those before the first step."""
    return _silent(node, _like(walk, node, x))


@op_rule("aten.zeros.default", "aten.new_zeros.default")
def _zeros(walk: Walk, node: Any, *rest: Any, **options: Any) -> Value:
    """No spikes, as wide as the model's code says, whatever is pruned."""
    out = _silent(node, plain(out_shape(node)))
    out.sized = model_line(node.stack_trace)
    return out


def _silent(node: Any, zeros: Value) -> Value:
    if not _filled(node):
        zeros.divisor, zeros.nonnegative = np.broadcast_to(np.float64(1.0), zeros.shape), True
    return zeros


def _filled(node: Any) -> bool:
    """Whether entries are set in place, which the tensor's later readers do not show: `z[1:] = x`."""
    return any(
        user.target._schema.is_mutable or (user.target.is_view and _filled(user))
        for user in node.users
        if isinstance(user.target, torch._ops.OpOverload) and user.args[:1] == (node,)
    )


@op_rule(*(f"aten.new_{name}.default" for name in ("ones", "full", "empty")))
def _new(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    return plain(out_shape(node))
