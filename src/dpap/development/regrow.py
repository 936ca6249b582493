"""Synapses that grow again: which in a development step, and when each did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpap.development.plan import Plan
from dpap.development.scoring import inside_groups
from dpap.development.window import Window
from dpap.method.regrowth import exchange, exchange_share, promise
from dpap.method.survival import ROUNDING, Clock

UNBORN = -1
"""In the place of a birthday: has lived from the start of the run, or is dead since."""


@dataclass(slots=True)
class Exchange:
    """What a development step exchanges."""

    masks: dict[str, Tensor]
    """Weight -> bool (O, I), alive afterwards."""
    born: dict[str, Tensor]
    """Weight -> bool (O, I)."""


@dataclass(slots=True)
class Regrowth:
    """The births of a run."""

    plan: Plan
    birthdays: dict[str, Tensor]
    """Weight -> (O, I): calls of `dev.step()` when the synapse was born, `UNBORN` where it was not."""

    @classmethod
    def first(cls, plan: Plan, masks: Mapping[str, Tensor]) -> Regrowth | None:
        """Nobody was born yet; None where the rule lets nothing grow."""
        if plan.rule.regrow is None:
            return None
        return cls(plan, {name: torch.full_like(mask, UNBORN, dtype=torch.int32) for name, mask in masks.items()})

    def mature(self, weight: str, step: int) -> Tensor:
        """(O, I): what may be pruned again: born a memory ago, or never."""
        if not self.plan.rule.settled:
            return torch.ones_like(self.birthdays[weight], dtype=torch.bool)
        young = self.plan.schedule.memory * self.plan.schedule.total_steps
        return (self.birthdays[weight] < 0) | (step - self.birthdays[weight] >= young - ROUNDING)

    def exchanged(
        self,
        masks: Mapping[str, Tensor],
        alive: Mapping[str, Tensor],
        survival: Mapping[str, Tensor],
        window: Window,
        clock: Clock,
        step: int,
    ) -> Exchange:
        """The masks after the exchange, layer by layer.

        The share of `exchange_share` is that of one memory of the run, the age from which the newborn compete (unless
        the rule says otherwise, `Rule.settled`).

        Args:
            masks: Weight -> (O, I), as the schedule left them.
            alive: Group -> (units,), likewise.
            survival: Weight -> F.
            window: What was observed.
            clock: Where the run is.
            step: Calls of `dev.step()` so far.

        Raises:
            DPAPError: The gradient is asked for and there was no backward pass.
        """
        found = Exchange(dict(masks), {})
        share = exchange_share(clock.q) * (min(1.0, clock.elapsed / clock.memory) if self.plan.rule.settled else 1.0)
        kind = self.plan.rule.regrow
        assert kind is not None
        for layer in self.plan.synaptic:
            name, mask = layer.weight, masks[layer.weight]
            out = alive[layer.out_group][torch.from_numpy(layer.out_units)].to(mask.device)
            ends = out[:, None].expand_as(mask)  # a grouped convolution has both ends in one unit
            if layer.groups == 1:
                ends = ends & window.living_inputs(layer, alive).to(mask.device)
            xy = window.of(layer).sums.get("xy")
            promised = promise(
                kind,
                xy if xy is None or layer.groups == 1 else inside_groups(xy, layer),
                window.learned("gradient", name) if kind == "gradient" else None,
                ends,
                seed=self.plan.seed,
                layer=layer.name,
                step=step,
            )
            number = math.floor(share * int(mask.sum()) + ROUNDING)
            died, born = exchange(mask, ends, ~self.mature(name, step), survival[name], promised, number)
            found.masks[name], found.born[name] = (mask & ~died) | born, born
        return found

    def wasted(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, int]:
        """Weight -> synapses that were born in the run and are pruned now."""
        lost = {n: int((mask & ~after[n] & (self.birthdays[n] >= 0)).sum()) for n, mask in before.items()}
        return {name: number for name, number in lost.items() if number}

    def commit(self, masks: Mapping[str, Tensor], born: Mapping[str, Tensor], step: int) -> None:
        """Write down who was born, and forget who died."""
        for name, days in self.birthdays.items():
            days.masked_fill_(~masks[name], UNBORN)
            if name in born:
                days.masked_fill_(born[name], step)
