"""From a model to its groups: export it, walk the graph once, tie the axes that must shrink together."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dpap.graph.ops  # noqa: F401  (registers the rules)
from dpap.errors import DPAPError, refusing
from dpap.graph.export import Forward, export, one_step, several_sequences
from dpap.graph.group import Graph, IntArray, Site, UnitGroup
from dpap.graph.layers import make_layers, neuron_sites
from dpap.graph.layouts import Layouts
from dpap.graph.op_rules import apply_rule
from dpap.graph.selection import Pattern, Selection
from dpap.graph.splits import ROUNDS, Splits
from dpap.graph.steps import Steps, count_steps
from dpap.graph.units import Found, make_groups
from dpap.graph.values import Value, plain
from dpap.graph.walk import Unknown, Walk

log = logging.getLogger(__name__)


def find_groups(
    model: nn.Module,
    example_input: Any,
    *,
    ignore: Sequence[Pattern] | Pattern = (),
    only: Sequence[Pattern] | Pattern | None = None,
    unknown: Unknown = "refuse",
    forward: Forward | None = None,
    spiking_input: bool = False,
) -> Graph:
    """Find what must shrink together, what may, and where its activity can be seen.

    Args:
        model: Any module that `torch.export` takes; spiking neurons are recognised by `dpap.graph.adapters`.
        example_input: One batch, of the shape that the model is trained on.
        ignore: Modules (or globs over module names) that keep their units and synapses.
        only: If given, all others keep theirs.
        unknown: What to do with an operator that has no rule: "refuse" names it, "protect" keeps all that touches it.
        forward: `forward(model, batch)` where the model is not called as `model(batch)`.
        spiking_input: What the model receives are counts of spikes, such as frames of events: the layers that read them
            do synaptic operations, not multiply-accumulates.

    Raises:
        DPAPError: The model cannot be traced, an operator has no rule, or a pattern matches nothing.
    """
    if unknown not in ("refuse", "protect"):
        raise DPAPError(f"unknown= is {unknown!r}.", fix='choose "refuse" or "protect".')
    prefix = "" if forward is None else "model."
    with refusing(
        f"The groups of this {type(model).__name__} could not be worked out",
        fix='please report the network together with this message; ignore= or unknown="protect" may get around it.',
    ):
        program = export(model, example_input, forward)
        walk = _walked(model, program, prefix, unknown, spiking_input)
        axis = _lone_sample(walk, program, example_input)
        if axis is not None:  # (T * 1, ...), time folded into the batch, looks like (T, ...)
            program = export(model, torch.cat([example_input, example_input], axis), forward)
            walk = _walked(model, program, prefix, unknown, spiking_input)
        selection = Selection.of(model, ignore, only)
        return _finish(walk, _groups(walk, model, selection), selection, program.graph.nodes)


def _lone_sample(walk: Walk, program: torch.export.ExportedProgram, example: Any) -> int | None:
    """The axis of samples of an example that holds one, where there is time; None: it holds more, or is no tensor."""
    if not isinstance(example, Tensor) or not walk.time_marks:
        return None
    (name,) = program.graph_signature.user_inputs
    axis = int(f"{name}.0" in walk.time_marks)
    return axis if example.shape[axis : axis + 1] == (1,) else None


def _walked(
    model: nn.Module, program: torch.export.ExportedProgram, prefix: str, unknown: Unknown, spiking_input: bool
) -> Walk:
    """Walk the graph, and again as long as a reshape had better split its units along another axis."""
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    splits = Splits()
    for round_number in range(ROUNDS):
        splits.last = round_number == ROUNDS - 1
        walk = Walk(
            modules=dict(model.named_modules()),
            unknown=unknown,
            splits=splits,
            names=names,
            parameters=frozenset(name for name, _ in model.named_parameters()),
        )
        _run(walk, program, prefix, spiking_input)
        if not splits.advance(walk):
            break
    return walk


def _run(walk: Walk, program: torch.export.ExportedProgram, prefix: str, spiking_input: bool) -> None:
    signature = program.graph_signature
    named = {
        node: walk.names.get(name.removeprefix(prefix), name.removeprefix(prefix))
        for node, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
    }
    walk.loops.update(
        node.args[1] for node in program.graph.nodes if str(node.target) == "dpap.neuron.default" and one_step(node)
    )
    values: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(node, named, spiking_input)
        elif node.op == "call_function":
            values[node] = apply_rule(walk, node, values)
        elif node.op == "output":
            for argument in torch.utils._pytree.tree_leaves(node.args):
                if isinstance(values.get(argument), Value):
                    walk.protect_value(values[argument], "network output")
        else:
            raise DPAPError(
                f"The exported graph holds a {node.op} node ({node.name}).", fix="only plain operators are understood."
            )


def _placeholder(node: Any, named: dict[str, str], spiking_input: bool) -> Any:
    example = node.meta.get("val")
    if not isinstance(example, Tensor):
        return example
    value = plain(example.shape)
    if node.name in named:
        value.parameter = named[node.name]
    else:
        for axis in range(min(2, len(value.shape))):
            value.marks[axis] = {f"{node.name}.{axis}": np.arange(value.shape[axis])}
        if spiking_input:
            value.divisor, value.nonnegative = np.broadcast_to(np.float64(1.0), value.shape), True
    return value


def _groups(walk: Walk, model: nn.Module, selection: Selection) -> Found:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows: dict[str, IntArray] = {}
    for call in walk.layers:
        rows.setdefault(call.weight, call.out_ids)
    found = make_groups(walk, rows, sizes)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    found.groups = [
        group if group.protected else dataclasses.replace(group, protected=_why_protected(group, selection, frozen))
        for group in found.groups
    ]
    return found


def _why_protected(group: UnitGroup, selection: Selection, frozen: set[str]) -> str | None:
    for piece in (*group.producers, *group.consumers):
        if piece.tensor in frozen and piece.masked:
            return f"frozen parameter {piece.tensor}"
    return selection.keeps(piece.tensor.rpartition(".")[0] for piece in group.producers)


def _finish(walk: Walk, found: Found, selection: Selection, nodes: Iterable[Any]) -> Graph:
    num_steps = count_steps(walk.time_marks, walk.loops)
    if walk.loops and num_steps == 1:
        log.warning(
            "%s runs one step per call and is called once in a pass, so T = 1. Does the loop over time lie outside the "
            "model? Then hand it over as forward=.",
            next(iter(walk.loops)),
        )
    nodes = list(nodes)
    samples = _sample_marks(walk, nodes)
    layout = Layouts(walk.time_marks, num_steps, _steps(walk, nodes, num_steps), frozenset(samples))
    layers = make_layers(walk.layers, found, layout)
    sites: dict[str, list[Site]] = defaultdict(list)
    for layer in layers:
        if layer.post is not None and layer.post not in sites[layer.out_group]:
            sites[layer.out_group].append(layer.post)
    observed = {layer.weight for layer in layers if layer.post is not None and layer.pre is not None}
    groups = []
    for group in found.groups:
        reason = group.protected
        unseen = [
            layer.name
            for layer in layers
            if layer.out_group == group.name and layer.groups == 1 and layer.weight not in observed
        ]
        if unseen and reason is None:
            reason = f"{unseen[0]} is used without a module call that could be observed"
        groups.append(
            dataclasses.replace(
                group,
                sites=tuple(sites[group.name]),
                protected=reason,
                reshaped_at=_reshaped_at(walk, found, group.name),
            )
        )
    return Graph(
        groups=tuple(groups),
        layers=layers,
        neurons=neuron_sites(walk, found, layout),
        num_steps=num_steps,
        batch_axis=max(samples.values(), default=0),
        ignored=tuple(layer.weight for layer in layers if selection.keeps([layer.name])),
    )


def _sample_marks(walk: Walk, nodes: Iterable[Any]) -> dict[str, int]:
    """Mark of each input's axis of samples -> that axis: the first, or the second where the first is time."""
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    axes = {name: int(f"{name}.0" in walk.time_marks) for name in inputs}
    return {f"{name}.{axis}": axis for name, axis in axes.items()}


def _reshaped_at(walk: Walk, found: Found, name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for ids, line in walk.folds if name in found.names(ids)))


def _steps(walk: Walk, nodes: Iterable[Any], num_steps: int) -> Steps:
    """Where the calls of modules lie in time."""
    picked = {
        node: index
        for node, (_, index, marks) in walk.picks.items()
        if node not in walk.loop_steps and not marks.keys().isdisjoint(walk.time_marks)
    }
    steps = Steps.of(nodes, num_steps, {**picked, **walk.loop_steps}, picked.keys(), walk.calls)
    for neuron, call, states in walk.handed:
        if call and not any(state in steps.needs for state in states):
            raise several_sequences(neuron)
    return steps
