"""From a model to its groups: export the model, walk the graph once, tie the axes that must shrink together.

Every leaf module of a copy is wrapped in marker operators that carry its name, and every spiking neuron is replaced by
one. So the exported graph says which tensor enters and leaves which call of which module, and the neurons' inner loops
over time never appear in it.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.adapters import ACTIVATIONS, neuron_info
from dpap.graph.group import (
    FloatArray,
    Graph,
    IntArray,
    Layer,
    LayerKind,
    Layout,
    NeuronSite,
    Site,
    TensorSlice,
    UnitGroup,
)

log = logging.getLogger(__name__)

Unknown = Literal["refuse", "protect"]
Forward = Callable[[nn.Module, Any], Any]
Pattern = str | nn.Module


@torch.library.custom_op("dpap::mark", mutates_args=())
def mark(x: Tensor, module: str, call: int, side: str) -> Tensor:
    """Identity that leaves the name of a module call in the graph."""
    return x.clone()


@torch.library.custom_op("dpap::neuron", mutates_args=())
def neuron(x: Tensor, module: str, call: int) -> Tensor:
    """Stands for a spiking neuron: (T, B, C, ...) currents in, spikes of the same shape out."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, module: str, call: int, side: str) -> Tensor:
    return torch.empty_like(x)


@neuron.register_fake
def _(x: Tensor, module: str, call: int) -> Tensor:
    return torch.empty_like(x)


def _marked_copy(model: nn.Module) -> nn.Module:
    """A copy in which leaf modules announce their calls and neurons are markers."""
    marked = copy.deepcopy(model).eval()
    calls: dict[str, int] = defaultdict(int)
    inside_neuron: tuple[str, ...] = ()
    for name, module in list(marked.named_modules()):
        if inside_neuron and name.startswith(inside_neuron):
            continue
        if neuron_info(module) is not None and name:
            # The forward of this one instance: a user's model may ask for its class.
            module.forward = _marker(name, calls)
            inside_neuron += (name + ".",)
        elif name and not any(True for _ in module.children()):
            _announce(module, name, calls)
    return marked


def _marker(name: str, calls: dict[str, int]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        call = calls[name]
        calls[name] += 1
        return cast(Tensor, neuron(x, name, call))

    return forward


def _announce(module: nn.Module, name: str, calls: dict[str, int]) -> None:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor):
            return (mark(args[0], name, calls[name], "input"), *args[1:])
        return None

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        call = calls[name]
        calls[name] += 1
        return mark(out, name, call, "output") if isinstance(out, Tensor) else None

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


class _Call(nn.Module):
    """`forward(model, batch)` as a module, so that it can be exported."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.function = model, forward

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


def export(model: nn.Module, example_input: Any, forward: Forward | None = None) -> torch.export.ExportedProgram:
    """The marked graph of a model.

    Raises:
        DPAPError: The example input does not fit, or the control flow depends on data.
    """
    marked = _marked_copy(model)
    module: nn.Module = marked if forward is None else _Call(marked, forward)
    try:
        with torch.no_grad():
            return torch.export.export(module, (example_input,), strict=False)
    except DPAPError:
        raise
    except Exception as error:  # whatever the user's forward raises
        shape = tuple(example_input.shape) if isinstance(example_input, Tensor) else type(example_input).__name__
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DPAPError(
            f"The model could not be run and traced on the example input ({shape}): {reason}",
            where=model_line("".join(_frames(error))) or type(model).__name__,
            fix="pass an example input of the shape that the model is trained on; a forward whose control flow depends "
            "on data cannot be traced: move that part out of the model, or hand the tensors over with forward=.",
        ) from error


def _frames(error: BaseException) -> list[str]:
    return traceback.format_tb(error.__traceback__)


def model_line(stack: str | None) -> str:
    """The last line of a stack trace that lies neither in PyTorch nor in this package."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*([^\n]*)', stack or "")
    own = [f for f in frames if "/torch/" not in f[0] and "/dpap/graph/" not in f[0] and "/dpap/developer" not in f[0]]
    if not own:
        return ""
    file, line, function, code = own[-1]
    return f"{file.rsplit('/', 1)[-1]}, line {line}, in {function}: {code.strip()}"


