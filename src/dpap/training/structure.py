"""The structure of a finished run, trained from the start with new weights: what the structure alone is worth.

Two controls: the structure as it is, and with the connections of each layer shuffled, which tells whether it matters
which of them stay or only how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dpap.data import Dataset
from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.io import kept_units, load
from dpap.metrics import count_synapses, stored_synapses
from dpap.pruning.compact import compacted
from dpap.pruning.slice import Present
from dpap.time.timing import timing_of
from dpap.training.randomness import generator


@dataclass(frozen=True, slots=True)
class Structure:
    """What is left of a network."""

    model: nn.Module
    """Small, with new weights."""
    dead: Mapping[str, Tensor]
    """For each weight with pruned connections a bool tensor like it, True = dead."""
    connectivity: float


def structure_of(folder: str, dense: nn.Module, data: Dataset, *, shuffle: int | None) -> Structure:
    """A network cut to the structure of a finished run, and which of its weights are dead.

    Args:
        folder: Of the run.
        dense: The network as it was before that run, with new weights.
        data: Its data.
        shuffle: Seed by which the living connections of each layer are put at other places; None: they stay.

    Raises:
        DPAPError: The run is not over, is of another network, or pruned time steps.
    """
    path = Path(folder) / "model"
    if not path.is_dir():
        raise DPAPError("There is no finished run.", where=folder, fix="give the folder of a run that is over.")
    found = load(path)
    if timing_of(found) is not None:
        raise DPAPError("The run pruned time steps; a structure holds units and connections.", where=folder)
    example = data.spec.prepared(data.test.images[:2])
    graph = find_groups(dense, example, spiking_input=data.spec.timed)
    alive = {group.name: torch.ones(group.units, dtype=torch.bool) for group in graph.groups}
    for name, (units, kept) in kept_units(path).items():
        if name not in alive or len(alive[name]) != units:
            raise DPAPError(f"The run is of another network: {name} is not here.", where=folder)
        alive[name] = torch.zeros(units, dtype=torch.bool).index_fill_(0, torch.tensor(kept, dtype=torch.long), True)
    small = compacted(dense, Present.whole(dense, graph), alive)
    shapes = {name: p.shape for name, p in small.named_parameters()}
    if shapes != {name: p.shape for name, p in found.named_parameters()}:
        raise DPAPError("The run is of another network.", where=folder, fix="use the model of the run.")
    found_graph = find_groups(found, example, spiking_input=data.spec.timed)
    transposed = {layer.weight for layer in found_graph.layers if layer.transposed}
    dead: dict[str, Tensor] = {}
    synapses = stored_synapses(found, found_graph)
    for name, mask in synapses.items():
        if shuffle is not None:
            order = torch.randperm(mask.numel(), generator=generator(shuffle, "structure", len(dead)))
            mask = mask.reshape(-1)[order].view_as(mask)
        mask = mask.T if name in transposed else mask
        dead[name] = (~mask).view(*mask.shape, *[1] * (len(shapes[name]) - 2)).expand(shapes[name]).contiguous()
    left = count_synapses(found_graph, synapses=synapses) / count_synapses(graph)
    return Structure(small, dead, left)
