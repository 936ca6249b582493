"""A small plain network from a masked one, and the proof, before anything is trained, that it can be had."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError, refusing
from dpap.graph.adapters import independent_copy, replace_neurons, unlisted
from dpap.graph.export import Forward, model_line
from dpap.graph.group import Graph, UnitGroup
from dpap.hooks import OwnHook
from dpap.pruning.draws import same_draws
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Alive, Present, cut, put, tensor_of
from dpap.time.graph import TimeGraph
from dpap.time.proof import proven
from dpap.time.timing import without_timing


def compacted(model: nn.Module, present: Present, alive: Alive) -> nn.Module:
    """An independent copy without the dead units and without our hooks. Nothing is folded, nothing else changes.

    Args:
        model: A network, whole or cut before.
        present: What is still in its tensors.
        alive: Group -> (units,).
    """
    small = _independent(model)
    cut(small, present.stays(alive))
    return small


def restored(model: nn.Module, present: Present) -> nn.Module:
    """An independent copy at the widths of the dense network, with zeros where something was cut."""
    dense = _independent(model)
    put(dense, {name: present.dense(name, tensor_of(dense, name).detach()) for name in present.left})
    return dense


def _independent(model: nn.Module) -> nn.Module:
    """A copy without our hooks and without gradients."""
    copied = independent_copy(model)
    for module in copied.modules():
        for name, hooks in vars(module).items():
            if name.endswith("hooks") and isinstance(hooks, dict):
                for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "hook", hook), OwnHook)]:
                    del hooks[key]
    without_timing(copied)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _analogue(x: Tensor) -> Tensor:
    """Stands for a neuron in the trial cut: a new spiking network may be silent, and silence proves nothing."""
    return torch.tanh(x) + 0.1 * x


def trial_cut(model: nn.Module, graph: Graph, example_input: Any, forward: Forward | None = None) -> None:
    """Cut a half or a third of the units of every group of a copy and compare it with the masked copy before training.

    Hard-coded shapes in a user's forward cannot be seen in a graph; here they show.

    Raises:
        DPAPError: A group cannot be cut; it is named, with the line of the model.
    """
    prunable = [g for g in graph.groups if g.protected is None and g.units > 1]
    example = two_samples(graph, example_input)
    with (
        unlisted(model),
        refusing(
            f"This {type(model).__name__} does not run in evaluation mode on two samples of the example input",
            fix="give an example input of two samples or more, of the shape that the model is trained on; the model "
            "must also take other sizes of batch.",
        ),
    ):
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
    """Every second or third unit dead, so that a wrong order of entries shows: at least one, never all. Neighbours lose
    different shares: a shape of the user's that ties two widths by a number would fit if both were halved."""
    chosen = [g for g in graph.groups if g.name in names]
    return {g.name: torch.arange(g.units) % (2 + n % 2) != 0 for n, g in enumerate(chosen)}


def _problem(
    model: nn.Module, graph: Graph, alive: Alive, example: Any, forward: Forward | None
) -> tuple[str, str] | None:
    """What goes wrong with a cut, and in which line; None if it equals the masked network."""
    call = _caller(forward)
    with torch.no_grad():
        # without neurons there is nothing to replace, and the second comparison would be the first again
        for analogue in (True, False) if graph.neurons else (False,):
            for dtype in (torch.float64, None):
                whole = _uneven(_prepared(model, dtype))
                batch = _cast(example, dtype)
                masked, small = copy.deepcopy(whole), compacted(whole, Present.whole(whole, graph), alive)
                _write_zeros(masked, graph, alive)
                if analogue:
                    for module in (whole, masked, small):
                        replace_neurons(module, _analogue)
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


def differing(model: nn.Module, small: nn.Module, example: Any, forward: Forward | None) -> tuple[str, str] | None:
    """What is wrong with a smaller network, and in which line; None if it answers as the larger one does.

    Neurons are replaced by smooth functions: a spike flips with the order of a sum.
    """
    call = _caller(forward)
    with torch.no_grad(), unlisted(model):
        pair = [_prepared(model, None), small.eval()]
        for module in pair:
            replace_neurons(module, _analogue)
        try:
            expected, found = (call(module, example) for module in pair)
        except Exception as error:  # whatever the user's forward raises
            return str(error).strip().splitlines()[0], model_line("".join(traceback.format_tb(error.__traceback__)))
    return None if _close(expected, found, 1e-4) else ("it would answer differently.", "")


def proven_steps(model: nn.Module, times: TimeGraph, example: Any, forward: Forward | None) -> TimeGraph:
    """What may be left out at dead time steps, tried on a copy with smooth neurons, in float64 where it takes that."""
    call = _caller(forward)
    with torch.no_grad(), unlisted(model):
        for dtype in (torch.float64, None):
            copied, batch = _uneven(_prepared(model, dtype)), _cast(example, dtype)
            replace_neurons(copied, _analogue)
            try:
                call(copied, batch)
            except Exception:
                if dtype is None:
                    raise
                continue  # a forward that insists on its own precision
            return proven(copied, times, partial(_answer, call, batch))
    raise AssertionError("one of the two precisions answers or raises")


def _caller(forward: Forward | None) -> Forward:
    """The answer of a network to a batch; whatever it draws at random is the same in every network."""

    def call(module: nn.Module, batch: Any) -> Any:
        with same_draws():
            return module(batch) if forward is None else forward(module, batch)

    return call


def _answer(call: Forward, batch: Any, model: nn.Module) -> Any:
    return call(model, batch)


def _prepared(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    module = independent_copy(model).eval()
    return module if dtype is None else module.to(dtype)


def _uneven(model: nn.Module) -> nn.Module:
    """Entries that are all equal, often 0 or 1 in a fresh norm, would hide a wrong order, or all that comes behind."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        leaf = name.rpartition(".")[2]
        if tensor.dim() == 1 and tensor.is_floating_point() and len(tensor) > 1 and bool((tensor == tensor[0]).all()):
            tensor.copy_(torch.linspace(0.5, 1.5, len(tensor)) * (0.1 if "bias" in leaf or "mean" in leaf else 1.0))
    return model


def _cast(example: Any, dtype: torch.dtype | None) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() and dtype is not None else leaf

    return torch.utils._pytree.tree_map(cast, example)


def _write_zeros(model: nn.Module, graph: Graph, alive: Alive) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, dead in dead_masks(parameters, Present.whole(model, graph), alive, {}).items():
        parameters[name].masked_fill_(dead, 0)


def two_samples(graph: Graph, example: Any) -> Any:
    """Two samples of a batch, where it is one tensor: one could hide an order, more cost time."""
    if not isinstance(example, Tensor) or not graph.layers:
        return example
    axis = graph.batch_axis
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
