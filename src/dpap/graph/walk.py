"""The state of one pass over the exported graph: what operator rules read and write."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from dpap.graph.group import IntArray
from dpap.graph.splits import Splits
from dpap.graph.units import Units
from dpap.graph.values import LayerCall, NeuronCall, Seen, Value, feature_axis, no_units

Unknown = Literal["refuse", "protect"]


@dataclass
class Walk(Units):
    """One pass over the graph. Operator rules call its methods."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    unknown: Unknown = "refuse"
    splits: Splits = field(default_factory=Splits)
    layers: list[LayerCall] = field(default_factory=list)
    neurons: list[NeuronCall] = field(default_factory=list)
    time_marks: dict[str, int] = field(default_factory=dict)
    loops: Counter[str] = field(default_factory=Counter)
    """Calls in a pass of each neuron that runs one step per call."""
    loop_steps: dict[Any, int] = field(default_factory=dict)
    """Node that is one of these calls -> its step."""
    handed: list[tuple[str, int, list[Any]]] = field(default_factory=list)
    """Calls that were handed a state: neuron, call, the nodes of the state."""
    calls: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Module -> the node at which each of its calls begins."""
    running: dict[str, tuple[int, Value]] = field(default_factory=dict)
    """Module that was entered and not left yet -> its call, and what entered."""
    passed: list[tuple[Seen, frozenset[int]]] = field(default_factory=list)
    """What left modules while the units of these layers had not met an activation yet."""
    folds: list[tuple[IntArray, str]] = field(default_factory=list)
    """Units that a reshape folded into another axis, and the line of the model where it did."""
    picks: dict[Any, tuple[Any, int, dict[str, IntArray]]] = field(default_factory=dict)
    """Nodes that are one index of an axis of another: (that node, the index, the marks of the axis)."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Name of each parameter and buffer -> the first name of the same tensor."""
    parameters: frozenset[str] = frozenset()
    """First names of the parameters; the others are buffers."""
    _fresh: int = 0

    # units -----------------------------------------------------------------------------------------------------------

    def new_mark(self) -> str:
        self._fresh += 1
        return f"new{self._fresh}"

    def marks_of_steps(self, nodes: Sequence[Any]) -> dict[str, IntArray]:
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
                if behind in self.picks:
                    source, index, marks[source] = self.picks[behind]
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

    def protect_value(self, value: Value, reason: str) -> None:
        for ids in value.units:
            self.protect(ids, reason)

    def attach(self, ids: IntArray, value: Any, axis: int, *, masked: bool = True) -> None:
        """Entry i along the axis of another operand goes with unit ids[i]; if it carries no units, these stay."""
        if not isinstance(value, Value):
            return
        carried = value.units[axis]
        if carried is not None:
            self.tie(ids, carried)
        elif value.parameter is not None:
            self.produce(ids, value.parameter, axis, masked=masked and value.parameter in self.parameters)
        elif not self.splits.wish(value.marks[axis]):
            self.protect(ids, no_units(value) or "combined with a tensor that carries no units")

    def own(self, value: Value) -> Value:
        """A parameter that is no layer's weight: every entry of every axis is a unit, to be tied by what comes next."""
        if value.parameter is None or value.tracked:
            return value
        out = dataclasses.replace(value, units=list(value.units), marks=list(value.marks), parameter=None)
        for axis, size in enumerate(value.shape):
            if size > 1:
                ids = out.units[axis] = self.new_units(size)
                self.produce(ids, value.parameter, axis, masked=False)
        return out

    def owner(self, entered: tuple[str, int] | None, tensor: str) -> tuple[str, int] | None:
        """The module call that was entered, if the tensor is its own."""
        if entered is None:
            return None
        own = self.modules[entered[0]]._parameters
        return entered if any(self.names.get(f"{entered[0]}.{leaf}") == tensor for leaf in own) else None

    # sites -----------------------------------------------------------------------------------------------------------

    def activated(self, value: Value, seen: Seen) -> None:
        """The units that reach `value` are seen here: their activity."""
        ids = value.units[seen.axis]
        for index in value.awaiting:
            layer = self.layers[index]
            if layer.post is None and ids is not None:
                layer.post, layer.post_ids = seen, ids
        value.awaiting = frozenset()

    def enter(self, module: str, call: int, node: Any, value: Value) -> None:
        """A module call begins."""
        self.calls[module].append(node)
        self.running[module] = call, value

    def leave(self, module: str, out: Value) -> None:
        """A module call ends: what its layer drives is seen here, in this shape."""
        call, _ = self.running.pop(module, (0, out))
        axis = feature_axis(out)
        if axis is not None and out.awaiting:
            self.passed.append((Seen(module, call, "output", out, axis), out.awaiting))
        if self.layers and self.layers[-1].name == module and axis is not None:
            layer = self.layers[-1]
            if np.array_equal(layer.out_ids, cast(IntArray, out.units[axis])):
                layer.output, layer.output_axis = out, axis

    def add_layer(self, layer: LayerCall) -> None:
        self._seen_where_it_enters(layer)
        self.layers.append(layer)
        layer.output.awaiting = frozenset({len(self.layers) - 1})

    def _seen_where_it_enters(self, layer: LayerCall) -> None:
        """A module may fold time into the batch before its layer reads: its input is seen as it enters."""
        if layer.observed or layer.groups > 1 or layer.name not in self.running:
            return
        call, value = self.running[layer.name]
        axis = layer.input_axis + len(value.shape) - len(layer.input.shape)
        if axis >= 0 and value.shape[axis:] == layer.input.shape[layer.input_axis :]:
            layer.observed, layer.call, layer.input, layer.input_axis = True, call, value, axis
            if value.units[axis] is not None:
                self.activated(value, Seen(layer.name, call, "input", value, axis))
