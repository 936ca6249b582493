"""What `dpap inspect` says of a network: what must shrink together, what may, and what each layer costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dpap.graph.find import find_groups
from dpap.graph.group import Graph, UnitGroup
from dpap.graph.walk import Unknown
from dpap.method.survival import unit_floor
from dpap.metrics import count_macs, count_parameters, count_synapses


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One weight, all its calls together."""

    name: str
    """Path of the module."""
    kind: str
    weight: str
    shape: tuple[int, ...]
    weights: int
    macs: int
    """Multiply-accumulates per sample, all steps, padding counted."""
    steps: int
    """Executions per sample."""
    reads: str
    """"spikes", whose operations are at most the MACs, or "values"."""
    group: str
    """Whose units it makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Of the whole network, per sample."""

    weights: int
    """Of convolutions and linear layers."""
    macs: int
    parameters: int
    least_macs: int
    """If every group that may shrink were at its floor."""
    least_parameters: int
    steps: int
    """T; 1 without time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found."""

    name: str
    input: tuple[int, ...] | None
    """Shape of the example; None where it is not one tensor."""
    graph: Graph
    layers: tuple[LayerCost, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """Plain values: the groups with every slice of every tensor, and the costs."""
        return {
            "model": self.name,
            "input": self.input,
            "groups": [group.to_json() for group in self.graph.groups],
            "layers": [asdict(layer) for layer in self.layers],
            "totals": asdict(self.totals),
        }


def inspect(
    model: nn.Module, example: Any, spiking_input: bool = False, *, name: str = "", unknown: str = "refuse"
) -> Inspection:
    """Find the groups and count the costs; nothing is trained, and the network stays as it is.

    Args:
        model: Any network that `find_groups` takes.
        example: One batch of its input.
        spiking_input: As of `find_groups`.
        name: What to call it.
        unknown: What to do with an operator that has no rule; as of `find_groups`.

    Raises:
        DPAPError: As `find_groups`.
    """
    # which refuses another word than it knows
    graph = find_groups(model, example, unknown=cast(Unknown, unknown), spiking_input=spiking_input)
    least = {group.name: _least(group) for group in graph.groups}
    totals = Totals(
        weights=count_synapses(graph),
        macs=count_macs(graph),
        parameters=count_parameters(model, graph),
        least_macs=count_macs(graph, least),
        least_parameters=count_parameters(model, graph, least),
        steps=graph.num_steps,
    )
    shape = tuple(example.shape) if isinstance(example, Tensor) else None
    return Inspection(name=name, input=shape, graph=graph, layers=tuple(_costs(model, graph)), totals=totals)


def _least(group: UnitGroup) -> Tensor:
    """Which units live when the group is at its floor; all of them where it is protected."""
    return torch.arange(group.units) < (group.units if group.protected else unit_floor(group.units))


def _costs(model: nn.Module, graph: Graph) -> Iterator[LayerCost]:
    weights = dict(model.named_parameters(remove_duplicate=False))
    calls: dict[str, list[Any]] = {}
    for layer in graph.layers:
        calls.setdefault(layer.weight, []).append(layer)
    for weight, layers in calls.items():
        first = layers[0]
        yield LayerCost(
            name=first.name,
            kind=first.kind,
            weight=weight,
            shape=tuple(weights[weight].shape),
            weights=weights[weight].numel(),
            macs=count_macs(replace(graph, layers=tuple(layers))),
            steps=sum(layer.steps for layer in layers),
            reads="values" if any(layer.spike_divisor is None for layer in layers) else "spikes",
            group=first.out_group,
        )


# in print -----------------------------------------------------------------------------------------------------------
