"""What is pruned in a development step: candidates in order, caps, and the target on its schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from dpap.errors import DPAPError
from dpap.graph.group import IntArray
from dpap.method.survival import below, scheduled_share, synapse_cap, unit_cap
from dpap.pruning.account import Account, BoolArray, FloatArray, Victim

LEAST_SHARE = 0.25


Part = tuple[int, Tensor, Tensor, Tensor]
"""Number of a group or an edge, and survival, use and alive of its units or synapses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """All that could be pruned, of one kind."""

    owner: IntArray
    """(N,): group number (units) or edge number (synapses)."""
    index: IntArray
    """(N,): unit, or flat index in the weight."""
    survival: FloatArray
    use: FloatArray
    """u, the first tie-break."""
    fallen: BoolArray
    """Below the level."""

    @classmethod
    def of(
        cls,
        parts: Iterable[Part],
        level: float,
        tolerance: float,
        *,
        fallen_only: bool = False,
        crowding: float = 0.0,
    ) -> Candidates:
        """All that are alive; or, where nothing else is asked for, those below the level.

        `crowding`: they go in the order of F / N^crowding, N the siblings of each (`Rule.crowding`).
        """
        owners, indices, survivals, uses, fallens = [], [], [], [], []
        for owner, survival, use, alive in parts:
            fallen = below(survival.cpu(), alive.cpu(), level, tolerance).reshape(-1).numpy()
            where = np.flatnonzero(fallen if fallen_only else alive.reshape(-1).cpu().numpy())
            owners.append(np.full(len(where), owner))
            indices.append(where)
            rank = survival / survival.shape[-1] ** crowding if crowding else survival
            survivals.append(rank.reshape(-1).cpu().numpy()[where])
            uses.append(use.reshape(-1).cpu().numpy()[where])
            fallens.append(fallen[where])
        return cls(
            owner=np.concatenate([np.zeros(0, dtype=np.int64), *owners]),
            index=np.concatenate([np.zeros(0, dtype=np.int64), *indices]),
            survival=np.concatenate([np.zeros(0), *survivals]),
            use=np.concatenate([np.zeros(0), *uses]),
            fallen=np.concatenate([np.zeros(0, dtype=bool), *fallens]),
        )

    def in_order(self, chosen: BoolArray | None = None) -> Iterator[tuple[int, int]]:
        """(owner, index) from the least survival up; ties by use, then owner, then index."""
        for owner, index in self.in_chunks(chosen):
            yield from zip(owner.tolist(), index.tolist(), strict=True)

    def in_chunks(self, chosen: BoolArray | None = None) -> Iterator[tuple[IntArray, IntArray]]:
        """The same order in growing pieces, sorted as far as they are read."""
        left = np.arange(len(self.owner)) if chosen is None else np.flatnonzero(chosen)
        size = 4096
        while len(left):
            if len(left) > size:
                limit = np.partition(self.survival[left], size)[size]
                now, left = left[self.survival[left] <= limit], left[self.survival[left] > limit]
            else:
                now, left = left, left[:0]
            order = np.lexsort((self.index[now], self.owner[now], self.use[now], self.survival[now]))
            yield self.owner[now][order], self.index[now][order]
            size *= 2


