"""Who may die: floors, caps, isolation and targets, kept as an account that is exact after every single death.

Victims are taken one at a time, each with the units it isolates (no living input or no living output left). A death
that would take a protected unit's last living input, or isolate a unit of a group at its floor, is undone and reported.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dpap.errors import DPAPError, unknown_name
from dpap.graph.group import Graph, IntArray, Layer
from dpap.method.survival import below, scheduled_share, synapse_cap, unit_cap, unit_floor

log = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating[Any]]
LEAST_SHARE = 0.25
METRICS = ("connectivity", "macs", "parameters", "sops", "latency")
TOGETHER = ({"macs", "connectivity"}, {"latency", "connectivity"})


class Victim(NamedTuple):
    """A unit (number `place` of group `owner`) or a synapse (flat index `place` in weight number `owner`)."""

    is_unit: bool
    owner: int
    place: int


@dataclass
class _Edge:
    """All synapses of one weight, (O, I / groups); a convolution's kernel is one synapse of `kernel` weights.

    With `groups` > 1 every synapse lies inside one unit: it lives as long as the unit, and feeds no other.
    """

    weight: str
    out_group: int
    out_units: IntArray
    in_groups: IntArray
    """(I,): group behind each input entry, -1 for the network's input."""
    in_units: IntArray
    groups: int
    kernel: int
    macs: int
    """Per pair, all calls together."""
    living: BoolArray
    row: IntArray
    """(O,): living synapses of each output entry."""
    col: IntArray
    """(I,): living synapses of each input entry."""

    def pairs(self, alive: Sequence[BoolArray]) -> BoolArray:
        """(O, I / groups): whether both ends live."""
        out = alive[self.out_group][self.out_units].reshape(self.groups, -1, 1)
        return (out & _alive_inputs(self, alive).reshape(self.groups, 1, -1)).reshape(self.living.shape)

    def returns(self, rows: IntArray, columns: IntArray) -> BoolArray:
        """Whether these synapses end at the unit that they come from. Such a one feeds nobody: a unit that is left with
        it alone has no input and no output."""
        return np.asarray(
            (self.in_groups[columns] == self.out_group) & (self.in_units[columns] == self.out_units[rows])
        )

    def feeding(self) -> BoolArray:
        """The living synapses between two different units."""
        if not (self.in_groups == self.out_group).any():
            return self.living
        rows, columns = np.ogrid[: self.living.shape[0], : self.living.shape[1]]
        return self.living & ~self.returns(rows, columns)

    def recount(self) -> None:
        """Row and column counts anew."""
        self.row = self.living.sum(1)
        self.col = self.living.reshape(self.groups, -1, self.living.shape[1]).sum(1).reshape(-1)


