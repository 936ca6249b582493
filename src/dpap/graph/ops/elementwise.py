"""Operators that work entry by entry: units of the same index are tied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpap.graph.group import FloatArray
from dpap.graph.op_rules import elementwise, op_rule, out_shape
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk


def _with_in_place(*names: str) -> list[str]:
    return [f"aten.{name}{form}.default" for name in names for form in ("", "_")]


@op_rule(*_with_in_place("relu", "abs"))
def _spikes_stay(walk: Walk, node: Any, x: Value) -> Value:
    return elementwise(walk.own(x), nonnegative=True, spikes=True)


@op_rule(*_with_in_place("relu6", "sigmoid", "softplus", "exp", "hardsigmoid", "square"))
def _nonnegative(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    return elementwise(walk.own(x), nonnegative=True)


@op_rule(
    *_with_in_place("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh", "tanh"),
    *_with_in_place("neg", "clamp", "clamp_min", "clamp_max", "sqrt", "rsqrt", "log", "log1p", "expm1", "sin", "cos"),
    *_with_in_place("reciprocal", "erf", "sign", "round", "floor", "ceil", "softsign", "threshold"),
    *_with_in_place("hardshrink", "softshrink", "rrelu", "nan_to_num"),
    *(f"aten.{name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    "aten.pow.Tensor_Scalar",
    "aten.log_sigmoid.default",
    "aten.logical_not.default",
)
def _signed(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    return elementwise(walk.own(x))


@op_rule("aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten.sym_size.int")
def _checked(walk: Walk, node: Any, *rest: Any, **options: Any) -> Any:
    """What `x.float()` and its like leave in an exported graph: a check without a result."""
    return node.meta.get("val")


@op_rule("aten.prelu.default")
def _prelu(walk: Walk, node: Any, x: Value, weight: Value) -> Value:
    ids = x.units[1] if len(x.units) > 1 else None
    if ids is not None and weight.shape[0] > 1:
        walk.attach(ids, weight, 0, masked=False)
    return elementwise(x)


@op_rule("aten.glu.default")
def _glu(walk: Walk, node: Any, x: Value, axis: int = -1) -> Value:
    """The first half, gated by the second."""
    axis %= len(x.shape)
    out = elementwise(x)
    out.shape = out_shape(node)
    ids = x.units[axis]
    out.marks[axis] = {}
    if ids is not None:
        out.units[axis], gate = np.split(ids, 2)
        walk.tie(np.split(ids, 2)[0], gate)
    return out


@op_rule(
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.feature_dropout_.default",
    "aten.alpha_dropout.default",
    "aten.feature_alpha_dropout.default",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten._to_copy.default",
    "aten.lift_fresh_copy.default",
)
def _identity(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    return elementwise(walk.own(x), nonnegative=x.nonnegative, spikes=True)


@op_rule(
    *(f"aten.{name}.Tensor" for name in ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")),
    *(f"aten.{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    "aten.maximum.default",
    "aten.minimum.default",
    "aten.logical_and.default",
    "aten.logical_or.default",
    "aten.pow.Tensor_Tensor",
    "aten.rsub.Scalar",
    "aten.div.Tensor_mode",
)
def _binary(walk: Walk, node: Any, a: Value, b: Any, *rest: Any, **options: Any) -> Value:
    name = str(node.target).split(".")[1].rstrip("_")
    # a zero in a divisor or a power would make infinity of a dead unit, so those are only sliced
    out = combined(walk, out_shape(node), [a, b], masked=name in ("add", "sub", "mul"))
    if options:  # alpha, rounding: neither the sign nor the spikes are followed through them
        return out
    out.nonnegative = name in ("add", "mul", "div", "maximum") and all(
        v.nonnegative if isinstance(v, Value) else v >= 0 for v in (a, b)
    )
    out.divisor = _binary_divisor(name, a, b, out.shape)
    return out


@op_rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.lerp.Scalar", "aten.lerp.Tensor")
@op_rule("aten.addcmul.default", "aten.addcdiv.default", "aten.clamp.Tensor")
@op_rule(*(f"aten.masked_fill{form}.{kind}" for form in ("", "_") for kind in ("Scalar", "Tensor")))
def _mixed(walk: Walk, node: Any, *operands: Any, **options: Any) -> Value:
    return combined(walk, out_shape(node), operands, masked=False)


def combined(walk: Walk, shape: tuple[int, ...], operands: Sequence[Any], *, masked: bool) -> Value:
    """Broadcasting operands, tied axis by axis."""
    tensors = [v for v in operands if isinstance(v, Value)]
    if not any(v.tracked for v in tensors):
        tensors = [walk.own(v) for v in tensors]
    out = plain(shape)
    for axis in range(len(shape)):
        tie_axis(walk, out, axis, [(v, axis - len(shape) + len(v.shape)) for v in tensors], masked=masked)
    out.awaiting = frozenset().union(*(v.awaiting for v in tensors))
    return out


def tie_axis(walk: Walk, out: Value, axis: int, operands: list[tuple[Value, int]], *, masked: bool = True) -> None:
    """One output axis of a broadcasting operator: (operand, its axis, negative where it has none)."""
    full = [(v, k) for v, k in operands if k >= 0 and v.shape[k] == out.shape[axis]]
    for value, k in full:
        out.marks[axis] = {**out.marks[axis], **value.marks[k]}
    for value, k in operands:
        if k >= 0 and value.shape[k] != out.shape[axis]:
            walk.protect(value.units[k], "a single unit is repeated")
    ids = next((value.units[k] for value, k in full if value.units[k] is not None), None)
    if ids is None:
        return
    out.units[axis] = ids
    for value, k in full:
        if value.units[k] is not ids:
            walk.attach(ids, value, k, masked=masked)


def _binary_divisor(name: str, a: Value, b: Any, shape: tuple[int, ...]) -> FloatArray | None:
    """Sums of spikes stay counts of spikes; a scalar factor moves into the divisor; all else is real-valued."""
    if isinstance(b, Value):
        if name != "add" or a.divisor is None or b.divisor is None or a.shape != b.shape:
            return None
        return a.divisor if np.array_equal(a.divisor, b.divisor) else None
    if a.divisor is None or not isinstance(b, (int, float)) or b <= 0 or name not in ("mul", "div"):
        return None
    return a.divisor / b if name == "mul" else a.divisor * b
