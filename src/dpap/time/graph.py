"""Which neurons of a network have (unit, time step) pairs that may be pruned, and which layers work for them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpap.errors import DPAPError
from dpap.graph.adapters import neuron_info
from dpap.graph.group import Graph, Layer, Layout, NeuronSite
from dpap.neurons import SpikingNeuron

Mode = Literal["leak", "silence"]


MODES = ("leak", "silence")


Pairs = Mapping[str, Bool[Tensor, "units T"]]
"""Neuron -> which of its (unit, step) pairs live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedNeuron:
    """A hidden layer of spiking neurons whose pairs may be pruned, and the modules that work for it alone."""

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
            "Time steps cannot be pruned: there are no hidden spiking neurons whose units may be pruned.",
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
                fix="leave time= out; its units and synapses are pruned all the same.",
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
