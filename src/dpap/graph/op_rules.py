"""One rule per ATen operator: which axes it ties, produces and consumes.

A rule takes the walk, the node and the node's arguments (tensors as `Value`, the rest as they are) and returns the
value of the output. To teach the library a new operator:

    @op_rule("aten.my_op.default")
    def _(walk, node, x, *rest):
        return elementwise(x)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dpap.errors import DPAPError, refusing
from dpap.graph.adapters import channel_tensors, neuron_info
from dpap.graph.front import (
    Value,
    Walk,
    _NeuronCall,
    _Seen,
    feature_axis,
    is_activation,
    model_line,
    one_step,
    plain,
)

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
        with refusing(
            f"The rule of the operator {node.target} does not take this use of it",
            where=model_line(node.stack_trace),
            fix="write this line otherwise, and please report it: the rule should take all that PyTorch does.",
        ):
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
        walk.enter(module, call, node, out)
        return out
    walk.leave(module, out)
    if is_activation(walk.modules[module]):
        axis = feature_axis(out)
        if axis is not None:
            walk.activated(out, _Seen(module, call, "output", out, axis))
    return out


@op_rule("dpap.neuron.default")
def _neuron(walk: Walk, node: Any, x: Value, module: str, call: int, kind: str) -> Value:
    info = neuron_info(walk.modules[module])
    assert info is not None
    lead = 1 if one_step(node) else 2
    if len(x.shape) <= lead:
        raise DPAPError(
            f"The neuron {module} receives a tensor of shape {x.shape}.",
            fix="single-step neurons take (B, features, ...)."
            if one_step(node)
            else "multi-step neurons take (T, B, features, ...).",
        )
    out = elementwise(x, nonnegative=info.spikes)
    out.divisor = np.broadcast_to(np.float64(1.0), x.shape) if info.spikes else None
    if one_step(node):
        _in_a_loop(walk, node, module, call)
    else:
        _all_steps(walk, x, out)
    axis = feature_axis(out)
    axis = lead if axis is None or axis < lead else axis
    ids = out.units[axis]
    if ids is not None:
        for name, own in channel_tensors(walk.modules[module], x.shape[lead - 1 :], axis - lead + 1):
            walk.produce(ids, f"{module}.{name}", own, masked=False)
        if info.coupled is not None:
            walk.protect(ids, info.coupled)
        if kind != "method":
            walk.activated(out, _Seen(module, call, "output", out, axis))
    walk.neurons.append(_NeuronCall(module, call, out, axis))
    return out


def _all_steps(walk: Walk, x: Value, out: Value) -> None:
    """The first axis of what a multi-step neuron receives is time."""
    if not x.marks[0]:  # the steps were made by an operator that leaves no trace, such as stack
        x.marks[0] = out.marks[0] = {walk.new_mark(): np.arange(x.shape[0])}
    for name in x.marks[0]:
        walk.time_marks[name] = x.shape[0]


def _in_a_loop(walk: Walk, node: Any, module: str, call: int) -> None:
    """Call t of a single-step neuron is step t: as if picked out of a tensor with an axis of time. An axis of which it
    receives index t at call t is time as well."""
    calls, steps = walk.calls[module], walk.loops[module]
    calls.append(node)
    walk.loop_steps[node] = call
    if steps > 1:
        walk.time_marks["steps"] = steps
        walk.picks[node] = ("steps", call, {"steps": np.arange(steps)})
        if len(calls) == steps:
            walk.time_marks |= dict.fromkeys(walk.marks_of_steps([n.args[0] for n in calls]), steps)


@op_rule("dpap.neuron_state.default")
def _neuron_state(walk: Walk, node: Any, x: Value, before: Sequence[Value], module: str, call: int) -> Value:
    """Of the current's units, and those of the state before; a state of another shape is not used by the neuron."""
    walk.loop_steps[node] = call
    if before:
        walk.handed.append((module, call, list(node.args[1])))
    for state in before:
        for mine, theirs in zip(x.units, state.units, strict=False) if state.shape == x.shape else ():
            if mine is not None and theirs is not None:
                walk.tie(mine, theirs)
    return elementwise(x)


# The rules themselves: whoever imports the registry has them all.
import dpap.graph.ops.contractions  # noqa: E402
import dpap.graph.ops.elementwise  # noqa: E402
import dpap.graph.ops.layers  # noqa: E402
import dpap.graph.ops.norms  # noqa: E402
import dpap.graph.ops.pooling  # noqa: E402
import dpap.graph.ops.shape  # noqa: E402, F401
