"""Rules of the markers that the export puts into the graph: modules that begin and end, and spiking neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpap.errors import DPAPError
from dpap.graph.adapters import ACTIVATIONS, channel_tensors, neuron_info
from dpap.graph.export import one_step
from dpap.graph.op_rules import elementwise, op_rule
from dpap.graph.values import NeuronCall, Seen, Value, feature_axis
from dpap.graph.walk import Walk


@op_rule("dpap.mark.default")
def _mark(walk: Walk, node: Any, x: Value, module: str, call: int, side: str) -> Value:
    out = elementwise(x, nonnegative=x.nonnegative, spikes=True)
    if side == "input":
        out.entered = (module, call)
        walk.enter(module, call, node, out)
        return out
    walk.leave(module, out)
    if isinstance(walk.modules[module], ACTIVATIONS):
        axis = feature_axis(out)
        if axis is not None:
            walk.activated(out, Seen(module, call, "output", out, axis))
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
            walk.activated(out, Seen(module, call, "output", out, axis))
    walk.neurons.append(NeuronCall(module, call, out, axis))
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