@dataclass(slots=True)
class Value:
    """What is known of one tensor of the graph."""

    shape: tuple[int, ...]
    units: list[IntArray | None]
    """Per axis: the id of the unit at each index (-1: no unit); None: no units on this axis."""
    marks: list[dict[str, IntArray]]
    """Per axis: indices along the axes (of the input, or made by `expand`) that it came from; finds time and batch."""
    divisor: FloatArray | None = None
    """Full shape, often by broadcasting: spikes = value x divisor; None for a real-valued tensor."""
    nonnegative: bool = False
    awaiting: frozenset[int] = frozenset()
    """Layer calls whose units have not met an activation yet."""
    parameter: str | None = None
    entered: tuple[str, int] | None = None
    """Module call that this very tensor enters."""

    @property
    def tracked(self) -> bool:
        return any(u is not None for u in self.units)


def plain(shape: Iterable[int]) -> Value:
    """A tensor of which nothing is known."""
    shape = tuple(shape)
    return Value(shape=shape, units=[None] * len(shape), marks=[{} for _ in shape])


@dataclass(slots=True)
class _LayerCall:
    name: str
    call: int
    kind: LayerKind
    weight: str
    bias: str | None
    out_ids: IntArray
    in_ids: IntArray
    kernel: int
    fanout: FloatArray
    input: Value
    input_axis: int
    output: Value
    output_axis: int
    observed: bool
    post: _Seen | None = None
    post_ids: IntArray | None = None


@dataclass(slots=True)
class _Seen:
    """A site before its layout is known."""

    module: str
    call: int
    side: Literal["input", "output"]
    value: Value
    axis: int


@dataclass(slots=True)
class _NeuronCall:
    name: str
    call: int
    value: Value


@dataclass
class Walk:
    """One pass over the graph. Operator rules call its methods."""

    modules: Mapping[str, nn.Module]
    unknown: Unknown = "refuse"
    layers: list[_LayerCall] = field(default_factory=list)
    neurons: list[_NeuronCall] = field(default_factory=list)
    time_marks: dict[str, int] = field(default_factory=dict)
    folds: list[tuple[IntArray, str]] = field(default_factory=list)
    """Units that a reshape folded into another axis, and the line of the model where it did."""
    picks: dict[Any, tuple[Any, int, dict[str, IntArray]]] = field(default_factory=dict)
    """Nodes that are one index of an axis of another: (that node, the index, the marks of the axis)."""
    _parent: list[int] = field(default_factory=list)
    _entries: list[tuple[IntArray, str, int, bool, bool]] = field(default_factory=list)
    _protected: dict[int, str] = field(default_factory=dict)
    _fresh: int = 0

    # units -----------------------------------------------------------------------------------------------------------

    def new_units(self, n: int) -> IntArray:
        first = len(self._parent)
        self._parent.extend(range(first, first + n))
        return np.arange(first, first + n, dtype=np.int64)

    def new_mark(self) -> str:
        self._fresh += 1
        return f"new{self._fresh}"

    def find(self, unit: int) -> int:
        root = unit
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[unit] != root:
            self._parent[unit], unit = root, self._parent[unit]
        return root

    def tie(self, a: IntArray, b: IntArray) -> None:
        """Units of the same index live and die together."""
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            if x < 0 or y < 0:
                self.protect(np.array([max(x, y)]), "tied to something that is no unit")
            else:
                x, y = self.find(x), self.find(y)
                self._parent[max(x, y)] = min(x, y)

    def produce(self, ids: IntArray, tensor: str, axis: int = 0, *, masked: bool = True) -> None:
        """Entry i of the axis goes with unit ids[i], as part of what computes the unit."""
        self._entries.append((ids, tensor, axis, True, masked))

    def consume(self, ids: IntArray, tensor: str, axis: int) -> None:
        """Entry i of the axis goes with unit ids[i], as what reads the unit."""
        self._entries.append((ids, tensor, axis, False, True))

    def protect(self, ids: IntArray | None, reason: str) -> None:
        if ids is not None:
            for unit in ids.tolist():
                if unit >= 0:
                    self._protected.setdefault(unit, reason)

    def protect_value(self, value: Value, reason: str) -> None:
        for ids in value.units:
            self.protect(ids, reason)

    def channel_parameters(self, module: str) -> tuple[str, ...]:
        info = neuron_info(self.modules[module])
        return () if info is None else info.channel_parameters

    # sites -----------------------------------------------------------------------------------------------------------

    def activated(self, value: Value, seen: _Seen) -> None:
        """The units that reach `value` are seen here: their activity."""
        ids = value.units[seen.axis]
        for index in value.awaiting:
            layer = self.layers[index]
            if layer.post is None and ids is not None:
                layer.post, layer.post_ids = seen, ids
        value.awaiting = frozenset()

    def add_layer(self, layer: _LayerCall) -> None:
        self.layers.append(layer)
        layer.output.awaiting = frozenset({len(self.layers) - 1})


