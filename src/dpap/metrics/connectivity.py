"""What is there: living synapses, connectivity, parameters. Counted from the graph and the masks, never from values.

Every function takes `alive` (group name -> bool (units,)) and, where single synapses matter, `synapses` (weight name ->
bool (O, I / groups); the kernel between two channels of a convolution is one). What is not in the mapping is alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dpap.errors import DPAPError, unknown_name
from dpap.graph.group import Graph, Layer, LayerKind

ALL: Mapping[str, Tensor] = MappingProxyType({})
"""Nothing is pruned."""


def connectivity(
    graph: Graph,
    alive: Mapping[str, Tensor] = ALL,
    synapses: Mapping[str, Tensor] = ALL,
    kind: LayerKind | None = None,
) -> float:
    """Share of the synapses of the dense network that live; sparsity is 1 minus it.

    A synapse lives when its own mask is 1, its unit is alive and the unit that feeds it is alive. All weights of
    convolutions and linear layers count, the classifier's included; `kind` narrows that to one sort of layer.

    Returns:
        A share in [0, 1]; 1.0 where the network has no layer of that kind (nothing can be lost).
    """
    dense = count_synapses(graph, kind=kind)
    return count_synapses(graph, alive, synapses, kind) / dense if dense else 1.0


def count_synapses(
    graph: Graph,
    alive: Mapping[str, Tensor] = ALL,
    synapses: Mapping[str, Tensor] = ALL,
    kind: LayerKind | None = None,
) -> int:
    """Weights of convolutions and linear layers that are alive; one that several calls share counts once.

    A weight of a grouped convolution lives with its unit, which holds both of its ends.
    """
    check_living(graph, alive, synapses)
    return sum(
        int(living_fan_out(layer, alive, synapses).sum()) * layer.kernel
        for layer in distinct_layers(graph)
        if kind in (None, layer.kind)
    )


def sparsity_paper(graph: Graph, alive: Mapping[str, Tensor] = ALL, synapses: Mapping[str, Tensor] = ALL) -> float:
    """Share of own zero weights over all convolution and linear weights, as papers report it; for comparison only.

    A dead unit's incoming weights count as zero, and a living unit's dead synapses; the weights that read a dead unit
    do not, although they can carry nothing. So it is at most 1 minus `connectivity`.
    """
    check_living(graph, alive, synapses)
    total = kept = 0
    for layer in distinct_layers(graph):
        rows, columns = living_outputs(layer, alive).sum(), living_inputs(layer, alive)
        living = int(living_fan_out(layer, alive, synapses).sum())
        unread = int(rows * (~columns).sum()) if layer.groups == 1 else 0
        kept += (living + unread) * layer.kernel
        total += layer.out_units.size * layer.in_features * layer.kernel
    return 1.0 - kept / total if total else 0.0


def count_parameters(model: nn.Module, graph: Graph, alive: Mapping[str, Tensor] = ALL) -> int:
    """Parameters of the compacted network: biases, norms and neuron parameters included, tied ones once.

    Dense: a dead synapse of a living pair of units still takes its place in the matrix.
    """
    check_living(graph, alive, ALL)
    check_widths(model, graph)
    named = dict(model.named_parameters(remove_duplicate=False))
    dead: dict[tuple[int, int], Bool[np.ndarray, " n"]] = {}
    for group in graph.groups:
        gone = ~_living_units(group.name, group.units, alive).numpy()
        for part in (*group.producers, *group.consumers):
            if part.tensor in named:  # running statistics are no parameters
                tensor = named[part.tensor]
                rows = dead.setdefault((id(tensor), part.axis), np.zeros(tensor.shape[part.axis], dtype=bool))
                rows[part.entries[gone].reshape(-1)] = True
    nobody = np.zeros(0, dtype=bool)
    return sum(
        int(np.prod([size - int(dead.get((id(p), axis), nobody).sum()) for axis, size in enumerate(p.shape)]))
        for p in {id(p): p for p in named.values()}.values()
    )


def check_widths(model: nn.Module, graph: Graph) -> None:
    """Refuse a model that is narrower than its graph.

    Raises:
        DPAPError: A tensor does not hold all entries that the graph names.
    """
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for group in graph.groups:
        for part in (*group.producers, *group.consumers):
            size = named[part.tensor].shape[part.axis] if part.tensor in named else 0
            if part.entries.size and part.entries.max() >= size:
                raise DPAPError(
                    f"The model is narrower than the graph: axis {part.axis} of {part.tensor} holds {size} of "
                    f"{int(part.entries.max()) + 1} entries.",
                    where=f"group {group.name}",
                    fix="measure a model that shrank while it trained as dev.masked(), with dev.graph, dev.alive and "
                    "dev.synapse_masks, or as dev.compact(), with find_groups() of that.",
                )


def unit_density(graph: Graph, alive: Mapping[str, Tensor] = ALL) -> dict[str, float]:
    """Living units / units, for each group."""
    check_living(graph, alive, ALL)
    return {g.name: float(_living_units(g.name, g.units, alive).double().mean()) for g in graph.groups}


def stored_synapses(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """`synapses` of a network that came without its masks, such as a compacted one: the weights that are not zero.

    Only layers that have one are listed.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    masks = {}
    for layer in distinct_layers(graph):
        if layer.groups == 1 or not layer.transposed:
            weight = named[layer.weight].detach()
            weight = weight.transpose(0, 1) if layer.transposed else weight
            masks[layer.weight] = (weight.flatten(2) != 0).any(2) if weight.dim() > 2 else weight != 0
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