@dataclass
class Account:
    """Living units and synapses of a network, and the counts that follow from them."""

    graph: Graph
    edges: list[_Edge]
    alive: list[BoolArray]
    floors: list[int]
    protected: list[bool]
    prunable: frozenset[str]
    """Weights whose synapses die one by one."""
    inputs: list[IntArray] = field(default_factory=list)
    """Per group, per unit: living synapses that arrive; -1 where no layer drives the unit."""
    outputs: list[IntArray] = field(default_factory=list)
    """Per group, per unit: living synapses that leave; -1 where no layer reads the unit."""
    arrivals: list[FloatArray | None] = field(default_factory=list)
    """Per edge, (I,): spikes x positions that read them, per sample; only for a target of SOPs."""
    isolated: list[tuple[int, int]] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    _journal: list[tuple[Any, Any, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls, graph: Graph, alive: Mapping[str, BoolArray], synapses: Mapping[str, BoolArray], *, floors: bool = True
    ) -> Account:
        """Open an account. `alive`: group -> (units,); `synapses`: weight -> (O, I), for weights that lose synapses."""
        number = {g.name: n for n, g in enumerate(graph.groups)}
        living = [np.array(alive[g.name], dtype=bool) for g in graph.groups]
        edges: dict[str, _Edge] = {}
        for layer in graph.layers:
            if layer.weight in edges:
                edges[layer.weight].macs += layer.macs_per_synapse
            else:
                edges[layer.weight] = _edge(layer, number, synapses.get(layer.weight))
        account = cls(
            graph=graph,
            edges=list(edges.values()),
            alive=living,
            floors=[unit_floor(g.units) if floors else 0 for g in graph.groups],
            protected=[g.protected is not None for g in graph.groups],
            prunable=frozenset(synapses),
        )
        account._count()
        return account

    def _count(self) -> None:
        """Count all living synapses anew."""
        self.inputs = [np.full(len(a), -1) for a in self.alive]
        self.outputs = [np.full(len(a), -1) for a in self.alive]
        for edge in self.edges:
            edge.living &= edge.pairs(self.alive)
            edge.recount()
            if edge.groups > 1:
                continue
            arriving, leaving, feeding = self.inputs[edge.out_group], self.outputs, edge.feeding()
            arriving[np.unique(edge.out_units)] = np.maximum(arriving[np.unique(edge.out_units)], 0)
            np.add.at(arriving, edge.out_units, feeding.sum(1))
            for group in np.unique(edge.in_groups[edge.in_groups >= 0]):
                mine = edge.in_groups == group
                units = edge.in_units[mine]
                leaving[group][units] = np.maximum(leaving[group][units], 0)
                np.add.at(leaving[group], units, feeding.sum(0)[mine])

    # counts -------------------------------------------------------------------------------------------------------

    def connectivity(self) -> int:
        """Living synapses, in weights."""
        return sum(int(edge.row.sum()) * edge.kernel for edge in self.edges)

    def macs(self) -> int:
        """Multiply-accumulates per sample of the network without its dead units; dead synapses are not left out."""
        return sum(edge.macs * self._pairs(edge) for edge in self.edges)

    def parameters(self) -> int:
        """Parameters of the network without its dead units, but for those that belong to no unit."""
        weights = sum(edge.kernel * self._pairs(edge) for edge in self.edges)
        named = {edge.weight for edge in self.edges}
        per_unit: int = sum(
            int(alive.sum()) * sum(p.entries.shape[1] * p.parameters for p in g.producers if p.tensor not in named)
            for g, alive in zip(self.graph.groups, self.alive, strict=True)
        )
        return weights + per_unit

    def sops(self) -> float:
        """Synaptic operations per sample at the firing rates of the last window."""
        return float(sum(a @ edge.col for a, edge in zip(self.arrivals, self.edges, strict=True) if a is not None))

    def synaptic(self) -> int:
        """Living synapses, in weights, of the weights that lose synapses one by one."""
        return sum(int(edge.row.sum()) * edge.kernel for edge in self.edges if edge.weight in self.prunable)

    def count(self, metric: str) -> float:
        return float(getattr(self, metric)())

    def _pairs(self, edge: _Edge) -> int:
        """Pairs of a living output and a living input entry."""
        rows = self.alive[edge.out_group][edge.out_units].reshape(edge.groups, -1).sum(1)
        return int(rows @ _alive_inputs(edge, self.alive).reshape(edge.groups, -1).sum(1))

    # deaths -------------------------------------------------------------------------------------------------------

    def kill(self, victim: Victim, *, at_least: tuple[str, float] | None = None) -> bool:
        """Take one victim and what it isolates; False (and nothing changed) if that is not allowed.

        Args:
            victim: Who.
            at_least: (metric, value): refuse a death that would take the count below the value.
        """
        self._journal.clear()
        before = len(self.isolated)
        allowed = self._kill_unit(victim) if victim.is_unit else self._kill_synapse(victim)
        if allowed and at_least is not None and self.count(at_least[0]) < at_least[1]:
            allowed = False
        if not allowed:
            for array, index, old in reversed(self._journal):
                array[index] = old
            del self.isolated[before:]
        return allowed

    def _set(self, array: Any, index: Any, new: Any) -> None:
        self._journal.append((array, index, np.copy(array[index])))
        array[index] = new

    def _kill_unit(self, victim: Victim) -> bool:
        if not self.alive[victim.owner][victim.place] or self._at_floor(victim.owner):
            return False
        return self._remove([(victim.owner, victim.place)], isolated=False)

    def _at_floor(self, group: int) -> bool:
        return self.protected[group] or int(self.alive[group].sum()) <= self.floors[group]

    def _remove(self, queue: list[tuple[int, int]], *, isolated: bool) -> bool:
        """Remove a unit and, in turn, those that this isolates. `isolated`: whether the first one is isolated, too."""
        while queue:
            group, unit = queue.pop(0)
            if not self.alive[group][unit]:
                continue
            if isolated:
                if self._at_floor(group):
                    self.skipped.add(f"a death that would isolate unit {unit} of {self.graph.groups[group].name}")
                    return False
                self.isolated.append((group, unit))
            isolated = True
            self._set(self.alive[group], unit, False)
            for edge in self.edges:
                if edge.groups > 1:
                    self._clear_inside(edge, group, unit)
                    continue
                if edge.out_group == group:
                    for row in np.flatnonzero(edge.out_units == unit):
                        self._clear(edge, np.array([row]), np.flatnonzero(edge.living[row]), queue)
                columns = np.flatnonzero((edge.in_groups == group) & (edge.in_units == unit))
                if len(columns):
                    self._clear(edge, np.flatnonzero(edge.living[:, columns].any(1)), columns, queue)
        return True

    def _clear_inside(self, edge: _Edge, group: int, unit: int) -> None:
        """Remove the synapses of a grouped convolution inside a unit; nobody else loses an input or an output."""
        if edge.out_group == group:
            rows = np.flatnonzero(edge.out_units == unit)
            self._set(edge.living, rows, False)
            self._set(edge.row, rows, 0)
            self._set(edge.col, np.flatnonzero((edge.in_groups == group) & (edge.in_units == unit)), 0)

    def _clear(self, edge: _Edge, rows: IntArray, columns: IntArray, queue: list[tuple[int, int]]) -> None:
        """Remove the synapses of rows x columns and queue the units that have no input or no output left."""
        if not len(rows) or not len(columns):
            return
        block = np.ix_(rows, columns)
        gone = edge.living[block]
        self._set(edge.living, block, False)
        self._set(edge.row, rows, edge.row[rows] - gone.sum(1))
        self._set(edge.col, columns, edge.col[columns] - gone.sum(0))
        gone &= ~edge.returns(rows[:, None], columns)
        self._lose(self.inputs, np.full(len(rows), edge.out_group), edge.out_units[rows], gone.sum(1), queue)
        self._lose(self.outputs, edge.in_groups[columns], edge.in_units[columns], gone.sum(0), queue)

    def _lose(
        self, counts: list[IntArray], groups: IntArray, units: IntArray, lost: IntArray, queue: list[tuple[int, int]]
    ) -> None:
        for group in np.unique(groups[groups >= 0]):
            mine = groups == group
            new = counts[group].copy()
            np.subtract.at(new, units[mine], lost[mine])
            changed = np.flatnonzero(new != counts[group])
            self._set(counts[group], changed, new[changed])
            silent = changed[(new[changed] == 0) & self.alive[group][changed]]
            if self.protected[group] and counts is self.outputs:
                continue  # a protected unit that nobody reads stays, harmless
            queue.extend((int(group), int(u)) for u in silent)

    def _kill_synapse(self, victim: Victim) -> bool:
        edge = self.edges[victim.owner]
        row, column = divmod(victim.place, edge.living.shape[1])
        if not edge.living[row, column]:
            return False
        unit = edge.out_units[row]
        group, feeding = int(edge.in_groups[column]), int(edge.in_units[column])
        between = (group, feeding) != (edge.out_group, unit)
        if between and self.inputs[edge.out_group][unit] == 1:
            return False  # one living input per living unit, as far as synapse deaths go
        if between and group >= 0 and not self.protected[group] and self.outputs[group][feeding] == 1:
            return self._remove([(group, feeding)], isolated=True)  # its synapses go with it, this one among them
        edge.living[row, column] = False  # nothing below can be refused, so nothing is journalled
        edge.row[row] -= 1
        edge.col[column] -= 1
        if between:
            self.inputs[edge.out_group][unit] -= 1
            if group >= 0:
                self.outputs[group][feeding] -= 1
        return True

    def living_synapses(self, owner: IntArray, index: IntArray) -> BoolArray:
        """Which of these synapses live."""
        living = np.zeros(len(owner), dtype=bool)
        for o in np.unique(owner):
            mine = owner == o
            living[mine] = self.edges[int(o)].living.reshape(-1)[index[mine]]
        return living

    def kill_at_once(self, owner: IntArray, index: IntArray) -> bool:
        """Take living synapses together, if no unit comes to its last input or loses its last output; else nothing.

        Counts only fall, so what holds at the end held at every single death.
        """
        inputs, outputs = [c.copy() for c in self.inputs], [c.copy() for c in self.outputs]
        plan = []
        for o in np.unique(owner):
            edge = self.edges[int(o)]
            row, column = np.divmod(index[owner == o], edge.living.shape[1])
            between = ~edge.returns(row, column)
            np.subtract.at(inputs[edge.out_group], edge.out_units[row[between]], 1)
            fed = column[between & (edge.in_groups[column] >= 0)]
            for group in np.unique(edge.in_groups[fed]):
                np.subtract.at(outputs[group], edge.in_units[fed[edge.in_groups[fed] == group]], 1)
            plan.append((edge, row, column))
        for old, new in zip(self.inputs, inputs, strict=True):
            if ((new < 1) & (new != old)).any():
                return False
        for old, new, protected in zip(self.outputs, outputs, self.protected, strict=True):
            if not protected and ((new < 1) & (new != old)).any():
                return False
        for edge, row, column in plan:
            edge.living[row, column] = False
            edge.row -= np.bincount(row, minlength=len(edge.row))
            edge.col -= np.bincount(column, minlength=len(edge.col))
        self.inputs, self.outputs = inputs, outputs
        return True

    def strike(self, units: Sequence[tuple[int, int]], synapses: Sequence[tuple[int, int]], *, isolate: bool) -> None:
        """Take all at once, without floors; then, if asked, whoever is left without living inputs or outputs."""
        for owner, index in synapses:
            self.edges[owner].living.reshape(-1)[index] = False
        for owner, index in units:
            self.alive[owner][index] = False
        self._count()
        if isolate:
            for n, (alive, inputs, outputs) in enumerate(zip(self.alive, self.inputs, self.outputs, strict=True)):
                if not self.protected[n]:
                    for unit in np.flatnonzero(alive & ((inputs == 0) | (outputs == 0))):
                        self._remove([(n, int(unit))], isolated=True)


def _alive_inputs(edge: _Edge, alive: Sequence[BoolArray]) -> BoolArray:
    living = np.ones(len(edge.in_groups), dtype=bool)
    for group in np.unique(edge.in_groups[edge.in_groups >= 0]):
        mine = edge.in_groups == group
        living[mine] = alive[group][edge.in_units[mine]]
    return living


def _edge(layer: Layer, number: dict[str, int], synapses: BoolArray | None) -> _Edge:
    owners = np.array([number[name] for name in layer.in_group] + [-1])
    shape = (len(layer.out_units), layer.in_features)
    return _Edge(
        weight=layer.weight,
        out_group=number[layer.out_group],
        out_units=layer.out_units,
        in_groups=owners[layer.in_owner],
        in_units=layer.in_unit,
        groups=layer.groups,
        kernel=layer.kernel,
        macs=layer.macs_per_synapse,
        living=np.ones(shape, dtype=bool) if synapses is None else np.array(synapses),
        row=np.zeros(shape[0], dtype=np.int64),
        col=np.zeros(shape[1], dtype=np.int64),
    )


# choosing -------------------------------------------------------------------------------------------------------------


Part = tuple[int, Tensor, Tensor, Tensor]
"""Number of a group or an edge, and survival, use and alive of its units or synapses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Everybody who could die, of one kind."""

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
    def of(cls, parts: Iterable[Part], level: float, tolerance: float, *, fallen_only: bool = False) -> Candidates:
        """Everybody alive; or, where nothing else is asked for, those below the level."""
        owners, indices, survivals, uses, fallens = [], [], [], [], []
        for owner, survival, use, alive in parts:
            fallen = below(survival.cpu(), alive.cpu(), level, tolerance).reshape(-1).numpy()
            where = np.flatnonzero(fallen if fallen_only else alive.reshape(-1).cpu().numpy())
            owners.append(np.full(len(where), owner))
            indices.append(where)
            survivals.append(survival.reshape(-1).cpu().numpy()[where])
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
    """Groups and layers where a cap deferred somebody."""

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
        """Rules without limits: everybody below the level dies at once, permanently with whom that isolates.

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

        A piece that holds a row's last inputs or a unit's last outputs is halved until those are left to single deaths.
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
        """Who may die if everybody before them does."""
        allowed = np.ones(len(owner), dtype=bool)
        if self.capped:
            for o in np.unique(owner):
                mine = np.flatnonzero(owner == o)
                allowed[mine[max(0, self._caps[False][int(o)] - self._taken[False][int(o)]) :]] = False
        return allowed


class Goal(Protocol):
    """How many synapses are to die, in order."""

    @property
    def reached(self) -> bool: ...

    def enough(self, owner: IntArray, index: IntArray) -> int:
        """How many of these, in order, reach the goal; all of them if they do not."""
        ...

    def spent(self, owner: IntArray, index: IntArray) -> None:
        """These died."""
        ...


class CountGoal:
    """A count on its way down: cheap to keep while single synapses die, taken anew whenever a unit did."""

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
                worth[mine] = 0 if arrivals is None else arrivals[index[mine] % len(edge.col)]
            else:
                worth[mine] = edge.kernel
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


def choose(
    taker: Taker, units: Candidates, synapses: Candidates, shares: Target, reference: Mapping[str, float]
) -> None:
    """Take the victims of one development step. Without a target: everybody below the level, within floors and caps.

    MACs and parameters are paid by units alone; SOPs by units, then synapses. Connectivity is paid by units below their
    level, then by synapses, as long as the layers that lose them keep a quarter of the share themselves: a small
    classifier must not pay for large convolutions. What is missing then is paid by units, at last by the synapses left.

    Args:
        taker: Who takes them.
        units: Units that could die.
        synapses: Synapses that could die.
        shares: Metric -> share of the dense network that lives after this step (`scheduled`); latency has been paid by
            units before (`Pace`).
        reference: Metric -> count of the dense network.
    """
    most = {metric: share * reference[metric] for metric, share in shares.items() if metric != "latency"}
    for metric in ("macs", "parameters"):
        if metric in most:
            taker.units_until(units, metric, most[metric])
    structural = not shares.keys().isdisjoint(("macs", "parameters", "latency"))
    if "sops" in most:
        _pay_operations(taker, units, synapses, most["sops"])
    if "connectivity" in most:
        limit = ("connectivity", most["connectivity"])
        if not structural:
            taker.fallen_units(units, at_least=limit)
        keep = LEAST_SHARE * shares["connectivity"] * reference["synaptic"]
        reached = taker.synapses_until(synapses, *limit, keep=keep)
        if not reached and not taker.bound & taker.account.prunable:
            reached = not structural and taker.units_until(units, *limit)
            if not reached:
                taker.synapses_until(synapses, *limit)
    if not shares:
        taker.fallen_units(units)
    if "connectivity" not in most and "sops" not in most:
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


def check_target(target: Mapping[str, Any] | None, account: Account, kinds: set[str]) -> dict[str, float]:
    """A target that can be met, or the reason why it cannot.

    Raises:
        DPAPError: Unknown or clashing metrics, a share outside (0, 1], or one that floors and protected parts rule out.
    """
    target = dict(target or {})
    for metric, share in target.items():
        if metric not in METRICS:
            raise unknown_name("target", metric, METRICS)
        check_share(metric, share)
    if len(target) > 1 and set(target) not in TOGETHER:
        raise DPAPError(
            f"The targets {' and '.join(sorted(target))} cannot be named together.",
            fix="name one; or macs (or latency) and connectivity, where units pay the first and then synapses the "
            "connectivity.",
        )
    for metric, share in target.items():
        if metric in ("sops", "latency"):
            continue  # depends on firing rates, not known at the start; is measured, by `Pace`
        lowest = _lowest(metric, account, kinds) / account.count(metric)
        if share < lowest:
            raise out_of_reach(metric, share, lowest)
    return target


def check_share(metric: str, share: Any) -> None:
    """Refuse a target that is no number in (0, 1]."""
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise DPAPError(
            f"target={{{metric!r}: {share!r}}} is no share of the dense network.",
            fix="give a number above 0 and at most 1.",
        )


def out_of_reach(metric: str, share: float, lowest: float) -> DPAPError:
    """The error for a target that floors and protected parts rule out."""
    return DPAPError(
        f"The target of {share:.2%} {metric} cannot be reached: floors and protected parts keep at least {lowest:.2%}.",
        fix=f"choose a target of at least {np.ceil(lowest * 1e4) / 1e4:.4f}, or protect less (ignore=, only=, frozen "
        "parameters).",
    )


def fewest(account: Account, kinds: set[str]) -> list[int]:
    """Units of each group that stay whatever happens."""
    return [
        int(a.sum()) if p or "unit" not in kinds else f
        for a, p, f in zip(account.alive, account.protected, account.floors, strict=True)
    ]


def _lowest(metric: str, account: Account, kinds: set[str]) -> float:
    """A bound from below: every group at its floor, every unit that only prunable weights feed at one synapse."""
    left = fewest(account, kinds)
    total = 0.0
    if metric == "connectivity":
        whole = {edge.out_group for edge in account.edges if edge.groups == 1 and edge.weight not in account.prunable}
        single = {edge.out_group for edge in account.edges if edge.weight in account.prunable}
        total += sum(left[group] for group in single - whole)
    for edge in account.edges:
        rows = min(
            len(edge.out_units), left[edge.out_group] * (len(edge.out_units) // len(account.alive[edge.out_group]))
        )
        columns = edge.living.shape[1] if edge.groups > 1 else int((edge.in_groups < 0).sum())
        for group in np.unique(edge.in_groups[edge.in_groups >= 0]) if edge.groups == 1 else ():
            columns += int((edge.in_groups == group).sum()) * left[group] // len(account.alive[group])
        if metric != "connectivity" or edge.weight not in account.prunable:
            total += rows * columns * (edge.macs if metric == "macs" else edge.kernel)
    if metric == "parameters":
        total += sum(
            n
            * sum(
                p.entries.shape[1] * p.parameters
                for p in g.producers
                if p.tensor not in {e.weight for e in account.edges}
            )
            for g, n in zip(account.graph.groups, left, strict=True)
        )
    return float(total)
