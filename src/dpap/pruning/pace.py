"""A target of latency: units pay for what a clock says of the network without the dead.

What a share of the MACs saves in time depends on machine, widths and batch. It is measured a few times a run, and the
MACs that stay follow: share wanted = share now x latency scheduled / latency measured. So a clock has a say in how
many are pruned, and two runs of one seed need not be equal.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dpap.graph.adapters import unlisted
from dpap.graph.export import Forward
from dpap.method.survival import ROUNDING, Clock, scheduled_share
from dpap.metrics.latency import latency
from dpap.processes import of_first
from dpap.pruning.account import Account
from dpap.pruning.choose import Candidates, Taker
from dpap.pruning.compact import compacted, restored
from dpap.pruning.slice import Alive, Present
from dpap.pruning.targets import fewest, out_of_reach

log = logging.getLogger(__name__)

MEASUREMENTS = 12
"""In the window, evenly."""
CORRECTIONS = 8
"""At its end: how often units are pruned for what was measured."""
AIM = 0.99
"""Corrections go a little beyond the target: time falls more slowly than MACs, so aiming at it would never arrive."""
STEEPEST = 0.5
"""No measurement, however wrong, takes more than this share of the MACs that are left."""
WAVERS = 0.9
"""A target is refused when it is below this share of the least latency measured; nearer to it, the clock may err."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Makes units pay for a target of latency.

    Args:
        model: The network in training.
        example: The batch that the latency is of.
        forward: As `DPAP(forward=)`.
        target: Share of the dense network's latency.
        macs: Of the dense network.
    """

    model: nn.Module
    example: Any
    forward: Forward | None
    target: float
    macs: float

    def measure(self, account: Account, present: Present) -> float:
        """Latency of the network without the dead of the account, as a share of the dense network's."""
        alive = {g.name: torch.from_numpy(a.copy()) for g, a in zip(account.graph.groups, account.alive, strict=True)}
        share = latency_share(self.model, present, alive, self.example, self.forward)
        return of_first(share, next(self.model.parameters()).device)  # clocks differ, decisions must not

    def check(self, account: Account, kinds: set[str], present: Present) -> None:
        """Whether the target can be met with every group at its floor.

        Raises:
            DPAPError: It cannot, by more than a clock may err.
        """
        lowest = 1.0
        floors = fewest(account, kinds)
        if any(n < len(a) for n, a in zip(floors, account.alive, strict=True)):
            slim = replace(account, alive=[a & (a.cumsum() <= n) for n, a in zip(floors, account.alive, strict=True)])
            lowest = WAVERS * self.measure(slim, present)
        if self.target < lowest:
            raise out_of_reach("latency", self.target, lowest)

    def pay(self, taker: Taker, units: Candidates, clock: Clock, exchange: float, present: Present) -> float:
        """Take the units of one development step.

        Args:
            taker: Prunes them.
            units: Units that could be pruned.
            clock: Where the run stands.
            exchange: Share of MACs / share of latency, as last measured; 1 before.
            present: What is still in the model's tensors.

        Returns:
            The exchange from now on.
        """
        account = taker.account
        if clock.q >= 1:
            self._correct(taker, units, present)
            return exchange
        if _due(clock):
            exchange = account.macs() / self.macs / self.measure(account, present)
        wanted = exchange * scheduled_share(clock.q, self.target) * self.macs
        taker.units_until(units, "macs", max(wanted, STEEPEST * account.macs()))
        return exchange

    def _correct(self, taker: Taker, units: Candidates, present: Present) -> None:
        """The end of the window: until the target is measured, nothing may be pruned any more, or patience ends."""
        account = taker.account
        share = self.measure(account, present)
        for _ in range(CORRECTIONS):
            if share <= self.target:
                return
            paid = taker.units_until(units, "macs", max(AIM * self.target / share, STEEPEST) * account.macs())
            share = self.measure(account, present)
            if not paid:
                break
        if share > self.target:
            log.warning("The target of %.4f latency was missed: %.4f was measured.", self.target, share)


def _due(clock: Clock) -> bool:
    """Whether a measurement falls between the previous development step and this one."""
    before = replace(clock, progress=clock.progress - clock.elapsed)
    return math.floor(MEASUREMENTS * clock.q + ROUNDING) > math.floor(MEASUREMENTS * before.q + ROUNDING)


def latency_share(model: nn.Module, present: Present, alive: Alive, example: Any, forward: Forward | None) -> float:
    """Median time of a forward pass without the dead / of one at the dense widths, in turns, in evaluation mode."""
    networks = (compacted(model, present, alive), restored(model, present))
    leaves = torch.utils._pytree.tree_leaves(example)
    first = next(leaf for leaf in leaves if isinstance(leaf, Tensor))
    with unlisted(model):
        small, dense = latency([_Pass(network, example, forward) for network in networks], first)
    return small / dense


class _Pass(nn.Module):
    """A network with its batch, whatever that is made of."""

    def __init__(self, network: nn.Module, example: Any, forward: Forward | None) -> None:
        super().__init__()
        self.network, self.example, self.call = network, example, forward

    def forward(self, inputs: Tensor) -> Any:
        return self.network(self.example) if self.call is None else self.call(self.network, self.example)