@dataclass
class Taker:
    """Takes victims within the caps of one development step."""

    account: Account
    elapsed: float
    capped: bool
    """Whether caps apply."""
    units: list[tuple[int, int]] = field(default_factory=list)
    synapses: list[tuple[int, int]] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    """Groups and layers where a cap put something off."""

    def __post_init__(self) -> None:
        account = self.account
        self._caps: dict[bool, list[int]] = {
            True: [unit_cap(int(a.sum()), self.elapsed) for a in account.alive],
            False: [synapse_cap(int(e.row.sum()), self.elapsed) for e in account.edges],
        }
        self._taken: dict[bool, dict[int, int]] = {True: defaultdict(int), False: defaultdict(int)}

    def take(self, is_unit: bool, owner: int, index: int, *, at_least: tuple[str, float] | None = None) -> bool:
        taken = self._taken[is_unit]
        if self.capped and taken[owner] >= self._caps[is_unit][owner]:
            self.bound.add(self.account.graph.groups[owner].name if is_unit else self.account.edges[owner].weight)
            return False
        if not self.account.kill(Victim(is_unit, owner, index), at_least=at_least):
            return False
        taken[owner] += 1
        (self.units if is_unit else self.synapses).append((owner, index))
        return True

    def every_unit(self, candidates: Candidates) -> None:
        """By order, whatever the level, down to the account's floors."""
        for owner, index in candidates.in_order():
            self.take(True, owner, index)

    def fallen_units(self, candidates: Candidates, at_least: tuple[str, float] | None = None) -> None:
        """Emergent: every unit below the level."""
        for owner, index in candidates.in_order(candidates.fallen):
            self.take(True, owner, index, at_least=at_least)

    def fallen_synapses(self, candidates: Candidates) -> None:
        """Emergent: every synapse below the level."""
        for owner, index in candidates.in_chunks(candidates.fallen):
            self.take_synapses(owner, index, [])

    def all_fallen(self, units: Candidates, synapses: Candidates, *, permanent: bool) -> None:
        """Rules without limits: all below the level are pruned at once, permanently with what that isolates.

        Raises:
            DPAPError: A group or a layer would be emptied.
        """
        account = self.account
        self.units += units.in_order(units.fallen)
        self.synapses += synapses.in_order(synapses.fallen)
        account.strike(self.units, self.synapses if permanent else [], isolate=permanent)
        empty = [g.name for g, a in zip(account.graph.groups, account.alive, strict=True) if not a.any()]
        empty += [e.weight for e in account.edges if not e.row.any()]
        if empty:
            raise DPAPError(
                f"This development step would empty {empty[0]}.",
                fix='the rule has no floor; use rule="dpap", or other constants.',
            )

    def units_until(
        self, candidates: Candidates, metric: str, most: float, *, at_least: tuple[str, float] | None = None
    ) -> bool:
        """By order, whatever the level, until the count is down to `most`; whether it got there."""
        left = self.account.count(metric)
        for owner, index in candidates.in_order():
            if left <= most:
                break
            if self.take(True, owner, index, at_least=at_least):
                left = self.account.count(metric)
        return left <= most

    def synapses_until(self, candidates: Candidates, metric: str, most: float, *, keep: float = -1) -> bool:
        """Likewise. `keep`: stop as well when no more is left in the weights that lose synapses."""
        goals = [CountGoal(self.account, metric, most), CountGoal(self.account, "synaptic", keep)]
        for owner, index in candidates.in_chunks():
            if any(goal.reached for goal in goals):
                break
            self.take_synapses(owner, index, goals)
        return goals[0].reached

    ONE_BY_ONE = 32
    """Pieces of at most this size are taken synapse by synapse."""

    def take_synapses(self, owner: IntArray, index: IntArray, goals: Sequence[Goal]) -> None:
        """In order, and with the outcome of one by one: at once where neither a floor nor an isolation is near.

        A piece that holds a row's last inputs or a unit's last outputs is halved until those are pruned one by one.
        """
        account = self.account
        if len(owner) <= self.ONE_BY_ONE:
            for o, i in zip(owner.tolist(), index.tolist(), strict=True):
                if any(goal.reached for goal in goals):
                    return
                if self.take(False, o, i):
                    for goal in goals:
                        goal.spent(np.array([o]), np.array([i]))
            return
        chosen = account.living_synapses(owner, index)
        allowed = self._within_caps(owner[chosen], index[chosen])
        now_owner, now_index = owner[chosen][allowed], index[chosen][allowed]
        enough = min([goal.enough(now_owner, now_index) for goal in goals], default=len(now_owner))
        now_owner, now_index = now_owner[:enough], now_index[:enough]
        if account.kill_at_once(now_owner, now_index):
            for o, n in zip(*np.unique(now_owner, return_counts=True), strict=True):
                self._taken[False][int(o)] += int(n)
            self.synapses += zip(now_owner.tolist(), now_index.tolist(), strict=True)
            for goal in goals:
                goal.spent(now_owner, now_index)
            if not any(goal.reached for goal in goals):
                deferred = np.unique(owner[chosen][~allowed])
                self.bound |= {account.edges[int(o)].weight for o in deferred}
            return
        half = len(owner) // 2
        for part in (slice(None, half), slice(half, None)):
            if not any(goal.reached for goal in goals):
                self.take_synapses(owner[part], index[part], goals)

    def _within_caps(self, owner: IntArray, index: IntArray) -> BoolArray:
        """What may be pruned if all before it are."""
        allowed = np.ones(len(owner), dtype=bool)
        if self.capped:
            for o in np.unique(owner):
                mine = np.flatnonzero(owner == o)
                allowed[mine[max(0, self._caps[False][int(o)] - self._taken[False][int(o)]) :]] = False
        return allowed


class Goal(Protocol):
    """How many synapses are to be pruned, in order."""

    @property
    def reached(self) -> bool: ...

    def enough(self, owner: IntArray, index: IntArray) -> int:
        """How many of these, in order, reach the goal; all of them if they do not."""
        ...

    def spent(self, owner: IntArray, index: IntArray) -> None:
        """These were pruned."""
        ...


