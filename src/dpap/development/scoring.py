"""How much each unit and synapse was used in a window, among its siblings, and what its survival grows by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from dpap.development.plan import Plan
from dpap.development.report import Notes
from dpap.development.survivors import Survivors
from dpap.development.window import Window
from dpap.errors import DPAPError
from dpap.graph.group import Layer
from dpap.method.plasticity import Kind, Stats
from dpap.method.scores import needs
from dpap.method.survival import Clock, grow, uninformed
from dpap.pruning.slice import Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """The scores of one development step."""

    plan: Plan
    survivors: Survivors
    window: Window
    """What was observed."""
    present: Present
    """Units that are still in the tensors."""
    clock: Clock
    position: str
    """Where in the run, for errors."""
    notes: Notes

    def units(self, name: str, units: int) -> tuple[Tensor, Tensor]:
        """u and growth of a group: the mean over the layers that drive it (what shrinks together votes together)."""
        members = [layer for layer in self.plan.layers if layer.out_group == name and layer.post is not None]
        uses, growths = [], []
        for layer in members:
            alive = self.survivors.alive[name] if self.plan.rule.permanent else torch.ones(units, dtype=torch.bool)
            score = self._score(layer, "unit", alive[torch.from_numpy(layer.out_units)]).cpu()
            per_unit = torch.zeros(units, dtype=score.dtype).index_add_(0, torch.from_numpy(layer.out_units), score)
            if self.plan.rule.windowed and uninformed(per_unit, alive):
                self.notes.warnings.append(
                    f"{layer.name}: no unit stands out in this window (all scores are 0); all count alike"
                )
            if self.plan.rule.windowed:
                active = self.window.of(layer).sums["y"].cpu() > 0
                stuck = int((alive & (per_unit == 0))[torch.from_numpy(layer.out_units)][active].sum())
                if stuck:
                    self.notes.at_threshold[name] = self.notes.at_threshold.get(name, 0) + stuck
            links = self.plan.rule.links(layer.kind, "unit", self.clock)
            use = grow(per_unit, alive, links[:1])
            uses.append(use)
            growths.append(grow(use, alive, links[1:]))
        return torch.stack(uses).mean(0), torch.stack(growths).mean(0).to(self.survivors.survival[name])

    def synapses(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """u and growth of a weight's synapses: the mean over the calls of its layer."""
        alive = self.survivors.living_synapses(layer)
        uses, growths = [], []
        for call in self.plan.layers:
            if call.weight == layer.weight:
                score = self._score(call, "synapse", alive)
                rows = uninformed(score, alive) if self.plan.rule.windowed else 0
                if rows:
                    self.notes.warnings.append(
                        f"{layer.name}: {rows} rows of synapses carried no information; all in them count alike"
                    )
                links = self.plan.rule.links(call.kind, "synapse", self.clock)
                uses.append(grow(score, alive, links[:1]))
                growths.append(grow(uses[-1], alive, links[1:]))
        growth = torch.stack(growths).mean(0).to(self.survivors.synapse_survival[layer.weight])
        return torch.stack(uses).mean(0), growth

    def _with_neighbours(self, stats: Stats, layer: Layer) -> Stats:
        """With the weights around the layer's units, where the score asks for them."""
        group, rows = self.plan.graph.group(layer.out_group), torch.from_numpy(layer.out_units)
        asked = needs(self.plan.rule.score)
        if "norm_scale" in asked:
            for part in group.producers:
                owner, _, name = part.tensor.rpartition(".")
                if name == "weight" and isinstance(self.plan.model.get_submodule(owner), _NormBase):
                    stats = replace(stats, norm_scale=self._dense_weight(part.tensor)[rows])
        if "outgoing" in asked:
            total = torch.zeros(group.units, dtype=stats.y.dtype, device=stats.y.device)
            for part in group.consumers:
                per_entry = self._dense_weight(part.tensor).abs().transpose(0, part.axis).flatten(1).sum(1)
                total += per_entry.to(total)[torch.from_numpy(part.entries)].sum(1)
            stats = replace(stats, outgoing=total[rows])
        return stats

    def _dense_weight(self, name: str) -> Tensor:
        """A parameter in the shape of the dense network, with zeros where dead units were cut."""
        return self.present.dense(name, self.plan.parameters[name].detach())

    def _score(self, layer: Layer, kind: Kind, alive: Tensor) -> Tensor:
        sums = self.window.of(layer)
        weight = self._dense_weight(layer.weight)
        if layer.transposed:
            weight = weight.transpose(0, 1)
        if not all(bool(total.isfinite().all()) for total in sums.sums.values()):
            raise self._not_finite(layer, "activity seen there holds")
        if kind == "synapse" and weight.dim() > 2:
            weight = weight.abs().flatten(2).sum(2)  # the strength of a kernel
        stats = sums.stats(layer.name, kind, self.plan.seed, weight, alive.to(weight.device))
        if layer.groups > 1:
            stats = _grouped(stats, layer)
        if kind == "unit":
            stats = self._with_neighbours(stats, layer)
        elif "taylor" in needs(self.plan.rule.score):
            stats = replace(stats, taylor=self.window.learned("taylor", layer.weight))
        score: Any = self.plan.rule.score(stats)  # a user's function may answer anything
        shape = weight.shape[:1] if kind == "unit" else weight.shape[:2]
        if not isinstance(score, Tensor) or score.shape != shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise DPAPError(
                f"The score of {layer.name} for kind {kind!r} answered {got}.",
                fix=f"answer a tensor of shape {tuple(shape)}.",
            )
        if not bool(score.isfinite().all()):
            raise self._not_finite(layer, "score is not finite: its weights, or the score function, hold")
        if self.plan.rule.windowed and bool((score < 0).any()):
            raise DPAPError(f"The score of {layer.name} for kind {kind!r} is negative.", fix="a score is >= 0.")
        return score

    def _not_finite(self, layer: Layer, what: str) -> DPAPError:
        return DPAPError(
            f"{layer.name}: the {what} NaN or infinity.",
            where=self.position,
            fix="lower the learning rate or clip gradients, and go on from the last checkpoint.",
        )


def inside_groups(values: Tensor, layer: Layer) -> Tensor:
    """Of what belongs to the input entries of a grouped convolution, (I,) or (O, I): that of the entries which each
    output reads, (O, I / groups)."""
    outputs, inputs = len(layer.out_units), layer.in_features
    group = torch.arange(outputs, device=values.device) // (outputs // layer.groups)
    read = group[:, None] * inputs + torch.arange(inputs, device=values.device)
    return values[read] if values.dim() == 1 else values.gather(1, read)


def _grouped(stats: Stats, layer: Layer) -> Stats:
    given = {name: getattr(stats, name) for name in ("x", "rate_x", "xy", "xyy", "stdp")}
    entries = len(layer.in_unit)  # one column where the sum is that of all inputs
    aligned: dict[str, Any] = {
        name: inside_groups(v, layer) for name, v in given.items() if v is not None and v.shape[-1] == entries
    }
    return replace(stats, **aligned)
