"""Operators that take tensors apart and put them together: select, stack, cat, split, slice, index."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dpap.graph.group import IntArray
from dpap.graph.op_rules import elementwise, op_rule, out_shape
from dpap.graph.ops.elementwise import tie_axis
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk


@op_rule("aten.select.int")
def _select(walk: Walk, node: Any, x: Value, axis: int, index: int) -> Value:
    axis %= len(x.shape)
    walk.picks[node] = (node.args[0], index % x.shape[axis], x.marks[axis])
    walk.protect(x.units[axis], "single units are selected by number")
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = tuple(size for a, size in enumerate(x.shape) if a != axis)
    out.units = [u for a, u in enumerate(x.units) if a != axis]
    out.marks = [m for a, m in enumerate(x.marks) if a != axis]
    out.divisor = None if x.divisor is None else np.take(x.divisor, index, axis)
    return out


@op_rule("aten.unbind.int")
def _unbind(walk: Walk, node: Any, x: Value, axis: int = 0) -> tuple[Value, ...]:
    parts = tuple(_select(walk, node, x, axis, index) for index in range(x.shape[axis]))
    del walk.picks[node]
    for user in node.users:  # getitem(unbind, index)
        walk.picks[user] = (node, user.args[1], x.marks[axis])
    return parts


@op_rule("aten.stack.default")
def _stack(walk: Walk, node: Any, values: Sequence[Value], axis: int = 0) -> Value:
    """Tied along every axis of theirs; the new axis carries no units. What is made step by step has its time back."""
    inner = plain(values[0].shape)
    for k in range(len(inner.shape)):
        tie_axis(walk, inner, k, [(value, k) for value in values])
    inner.nonnegative = all(value.nonnegative for value in values)
    inner.awaiting = frozenset().union(*(value.awaiting for value in values))
    axis %= len(inner.shape) + 1
    out = _with_new_axis(inner, axis, len(values))
    out.marks[axis] = walk.marks_of_steps(node.args[0])
    divisors = [value.divisor for value in values if value.divisor is not None]
    if len(divisors) == len(values):
        out.divisor = np.stack(divisors, axis)
    return out


def _with_new_axis(x: Value, axis: int, size: int) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = (*x.shape[:axis], size, *x.shape[axis:])
    out.units.insert(axis, None)
    out.marks.insert(axis, {})
    return out


@op_rule("<built-in function getitem>")
def _getitem(walk: Walk, node: Any, value: Any, index: Any) -> Any:
    return value[index]


@op_rule("aten.cat.default")
def _cat(walk: Walk, node: Any, values: Sequence[Value], axis: int = 0) -> Value:
    """Along the axis units lie one after the other; along all others they are tied."""
    shape = out_shape(node)
    axis %= len(shape)
    values = [walk.own(value) for value in values if len(value.shape) == len(shape)]
    out = plain(shape)
    for k in range(len(shape)):
        if k != axis:
            tie_axis(walk, out, k, [(value, k) for value in values])
        elif any(value.units[k] is not None for value in values):
            out.units[k] = np.concatenate([_ids(value, k) for value in values])
    out.nonnegative = all(value.nonnegative for value in values)
    out.awaiting = frozenset().union(*(value.awaiting for value in values))
    divisors = [value.divisor for value in values if value.divisor is not None]
    if len(divisors) == len(values):
        out.divisor = np.concatenate(divisors, axis)
    return out


def _ids(x: Value, axis: int) -> IntArray:
    """Units along an axis; -1 where there are none."""
    ids = x.units[axis]
    return np.full(x.shape[axis], -1) if ids is None else ids


@op_rule("aten.chunk.default")
def _chunk(walk: Walk, node: Any, x: Value, chunks: int, axis: int = 0) -> tuple[Value, ...]:
    size = -(-x.shape[axis] // chunks)
    return _split(walk, node, x, size, axis)


@op_rule("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes")
def _split(walk: Walk, node: Any, x: Value, sizes: int | Sequence[int], axis: int = 0) -> tuple[Value, ...]:
    """Equal pieces of units are tied, for they stay equal only together; unequal ones are cut by number."""
    x, axis = walk.own(x), axis % len(x.shape)
    total = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    ids = x.units[axis]
    if ids is not None and len(sizes) > 1:
        _tie_pieces(walk, ids, sizes)
    starts = np.cumsum([0, *sizes])
    return tuple(_piece(x, axis, slice(int(a), int(b))) for a, b in pairwise(starts))


def _tie_pieces(walk: Walk, ids: IntArray, sizes: Sequence[int]) -> None:
    if len(set(sizes)) > 1 or sizes[0] == 1:
        walk.protect(ids, "single units are selected by number")
        return
    pieces = ids.reshape(len(sizes), -1)
    walk.tie(pieces, pieces[:1])


def _piece(x: Value, axis: int, part: slice) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    ids = x.units[axis]
    out.units[axis] = None if ids is None else ids[part]
    out.marks[axis] = {name: index[part] for name, index in x.marks[axis].items()}
    size = len(range(*part.indices(x.shape[axis])))
    out.shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    where = (*[slice(None)] * axis, part)
    out.divisor = None if x.divisor is None else np.broadcast_to(x.divisor, x.shape)[where]
    return out


@op_rule("aten.slice.Tensor")
def _slice(
    walk: Walk, node: Any, x: Value, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """One of several equal pieces of units ties them all, as `chunk` does."""
    x, axis = walk.own(x), axis % len(x.shape)
    total = x.shape[axis]
    part = slice(start, end, step)
    first, last, _ = part.indices(total)
    size, ids = len(range(first, last, step)), x.units[axis]
    if ids is not None and size < total:
        equal = step == 1 and size > 0 and total % size == 0 and first % size == 0
        _tie_pieces(walk, ids, [size] * (total // size) if equal else [size, total - size, 0])
    return _piece(x, axis, part)


@op_rule("aten.roll.default", "aten.flip.default")
def _moved(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    dims = rest[-1] if "flip" in str(node.target) or len(rest) > 1 else range(len(x.shape))
    out = elementwise(walk.own(x), nonnegative=x.nonnegative)
    for axis in dims:
        walk.protect(x.units[axis], "moved along its own axis")
        out.marks[axis] = {}
    if x.divisor is not None and len(np.unique(x.divisor)) == 1:
        out.divisor = x.divisor
    return out


@op_rule("aten.embedding.default")
def _embedding(walk: Walk, node: Any, weight: Value, index: Any, *rest: Any) -> Value:
    out = plain(out_shape(node))
    out.units[-1] = walk.own(weight).units[-1]
    return out


@op_rule("aten.index.Tensor", "aten.index_select.default", "aten.gather.default", "aten.take_along_dim.default")
def _index(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    """Entries picked by a tensor of places; only what is picked along the first axis leaves the others as they are."""
    x = walk.own(x)
    out = plain(out_shape(node))
    leading = str(node.target) == "aten.index.Tensor" and len(rest[0]) == 1
    for axis, ids in enumerate(x.units):
        if leading and axis > 0:
            place = axis - len(x.shape) + len(out.shape)
            out.units[place], out.marks[place] = ids, x.marks[axis]
        else:
            walk.protect(ids, "single units are selected by number")
    out.nonnegative, out.awaiting = x.nonnegative, x.awaiting
    return out
