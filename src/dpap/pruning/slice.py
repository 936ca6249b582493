"""Cutting dead units out of the tensors of a model, along its groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Graph
from dpap.graph.module_rules import follow, require_rule

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


def cut_tensor(tensor: Tensor, gone: Mapping[int, Tensor]) -> Tensor:
    """A contiguous-as-before copy without the given entries of each axis."""
    out = tensor
    for axis, entries in gone.items():
        stays = torch.ones(tensor.shape[axis], dtype=torch.bool)
        stays[entries] = False
        out = out.index_select(axis, stays.nonzero().reshape(-1).to(tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return out.contiguous(memory_format=torch.channels_last)
    return out.contiguous()


def cut(model: nn.Module, graph: Graph, alive: Alive) -> None:
    """Remove dead units from a model, in place, and make the attributes of its modules follow.

    Parameters are replaced; meant for a copy that no optimizer and no hook knows.

    Raises:
        DPAPError: A module with cut tensors has no rule; nothing is changed then.
    """
    gone = dead_entries(graph, alive)
    owners = {name.rpartition(".")[0] for name in gone}
    for path in sorted(owners):
        require_rule(model.get_submodule(path), path)
    new = {name: cut_tensor(_tensor(model, name).detach(), axes) for name, axes in gone.items()}
    shared = _names_by_identity(model)
    for name, tensor in new.items():
        old = _tensor(model, name)
        value = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        for alias in shared[id(old)]:
            path, _, leaf = alias.rpartition(".")
            owner = model.get_submodule(path)
            tensors: dict[str, Any] = owner._parameters if isinstance(old, nn.Parameter) else owner._buffers
            tensors[leaf] = value
            owners.add(path)
    for path in sorted(owners):
        follow(model.get_submodule(path), path)


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    if not isinstance(tensor, Tensor):
        raise DPAPError(f"{name} is not a tensor of the model.")
    return tensor


def _names_by_identity(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for pairs in (
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in pairs:
            names[id(tensor)].append(name)
    return names
