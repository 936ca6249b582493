"""Time steps at which neurons are dead: what keeps them silent, and the work that is spared by it.

A dead (neuron, step) pair gets no input current and gives no spike while its membrane leaks. Where all pairs of a layer
are dead at a step, nothing before its neurons need be computed at that step; where nothing living arrives, a layer
answers its bias. Hooks on the layers leave such steps out of what their modules see and put them back behind them, so
any network whose modules see all steps of a pass at once can have them. Norms take their statistics over the living
steps of their neurons, whether steps are left out or not, in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpap.errors import DPAPError
from dpap.graph.adapters import neuron_info
from dpap.graph.group import Graph, Layer, Layout, NeuronSite
from dpap.hooks import OwnHook, looks_at_structure
from dpap.neurons import SpikingNeuron
from dpap.neurons.encoding import repeated_from, repeats

Mode = Literal["leak", "silence"]
MODES = ("leak", "silence")
Pairs = Mapping[str, Bool[Tensor, "units T"]]
"""Neuron -> which of its (unit, step) pairs live."""
Places = tuple[int, ...]
"""Where each step of a tensor comes from: a step of another one, or one of the two below."""
NOTHING, BIAS = -1, -2
"""Zeros, and what a layer answers to zeros."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedNeuron:
    """A hidden layer of spiking neurons whose pairs may die, and the modules that work for it alone."""

    name: str
    group: str
    units: int
    positions: int
    """Neurons of a unit."""
    norms: tuple[tuple[str, Layout], ...] = ()
    layers: tuple[str, ...] = ()
    """Layers whose output goes nowhere else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedLayer:
    """A convolution or linear layer that sees all steps in one call."""

    name: str
    layout: Layout
    feeding: tuple[str, ...] = ()
    """Neurons that it reads; where all of them are silent it answers its bias. Empty: it reads something else, too."""
    first: bool = False
    """It reads the network's input and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeGraph:
    """Which neurons of a network have pairs, and which layers may be left out; plain data, as it goes to a manifest."""

    num_steps: int
    neurons: tuple[TimedNeuron, ...]
    layers: tuple[TimedLayer, ...]
    timed_input: bool
    """Whether the network receives (T, B, ...), and only layers that can leave steps out read it."""
    flows: bool = False
    """Whether dead steps need not be put back between a neuron and the next: nothing there counts the steps."""

    def neuron(self, name: str) -> TimedNeuron:
        return next(neuron for neuron in self.neurons if neuron.name == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "timed_input": self.timed_input,
            "flows": self.flows,
            "neurons": [
                {
                    "name": n.name, "group": n.group, "units": n.units, "positions": n.positions,
                    "norms": [list(norm) for norm in n.norms], "layers": list(n.layers),
                }
                for n in self.neurons
            ],
            "layers": [
                {"name": n.name, "layout": n.layout, "feeding": list(n.feeding), "first": n.first} for n in self.layers
            ],
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TimeGraph:
        return cls(
            num_steps=int(data["num_steps"]),
            timed_input=bool(data["timed_input"]),
            flows=bool(data["flows"]),
            neurons=tuple(
                TimedNeuron(
                    **{**n, "norms": tuple((m, layout) for m, layout in n["norms"]), "layers": tuple(n["layers"])}
                )
                for n in data["neurons"]
            ),
            layers=tuple(TimedLayer(**{**n, "feeding": tuple(n["feeding"])}) for n in data["layers"]),
        )


# which pairs there are ---------------------------------------------------------------------------------------------


def time_graph(model: nn.Module, graph: Graph, mode: Mode) -> TimeGraph:
    """The hidden neurons of a network, and what works for them alone as far as the graph tells; `proven` tries it.

    Raises:
        DPAPError: no time, no hidden spiking neurons, neurons that run one step per call, or a norm whose statistics
            cannot be taken over some of the steps.
    """
    if graph.num_steps == 1:
        raise DPAPError("Time steps cannot be pruned: this network has T = 1.", fix="leave time= out.")
    driven: dict[tuple[str, int], list[Layer]] = {}
    for layer in graph.layers:
        if layer.post is not None and layer.pre is not None:
            driven.setdefault((layer.post.module, layer.post.call), []).append(layer)
    mortal = {g.name for g in graph.groups if g.protected is None}
    hidden = [n for n in graph.neurons if n.group in mortal and (n.name, n.call) in driven]
    if not hidden:
        raise DPAPError(
            "Time steps cannot be pruned: there are no hidden spiking neurons whose units may die.",
            fix="leave time= out.",
        )
    neurons = tuple(_timed(model, n, driven[(n.name, n.call)], graph, mode) for n in hidden)
    owners: dict[str, list[str]] = {}
    for site in graph.neurons:
        owners.setdefault(site.group or "", []).append(site.name)
    calls = [layer.name for layer in graph.layers]
    layers = tuple(
        TimedLayer(
            name=layer.name,
            layout=layer.pre.layout,
            feeding=_feeding(layer, owners, {n.name for n in neurons}),
            first=not layer.in_group,
        )
        for layer in graph.layers
        if layer.pre is not None and layer.pre.layout in ("T,B", "T*B") and calls.count(layer.name) == 1
    )
    known = {layer.name for layer in layers}
    first = [layer.name for layer in graph.layers if bool((layer.in_owner < 0).any())]
    return TimeGraph(
        num_steps=graph.num_steps,
        neurons=tuple(replace(n, layers=tuple(name for name in n.layers if name in known)) for n in neurons),
        layers=layers,
        timed_input=bool(first) and all(layer.first for layer in layers if layer.name in first) and known >= set(first),
    )


def _timed(model: nn.Module, site: NeuronSite, layers: Sequence[Layer], graph: Graph, mode: Mode) -> TimedNeuron:
    assert site.group is not None
    module = model.get_submodule(site.name)
    info = neuron_info(module)
    if site.layout != "T,B" or info is None or not info.multi_step:
        if any(site.group in layer.in_group for layer in layers):
            raise DPAPError(
                "Time steps cannot be pruned: the units of this recurrent layer hear of each other at every step.",
                where=site.name,
                fix="leave time= out; its units and synapses die all the same.",
            )
        raise DPAPError(
            "Time steps cannot be pruned: this neuron runs one step per call.",
            where=site.name,
            fix="use the multi-step form of the neuron, which takes (T, B, ...).",
        )
    if sum(n.name == site.name for n in graph.neurons) > 1:
        raise DPAPError(
            "Time steps cannot be pruned: this neuron stands at several places of the network.",
            where=site.name,
            fix="give each place a neuron of its own.",
        )
    if graph.group(site.group).units != site.features:
        raise DPAPError(
            f"Time steps cannot be pruned: the {site.features} features of this neuron are not the "
            f"{graph.group(site.group).units} units of {site.group}, one by one.",
            where=site.name,
        )
    if mode == "silence" and not isinstance(module, SpikingNeuron):
        raise DPAPError(
            f'time="silence" must keep the neuron from resetting, which a {type(module).__name__} cannot be told.',
            where=site.name,
            fix='use time="leak", or a neuron of dpap.neurons.',
        )
    return TimedNeuron(
        name=site.name,
        group=site.group,
        units=site.features,
        positions=site.positions,
        norms=tuple((s.module, s.layout) for s in site.between if _takes_statistics(model, s.module, s.layout)),
        layers=tuple(layer.name for layer in layers),
    )


def _takes_statistics(model: nn.Module, name: str, layout: Layout) -> bool:
    """Whether a module averages over the steps that it sees."""
    if layout not in ("T,B", "T*B"):
        return False  # it sees what is the same at every step
    module = model.get_submodule(name)
    if isinstance(module, _BatchNorm):
        return True
    if any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False)):
        raise DPAPError(
            f"Time steps cannot be pruned: how a {type(module).__name__} averages over time is not known.",
            where=name,
            fix="use BatchNorm over (T * B) or (T, B), or leave time= out.",
        )
    return False