# the parts -----------------------------------------------------------------------------------------------------------


def distinct_layers(graph: Graph) -> Iterator[Layer]:
    """One layer for each weight, the first call of it."""
    seen: set[str] = set()
    for layer in graph.layers:
        if layer.weight not in seen:
            seen.add(layer.weight)
            yield layer


def living_outputs(layer: Layer, alive: Mapping[str, Tensor]) -> Bool[Tensor, " O"]:
    """Rows of the weight whose unit is alive."""
    return _pick(alive, layer.out_group, torch.from_numpy(layer.out_units))


def living_inputs(layer: Layer, alive: Mapping[str, Tensor]) -> Bool[Tensor, " I"]:
    """Columns of the weight whose feeding unit is alive; the network's own input always is."""
    living = torch.ones(layer.in_owner.size, dtype=torch.bool)
    for index, name in enumerate(layer.in_group):
        mine = torch.from_numpy(layer.in_owner == index)
        living[mine] = _pick(alive, name, torch.from_numpy(layer.in_unit)[mine])
    return living


def living_fan_out(
    layer: Layer,
    alive: Mapping[str, Tensor],
    synapses: Mapping[str, Tensor],
    receiving: Bool[Tensor, " O"] | None = None,
) -> Int[Tensor, " I"]:
    """How many living outputs each input reaches over a living synapse; 0 for a dead input.

    `receiving`: only these outputs.
    """
    inputs, outputs = living_inputs(layer, alive), living_outputs(layer, alive)
    if receiving is not None:
        outputs = outputs & receiving
    mask = synapses.get(layer.weight)
    if mask is None:
        reached = outputs.reshape(layer.groups, -1).sum(1).repeat_interleave(layer.in_features)
    else:
        reached = (mask.cpu() & outputs[:, None]).reshape(layer.groups, -1, layer.in_features).sum(1).reshape(-1)
    return inputs * reached


def check_living(graph: Graph, alive: Mapping[str, Tensor], synapses: Mapping[str, Tensor]) -> None:
    """Refuse names and shapes that do not belong to the graph.

    Raises:
        DPAPError: An unknown group or weight, or a wrong shape.
    """
    units = {group.name: group.units for group in graph.groups}
    weights = {layer.weight: layer for layer in distinct_layers(graph)}
    for name, living in alive.items():
        if name not in units:
            raise unknown_name("group", name, units)
        _check_shape(living, (units[name],), f"alive[{name!r}]")
    for name, mask in synapses.items():
        if name not in weights:
            raise unknown_name("weight", name, weights)
        _check_shape(mask, (weights[name].out_units.size, weights[name].in_features), f"synapses[{name!r}]")


def _check_shape(mask: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise DPAPError(
            f"A mask has shape {tuple(mask.shape)} and type {mask.dtype}; the graph asks for bool {shape}.",
            where=where,
            fix="use the masks and the graph of one network: those of a dense one do not fit its compacted copy.",
        )


def _living_units(name: str, units: int, alive: Mapping[str, Tensor]) -> Bool[Tensor, " units"]:
    return alive[name].cpu() if name in alive else torch.ones(units, dtype=torch.bool)


def _pick(alive: Mapping[str, Tensor], name: str, units: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return alive[name].cpu()[units] if name in alive else torch.ones(len(units), dtype=torch.bool)