def feature_axis(value: Value) -> int | None:
    """The one axis that carries units; None if there is none or several."""
    axes = [a for a, u in enumerate(value.units) if u is not None]
    return axes[0] if len(axes) == 1 else None


# what the walk found, as plain data -----------------------------------------------------------------------------------


def find_groups(
    model: nn.Module,
    example_input: Any,
    *,
    ignore: Sequence[Pattern] | Pattern = (),
    only: Sequence[Pattern] | Pattern | None = None,
    unknown: Unknown = "refuse",
    forward: Forward | None = None,
) -> Graph:
    """Find what must shrink together, what may, and where its activity can be seen.

    Args:
        model: Any module that `torch.export` takes; spiking neurons are recognised by `dpap.graph.adapters`.
        example_input: One batch, of the shape that the model is trained on.
        ignore: Modules (or globs over module names) that keep their units and synapses.
        only: If given, all others keep theirs.
        unknown: What to do with an operator that has no rule: "refuse" names it, "protect" keeps all that touches it.
        forward: `forward(model, batch)` where the model is not called as `model(batch)`.

    Raises:
        DPAPError: The model cannot be traced, an operator has no rule, or a pattern matches nothing.
    """
    if unknown not in ("refuse", "protect"):
        raise DPAPError(f"unknown= is {unknown!r}.", fix='choose "refuse" or "protect".')
    program = export(model, example_input, forward)
    prefix = "" if forward is None else "model."
    walk = Walk(modules=dict(model.named_modules()), unknown=unknown)
    _run(walk, program, prefix)
    selection = _Selection.of(model, ignore, only)
    return _finish(walk, _groups(walk, model, selection), selection)


