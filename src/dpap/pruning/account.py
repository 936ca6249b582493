"""Which units and synapses live and what they cost: an account that is exact after every single pruning.

Victims are pruned one at a time, each with the units it isolates (no living input or no living output left). Pruning
that would take a protected unit's last living input, or isolate a unit of a group at its floor, is undone and reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dpap.graph.group import Graph, IntArray, Layer
from dpap.method.survival import unit_floor

BoolArray = npt.NDArray[np.bool_]


FloatArray = npt.NDArray[np.floating[Any]]


class Victim(NamedTuple):
    """A unit (number `place` of group `owner`) or a synapse (flat index `place` in weight number `owner`)."""

    is_unit: bool
    owner: int
    place: int


@dataclass
class _Edge:
    """All synapses of one weight, (O, I / groups); a convolution's kernel is one synapse of `kernel` weights.

    With `groups` > 1 every synapse lies inside one unit: it feeds no other.
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
        """Whether these synapses end at the unit that they come from. Such a one feeds no other: a unit that is left
        with it alone has no input and no output."""
        return np.asarray(
            (self.in_groups[columns] == self.out_group) & (self.in_units[columns] == self.out_units[rows])
        )

    def entries(self, rows: IntArray, columns: IntArray) -> IntArray:
        """The input entries behind columns: those of a grouped convolution begin anew in every group."""
        if self.groups == 1:
            return columns
        return np.asarray(rows // (len(self.row) // self.groups) * self.living.shape[1] + columns)

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
    """Weights whose synapses are pruned one by one."""
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

    def effective_macs(self) -> int:
        """Multiply-accumulates per sample of living synapses alone."""
        return sum(edge.macs * int(edge.row.sum()) for edge in self.edges)

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

    # pruning ------------------------------------------------------------------------------------------------------

    def kill(self, victim: Victim, *, at_least: tuple[str, float] | None = None) -> bool:
        """Take one victim and what it isolates; False (and nothing changed) if that is not allowed.

        Args:
            victim: What is pruned.
            at_least: (metric, value): refuse what would take the count below the value.
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
                    self.skipped.add(f"what would isolate unit {unit} of {self.graph.groups[group].name}")
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
        """Remove the synapses of a grouped convolution inside a unit; no other unit loses an input or an output."""
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
                continue  # a protected unit that nothing reads stays, harmless
            queue.extend((int(group), int(u)) for u in silent)

    def _kill_synapse(self, victim: Victim) -> bool:
        edge = self.edges[victim.owner]
        row, column = divmod(victim.place, edge.living.shape[1])
        if not edge.living[row, column]:
            return False
        if edge.groups > 1:
            return self._kill_inside(edge, row, column)
        unit = edge.out_units[row]
        group, feeding = int(edge.in_groups[column]), int(edge.in_units[column])
        between = (group, feeding) != (edge.out_group, unit)
        if between and self.inputs[edge.out_group][unit] == 1:
            return False  # one living input per living unit, as far as synapses are pruned
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

    def _kill_inside(self, edge: _Edge, row: int, column: int) -> bool:
        """A synapse whose ends lie in one unit; each of the unit's rows keeps an input."""
        if edge.row[row] <= 1:
            return False
        edge.living[row, column] = False
        edge.row[row] -= 1
        edge.col[edge.entries(np.array([row]), np.array([column]))] -= 1
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

        Counts only fall, so what holds at the end held after every single pruning.
        """
        inputs, outputs = [c.copy() for c in self.inputs], [c.copy() for c in self.outputs]
        plan = []
        for o in np.unique(owner):
            edge = self.edges[int(o)]
            row, column = np.divmod(index[owner == o], edge.living.shape[1])
            if edge.groups > 1:
                if (edge.row[row] <= np.bincount(row, minlength=len(edge.row))[row]).any():
                    return False
                plan.append((edge, row, column))
                continue
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
            edge.col -= np.bincount(edge.entries(row, column), minlength=len(edge.col))
        self.inputs, self.outputs = inputs, outputs
        return True

    def strike(self, units: Sequence[tuple[int, int]], synapses: Sequence[tuple[int, int]], *, isolate: bool) -> None:
        """Take all at once, without floors; then, if asked, units left without living inputs or outputs."""
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
        col=np.zeros(len(layer.in_unit), dtype=np.int64),
    )
