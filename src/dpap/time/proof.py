"""Which time steps a network can really do without: every layer is tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.time.graph import TimeGraph
from dpap.time.timing import Timing


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
    """Dead steps that differ from neuron to neuron, and some dead pairs beside them; no unit is dead all the time."""
    generator = torch.Generator().manual_seed(pattern)
    pairs = {}
    for n in times.neurons:
        alive = torch.rand(n.units, times.num_steps, generator=generator) > 0.2
        alive[:, torch.rand(times.num_steps, generator=generator) > 0.6] = False
        alive[:, int(torch.randint(times.num_steps, (), generator=generator))] = True
        pairs[n.name] = alive
    return pairs
