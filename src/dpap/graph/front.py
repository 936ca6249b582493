"""From a model to its groups: export the model, walk the graph once, tie the axes that must shrink together.

Every leaf module of a copy is wrapped in marker operators that carry its name, and every spiking neuron is replaced by
one. So the exported graph says which tensor enters and leaves which call of which module, and the neurons' inner loops
over time never appear in it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpap.errors import DPAPError, refusing
from dpap.graph.adapters import ACTIVATIONS, NeuronInfo, independent_copy, neuron_info, unlisted
from dpap.graph.group import (
    Features,
    FloatArray,
    Graph,
    IntArray,
    Layer,
    LayerKind,
    Layout,
    NeuronSite,
    Site,
    UnitGroup,
)
from dpap.graph.splits import ROUNDS, Splits
from dpap.graph.steps import Steps, count_steps
from dpap.graph.units import Found, Units, make_groups
from dpap.hooks import structure_alone

log = logging.getLogger(__name__)

Unknown = Literal["refuse", "protect"]
Forward = Callable[[nn.Module, Any], Any]
Pattern = str | nn.Module


_LIBRARY: Any = torch.library.Library("dpap", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("mark(Tensor x, str module, int call, str side) -> Tensor")


def _clone(x: Tensor, module: str, call: int, side: str) -> Tensor:
    return x.clone()


# Not `custom_op`, which takes ten times as long to trace: a network has hundreds of these.
_LIBRARY.impl("mark", _clone, "CompositeExplicitAutograd")


def mark(x: Tensor, module: str, call: int, side: str) -> Tensor:
    """Identity that leaves the name of a module call in the graph."""
    return cast(Tensor, torch.ops.dpap.mark(x, module, call, side))


@torch.library.custom_op("dpap::neuron", mutates_args=())
def neuron(x: Tensor, module: str, call: int, kind: str) -> Tensor:
    """Stands for a call of a spiking neuron: currents in, spikes of the same shape out.

    Args:
        x: (T, B, C, ...), or (B, C, ...) where the neuron runs one step per call.
        module: Its name.
        call: 0 for its first call.
        kind: "sequence": all steps at once; "step": one; "method": one, by a method that no hook sees.
    """
    return x.clone()


@torch.library.custom_op("dpap::neuron_state", mutates_args=())
def neuron_state(x: Tensor, before: list[Tensor], module: str, call: int) -> Tensor:
    """Stands for the state that a call of a neuron answers beside its spikes; `before`: the state it was handed."""
    return x.clone()


@neuron.register_fake
def _(x: Tensor, module: str, call: int, kind: str) -> Tensor:
    return torch.empty_like(x)


@neuron_state.register_fake
def _(x: Tensor, before: list[Tensor], module: str, call: int) -> Tensor:
    return torch.empty_like(x)


def _marked_copy(model: nn.Module) -> nn.Module:
    """A copy in which leaf modules announce their calls and neurons are markers."""
    marked = independent_copy(model).eval()
    calls: dict[str, int] = defaultdict(int)
    inside_neuron: tuple[str, ...] = ()
    for name, module in list(marked.named_modules()):
        if inside_neuron and name.startswith(inside_neuron):
            continue
        info = neuron_info(module)
        if info is not None and name:
            _NeuronMarker(name, info).stand_in(module)
            inside_neuron += (name + ".",)
        elif name and not any(True for _ in module.children()):
            _announce(module, name, calls)
    return marked


class _NeuronMarker:
    """Takes the place of a neuron's methods; of one instance's alone: a user's model may ask for its class."""

    def __init__(self, name: str, info: NeuronInfo) -> None:
        if info.refused is not None:
            raise DPAPError(
                f"This neuron is not supported: {info.refused}.", where=name, fix="use another neuron in its place."
            )
        self.name, self.info = name, info
        self.calls, self.restarted = 0, False

    def stand_in(self, module: Any) -> None:
        module.forward = self._forward
        for method in self.info.restarts:
            setattr(module, method, self._restart)
        if self.info.step_method:
            module.step = self._step

    def _forward(self, x: Tensor, *before: Any, **named: Any) -> Any:
        call = self._next()
        spikes = neuron(x, self.name, call, "sequence" if self.info.multi_step else "step")
        if not self.info.states:
            return spikes
        return (spikes, *[neuron_state(x, _tensors((*before, *named.values())), self.name, call)] * self.info.states)

    def _step(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        call = self._next()
        return neuron(x, self.name, call, "method"), neuron_state(x, _tensors([v]), self.name, call)

    def _next(self) -> int:
        if self.restarted:
            raise _several_sequences(self.name)
        self.calls += 1
        return self.calls - 1

    def _restart(self) -> Any:
        self.restarted = self.calls > 0
        empty = [torch.zeros(0)] * self.info.states
        return empty[0] if len(empty) == 1 else tuple(empty)


def _several_sequences(neuron: str) -> DPAPError:
    return DPAPError(
        "A neuron is put back to its beginning within one pass, so its calls are not the steps of one sequence.",
        where=neuron,
        fix="let one call of the model (with forward=: of that function) run one sequence.",
    )


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


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


class _KnownSizes(TorchFunctionMode):
    """Lets a model compute sizes as `torch.ones(n, dtype=int).tolist()`, as snnTorch's encoders do: the trace alone
    would take these for data."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ones and not out.is_floating_point() and out.dim() == 1:
            out.tolist = lambda: [1] * len(out)
        return out


def export(model: nn.Module, example_input: Any, forward: Forward | None = None) -> torch.export.ExportedProgram:
    """The marked graph of a model.

    Raises:
        DPAPError: The example input does not fit, or the control flow depends on data.
    """
    marked = _marked_copy(model)
    module: nn.Module = marked if forward is None else _Call(marked, forward)
    try:
        with torch.no_grad(), unlisted(model), structure_alone(), _KnownSizes():
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
    ours = ("/torch/", "/jaxtyping/", "/dpap/graph/", "/dpap/pruning/", "/dpap/developer")
    own = [f for f in frames if not any(part in f[0] for part in ours)]
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
    sized: str | None = None
    """The line of the model that made this tensor of zeros in a size of its own, which no unit can leave."""

    @property
    def tracked(self) -> bool:
        return any(u is not None for u in self.units)


def plain(shape: Iterable[int]) -> Value:
    """A tensor of which nothing is known."""
    shape = tuple(shape)
    return Value(shape=shape, units=[None] * len(shape), marks=[{} for _ in shape])


def no_units(value: Value) -> str | None:
    """Why the units stay that meet zeros of a fixed size, such as a first state; None: these are none."""
    return value.sized and f"meets zeros of a fixed size; zeros_like would shrink with it: {value.sized}"


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
    groups: int = 1
    transposed: bool = False
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
    axis: int
    """Of its units."""


@dataclass
class Walk(Units):
    """One pass over the graph. Operator rules call its methods."""

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    unknown: Unknown = "refuse"
    splits: Splits = field(default_factory=Splits)
    layers: list[_LayerCall] = field(default_factory=list)
    neurons: list[_NeuronCall] = field(default_factory=list)
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
    passed: list[tuple[_Seen, frozenset[int]]] = field(default_factory=list)
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

    def activated(self, value: Value, seen: _Seen) -> None:
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
            self.passed.append((_Seen(module, call, "output", out, axis), out.awaiting))
        if self.layers and self.layers[-1].name == module and axis is not None:
            layer = self.layers[-1]
            if np.array_equal(layer.out_ids, cast(IntArray, out.units[axis])):
                layer.output, layer.output_axis = out, axis

    def add_layer(self, layer: _LayerCall) -> None:
        self._seen_where_it_enters(layer)
        self.layers.append(layer)
        layer.output.awaiting = frozenset({len(self.layers) - 1})

    def _seen_where_it_enters(self, layer: _LayerCall) -> None:
        """A module may fold time into the batch before its layer reads: its input is seen as it enters."""
        if layer.observed or layer.groups > 1 or layer.name not in self.running:
            return
        call, value = self.running[layer.name]
        axis = layer.input_axis + len(value.shape) - len(layer.input.shape)
        if axis >= 0 and value.shape[axis:] == layer.input.shape[layer.input_axis :]:
            layer.observed, layer.call, layer.input, layer.input_axis = True, call, value, axis
            if value.units[axis] is not None:
                self.activated(value, _Seen(layer.name, call, "input", value, axis))


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
        selection = _Selection.of(model, ignore, only)
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
    from dpap.graph.op_rules import apply_rule  # the rules are written in terms of Walk

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


def _groups(walk: Walk, model: nn.Module, selection: _Selection) -> Found:
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


def _why_protected(group: UnitGroup, selection: _Selection, frozen: set[str]) -> str | None:
    for piece in (*group.producers, *group.consumers):
        if piece.tensor in frozen and piece.masked:
            return f"frozen parameter {piece.tensor}"
    return selection.keeps(piece.tensor.rpartition(".")[0] for piece in group.producers)


def _finish(walk: Walk, found: Found, selection: _Selection, nodes: Iterable[Any]) -> Graph:
    num_steps = count_steps(walk.time_marks, walk.loops)
    if walk.loops and num_steps == 1:
        log.warning(
            "%s runs one step per call and is called once in a pass, so T = 1. Does the loop over time lie outside the "
            "model? Then hand it over as forward=.",
            next(iter(walk.loops)),
        )
    nodes = list(nodes)
    samples = _sample_marks(walk, nodes)
    layout = _Layouts(walk.time_marks, num_steps, _steps(walk, nodes, num_steps), frozenset(samples))
    layers = tuple(_layer(calls, found, layout) for calls in _executions(walk.layers, layout))
    _check_loops(layers, layout.steps)
    _check_in_time(layers, layout.steps)
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
        neurons=tuple(
            _neuron_site(walk, call, found, layout)
            for call in walk.neurons
            if call.call == 0 or call.name not in walk.loops
        ),
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
            raise _several_sequences(neuron)
    return steps


def _executions(layers: Iterable[_LayerCall], layout: _Layouts) -> list[list[_LayerCall]]:
    """What is one layer: T calls of a module that a loop over time makes, else each call."""
    found: dict[Any, list[_LayerCall]] = {}
    for number, layer in enumerate(layers):
        times = layout.per_step(layer.name, layer.output) if layer.observed or layer.groups > 1 else 0
        key = (layer.weight, layer.call % times) if times else number
        found.setdefault(key, []).append(layer)
    return list(found.values())


def _check_loops(layers: Iterable[Layer], steps: Steps) -> None:
    """Each call that a loop makes of a module in one step must be a site: else an observer cannot tell the steps."""
    seen: dict[tuple[str, str], set[int]] = defaultdict(set)
    for site in (s for layer in layers for s in (layer.pre, layer.post) if s is not None):
        if site.layout == "call per step":
            seen[(site.module, site.side)].add(site.call)
    for (module, _), calls in seen.items():
        times = steps.per_step(module)
        if len(calls) < times:
            raise DPAPError(
                f"Each step calls {module} {times} times, and units are seen at {len(calls)} of these calls only.",
                where=module,
                fix="give each place in the network a module of its own.",
            )


def _check_in_time(layers: Iterable[Layer], steps: Steps) -> None:
    """What a layer drives must be seen in its own step."""
    for layer in layers:
        seen = layer.post
        if seen is None or seen.layout != "call per step" or seen.side != "input":
            continue
        if steps.reads_the_past(seen.module, seen.call):
            raise DPAPError(
                f"What {layer.name} drives is seen one step late, where {seen.module} reads it: nobody sees a method, "
                "such as neuron.step, or a function.",
                where=layer.name,
                fix="call the neuron as a module in each step, dpap.neurons.StepByStep(neuron), or use "
                "dpap.neurons.Recurrent.",
            )


@dataclass(frozen=True, slots=True)
class _Layouts:
    """How time and batch lie in a tensor."""

    time_marks: dict[str, int]
    num_steps: int
    steps: Steps
    samples: frozenset[str]
    """Marks of samples."""

    def per_step(self, module: str, value: Value) -> int:
        """How often a module is called in each step with such a value; 0 if one call sees all steps, or none."""
        return 0 if self.num_steps == 1 or self._time(value) is not None else self.steps.per_step(module)

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
        """Samples of the input, though tokens or windows may lie on their axis, or before it."""
        for name, index in ((name, index) for marks in value.marks for name, index in marks.items()):
            if name in self.samples:
                return len(np.unique(index))
        return self.rows(value)

    def rows(self, value: Value) -> int:
        """What an observer takes for samples."""
        layout, _ = self.of(value)
        size: int = {"T,B": lambda s: s[1], "T*B": lambda s: s[0] // self.num_steps, "B": lambda s: s[0]}[layout](
            value.shape
        )
        return size

    def site(self, seen: _Seen) -> Site:
        layout, constant = self.of(seen.value)
        if layout == "T,B" and seen.axis < 2:
            raise DPAPError(
                "Whether time is folded into the batch here is unclear: the example input holds one sample.",
                where=seen.module,
                fix="give an example of two samples or more.",
            )
        times = self.per_step(seen.module, seen.value)
        return Site(
            module=seen.module,
            call=seen.call % times if times else seen.call,
            side=seen.side,
            layout="call per step" if times else layout,
            axis=seen.axis,
            constant=constant and not times,
            nonnegative=seen.value.nonnegative,
        )


def _layer(calls: Sequence[_LayerCall], found: Found, layout: _Layouts) -> Layer:
    """One layer from its calls: one, or one for each step."""
    call = next((c for c in calls if c.input.tracked), calls[0])  # a first step may read zeros that no unit made
    active = next((c for c in calls if c.post is not None), call)
    call = dataclasses.replace(call, call=calls[0].call, post=active.post, post_ids=active.post_ids)
    inputs = _features(call.in_ids, found)
    post, post_row, post_features = call.post, None, None
    if post is not None and call.post_ids is not None:
        post_row = _rows_behind(call.post_ids, call.out_ids, found)
        if (post_row < 0).all():  # another layer's units alone are seen there
            post = post_row = None
        elif np.array_equal(post_row, np.arange(len(call.out_ids))):
            post_row = None
        else:
            post_features = _features(call.post_ids, found)
    if call.observed and post is not None and layout.rows(post.value) != layout.rows(call.input):
        post = post_row = post_features = None  # seen outside the windows that the layer works in
    if call.observed and post is None:
        post = _Seen(call.name, call.call, "output", call.output, call.output_axis)
    reading, features = (call.input, len(call.in_ids)) if call.transposed else (call.output, len(call.out_ids))
    executions = len(calls) * int(np.prod(reading.shape)) // (features * layout.batch(reading))
    steps = 1 if len(calls) == 1 and layout.of(call.output)[0] == "B" else layout.num_steps
    return Layer(
        name=call.name,
        call=call.call,
        kind=call.kind,
        weight=call.weight,
        bias=call.bias,
        out_group=found.names(call.out_ids)[0],
        out_units=found.at(call.out_ids)[1],
        in_group=inputs.groups,
        in_owner=inputs.owner,
        in_unit=inputs.unit,
        kernel=call.kernel,
        positions=executions // steps,
        steps=steps,
        macs_per_synapse=executions * call.kernel,
        pre=layout.site(_Seen(call.name, call.call, "input", call.input, call.input_axis)) if call.observed else None,
        post=None if post is None or call.groups > 1 else layout.site(post),
        post_row=post_row,
        post_features=post_features,
        spike_divisor=_sample([c.input for c in calls], layout),
        fanout=call.fanout,
        groups=call.groups,
        transposed=call.transposed,
    )


def _rows_behind(post: IntArray, rows: IntArray, found: Found) -> IntArray:
    """Row of the weight behind each feature that is seen, -1: none.

    By id where the features carry those of all rows of their units. Else by unit, in order: a unit with as many
    features as rows has one for each; with fewer, its last rows (the values of a head lie behind its queries and keys).
    """
    if len(np.unique(rows)) == len(rows):
        order = np.argsort(rows)
        place = np.minimum(np.searchsorted(rows[order], post), len(rows) - 1)
        same = rows[order][place] == post
        seen = np.unique(order[place][same])
        if len(seen) and len(seen) == np.isin(found.at(rows)[1], found.at(rows[seen])[1]).sum():
            return np.where(same, order[place], -1)
    group, unit = found.at(post)
    unit = np.where(group == found.at(rows)[0][0], unit, -1)
    row_unit = found.at(rows)[1]
    behind = np.full(len(post), -1)
    for u in np.intersect1d(unit[unit >= 0], row_unit):
        mine, own = np.flatnonzero(unit == u), np.flatnonzero(row_unit == u)
        last = own[-min(len(own), len(mine)) :]
        behind[mine] = last[np.arange(len(mine)) * len(last) // len(mine)]
    return behind


def _features(ids: IntArray, found: Found) -> Features:
    group, unit = found.at(ids)
    order = [g for g in dict.fromkeys(group.tolist()) if g >= 0]
    owner = np.full(len(ids), -1)
    for place, g in enumerate(order):
        owner[group == g] = place
    return Features(groups=tuple(found.groups[g].name for g in order), owner=owner, unit=unit)


def _sample(values: Sequence[Value], layout: _Layouts) -> FloatArray | None:
    """The divisor of one sample at one step: (I, *space)."""
    divisors = [value.divisor for value in values]
    if any(d is None or not np.array_equal(d, cast(FloatArray, divisors[0])) for d in divisors):
        return None
    first = cast(FloatArray, divisors[0])
    return np.array(first[0, 0] if layout.of(values[0])[0] == "T,B" else first[0])


def _neuron_site(walk: Walk, call: _NeuronCall, found: Found, layout: _Layouts) -> NeuronSite:
    ids, shape = call.value.units[call.axis], call.value.shape
    seen = layout.site(_Seen(call.name, call.call, "output", call.value, call.axis))
    sample = shape[2:] if layout.of(call.value)[0] == "T,B" else shape[1:]
    driven = {
        number
        for number, layer in enumerate(walk.layers)
        if layer.post is not None and (layer.post.module, layer.post.call) == (call.name, call.call)
    }
    layers = {walk.layers[number].name for number in driven}
    return NeuronSite(
        name=call.name,
        call=call.call,
        group=next(iter(found.names(ids)), None) if ids is not None else None,
        positions=int(np.prod(sample)) // shape[call.axis],
        features=shape[call.axis],
        steps=layout.num_steps,
        layout=seen.layout,
        between=tuple(
            layout.site(passed)
            for passed, awaiting in walk.passed
            if awaiting <= driven and passed.module not in layers
        ),
    )


def one_step(node: Any) -> bool:
    """Whether a call of a neuron runs one step."""
    return bool(node.args[3] != "sequence")


def is_activation(module: nn.Module) -> bool:
    return isinstance(module, ACTIVATIONS)