def _feeding(layer: Layer, owners: Mapping[str, Sequence[str]], timed: set[str]) -> tuple[str, ...]:
    if bool((layer.in_owner < 0).any()) or any(len(owners.get(group, ())) != 1 for group in layer.in_group):
        return ()
    feeding = tuple(owners[group][0] for group in layer.in_group)
    return feeding if timed.issuperset(feeding) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingSteps:
    """Who lives when, for counting what is done."""

    times: TimeGraph
    pairs: Pairs
    mode: Mode

    def runs(self, layer: str) -> int:
        """Steps at which a layer has something to compute; T for one that no pairs are known of."""
        plan = _plan(self.times, self.pairs, self.mode, skip=True, told=frozenset())
        seen = plan.enter.get(layer, plan.arrive.get(layer, range(self.times.num_steps)))
        return len(seen)

    def receives(self, layer: Layer) -> Bool[Tensor, "O T"] | None:
        """At which steps each output of a layer receives anything; None: at all."""
        if self.mode == "leak" and layer.post is not None:
            for n in self.times.neurons:
                if n.name == layer.post.module and layer.name in n.layers:
                    return self.pairs[n.name][torch.from_numpy(layer.out_units)]
        return None

    def updates(self, neuron: str) -> Bool[Tensor, "units T"] | None:
        """At which steps the membrane of each unit is charged; None: at all."""
        return self.pairs.get(neuron) if self.mode == "leak" else None

    def dead_share(self, alive: Mapping[str, Tensor]) -> float:
        """rho_t: dead pairs / pairs of the living hidden neurons."""
        dead = there = 0
        for n in self.times.neurons:
            mine = self.pairs[n.name]
            mine = mine[alive[n.group].cpu()] if n.group in alive else mine
            dead += int((~mine).sum()) * n.positions
            there += mine.numel() * n.positions
        return dead / there


