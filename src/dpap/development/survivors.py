"""Which units and synapses are alive, and their survival."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpap.development.plan import Plan
from dpap.graph.group import Layer
from dpap.method.regrowth import erk_density, sparse_start
from dpap.pruning.account import Account

STATE = ("alive", "survival", "synapse_masks", "synapse_survival")


@dataclass(slots=True)
class Survivors:
    """The state of a run that development steps change."""

    plan: Plan
    alive: dict[str, Tensor]
    """Group -> bool (units,)."""
    survival: dict[str, Tensor]
    """Group -> F (units,)."""
    synapse_masks: dict[str, Tensor]
    """Weight -> bool (O, I), True = alive."""
    synapse_survival: dict[str, Tensor]
    """Weight -> F (O, I)."""

    @classmethod
    def first(cls, plan: Plan) -> Survivors:
        """All alive."""
        shapes = {layer.weight: (len(layer.out_units), layer.in_features) for layer in plan.synaptic}
        devices = {name: plan.parameters[name].device for name in shapes}
        initial, dtype = plan.rule.initial, plan.dtype
        return cls(
            plan=plan,
            alive={g.name: torch.ones(g.units, dtype=torch.bool) for g in plan.graph.groups},
            survival={g.name: torch.full((g.units,), initial, dtype=dtype) for g in plan.groups},
            synapse_masks={n: torch.ones(s, dtype=torch.bool, device=devices[n]) for n, s in shapes.items()},
            synapse_survival={n: torch.full(s, initial, dtype=dtype, device=devices[n]) for n, s in shapes.items()},
        )

    def start_sparse(self, target: Mapping[str, float]) -> None:
        """Draw the connections that live from the start, where the rule begins with the connectivity of its target."""
        plan = self.plan
        if not plan.rule.sparse_start:
            return
        account, shapes = self.account(), {layer.weight: plan.parameters[layer.weight].shape for layer in plan.synaptic}
        left = target["connectivity"] * account.connectivity() - (account.connectivity() - account.synaptic())
        density = erk_density(shapes, left / account.synaptic())
        for layer in plan.synaptic:
            mask = self.synapse_masks[layer.weight]
            shape = (mask.shape[0], mask.shape[1])
            drawn = sparse_start(shape, density[layer.weight], seed=plan.seed, layer=layer.name)
            self.synapse_masks[layer.weight] = drawn.to(mask.device)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What `loaded` takes."""
        return {name: dict(getattr(self, name)) for name in STATE}

    def loaded(self, state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """The same of a saved state, copied to where they lie here; for `take`."""
        return {
            name: {k: state[name][k].clone().to(v.device, v.dtype) for k, v in getattr(self, name).items()}
            for name in STATE
        }

    def take(self, lives: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on from there."""
        for name, found in lives.items():
            setattr(self, name, found)

    def living_synapses(self, layer: Layer) -> Tensor:
        """(O, I): what enters the statistics; a permanent rule's masks leave out what dead units make or read."""
        mask = self.synapse_masks[layer.weight]
        return mask if self.plan.rule.permanent else torch.ones_like(mask)

    def account(self) -> Account:
        """What is alive, as counts."""
        return Account.of(
            self.plan.graph,
            {name: alive.numpy() for name, alive in self.alive.items()},
            {name: mask.cpu().numpy() for name, mask in self.synapse_masks.items()},
            floors=self.plan.rule.windowed,
        )
