"""A small plain network from a masked one, and the proof, before anything is trained, that it can be had."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.adapters import neuron_info
from dpap.graph.front import Forward, model_line
from dpap.graph.group import Graph, UnitGroup
from dpap.hooks import OwnHook
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Alive, cut


def compacted(model: nn.Module, graph: Graph, alive: Alive) -> nn.Module:
    """An independent copy without the dead units and without our hooks. Nothing is folded, nothing else changes."""
    small = copy.deepcopy(model)
    for module in small.modules():
        for name, hooks in vars(module).items():
            if name.endswith("hooks") and isinstance(hooks, dict):
                for key in [k for k, hook in hooks.items() if isinstance(hook, OwnHook)]:
                    del hooks[key]
    for parameter in small.parameters():
        parameter.grad = None
    cut(small, graph, alive)
    return small


def _analogue(x: Tensor) -> Tensor:
    """Stands for a neuron in the trial cut: a new spiking network may be silent, and silence proves nothing."""
    return torch.tanh(x) + 0.1 * x


def trial_cut(model: nn.Module, graph: Graph, example_input: Any, forward: Forward | None = None) -> None:
    """Cut half the units of every group of a copy and compare it with the masked copy, before any training.

    Hard-coded shapes in a user's forward cannot be seen in a graph; here they show.

    Raises:
        DPAPError: A group cannot be cut; it is named, with the line of the model.
    """
    prunable = [g for g in graph.groups if g.protected is None and g.units > 1]
    example = _two_samples(graph, example_input)
    if prunable and (problem := _problem(model, graph, _half(graph, [g.name for g in prunable]), example, forward)):
        for group in prunable:
            own = _problem(model, graph, _half(graph, [group.name]), example, forward)
            if own:
                _refuse([group], own)
        _refuse(prunable, problem)


def _refuse(groups: Sequence[UnitGroup], problem: tuple[str, str]) -> None:
    what, where = problem
    name = ", ".join(group.name for group in groups)
    lines = [line for group in groups for line in group.reshaped_at]
    raise DPAPError(
        f"The units of {name} cannot be removed: {what}",
        where="; reshaped before that at ".join(filter(None, [where, "; ".join(lines)])) or name,
        fix="write the shape so that it follows the tensor (flatten(1), -1, x.shape), or keep these units with "
        f"ignore={name!r}.",
    )


def _half(graph: Graph, names: list[str]) -> dict[str, Tensor]:
    """Every second unit dead, so that a wrong order of entries shows: at least one, never all."""
    return {g.name: torch.arange(g.units) % 2 == 1 for g in graph.groups if g.name in names}


def _problem(
    model: nn.Module, graph: Graph, alive: Alive, example: Any, forward: Forward | None
) -> tuple[str, str] | None:
    """What goes wrong with a cut, and in which line; None if it equals the masked network."""
    call = forward or (lambda module, batch: module(batch))
    with torch.no_grad():
        for analogue in (True, False):
            for dtype in (torch.float64, None):
                whole = _prepared(model, dtype)
                batch = _cast(example, dtype)
                masked, small = _prepared(model, dtype), compacted(whole, graph, alive)
                _write_zeros(masked, graph, alive)
                if analogue:
                    for module in (whole, masked, small):
                        _without_neurons(module)
                try:
                    call(whole, batch)
                except Exception:
                    if dtype is None:
                        raise
                    continue  # a forward that insists on its own precision
                expected = call(masked, batch)
                try:
                    found = call(small, batch)
                except Exception as error:
                    return str(error).strip().splitlines()[0], model_line(
                        "".join(traceback.format_tb(error.__traceback__))
                    )
                if not _close(expected, found, 1e-9 if dtype == torch.float64 else 1e-4):
                    return "the network without them answers differently from the masked one.", ""
                break
    return None


def _prepared(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    module = copy.deepcopy(model).eval()
    return module if dtype is None else module.to(dtype)


def _cast(example: Any, dtype: torch.dtype | None) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() and dtype is not None else leaf

    return torch.utils._pytree.tree_map(cast, example)


def _write_zeros(model: nn.Module, graph: Graph, alive: Alive) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, dead in dead_masks(parameters, graph, alive, {}).items():
        parameters[name].masked_fill_(dead, 0)


def _without_neurons(model: nn.Module) -> None:
    for module in model.modules():
        if neuron_info(module) is not None:
            module.forward = _analogue


def _two_samples(graph: Graph, example: Any) -> Any:
    if not isinstance(example, Tensor) or not graph.layers:
        return example
    first = next((layer.pre for layer in graph.layers if layer.pre is not None), None)
    axis = 1 if first is not None and first.layout in ("T,B", "T*B") and example.dim() > 2 and not first.constant else 0
    if example.shape[axis] == 1:
        return torch.cat([example, example], axis)
    return example.narrow(axis, 0, 2)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    pairs = zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b), strict=True)
    for x, y in pairs:
        if isinstance(x, Tensor):
            if x.shape != y.shape:
                return False
            if x.is_floating_point() and not bool(
                ((x - y).abs().max() <= tolerance * x.abs().max().clamp(min=1e-30)) | (x.numel() == 0)
            ):
                return False
    return True