# who does what when ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What every module sees and answers at which steps."""

    arrive: dict[str, list[int]]
    """Steps that come to a module."""
    enter: dict[str, Places]
    """Of these, the ones that it sees, in order; a module that is left alone is not in it."""
    leave: dict[str, Places]
    """What comes out of it, step by step, from what it answered; likewise."""
    emit: dict[str, list[int]]
    """Steps that leave a neuron."""
    gates: dict[str, Tensor]
    """Neuron -> (steps that it sees, units) of zeros and ones, where a multiplication is needed."""
    window: tuple[int, int]
    """Steps of the input that anybody reads."""


def _plan(times: TimeGraph, pairs: Pairs, mode: Mode, *, skip: bool, told: frozenset[str]) -> _Plan:
    """`told`: neurons that run over all steps, because they are told when they may fire."""
    every = list(range(times.num_steps))
    living = {n.name: [t for t in every if bool(pairs[n.name][:, t].any())] for n in times.neurons}
    flows = times.flows and skip and mode == "leak"
    emit = {name: steps if flows else every for name, steps in living.items()}
    serves = {name: n.name for n in times.neurons for name in n.layers} if mode == "leak" else {}
    plan = _Plan({}, {}, {}, emit, {}, (0, times.num_steps))

    def place(name: str, arrive: list[int], see: list[int], leave: Places) -> None:
        enter = tuple(arrive.index(t) if t in arrive else NOTHING for t in see)
        plan.arrive[name] = arrive
        if enter != tuple(range(len(arrive))) or leave != tuple(range(len(see))):
            plan.enter[name], plan.leave[name] = enter, leave

    read: set[int] = set()
    for layer in times.layers if skip else ():
        wanted = living[serves[layer.name]] if layer.name in serves else every
        arriving = set().union(*(living[n] for n in layer.feeding)) if layer.feeding else set(every)
        see = [t for t in wanted if t in arriving]
        answer = wanted if flows else every
        leave = tuple(see.index(t) if t in see else BIAS if t in wanted else NOTHING for t in answer)
        place(layer.name, emit[layer.feeding[0]] if layer.feeding else every, see, leave)
        if layer.first:
            read.update(see)
    for n in times.neurons:
        mine, flowing = living[n.name], flows and bool(n.layers)
        for norm, _ in () if flowing or mode == "silence" else n.norms:
            place(norm, every, mine, tuple(mine.index(t) if t in mine else NOTHING for t in every))
        see = every[mine[0] : mine[-1] + 1] if skip and n.name not in told else every
        leave = tuple(t - see[0] if t in see else NOTHING for t in emit[n.name])
        place(n.name, mine if flowing else every, see, leave)
        gate = pairs[n.name].T[see].float()
        seen = torch.tensor([t in mine for t in see]) if flowing else torch.ones(len(see), dtype=torch.bool)
        if not bool(gate[seen].all()) or (n.name in told and not bool(gate.all())):
            plan.gates[n.name] = gate
    if skip and times.timed_input:
        return replace(plan, window=(min(read), max(read) + 1))
    return plan


