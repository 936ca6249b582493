"""What a run may prune and observe: found once, before anything is observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer, UnitGroup
from dpap.method.rules import Rule, costly_sums
from dpap.method.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parts of a network that a run is about; nothing of it changes while the network learns."""

    model: nn.Module
    graph: Graph
    rule: Rule
    schedule: Schedule
    seed: int
    parameters: Mapping[str, Tensor]
    """Name -> parameter of the model; the tensors change when it shrinks, the objects do not."""
    groups: tuple[UnitGroup, ...]
    """Groups whose units may be pruned."""
    synaptic: tuple[Layer, ...]
    """One layer for each weight whose synapses may be pruned one by one."""
    layers: tuple[Layer, ...]
    """Layers that are observed."""

    @classmethod
    def of(cls, model: nn.Module, graph: Graph, rule: Rule, schedule: Schedule, *, seed: int, all_spikes: bool) -> Plan:
        """`all_spikes`: also observe what is not pruned but receives spikes, for a target of synaptic operations."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        groups = tuple(g for g in graph.groups if g.protected is None and "unit" in rule.kinds)
        synaptic = _prunable_synapses(graph, rule, parameters)
        layers = _observed_layers(graph, {g.name for g in groups}, {x.weight for x in synaptic}, all_spikes)
        return cls(
            model=model,
            graph=graph,
            rule=rule,
            schedule=schedule,
            seed=seed,
            parameters=parameters,
            groups=groups,
            synaptic=synaptic,
            layers=layers,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of sums and survival: float32, or float64 when the model is."""
        wide = any(p.dtype == torch.float64 for p in self.parameters.values())
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device


def _prunable_synapses(graph: Graph, rule: Rule, parameters: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    if "synapse" not in rule.kinds:
        return ()
    protected = {g.name for g in graph.groups if g.protected is not None}
    chosen = {
        layer.weight: layer
        for layer in graph.layers
        if (layer.kind == "linear" or (rule.synapses == "all" and _between_units(layer)))
        and layer.pre is not None
        and layer.weight not in graph.ignored
        and parameters[layer.weight].requires_grad
        and (rule.classifier or layer.out_group not in protected)
    }
    return tuple(chosen.values())


def _between_units(layer: Layer) -> bool:
    """Whether the kernels of a convolution are synapses that a unit can do without: not those of the network's input,
    nor of a depthwise convolution, whose units have one input each."""
    return bool(layer.in_group) and (layer.groups == 1 or (layer.in_features > 1 and not layer.transposed))


def _observed_layers(graph: Graph, groups: set[str], weights: set[str], all_spikes: bool) -> tuple[Layer, ...]:
    return tuple(
        layer
        for layer in graph.layers
        if layer.pre is not None
        and (layer.out_group in groups or layer.weight in weights or (all_spikes and layer.spike_divisor is not None))
    )


def check_optimized(plan: Plan, optimizers: Sequence[Optimizer]) -> None:
    """Refuse a plan without anything to prune, or whose parameters the optimizers do not move."""
    parameters = plan.parameters
    if not plan.groups and not plan.synaptic:
        reasons = (
            "; ".join(f"{g.name}: {g.protected}" for g in plan.graph.groups) or "no convolution or linear layer found"
        )
        raise DPAPError(f"There is nothing to prune in this {type(plan.model).__name__}.", where=reasons)
    moved = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    names = {s.tensor for g in plan.groups for s in (*g.producers, *g.consumers) if s.masked and s.tensor in parameters}
    names |= {layer.weight for layer in plan.synaptic}
    missing = sorted(name for name in names if id(parameters[name]) not in moved)
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise DPAPError(
            f"{len(missing)} prunable parameters are in none of the optimizers given: {shown}.",
            fix="pass the optimizer that was made from model.parameters() of this very model (a list if there are "
            "several), or freeze them with requires_grad_(False), which protects them.",
        )
    if plan.rule.needs_neurons and not plan.graph.neurons:
        raise DPAPError(
            f"Rule {plan.rule.name!r} is the authors' script, which has no network without spikes.",
            fix='use rule="paper" or "dpap".',
        )
    if "stdp" in costly_sums(plan.rule) and plan.graph.num_steps == 1:
        raise DPAPError(
            "Spike-timing plasticity needs more than one time step; this network has T = 1.",
            fix="use another score.",
        )
