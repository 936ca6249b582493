"""Cutting dead units out of the tensors of a model, along its groups.

Names, numbers and shapes of a `Graph` are those of the dense network, whatever was cut since; `Present` translates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Graph, IntArray
from dpap.graph.module_rules import follow_all, require_rule

Alive = Mapping[str, Tensor]
"""Group name -> bool (units,); a group that is not named is alive as a whole."""
Entries = dict[str, dict[int, Tensor]]
"""Tensor name -> axis -> indices."""


def dead_entries(graph: Graph, alive: Alive) -> Entries:
    """Which entries of which axes belong to dead units."""
    dead: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for group in graph.groups:
        if group.name not in alive or bool(alive[group.name].all()):
            continue
        gone = ~alive[group.name].cpu()
        for piece in (*group.producers, *group.consumers):
            dead[piece.tensor][piece.axis].append(torch.from_numpy(piece.entries)[gone].reshape(-1))
    return {tensor: {axis: torch.cat(parts) for axis, parts in axes.items()} for tensor, axes in dead.items()}


@dataclass(frozen=True, slots=True)
class Present:
    """What the tensors of a model still hold of the dense network.

    Args:
        graph: Of the dense network.
        shapes: Name -> dense shape of every parameter and buffer.
        units: Group -> bool (units,): still in the tensors. The living are; some dead may be, as zeros.
        left: Tensor -> axis -> dense indices that are left, for the axes that lost some.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    units: Alive
    left: Entries

    @classmethod
    def whole(cls, model: nn.Module, graph: Graph) -> Present:
        """Nothing was cut yet."""
        units = {group.name: torch.ones(group.units, dtype=torch.bool) for group in graph.groups}
        return cls(graph, {name: tuple(tensor.shape) for name, tensor in _tensors(model)}, units, {})

    def holding(self, units: Alive) -> Present:
        """The same network with only these units in its tensors."""
        left = {
            name: {axis: _others(gone, self.shapes[name][axis]) for axis, gone in axes.items()}
            for name, axes in dead_entries(self.graph, units).items()
        }
        return Present(self.graph, self.shapes, dict(units), left)

    def stays(self, units: Alive) -> Entries:
        """Which indices of the tensors as they are now stay when only these units do."""
        found: Entries = {}
        for name, axes in self.holding(units).left.items():
            for axis, new in axes.items():
                now = self.left.get(name, {}).get(axis)
                places = new if now is None else torch.searchsorted(now, new)
                if len(places) < (self.shapes[name][axis] if now is None else len(now)):
                    found.setdefault(name, {})[axis] = places
        return found

    def dense(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor of that name with zeros where something was cut; itself if nothing was."""
        for axis, left in self.left.get(name, {}).items():
            shape = list(tensor.shape)
            shape[axis] = self.shapes[name][axis]
            tensor = tensor.new_zeros(shape).index_copy_(axis, left.to(tensor.device), tensor)
        return tensor

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the dense shape; itself if nothing was cut."""
        return kept(tensor, self.left.get(name, {}))

    def features(self, groups: Iterable[str], owner: IntArray, unit: IntArray) -> Tensor | None:
        """Dense indices that are left of an axis whose index i is unit `unit[i]` of group `owner[i]` (-1: no unit);
        None if all are."""
        there = np.ones(len(owner), dtype=bool)
        for number, name in enumerate(groups):
            mine = owner == number
            there[mine] = self.units[name].numpy()[unit[mine]]
        return None if there.all() else torch.from_numpy(np.flatnonzero(there))


def _others(gone: Tensor, size: int) -> Tensor:
    stays = torch.ones(size, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().reshape(-1)


def kept(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """A copy with the given entries of each axis alone, contiguous as before; the tensor itself without axes."""
    out = tensor
    for axis, entries in axes.items():
        out = out.index_select(axis, entries.to(tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return out.contiguous(memory_format=torch.channels_last)
    return out.contiguous() if axes else out


def cut(model: nn.Module, stays: Entries) -> None:
    """Keep only these entries of the tensors of a model; see `put`.

    Raises:
        DPAPError: A module with cut tensors has no rule; nothing is changed then.
    """
    put(model, planned(model, stays))


def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace tensors of a model by those of other widths, and make the attributes of its modules follow.

    Parameters become new ones; meant for a copy that no optimizer and no hook knows.
    """
    owners = {name.rpartition(".")[0] for name in tensors}
    aliases = _aliases(model)
    for name, tensor in tensors.items():
        old = tensor_of(model, name)
        value = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        for alias in aliases[id(old)]:
            path, _, leaf = alias.rpartition(".")
            owner = model.get_submodule(path)
            held: dict[str, Any] = owner._parameters if isinstance(old, nn.Parameter) else owner._buffers
            held[leaf] = value
            owners.add(path)
    follow_all(model, owners)


def planned(model: nn.Module, stays: Entries) -> dict[str, Tensor]:
    """The tensors that a cut would put in the place of those of these names; changes nothing.

    Raises:
        DPAPError: A module with cut tensors has no rule.
    """
    for path in sorted({name.rpartition(".")[0] for name in stays}):
        require_rule(model.get_submodule(path), path)
    return {name: kept(tensor_of(model, name).detach(), axes) for name, axes in stays.items()}


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    if not isinstance(tensor, Tensor):
        raise DPAPError(f"{name} is not a tensor of the model.")
    return tensor


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _aliases(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in _tensors(model):
        names[id(tensor)].append(name)
    return names