class Timing:
    """Hooks on a network that keep dead pairs dead and leave out the work that nobody needs.

    Args:
        model: The network.
        times: Of that network.
        mode: "leak": a dead pair receives nothing and its membrane leaks; "silence": it integrates and cannot fire, as
            in the paper.
        skip: Leave work out; else it is done and thrown away.
        own: The hooks belong to a `DPAP` and are inert in copies of the model; else they go with the copies.

    Attributes:
        pairs: Neuron -> bool (units, T); all alive at first.
    """

    def __init__(self, model: nn.Module, times: TimeGraph, mode: Mode, *, skip: bool = True, own: bool = False) -> None:
        self.times, self.mode, self.skip = times, mode, skip
        self.pairs: dict[str, Tensor] = {}
        self._given = times.num_steps
        """Steps of the input of the pass at hand."""
        self._batches: dict[str, int] = {}
        self._first = {layer.name for layer in times.layers if layer.first}
        self._layouts: dict[str, Layout] = {layer.name: layer.layout for layer in times.layers}
        self._layouts |= {norm: layout for n in times.neurons for norm, layout in n.norms}
        self._layouts |= {n.name: "T,B" for n in times.neurons}
        kept: Callable[..., Any] = OwnHook if own else _identity
        self._handles: list[Any] = [model.register_forward_pre_hook(kept(self._begin))]
        modules = dict(model.named_modules())
        # Without current a neuron is below its threshold, but for one that was just reset by subtraction: it is told.
        self._told = frozenset(
            n.name
            for n in times.neurons
            if isinstance(modules[n.name], SpikingNeuron) and (mode == "silence" or modules[n.name].v_reset is None)
        )
        for name, (enter, leave) in self._hooked().items():
            module = modules[name]
            # Others look at what enters before it is cut, and at what leaves after it is whole again.
            self._handles.append(module.register_forward_pre_hook(kept(partial(enter, name))))
            self._handles.append(module.register_forward_hook(kept(partial(leave, name)), prepend=True))
        self.update({n.name: torch.ones(n.units, times.num_steps, dtype=torch.bool) for n in times.neurons})
        if not own:
            model.__dict__[_PLACE] = self

    def _hooked(self) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
        found: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        for layer in self.times.layers:
            found[layer.name] = (self._enter, self._leave)
        for neuron in self.times.neurons:
            found |= {norm: (self._enter, self._leave) for norm, _ in neuron.norms}
            found[neuron.name] = (self._enter_neuron, self._leave_neuron)
        return found

    def update(self, pairs: Pairs) -> None:
        """Who lives from now on; (units, T) of the widths that the model has now."""
        self.pairs = {name: alive.clone() for name, alive in pairs.items()}
        self._plan = _plan(self.times, pairs, self.mode, skip=self.skip, told=self._told)

    def close(self) -> None:
        """Remove the hooks; the neurons live at every step again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def window(self) -> tuple[int, int]:
        """Steps of the input, from and to, that anybody reads; the network also takes these alone."""
        return self._plan.window

    @property
    def living(self) -> LivingSteps:
        return LivingSteps(times=self.times, pairs=self.pairs, mode=self.mode)

    # a pass

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._given = self.times.num_steps
        if self.times.timed_input and args and isinstance(args[0], Tensor) and not looks_at_structure():
            first, last = self._plan.window
            if args[0].shape[0] == last - first:
                self._given = last - first
            else:
                self._check_steps(args[0].shape[0], "")

    def _check_steps(self, found: int, where: str) -> None:
        """Who is dead at which step means nothing in a pass of other steps."""
        if found != self.times.num_steps and not all(bool(alive.all()) for alive in self.pairs.values()):
            first, last = self._plan.window
            shorter = f", or steps {first} to {last - 1} of them" if self.times.timed_input else ""
            raise DPAPError(
                f"{found} time steps arrive; the dead steps of this network are among {self.times.num_steps}.",
                where=where,
                fix=f"give it {self.times.num_steps} time steps{shorter}.",
            )

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer or a norm."""
        enter = self._enters(name)
        if enter is None or not args or not isinstance(args[0], Tensor):
            return None
        arrive, x = self._arriving(name), args[0]
        if len(arrive) != len(self._plan.arrive[name]):
            enter = tuple(place - arrive[0] for place in enter)
        folded = self._layouts[name] == "T*B"
        x = torch.unflatten(x, 0, (len(arrive), -1)) if folded else x
        self._batches[name] = x.shape[1]
        x = _arranged(x, enter)
        return (x.flatten(0, 1) if folded else x, *args[1:])

    def _enters(self, name: str) -> Places | None:
        return None if looks_at_structure() else self._plan.enter.get(name)

    def _arriving(self, name: str) -> list[int]:
        """Steps that come to a module in this pass."""
        arrive = self._plan.arrive.get(name)
        if arrive is None:
            arrive = list(range(self.times.num_steps))
        if self._given != self.times.num_steps and name in self._first:
            return list(range(*self._plan.window))
        return arrive

    def _leave(self, name: str, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        enter = self._enters(name)
        if enter is None:
            return None
        folded = self._layouts[name] == "T*B"
        out = torch.unflatten(out, 0, (len(enter), self._batches[name])) if folded else out
        whole = _arranged(out, self._plan.leave[name], getattr(module, "bias", None))
        return whole.flatten(0, 1) if folded else whole

    def _enter_neuron(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if looks_at_structure():
            return None
        gate, enter, x = self._plan.gates.get(name), self._plan.enter.get(name), args[0]
        if len(x) != len(self._arriving(name)):
            self._check_steps(len(x), name)
        source = repeated_from(x)
        if enter is not None:
            x = _arranged(x, enter)
        if gate is not None:
            if isinstance(module, SpikingNeuron) and name in self._told:
                module.may_fire = gate
            if self.mode == "leak":
                return (x * _along_units(gate, x), *args[1:])
        if source is not None and x is not args[0]:
            repeats(x, source)
        return (x, *args[1:])

    def _leave_neuron(self, name: str, module: nn.Module, args: Any, out: Any) -> Any:
        if looks_at_structure():
            return None
        gate, leave = self._plan.gates.get(name), self._plan.leave.get(name)
        if gate is None and leave is None:
            return None
        spikes = out[0] if isinstance(out, tuple) else out
        if isinstance(module, SpikingNeuron) and name in self._told:
            module.may_fire = None
        elif gate is not None:  # no spike anyway for most neurons, but no gradient of one either
            spikes = spikes * _along_units(gate, spikes)
        if leave is not None:
            spikes = _arranged(spikes, leave)
        return (spikes, *out[1:]) if isinstance(out, tuple) else spikes

    def whole(self, name: str, side: str, x: Tensor) -> Tensor:
        """What enters a layer or leaves a neuron, with all steps; for those who observe."""
        every = list(range(self.times.num_steps))
        there = self._arriving(name) if side == "input" else self._plan.emit.get(name, every)
        if there == every or name not in self._layouts or looks_at_structure():
            return x
        folded = self._layouts[name] == "T*B"
        x = torch.unflatten(x, 0, (len(there), -1)) if folded else x
        x = _arranged(x, tuple(there.index(t) if t in there else NOTHING for t in every))
        return x.flatten(0, 1) if folded else x


_PLACE = "_dpap_timing"


def timing_of(model: nn.Module) -> Timing | None:
    """The dead pairs that belong to a finished network (of `compact`, `masked` or `load`)."""
    found = model.__dict__.get(_PLACE)
    return found if isinstance(found, Timing) else None


def without_timing(model: nn.Module) -> None:
    """Take the dead pairs off a network: its neurons live at every step again."""
    timing = model.__dict__.pop(_PLACE, None)
    if isinstance(timing, Timing):
        timing.close()


def _identity(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _along_units(gate: Float[Tensor, "T units"], x: Float[Tensor, "T B units *N"]) -> Tensor:
    return gate.to(x).view(gate.shape[0], 1, gate.shape[1], *[1] * (x.dim() - 3))


def _arranged(x: Float[Tensor, "steps B C *N"], places: Places, bias: Tensor | None = None) -> Tensor:
    """The steps of `x` at these places, zeros or a bias between them; without a copy where they follow one another."""
    if places == tuple(range(len(x))):
        return x
    pieces = [] if any(place >= 0 for place in places) else [x[:0]]  # the gradient of nothing is zero, not missing
    start = 0
    for _, run in groupby(enumerate(places), lambda item: (item[1] < 0, item[1] - item[0] * (item[1] >= 0))):
        length = len(list(run))
        first = places[start]
        start += length
        if first >= 0:
            pieces.append(x[first : first + length])
            continue
        filling = x.new_zeros(1, *x.shape[1:])
        if first == BIAS and bias is not None:
            filling = filling + bias.to(x).view(-1, *[1] * (x.dim() - 3))
        pieces.append(filling.expand(length, *filling.shape[1:]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


# proof ---------------------------------------------------------------------------------------------------------------


def proven(model: nn.Module, times: TimeGraph, answers: Callable[[nn.Module], Any]) -> TimeGraph:
    """Leave out of `times` what the network, tried, turns out to need: what a graph does not tell.

    Args:
        model: A copy in evaluation mode whose neurons answer at every step, nothing for nothing.
        times: What may be left out as far as the graph tells.
        answers: Runs the model; a tensor or a tree of them.

    Raises:
        DPAPError: a norm whose statistics cannot be taken over the living steps of the neurons behind it.
    """

    statistics = [
        m for m in model.modules() if any(n.startswith("running_") for n, _ in m.named_buffers(recurse=False))
    ]

    def same(reference: TimeGraph, other: TimeGraph, *, skip: bool) -> bool:
        for module in statistics:  # in training they mix the steps: one that is left out shows in all others
            module.train(skip)
        for pattern in range(3):
            found = []
            for each, skips in ((reference, False), (other, skip)):
                timing = Timing(model, each, "leak", skip=skips, own=True)
                timing.update(_scattered(times, pattern))
                try:
                    found.append(torch.utils._pytree.tree_leaves(answers(model)))
                except Exception:  # whatever a forward raises that counts its steps
                    return False
                finally:
                    timing.close()
            if any(
                isinstance(a, Tensor) and (a.shape != b.shape or not torch.allclose(a, b, rtol=1e-6, atol=1e-9))
                for a, b in zip(*found, strict=True)
            ):
                return False
        return True

    bare = replace(times, neurons=tuple(replace(n, norms=()) for n in times.neurons))
    if not same(bare, times, skip=False):
        for n in times.neurons:
            alone = replace(bare, neurons=tuple(n if other.name == n.name else other for other in bare.neurons))
            if not same(bare, alone, skip=False):
                raise DPAPError(
                    f"Time steps cannot be pruned: what {', '.join(norm for norm, _ in n.norms)} answers is read "
                    "elsewhere, too, so that its steps cannot be left out with those of the neuron.",
                    where=n.name,
                    fix="leave time= out, or keep this neuron with ignore=.",
                )
    for flowing in (replace(times, flows=True), times):
        if same(times, flowing, skip=True):
            return flowing
    nothing = replace(
        times,
        neurons=tuple(replace(n, layers=()) for n in times.neurons),
        layers=tuple(replace(layer, feeding=()) for layer in times.layers),
    )
    neurons, layers = [], []
    for n in times.neurons:
        fine = [
            name
            for name in n.layers
            if same(
                nothing,
                replace(nothing, neurons=_with(nothing.neurons, replace(n, layers=(name,)))),
                skip=True,
            )
        ]
        neurons.append(replace(n, layers=tuple(fine)))
    for layer in times.layers:
        tried = replace(nothing, layers=_with(nothing.layers, layer))
        layers.append(layer if same(nothing, tried, skip=True) else replace(layer, feeding=()))
    return replace(times, neurons=tuple(neurons), layers=tuple(layers))


def _with(items: Sequence[Any], item: Any) -> tuple[Any, ...]:
    return tuple(item if other.name == item.name else other for other in items)


def _scattered(times: TimeGraph, pattern: int) -> dict[str, Tensor]:
    """Dead steps that differ from neuron to neuron, and some dead pairs beside them; nobody is dead all the time."""
    generator = torch.Generator().manual_seed(pattern)
    pairs = {}
    for n in times.neurons:
        alive = torch.rand(n.units, times.num_steps, generator=generator) > 0.2
        alive[:, torch.rand(times.num_steps, generator=generator) > 0.6] = False
        alive[:, int(torch.randint(times.num_steps, (), generator=generator))] = True
        pairs[n.name] = alive
    return pairs