def _run(walk: Walk, program: torch.export.ExportedProgram, prefix: str) -> None:
    from dpap.graph.op_rules import apply_rule  # the rules are written in terms of Walk

    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values: dict[Any, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(node, named, prefix)
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


def _placeholder(node: Any, named: dict[str, str], prefix: str) -> Any:
    example = node.meta.get("val")
    if not isinstance(example, Tensor):
        return example
    value = plain(example.shape)
    if node.name in named:
        value.parameter = named[node.name].removeprefix(prefix)
    else:
        for axis in range(min(2, len(value.shape))):
            value.marks[axis] = {f"{node.name}.{axis}": np.arange(value.shape[axis])}
    return value


def _patterns(patterns: Sequence[Pattern] | Pattern) -> list[Pattern]:
    return [patterns] if isinstance(patterns, (str, nn.Module)) else list(patterns)


@dataclass(frozen=True, slots=True)
class _Selection:
    """Module paths that the user left out or picked, children included."""

    ignored: frozenset[str]
    only: frozenset[str] | None

    @classmethod
    def of(
        cls, model: nn.Module, ignore: Sequence[Pattern] | Pattern, only: Sequence[Pattern] | Pattern | None
    ) -> _Selection:
        names = dict(model.named_modules())
        picked = None if only is None else frozenset().union(*(_matches(names, p, "only") for p in _patterns(only)))
        return cls(frozenset().union(*(_matches(names, p, "ignore") for p in _patterns(ignore))), picked)

    def keeps(self, paths: Iterable[str]) -> str | None:
        """Why what these modules make stays; None: it may die."""
        paths = set(paths)
        if paths & self.ignored:
            return "ignored"
        if self.only is not None and not paths & self.only:
            return "not named in only="
        return None


def _matches(names: Mapping[str, nn.Module], pattern: Pattern, argument: str) -> set[str]:
    found = {
        name
        for name, module in names.items()
        if (module is pattern if isinstance(pattern, nn.Module) else fnmatchcase(name, pattern))
    }
    if not found:
        text = f"{pattern!r}" if isinstance(pattern, str) else f"a {type(pattern).__name__}"
        raise DPAPError(
            f"{argument}={text} matches no module of the model.",
            fix="use a name of model.named_modules(), a glob over these names, or one of its modules.",
        )
    return found | {n for n in names if any(n.startswith(f + ".") for f in found if f)}


@dataclass(slots=True)
class _Member:
    """A unit: an equivalence class of ids, with every entry that belongs to it."""

    entries: dict[tuple[str, int, bool, bool], list[int]] = field(default_factory=lambda: defaultdict(list))
    protected: str | None = None


@dataclass
class _Found:
    groups: list[UnitGroup]
    where: dict[int, tuple[int, int]]
    """root id -> (index of the group, unit)."""


def _groups(walk: Walk, model: nn.Module, selection: _Selection) -> _Found:
    members: dict[int, _Member] = defaultdict(_Member)
    for ids, tensor, axis, produces, masked in walk._entries:
        for index, unit in enumerate(ids.tolist()):
            if unit >= 0:
                rows = members[walk.find(unit)].entries[(tensor, axis, produces, masked)]
                if index not in rows:  # a shared module records its entries once per call
                    rows.append(index)
    for unit, reason in walk._protected.items():
        member = members[walk.find(unit)]
        member.protected = member.protected or reason
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for member in members.values():
        member.protected = member.protected or _why_protected(member, selection, frozen)

    by_key: dict[Any, list[int]] = defaultdict(list)
    for root in sorted(members):
        member = members[root]
        producers = frozenset((t, a) for t, a, produces, _ in member.entries if produces)
        by_key[(producers, member.protected)].append(root)

    found = _Found(groups=[], where={})
    for (producers, reason), roots in by_key.items():
        if not producers:
            continue
        group = _make_group(roots, members, reason, taken={g.name for g in found.groups})
        for unit, root in enumerate(roots):
            found.where[root] = (len(found.groups), unit)
        found.groups.append(group)
    return found


def _why_protected(member: _Member, selection: _Selection, frozen: set[str]) -> str | None:
    for tensor, _, _, masked in member.entries:
        if tensor in frozen and masked:
            return f"frozen parameter {tensor}"
    return selection.keeps(tensor.rpartition(".")[0] for tensor, _, produces, _ in member.entries if produces)


def _make_group(roots: list[int], members: dict[int, _Member], reason: str | None, taken: set[str]) -> UnitGroup:
    keys = list(dict.fromkeys(key for root in roots for key in members[root].entries))
    producers: list[TensorSlice] = []
    consumers: list[TensorSlice] = []
    for key in keys:
        tensor, axis, produces, masked = key
        rows = [members[root].entries.get(key, []) for root in roots]
        if len({len(row) for row in rows}) > 1:
            reason = reason or f"its units own unequal numbers of entries of {tensor}"
            continue
        entries = np.array(rows, dtype=np.int64)
        (producers if produces else consumers).append(
            TensorSlice(tensor=tensor, axis=axis, entries=entries, masked=masked)
        )
    name = producers[0].tensor.rpartition(".")[0] or producers[0].tensor
    while name in taken:
        name += "'"
    return UnitGroup(
        name=name, units=len(roots), producers=tuple(producers), consumers=tuple(consumers), sites=(), protected=reason
    )


def _finish(walk: Walk, found: _Found, selection: _Selection) -> Graph:
    num_steps = max(walk.time_marks.values(), default=1)
    layout = _Layouts(walk.time_marks, num_steps)
    layers = tuple(_layer(call, walk, found, layout) for call in walk.layers)
    sites: dict[str, list[Site]] = defaultdict(list)
    for layer in layers:
        if layer.post is not None and layer.post not in sites[layer.out_group]:
            sites[layer.out_group].append(layer.post)
    observed = {layer.weight for layer in layers if layer.post is not None and layer.pre is not None}
    groups = []
    for group in found.groups:
        reason = group.protected
        unseen = [layer.name for layer in layers if layer.out_group == group.name and layer.weight not in observed]
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
        neurons=tuple(_neuron_site(call, walk, found, layout) for call in walk.neurons),
        num_steps=num_steps,
        ignored=tuple(layer.weight for layer in layers if selection.keeps([layer.name])),
    )


