"""One rule per ATen operator: which axes it ties, produces and consumes.

A rule takes the walk, the node and the node's arguments (tensors as `Value`, the rest as they are) and returns the
value of the output. To teach the library a new operator:

    @op_rule("aten.my_op.default")
    def _(walk, node, x, *rest):
        return elementwise(x)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpap.errors import DPAPError
from dpap.graph.front import Value, Walk, _LayerCall, _NeuronCall, _Seen, feature_axis, is_activation, model_line, plain
from dpap.graph.group import FloatArray, IntArray

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
OP_RULES: dict[str, Rule] = {}


def op_rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Register the rule of one or more operators, by the name that the exported graph prints; no name has two."""

    def register(rule: AnyRule) -> AnyRule:
        for name in names:
            if name in OP_RULES:
                raise ValueError(f"{name} has a rule already")
            OP_RULES[name] = rule
        return rule

    return register


def apply_rule(walk: Walk, node: Any, values: dict[Any, Any]) -> Any:
    """The value of one node of the graph."""

    def known(argument: Any) -> Any:
        return values[argument] if isinstance(argument, torch.fx.Node) else argument

    args = torch.fx.node.map_aggregate(node.args, known)
    kwargs = torch.fx.node.map_aggregate(node.kwargs, known)
    rule = OP_RULES.get(str(node.target))
    if rule is not None:
        return rule(walk, node, *args, **kwargs)
    return _without_rule(walk, node, torch.utils._pytree.tree_leaves((args, kwargs)))


def _without_rule(walk: Walk, node: Any, leaves: Sequence[Any]) -> Any:
    tracked = [v for v in leaves if isinstance(v, Value) and (v.tracked or v.parameter)]
    if tracked and walk.unknown == "refuse":
        raise DPAPError(
            f"The operator {node.target} has no rule, so what it ties together is unknown.",
            where=model_line(node.stack_trace),
            fix=f'write one with @dpap.graph.op_rules.op_rule("{node.target}"), or pass unknown="protect" to keep '
            "every unit that touches it.",
        )
    for value in tracked:
        walk.protect_value(value, f"touched by {node.target}, which has no rule")
    return torch.utils._pytree.tree_map(lambda t: plain(t.shape) if isinstance(t, Tensor) else t, node.meta.get("val"))


def out_shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def elementwise(x: Value, *, nonnegative: bool = False, spikes: bool = False) -> Value:
    """The same units in the same places. `spikes`: the operator leaves a spike a spike."""
    return dataclasses.replace(
        x,
        units=list(x.units),
        marks=list(x.marks),
        divisor=x.divisor if spikes else None,
        nonnegative=nonnegative,
        parameter=None,
        entered=None,
    )


# markers ------------------------------------------------------------------------------------------------------------


@op_rule("dpap.mark.default")
def _mark(walk: Walk, node: Any, x: Value, module: str, call: int, side: str) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    if side == "input":
        out.entered = (module, call)
    elif is_activation(walk.modules[module]):
        axis = feature_axis(out)
        if axis is not None:
            walk.activated(out, _Seen(module, call, "output", out, axis))
    return out


@op_rule("dpap.neuron.default")
def _neuron(walk: Walk, node: Any, x: Value, module: str, call: int) -> Value:
    if len(x.shape) < 3:
        raise DPAPError(
            f"The neuron {module} receives a tensor of shape {x.shape}.",
            fix="multi-step neurons take (T, B, features, ...).",
        )
    out = elementwise(x, nonnegative=True)
    out.divisor = np.broadcast_to(np.float64(1.0), x.shape)
    if not x.marks[0]:  # the steps were made by an operator that leaves no trace, such as stack
        x.marks[0] = out.marks[0] = {walk.new_mark(): np.arange(x.shape[0])}
    for name in x.marks[0]:
        walk.time_marks[name] = x.shape[0]
    ids = out.units[2]
    if ids is not None:
        for parameter in walk.channel_parameters(module):
            walk.produce(ids, f"{module}.{parameter}", masked=False)
        walk.activated(out, _Seen(module, call, "output", out, 2))
    walk.neurons.append(_NeuronCall(module, call, out))
    return out


# layers -------------------------------------------------------------------------------------------------------------


@op_rule("aten.linear.default")
def _linear(walk: Walk, node: Any, x: Value, weight: Value, bias: Value | None = None) -> Value:
    axis = len(x.shape) - 1
    out = plain(out_shape(node))
    out.marks[:-1] = x.marks[:-1]
    _other_axes(walk, x, axis)
    return _layer(walk, x, weight, bias, out, "linear", axis, axis, kernel=1, fanout=np.ones(()))


