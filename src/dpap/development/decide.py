"""What is pruned in a development step: score, grow, survive, choose; nothing is carried out here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpap.development.plan import Plan
from dpap.development.regrow import Regrowth
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport, Notes, reported
from dpap.development.scoring import Scoring
from dpap.development.survivors import Survivors
from dpap.development.temporal import Temporal, TimeDecision
from dpap.development.window import Window
from dpap.method.survival import Clock, survival_step
from dpap.pruning.account import Account
from dpap.pruning.choose import CONNECTIONS, Candidates, Taker, choose, missed, scheduled
from dpap.pruning.pace import Pace
from dpap.pruning.shrink import Shrinker

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Decision:
    """A development step worked out, not yet made."""

    survival: dict[str, Tensor]
    synapse_survival: dict[str, Tensor]
    alive: dict[str, Tensor]
    synapses: dict[str, Tensor]
    born: dict[str, Tensor]
    """Weight -> bool (O, I), the synapses that grew again."""
    exchange: float
    time: TimeDecision | None
    report: DevelopmentReport


@dataclass(slots=True, kw_only=True)
class Decider:
    """Works out development steps."""

    plan: Plan
    survivors: Survivors
    target: Mapping[str, float]
    replay: Deaths | None
    shrinker: Shrinker
    pace: Pace | None
    temporal: Temporal | None
    regrowth: Regrowth | None
    dense: dict[str, float]
    """Metric -> count of the dense network."""
    exchange: float = 1.0
    """Share of MACs / share of latency, as last measured."""

    @torch.no_grad()
    def decide(self, window: Window, clock: Clock, *, step: int, position: str) -> Decision:
        """The outcome of a development step, from what was observed; survivors stay as they are.

        Args:
            window: Sums of the passes since the last development step, of all processes.
            clock: Where the run is.
            step: Calls of `dev.step()` so far.
            position: The same in words, for errors.

        Raises:
            DPAPError: A layer was not observed, or a score is not usable.
        """
        survivors, notes = self.survivors, Notes()
        scoring = Scoring(
            plan=self.plan,
            survivors=survivors,
            window=window,
            present=self.shrinker.present,
            clock=clock,
            position=position,
            notes=notes,
        )
        survival, use = dict(survivors.survival), {}
        synapse_survival, synapse_use = dict(survivors.synapse_survival), {}
        if clock.epoch >= self.plan.rule.first_epoch:
            for group in self.plan.groups:
                name = group.name
                use[name], growth = scoring.units(name, group.units)
                survival[name] = self._survived(survival[name], growth, survivors.alive[name], clock)
            for layer in self.plan.synaptic:
                name = layer.weight
                synapse_use[name], growth = scoring.synapses(layer)
                living = survivors.living_synapses(layer)
                synapse_survival[name] = self._survived(synapse_survival[name], growth, living, clock)
        taker = Taker(
            account=survivors.account(),
            elapsed=clock.elapsed,
            capped=self.plan.rule.windowed and not (self.replay or (clock.q >= 1 and self.target)),
        )
        account = taker.account
        groups = {g.name: n for n, g in enumerate(self.plan.graph.groups)}
        edges = {e.weight: n for n, e in enumerate(account.edges)}
        ranked, synapse_ranked = (use, synapse_use) if self.replay else (survival, synapse_survival)
        exchange = self.exchange
        if clock.q > 0 or not self.plan.rule.windowed:
            units = Candidates.of(
                [(groups[n], ranked[n], use[n], survivors.alive[n]) for n in use],
                self.plan.rule.level("unit", clock),
                self.plan.rule.tolerance,
            )
            synapses = Candidates.of(
                [(edges[w], synapse_ranked[w], synapse_use[w], self._mature(w, step)) for w in synapse_use],
                self.plan.rule.level("synapse", clock),
                self.plan.rule.tolerance,
                crowding=self.plan.rule.crowding if self.plan.rule.synapses == "all" else 0.0,
                fallen_only=not (self.replay or self.target.keys() & CONNECTIONS),
            )
            if not self.plan.rule.windowed:
                taker.all_fallen(units, synapses, permanent=self.plan.rule.permanent)
            elif self.replay:
                self.replay.take(taker, units, synapses, step)
            else:
                exchange = self._choose(taker, units, synapses, clock, window)
        alive, masks = self._outcome(taker)
        born: dict[str, Tensor] = {}
        wasted: dict[str, int] = {}
        if self.regrowth is not None:
            if 0 < clock.q < 1:
                exchanged = self.regrowth.exchanged(masks, alive, synapse_survival, window, clock, step)
                masks, born = exchanged.masks, exchanged.born
            wasted = self.regrowth.wasted(survivors.synapse_masks, masks)
            for name, new in born.items():
                synapse_survival[name] = synapse_survival[name].masked_fill(new, self.plan.rule.initial)
        timed = None
        if self.temporal is not None:
            timed = self.temporal.decide(alive, window.of, clock, warn=notes.warnings.append)
        report = reported(
            taker,
            notes,
            timed,
            step=step,
            progress=clock.progress,
            dense=self.dense["connectivity"],
            use=use,
            survival=survival,
            alive=alive,
            born={name: int(new.sum()) for name, new in born.items() if new.any()},
            wasted=wasted,
        )
        return Decision(survival, synapse_survival, alive, masks, born, exchange, timed, report)

    def _mature(self, weight: str, step: int) -> Tensor:
        """(O, I): living synapses that are old enough to be pruned."""
        living = self.survivors.synapse_masks[weight]
        return living if self.regrowth is None else living & self.regrowth.mature(weight, step)

    def _survived(self, survival: Tensor, growth: Tensor, alive: Tensor, clock: Clock) -> Tensor:
        """Survival after this step; pruned units of a permanent rule keep their last value."""
        new = survival_step(survival, growth, self.plan.rule.gamma(clock))
        return torch.where(alive, new, survival) if self.plan.rule.permanent else new

    def _choose(self, taker: Taker, units: Candidates, synapses: Candidates, clock: Clock, window: Window) -> float:
        """Within floors, caps and the target; what latency costs in MACs from now on."""
        if "sops" in self.target:
            self._open_arrivals(taker.account, window)
        exchange = self.exchange
        if self.pace is not None:
            exchange = self.pace.pay(taker, units, clock, exchange, self.shrinker.present)
        everywhere = self.plan.rule.synapses == "all"
        choose(taker, units, synapses, scheduled(self.target, clock.q), self.dense, everywhere=everywhere)
        if clock.q >= 1:
            for metric, share in missed(taker.account, self.target, self.dense).items():
                wanted = self.target[metric]
                log.warning("The target of %.4f %s was missed: %.4f is left.", wanted, metric, share)
        return exchange

    def _open_arrivals(self, account: Account, window: Window) -> None:
        """Spikes per sample as the window saw them; SOPs are a share of what the last window before any pruning
        spent."""
        account.arrivals = [window.arrivals_per_sample(e.weight) for e in account.edges]
        self.dense.setdefault("sops", account.sops())

    def _outcome(self, taker: Taker) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        account = taker.account
        alive = {g.name: torch.from_numpy(a.copy()) for g, a in zip(self.plan.graph.groups, account.alive, strict=True)}
        weights = {e.weight: n for n, e in enumerate(account.edges)}
        synapses = {}
        for name, mask in self.survivors.synapse_masks.items():
            if self.plan.rule.permanent:
                synapses[name] = torch.from_numpy(account.edges[weights[name]].living.copy()).to(mask.device)
            else:  # the mask of its own synapses; rows of pruned units are masked beside it
                synapses[name] = mask.clone()
                struck = [index for owner, index in taker.synapses if owner == weights[name]]
                synapses[name].view(-1)[struck] = False
        return alive, synapses