def _reshaped_at(walk: Walk, found: _Found, name: str) -> tuple[str, ...]:
    lines = []
    for ids, line in walk.folds:
        owners = {found.groups[found.where[walk.find(u)][0]].name for u in ids.tolist() if u >= 0}
        if name in owners and line not in lines:
            lines.append(line)
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class _Layouts:
    """How time and batch lie in a tensor."""

    time_marks: dict[str, int]
    num_steps: int

    def of(self, value: Value) -> tuple[Layout, bool]:
        """(layout, constant in time)."""
        if self.num_steps == 1:
            return ("T,B", False) if self._time(value) is not None and value.shape[0] == 1 else ("B", False)
        index = self._time(value)
        if index is None:
            return "B", True
        if len(index) == self.num_steps and np.array_equal(index, np.arange(self.num_steps)):
            return "T,B", False
        batch = len(index) // self.num_steps
        if np.array_equal(index, np.repeat(np.arange(self.num_steps), batch)):
            return "T*B", False
        raise DPAPError(
            "A tensor mixes time and batch in an order that is not time-first.", fix="use (T, B, ...) throughout."
        )

    def _time(self, value: Value) -> IntArray | None:
        for axis, marks in enumerate(value.marks):
            for name, index in marks.items():
                if name in self.time_marks:
                    if axis:
                        raise DPAPError(
                            f"Time lies on axis {axis} of a tensor of shape {value.shape}.",
                            fix="use (T, B, ...) throughout.",
                        )
                    return index
        return None

    def batch(self, value: Value) -> int:
        layout, _ = self.of(value)
        size: int = {"T,B": lambda s: s[1], "T*B": lambda s: s[0] // self.num_steps, "B": lambda s: s[0]}[layout](
            value.shape
        )
        return size

    def site(self, seen: _Seen) -> Site:
        layout, constant = self.of(seen.value)
        return Site(
            module=seen.module,
            call=seen.call,
            side=seen.side,
            layout=layout,
            axis=seen.axis,
            constant=constant,
            nonnegative=seen.value.nonnegative,
        )


def _layer(call: _LayerCall, walk: Walk, found: _Found, layout: _Layouts) -> Layer:
    out = [found.where[walk.find(u)] for u in call.out_ids.tolist()]
    name = found.groups[out[0][0]].name
    inputs = [found.where[walk.find(u)] if u >= 0 else (-1, -1) for u in call.in_ids.tolist()]
    order = list(dict.fromkeys(g for g, _ in inputs if g >= 0))
    post, post_row = call.post, None
    if call.observed and post is None:
        post = _Seen(call.name, call.call, "output", call.output, call.output_axis)
    elif post is not None and call.post_ids is not None:
        row = {walk.find(u): o for o, u in enumerate(call.out_ids.tolist())}
        post_row = np.array([row.get(walk.find(u), -1) if u >= 0 else -1 for u in call.post_ids.tolist()])
        if np.array_equal(post_row, np.arange(len(call.out_ids))):
            post_row = None
    rows = len(call.out_ids)
    batch = layout.batch(call.output)
    executions = int(np.prod(call.output.shape)) // (rows * batch)
    steps = 1 if layout.of(call.output)[0] == "B" else layout.num_steps
    return Layer(
        name=call.name,
        call=call.call,
        kind=call.kind,
        weight=call.weight,
        bias=call.bias,
        out_group=name,
        out_units=np.array([unit for _, unit in out]),
        in_group=tuple(found.groups[g].name for g in order),
        in_owner=np.array([order.index(g) if g >= 0 else -1 for g, _ in inputs]),
        in_unit=np.array([unit for _, unit in inputs]),
        kernel=call.kernel,
        positions=executions // steps,
        steps=steps,
        macs_per_synapse=executions * call.kernel,
        pre=layout.site(_Seen(call.name, call.call, "input", call.input, call.input_axis)) if call.observed else None,
        post=None if post is None else layout.site(post),
        post_row=post_row,
        spike_divisor=_sample(call.input, layout),
        fanout=call.fanout,
    )


def _sample(value: Value, layout: _Layouts) -> FloatArray | None:
    """The divisor of one sample at one step: (I, *space)."""
    if value.divisor is None:
        return None
    first = value.divisor[0, 0] if layout.of(value)[0] == "T,B" else value.divisor[0]
    return np.array(first)


def _neuron_site(call: _NeuronCall, walk: Walk, found: _Found, layout: _Layouts) -> NeuronSite:
    ids = call.value.units[2] if len(call.value.shape) > 2 else None
    group = found.groups[found.where[walk.find(int(ids[0]))][0]].name if ids is not None and ids[0] >= 0 else None
    shape = call.value.shape
    return NeuronSite(
        name=call.name,
        call=call.call,
        group=group,
        positions=int(np.prod(shape[3:])),
        features=shape[2] if len(shape) > 2 else 1,
        steps=layout.num_steps,
    )


def is_activation(module: nn.Module) -> bool:
    return isinstance(module, ACTIVATIONS)
