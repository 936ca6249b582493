"""What the neurons of a finished network did at each time step, for reports: `activity.npz` of a run folder.

    fired/<neuron>     (units, T): spikes per neuron of each unit of the dense network, over the test split
    raster/<neuron>    the same of one sample, the first of those below
    label, answer      (n,): of a few samples of the test split, the names of their class and of the network's answer
    frames             (n, T, channels, height, width), whole numbers: those samples as the network sees them, at most
                       `SIDE` pixels a side; only where the data have time

What fired is exactly 0 where nothing did: a dead unit or pair, or one that had nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from dpap.data import Dataset
from dpap.graph.group import Graph
from dpap.metrics import RateCounter
from dpap.metrics.synops import evaluating
from dpap.report.history import StepResult
from dpap.time.plan import LivingSteps

SAMPLES = 3
SIDE = 64
"""Larger frames are added up over squares of pixels."""

Activity = Mapping[str, npt.NDArray[Any]]
StepRates = Mapping[str, Float64[Tensor, "units T"]]
"""Neuron -> spikes per neuron of each unit at each step."""


def step_results(graph: Graph, rates: StepRates, alive: Mapping[str, Tensor]) -> list[StepResult]:
    """The living of each layer of spiking neurons at each step."""
    found = []
    for name, (group, positions) in _neurons(graph, rates).items():
        living = rates[name][alive[group].cpu()] if group in alive else rates[name]
        found.append(StepResult(name=name, group=group, positions=positions, rates=living.mean(0).tolist()))
    return found


def living_step_share(time: LivingSteps, alive: Mapping[str, Tensor]) -> float:
    """Living time steps of the hidden layers / all of them; a step lives while one pair of a living unit does."""
    steps = []
    for neuron in time.times.neurons:
        pairs = time.pairs[neuron.name]
        steps.append((pairs[alive[neuron.group].cpu()] if neuron.group in alive else pairs).any(0))
    return float(torch.cat(steps).double().mean())


def activity(
    model: nn.Module, graph: Graph, data: Dataset, rates: StepRates, kept: Mapping[str, tuple[int, Sequence[int]]]
) -> Activity:
    """The arrays of `activity.npz`.

    Args:
        data: On the device of the model.
        rates: Over the test split.
        kept: Group -> its units in the dense network, and which of them are left.
    """
    rows = _shown(data)
    seen = data.spec.prepared(data.test.images[rows])
    first = seen[:, :1] if data.spec.timed else seen[:1]
    with evaluating(model):
        answers = model(seen).argmax(1)
        with RateCounter(model, graph) as counter:
            model(first)
    names = np.array(data.spec.classes)
    arrays = {"label": names[data.test.labels[rows].cpu().numpy()], "answer": names[answers.cpu().numpy()]}
    for kind, found in (("fired", rates), ("raster", counter.per_step())):
        for name, (group, _) in _neurons(graph, found).items():
            arrays[f"{kind}/{name}"] = _whole(found[name], kept.get(group)).float().numpy()
    if data.spec.timed:
        arrays["frames"] = _small(seen.transpose(0, 1)).cpu().numpy()
    return arrays


def _neurons(graph: Graph, rates: StepRates) -> dict[str, tuple[str, int]]:
    """Neuron -> its group and the neurons of a unit, of those whose units were seen at every step."""
    return {
        site.name: (site.group, site.positions)
        for site in graph.neurons
        if site.group is not None and site.name in rates and rates[site.name].shape[1] == graph.num_steps
    }


def _shown(data: Dataset) -> Tensor:
    """The first test sample of each of the first few classes; of still pictures one is enough."""
    labels = data.test.labels
    shown = sorted(set(labels.tolist()))[: SAMPLES if data.spec.timed else 1]
    return torch.cat([(labels == label).nonzero()[0] for label in shown])


def _whole(
    rates: Float64[Tensor, "units T"], kept: tuple[int, Sequence[int]] | None
) -> Float64[Tensor, "dense_units T"]:
    """With 0 for the units that were cut."""
    if kept is None or len(rates) == kept[0]:
        return rates
    whole = rates.new_zeros(kept[0], rates.shape[1])
    whole[list(kept[1])] = rates
    return whole


def _small(frames: Float[Tensor, "n T C H W"]) -> UInt8[Tensor, "n T C h w"]:
    """Counts of larger pixels, at most 255."""
    height, width = frames.shape[-2:]
    by = [-(-size // SIDE) for size in (height, width)]
    by = [max(by)] * 2 if min(height, width) > 1 else by
    padded = functional.pad(frames, (0, -width % by[1], 0, -height % by[0]))
    counts = functional.avg_pool2d(padded.flatten(0, 2)[:, None], by) * (by[0] * by[1])
    return counts.view(*frames.shape[:3], *counts.shape[-2:]).round().clamp(0, 255).to(torch.uint8)