class CountGoal:
    """A count on its way down: cheap to keep while single synapses are pruned, taken anew whenever a unit was."""

    def __init__(self, account: Account, metric: str, most: float) -> None:
        self.account, self.metric, self.most = account, metric, most
        self._recount()

    def _recount(self) -> None:
        self.left, self._isolated = self.account.count(self.metric), len(self.account.isolated)

    @property
    def reached(self) -> bool:
        return self.left <= self.most

    def _worth(self, owner: IntArray, index: IntArray) -> FloatArray:
        """What each synapse counts."""
        worth = np.zeros(len(owner))
        for o in np.unique(owner):
            mine, edge = owner == o, self.account.edges[int(o)]
            if self.metric == "sops":
                arrivals = self.account.arrivals[int(o)]
                rows, columns = np.divmod(index[mine], edge.living.shape[1])
                worth[mine] = 0 if arrivals is None else arrivals[edge.entries(rows, columns)]
            else:
                worth[mine] = edge.macs if self.metric == "effective_macs" else edge.kernel
        return worth

    def enough(self, owner: IntArray, index: IntArray) -> int:
        left = self.left - np.cumsum(self._worth(owner, index))
        return int(np.argmax(left <= self.most)) + 1 if (left <= self.most).any() else len(owner)

    def spent(self, owner: IntArray, index: IntArray) -> None:
        if len(self.account.isolated) != self._isolated:
            self._recount()
        else:
            self.left -= float(self._worth(owner, index).sum())


Target = Mapping[str, float]


def scheduled(target: Target, q: float) -> dict[str, float]:
    """Metric -> share that lives at q."""
    return {metric: scheduled_share(q, share) for metric, share in target.items()}


CONNECTIONS = ("connectivity", "effective_macs", "sops")
"""Metrics that pruned connections bring down, and not only pruned units."""


def choose(
    taker: Taker,
    units: Candidates,
    synapses: Candidates,
    shares: Target,
    reference: Mapping[str, float],
    *,
    everywhere: bool = False,
) -> None:
    """Take the victims of one development step. Without a target: all below the level, within floors and caps.

    MACs and parameters are met by units alone. What connections bring down is met by units below their level, then by
    synapses. Where only linear layers lose synapses, they keep a quarter of the share themselves, since a small
    classifier must not be emptied for large convolutions, and what is missing then is met by units, at last by the
    synapses left; there SOPs are met by units, then synapses.

    Args:
        taker: Prunes them.
        units: Units that could be pruned.
        synapses: Synapses that could be pruned.
        shares: Metric -> share of the dense network that lives after this step (`scheduled`); latency has been met by
            units before (`Pace`).
        reference: Metric -> count of the dense network.
        everywhere: Whether convolutions lose synapses too.
    """
    most = {metric: share * reference[metric] for metric, share in shares.items() if metric != "latency"}
    for metric in ("macs", "parameters"):
        if metric in most:
            taker.units_until(units, metric, most[metric])
    structural = not shares.keys().isdisjoint(("macs", "parameters", "latency"))
    for metric in CONNECTIONS:
        if metric not in most:
            continue
        limit = (metric, most[metric])
        if metric == "sops" and not everywhere:
            _pay_operations(taker, units, synapses, most["sops"])
            continue
        if not structural:
            taker.fallen_units(units, at_least=limit)
        keep = -1 if everywhere else LEAST_SHARE * shares[metric] * reference["synaptic"]
        reached = taker.synapses_until(synapses, *limit, keep=keep)
        if not reached and not taker.bound & taker.account.prunable:
            reached = not structural and taker.units_until(units, *limit)
            if not reached:
                taker.synapses_until(synapses, *limit)
    if not shares:
        taker.fallen_units(units)
    if most.keys().isdisjoint(CONNECTIONS):
        taker.fallen_synapses(synapses)


def missed(account: Account, target: Target, reference: Mapping[str, float]) -> dict[str, float]:
    """Metric -> share that is left, where that is more than the target's; of all that can be counted."""
    left = {metric: account.count(metric) / reference[metric] for metric in target if metric != "latency"}
    return {metric: share for metric, share in left.items() if share > target[metric] * (1 + 1e-9)}


def _pay_operations(taker: Taker, units: Candidates, synapses: Candidates, most: float) -> None:
    """Units first, but none that would miss the target by more than 2 % where synapses can easily make up the rest."""
    account = taker.account
    if taker.units_until(units, "sops", most, at_least=("sops", 0.98 * most)) or taker.bound:
        return
    payable = sum(
        float(a @ e.col)
        for a, e in zip(account.arrivals, account.edges, strict=True)
        if a is not None and e.weight in account.prunable
    )
    if account.sops() - most > (1 - LEAST_SHARE) * payable:
        taker.units_until(units, "sops", most)
    taker.synapses_until(synapses, "sops", most)
