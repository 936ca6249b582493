"""Products of activations: what is summed over stays, what is only carried along is tied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpap.graph.op_rules import op_rule, out_shape
from dpap.graph.ops.elementwise import combined, tie_axis
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk

CONTRACTED = "contracted with another activation"


def _contracted(
    walk: Walk, shape: tuple[int, ...], terms: Sequence[str], result: str, operands: Sequence[Value]
) -> Value:
    """An Einstein sum: one letter per axis; a letter that is missing in the result is summed over."""
    operands = [walk.own(v) for v in operands]
    out = plain(shape)
    for letter in dict.fromkeys("".join(terms)):
        holders = [(v, term.index(letter)) for term, v in zip(terms, operands, strict=True) if letter in term]
        if letter in result:
            tie_axis(walk, out, result.index(letter), holders)
        else:
            for value, axis in holders:
                walk.protect(value.units[axis], CONTRACTED)
    out.nonnegative = all(v.nonnegative for v in operands)
    out.awaiting = frozenset().union(*(v.awaiting for v in operands))
    return out


@op_rule("aten.einsum.default")
def _einsum(walk: Walk, node: Any, equation: str, operands: Sequence[Value], **options: Any) -> Value:
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    shape = out_shape(node)
    spread = "ABCDEFGHIJ"  # for an ellipsis; letters of equations are small by custom
    if any(len(set(term)) < len(term) - 2 * ("..." in term) for term in terms):
        for value in operands:
            walk.protect_value(value, CONTRACTED)
        return plain(shape)
    most = max(
        (len(v.shape) - len(term) + 3 for term, v in zip(terms, operands, strict=True) if "..." in term), default=0
    )
    letters = spread[:most]
    filled = []
    for term, value in zip(terms, operands, strict=True):
        own = len(value.shape) - len(term) + 3
        filled.append(term.replace("...", letters[most - own :]) if "..." in term else term)
    return _contracted(walk, shape, filled, result.replace("...", letters), operands)


@op_rule("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def _matmul(walk: Walk, node: Any, a: Value, b: Value) -> Value:
    """(..., n, k) times (..., k, m)."""
    shape = out_shape(node)
    batch = "ABCDEFGHIJ"[: max(len(a.shape), len(b.shape), 2) - 2]
    left = (batch[len(batch) - len(a.shape) + 2 :] + "nk") if len(a.shape) > 1 else "k"
    right = (batch[len(batch) - len(b.shape) + 2 :] + "km") if len(b.shape) > 1 else "k"
    rows = "n" if len(a.shape) > 1 else ""
    columns = "m" if len(b.shape) > 1 else ""
    return _contracted(walk, shape, [left, right], batch + rows + columns, [a, b])


@op_rule("aten.baddbmm.default", "aten.addmm.default")
def _add_matmul(walk: Walk, node: Any, bias: Value, a: Value, b: Value, **options: Any) -> Value:
    product = _matmul(walk, node, a, b)
    out = plain(product.shape)
    for axis in range(len(out.shape)):
        tie_axis(walk, out, axis, [(product, axis), (bias, axis - len(out.shape) + len(bias.shape))], masked=False)
    out.awaiting = product.awaiting
    return out


@op_rule("aten.scaled_dot_product_attention.default")
def _attention(
    walk: Walk,
    node: Any,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    *rest: Any,
    **options: Any,
) -> Value:
    """(..., N, d) queries on (..., M, d) keys and (..., M, e) values: d and M are summed over."""
    batch = "ABCDEFGHIJ"[: len(query.shape) - 2]
    shape = out_shape(node)
    if options.get("enable_gqa") and key.shape[-3] != query.shape[-3]:
        walk.protect(query.units[-3], "query heads share the heads of keys and values")
    weights = _contracted(walk, (*shape[:-1], key.shape[-2]), [batch + "nd", batch + "md"], batch + "nm", [query, key])
    if mask is not None:
        weights = combined(walk, weights.shape, [weights, mask], masked=True)
    return _contracted(walk, shape, [batch + "nm", batch + "me"], batch + "ne", [weights, value])