@op_rule("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
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
    out = plain(out_shape(node))
    out.marks[0] = x.marks[0]
    _other_axes(walk, x, 1)
    if groups > 1:
        reason = f"grouped convolution {weight.parameter}"
        walk.protect(x.units[1], reason)
    fanout = _fanout(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    kernel = int(np.prod(weight.shape[2:]))
    out = _layer(walk, x, weight, bias, out, "conv", 1, 1, kernel=kernel, fanout=fanout, groups=groups)
    if groups > 1:
        walk.protect(out.units[1], reason)
    return out


def _other_axes(walk: Walk, x: Value, axis: int) -> None:
    for other, ids in enumerate(x.units):
        if other != axis:
            walk.protect(ids, "lies on an axis that the next layer does not read")


def _layer(
    walk: Walk,
    x: Value,
    weight: Value,
    bias: Value | None,
    out: Value,
    kind: Any,
    in_axis: int,
    out_axis: int,
    *,
    kernel: int,
    fanout: Any,
    groups: int = 1,
) -> Value:
    if weight.parameter is None:
        for value in (x, weight):
            walk.protect_value(value, "read by a weight that is computed, not a parameter")
        return out
    ids = walk.new_units(weight.shape[0])
    walk.produce(ids, weight.parameter)
    if bias is not None and bias.parameter is not None:
        walk.produce(ids, bias.parameter)
    out.units[out_axis] = ids
    inputs = x.units[in_axis]
    in_ids: IntArray = np.full(x.shape[in_axis], -1) if inputs is None else inputs
    if groups == 1 and inputs is not None:
        walk.consume(inputs, weight.parameter, 1)
    module = weight.parameter.rpartition(".")[0]
    entered = x.entered if x.entered is not None and x.entered[0] == module else None
    if inputs is not None:  # where no activation module was met, the unit's activity is what arrives here
        here = _Seen(module, entered[1], "input", x, in_axis) if entered is not None else None
        if here is not None:
            walk.activated(x, here)
    walk.add_layer(
        _LayerCall(
            name=module,
            call=0 if entered is None else entered[1],
            kind=kind,
            weight=weight.parameter,
            bias=None if bias is None else bias.parameter,
            out_ids=ids,
            in_ids=in_ids if groups == 1 else np.full(weight.shape[1], -1),
            kernel=kernel,
            fanout=fanout,
            input=x,
            input_axis=in_axis,
            output=out,
            output_axis=out_axis,
            observed=entered is not None and groups == 1,
        )
    )
    return out


def _fanout(space: tuple[int, ...], kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> FloatArray:
    """How many (kernel position, output position) pairs read each input position; borders exact."""
    conv: Any = (F.conv1d, F.conv2d, F.conv3d)[len(space) - 1]
    with torch.enable_grad():
        x = torch.zeros(1, 1, *space, dtype=torch.float64, requires_grad=True)
        total = conv(x, torch.ones(1, 1, *kernel, dtype=torch.float64), None, stride, padding, dilation).sum()
        (grad,) = torch.autograd.grad(total, x)
    return np.asarray(grad[0, 0].numpy())


# norms --------------------------------------------------------------------------------------------------------------


@op_rule("aten.batch_norm.default")
def _batch_norm(walk: Walk, node: Any, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Value:
    ids = x.units[1]
    if ids is not None:
        for value, masked in ((weight, True), (bias, True), (mean, False), (var, False)):
            if isinstance(value, Value) and value.parameter is not None:
                walk.produce(ids, value.parameter, masked=masked)
    return elementwise(x)


@op_rule("aten.instance_norm.default")
def _instance_norm(walk: Walk, node: Any, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Value:
    return _batch_norm(walk, node, x, weight, bias, mean, var)


@op_rule("aten.layer_norm.default", "aten.rms_norm.default")
def _layer_norm(walk: Walk, node: Any, x: Value, shape: Sequence[int], *rest: Any) -> Value:
    for ids in x.units[len(x.units) - len(shape) :]:
        walk.protect(ids, "a norm takes statistics over this axis")
    return elementwise(x)


@op_rule("aten.group_norm.default")
def _group_norm(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    walk.protect(x.units[1], "a norm takes statistics over this axis")
    return elementwise(x)


@op_rule("aten.softmax.int", "aten.log_softmax.int", "aten._softmax.default", "aten._log_softmax.default")
def _softmax(walk: Walk, node: Any, x: Value, axis: int, *rest: Any) -> Value:
    walk.protect(x.units[axis], "a softmax takes statistics over this axis")
    return elementwise(x, nonnegative="log" not in str(node.target))


# elementwise ----------------------------------------------------------------------------------------------------------


@op_rule(
    *(
        f"aten.{n}.default"
        for n in ("relu", "relu_", "relu6", "sigmoid", "abs", "softplus", "exp", "hardsigmoid", "square")
    )
)
def _nonnegative(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    keeps = str(node.target) in ("aten.relu.default", "aten.relu_.default", "aten.abs.default")  # a spike stays a spike
    return elementwise(x, nonnegative=True, spikes=keeps)


@op_rule(
    *(
        f"aten.{n}.default"
        for n in (
            "leaky_relu",
            "leaky_relu_",
            "elu",
            "elu_",
            "selu",
            "celu",
            "gelu",
            "silu",
            "silu_",
            "mish",
            "hardswish",
            "hardtanh",
            "tanh",
            "neg",
            "clamp",
            "sqrt",
            "log",
            "sin",
            "cos",
        )
    ),
    "aten.pow.Tensor_Scalar",
)
def _signed(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    return elementwise(x)


@op_rule("aten._assert_tensor_metadata.default")
def _checked(walk: Walk, node: Any, *rest: Any, **options: Any) -> None:
    """What `x.float()` and its like leave in an exported graph: a check without a result."""


@op_rule("aten.prelu.default")
def _prelu(walk: Walk, node: Any, x: Value, weight: Value) -> Value:
    ids = x.units[1] if len(x.units) > 1 else None
    if ids is not None and weight.parameter is not None and weight.shape[0] > 1:
        walk.produce(ids, weight.parameter, masked=False)
    return elementwise(x)


@op_rule(
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten._to_copy.default",
    "aten.lift_fresh_copy.default",
)
def _identity(walk: Walk, node: Any, x: Value, *rest: Any, **options: Any) -> Value:
    return elementwise(x, nonnegative=x.nonnegative, spikes=True)


@op_rule(
    "aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.mul_.Tensor", "aten.div.Tensor"
)
def _binary(walk: Walk, node: Any, a: Any, b: Any, **options: Any) -> Value:
    shape = out_shape(node)
    name = str(node.target).split(".")[1].rstrip("_")
    tensors = [v for v in (a, b) if isinstance(v, Value)]
    out = plain(shape)
    for axis in range(len(shape)):
        _tie_axis(walk, out, axis, [(v, axis - len(shape) + len(v.shape)) for v in tensors])
    out.nonnegative = name in ("add", "mul", "div") and all(
        v.nonnegative if isinstance(v, Value) else v >= 0 for v in (a, b)
    )
    out.awaiting = frozenset().union(*(v.awaiting for v in tensors))
    out.divisor = _binary_divisor(name, a, b, shape)
    return out


def _tie_axis(walk: Walk, out: Value, axis: int, operands: list[tuple[Value, int]]) -> None:
    """One output axis of a broadcasting operator."""
    full = [(v, k) for v, k in operands if k >= 0 and v.shape[k] == out.shape[axis]]
    for value, k in full:
        out.marks[axis] = {**out.marks[axis], **value.marks[k]}
        ids = value.units[k]
        if ids is None:
            continue
        known = out.units[axis]
        if known is None:
            out.units[axis] = ids
        else:
            walk.tie(known, ids)
    ids = out.units[axis]
    if ids is None:
        return
    for value, k in full:
        if value.units[k] is None:
            if value.parameter is not None:
                walk.produce(ids, value.parameter, k)
            else:
                walk.protect(ids, "combined with a tensor that carries no units")


def _binary_divisor(name: str, a: Any, b: Any, shape: tuple[int, ...]) -> FloatArray | None:
    """Sums of spikes stay counts of spikes; a scalar factor moves into the divisor; all else is real-valued."""
    if isinstance(a, Value) and isinstance(b, Value):
        if name != "add" or a.divisor is None or b.divisor is None or a.shape != b.shape:
            return None
        return a.divisor if np.array_equal(a.divisor, b.divisor) else None
    value, scalar = (a, b) if isinstance(a, Value) else (b, a)
    if value.divisor is None or not isinstance(scalar, (int, float)) or scalar <= 0 or name not in ("mul", "div"):
        return None
    return value.divisor / scalar if name == "mul" else value.divisor * scalar if value is a else None


# pooling ------------------------------------------------------------------------------------------------------------


def _pooled(walk: Walk, x: Value, node: Any, dims: int, divisor: FloatArray | float) -> Value:
    """Units stay on their axis. `divisor`: what the pool divides a sum by, per output position (1 for a maximum)."""
    example = node.meta["val"]
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = tuple((example[0] if isinstance(example, (tuple, list)) else example).shape)
    for axis in range(len(out.shape) - dims, len(out.shape)):
        walk.protect(x.units[axis], "a pool mixes neighbouring units")
        out.units[axis], out.marks[axis] = None, {}
    if x.divisor is not None:
        scale = np.unique(x.divisor)
        # A pool of counts that are scaled unevenly cannot be undone position by position: booked as real-valued.
        out.divisor = np.broadcast_to(scale[0] * divisor, out.shape) if len(scale) == 1 else None
    return out


def _per_dim(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))


def _outer(parts: Sequence[FloatArray]) -> FloatArray:
    product: FloatArray = np.ones((), dtype=np.float64)
    for part in parts:
        product = np.multiply.outer(product, part)
    return product


@op_rule("aten.avg_pool1d.default", "aten.avg_pool2d.default", "aten.avg_pool3d.default")
def _avg_pool(
    walk: Walk,
    node: Any,
    x: Value,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    dims = int(str(node.target).split("pool")[1][0])
    if divisor_override is not None:
        return _pooled(walk, x, node, dims, float(divisor_override))
    kernel, padding = _per_dim(kernel, dims), _per_dim(padding, dims)
    stride = _per_dim(stride, dims) if stride else kernel
    parts = []
    for d in range(dims):
        size = x.shape[d - dims]
        start = np.arange(out_shape(node)[d - dims]) * stride[d] - padding[d]
        end = np.minimum(start + kernel[d], size + padding[d])
        if not count_include_pad:
            start, end = np.maximum(start, 0), np.minimum(end, size)
        parts.append((end - start).astype(np.float64))
    return _pooled(walk, x, node, dims, _outer(parts))


@op_rule("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default")
def _adaptive_avg_pool(walk: Walk, node: Any, x: Value, size: Any) -> Value:
    dims = int(str(node.target).split("pool")[1][0])
    parts = []
    for d in range(dims):
        n, m = x.shape[d - dims], out_shape(node)[d - dims]
        cells = np.arange(m)
        parts.append((-(-(cells + 1) * n // m) - cells * n // m).astype(np.float64))
    return _pooled(walk, x, node, dims, _outer(parts))


@op_rule(
    "aten.max_pool1d.default",
    "aten.max_pool2d.default",
    "aten.max_pool3d.default",
    "aten.adaptive_max_pool1d.default",
    "aten.adaptive_max_pool2d.default",
)
def _max_pool(walk: Walk, node: Any, x: Value, *rest: Any) -> Any:
    dims = int(str(node.target).split("pool")[1][0])
    out = _pooled(walk, x, node, dims, 1.0)
    example = node.meta["val"]
    return (out, plain(out.shape)) if isinstance(example, (tuple, list)) else out


# reductions -----------------------------------------------------------------------------------------------------------


@op_rule("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default", "aten.mean.default", "aten.sum.default")
def _reduce(walk: Walk, node: Any, x: Value, dims: Any = None, keepdim: bool = False, **options: Any) -> Value:
    dims = dims if dims else range(len(x.shape))
    reduced = {d % len(x.shape) for d in dims}
    for d in reduced:
        walk.protect(x.units[d], "a reduction over this axis mixes its units")
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    kept = [d for d in range(len(x.shape)) if keepdim or d not in reduced]
    out.shape = out_shape(node)
    out.units = [None if d in reduced else x.units[d] for d in kept]
    out.marks = [{} if d in reduced else x.marks[d] for d in kept]
    out.divisor = _reduced_divisor(x, reduced, str(node.target), out.shape)
    return out


def _reduced_divisor(x: Value, reduced: set[int], target: str, shape: tuple[int, ...]) -> FloatArray | None:
    if x.divisor is None or len(np.unique(x.divisor)) > 1:
        return None
    count = int(np.prod([x.shape[d] for d in reduced])) if "mean" in target else 1
    return np.broadcast_to(x.divisor.flat[0] * count, shape)


# shape ----------------------------------------------------------------------------------------------------------------


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
)
def _reshape(walk: Walk, node: Any, x: Value, *rest: Any) -> Value:
    """Row-major reshape: follow every index along every axis to where it lands."""
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    out.units = [None] * len(out.shape)
    out.marks = [{} for _ in out.shape]
    out.divisor = None if x.divisor is None else x.divisor.reshape(out.shape)
    for source, target in _blocks(x.shape, out.shape):
        for axis in source:
            for name, index in (("", x.units[axis]), *x.marks[axis].items()):
                if index is not None:
                    _land(walk, out, target, name, _along(index, source, axis, x.shape))
        folded = [x.units[axis] for axis in source if len(source) > 1]
        walk.folds += [(ids, model_line(node.stack_trace)) for ids in folded if ids is not None]
    return out


def _along(index: IntArray, source: list[int], axis: int, shape: tuple[int, ...]) -> IntArray:
    """The index along one axis, for every element of the block in row-major order."""
    view = index.reshape([-1 if a == axis else 1 for a in source])
    return np.broadcast_to(view, [shape[a] for a in source]).reshape(-1)


def _land(walk: Walk, out: Value, target: list[int], name: str, index: IntArray) -> None:
    block = index.reshape([out.shape[a] for a in target])
    single = (
        [a for a in target if out.shape[a] == 1] if (index == index[:1]).all() else []
    )  # an axis of one index stays one
    for position, axis in enumerate(target):
        line = np.moveaxis(block, position, 0).reshape(out.shape[axis], -1)
        if axis == single[0] if single else len(target) == 1 or (out.shape[axis] > 1 and (line == line[:, :1]).all()):
            if name:
                out.marks[axis] = {**out.marks[axis], name: line[:, 0]}
            elif out.units[axis] is None:
                out.units[axis] = line[:, 0]
            else:
                walk.protect(index, "a reshape folds two axes of units into one")
            return
    if not name:
        walk.protect(index, "a reshape spreads its units over several axes")


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
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    out.shape = out_shape(node)
    out.units = [x.units[d] for d in order]
    out.marks = [x.marks[d] for d in order]
    out.divisor = None if x.divisor is None else x.divisor.transpose([d % len(order) for d in order])
    return out


@op_rule("aten.transpose.int")
def _transpose(walk: Walk, node: Any, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return _permute(walk, node, x, order)


@op_rule("aten.expand.default")
def _expand(walk: Walk, node: Any, x: Value, size: Sequence[int], **options: Any) -> Value:
    """Every axis that is made or stretched gets a mark of its own: it may turn out to be time."""
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
        _tie_axis(walk, inner, k, [(value, k) for value in values])
    inner.nonnegative = all(value.nonnegative for value in values)
    inner.awaiting = frozenset().union(*(value.awaiting for value in values))
    axis %= len(inner.shape) + 1
    out = _with_new_axis(inner, axis, len(values))
    out.marks[axis] = _marks_of_steps(walk, node.args[0])
    divisors = [value.divisor for value in values if value.divisor is not None]
    if len(divisors) == len(values):
        out.divisor = np.stack(divisors, axis)
    return out


def _marks_of_steps(walk: Walk, nodes: Sequence[Any]) -> dict[str, IntArray]:
    """The marks of an axis of which node k is made of index k, and of earlier ones at most (a state); else none."""
    steps: dict[Any, list[int]] = {}
    marks: dict[Any, dict[str, IntArray]] = {}
    for node in nodes:
        latest: dict[Any, int] = {}
        todo, seen = [node], set()
        while todo:
            behind = todo.pop()
            if behind in seen:
                continue
            seen.add(behind)
            if behind in walk.picks:
                source, index, marks[source] = walk.picks[behind]
                latest[source] = max(index, latest.get(source, index))
            else:
                todo.extend(behind.all_input_nodes)
        for source, index in latest.items():
            steps.setdefault(source, []).append(index)
    order = list(range(len(nodes)))
    return {
        name: index
        for source, found in steps.items()
        if found == order
        for name, index in marks[source].items()
        if len(index) == len(order)
    }


def _with_new_axis(x: Value, axis: int, size: int) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative)
    out.shape = (*x.shape[:axis], size, *x.shape[axis:])
    out.units.insert(axis, None)
    out.marks.insert(axis, {})
    return out


@op_rule("<built-in function getitem>")
def _getitem(walk: Walk, node: Any, value: Any, index: Any) -> Any:
    return value[index]
