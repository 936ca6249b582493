"""Units while a graph is walked: which are tied, which entries of the tensors are theirs, which stay and why.

A rule only records, as arrays; `classes` works out once, at the end, which are pruned together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpap.graph.group import IntArray, TensorSlice, UnitGroup


@dataclass(slots=True)
class Record:
    """Entry i of an axis of a tensor goes with unit ids[i] (-1: with none)."""

    ids: IntArray
    tensor: str
    axis: int
    produces: bool
    masked: bool
    otherwise: str | None = None
    """Why another owner of these entries stays where `ids` are none."""


@dataclass
class Units:
    """What the rules record."""

    count: int = 0
    """Ids handed out so far; several ids may turn out to be one unit."""
    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    _ties: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    _protected: list[tuple[IntArray, str]] = field(default_factory=list)

    def new_units(self, n: int) -> IntArray:
        self.count += n
        return np.arange(self.count - n, self.count, dtype=np.int64)

    def tie(self, a: IntArray, b: IntArray, otherwise: str = "tied to something that is no unit") -> None:
        """Units of the same index are kept or pruned together. `otherwise`: why a unit stays whose partner is none."""
        a, b = np.broadcast_arrays(a, b)
        both = (a >= 0) & (b >= 0)
        self._ties.append((a[both], b[both]))
        if not both.all():
            self.protect(np.maximum(a, b)[~both], otherwise)

    def produce(self, ids: IntArray, tensor: str, axis: int = 0, *, masked: bool = True) -> None:
        """Entry i of the axis goes with unit ids[i], as part of what computes the unit."""
        self._record(Record(ids, tensor, axis, True, masked))

    def consume(self, ids: IntArray, tensor: str, axis: int, otherwise: str | None = None) -> None:
        """Entry i of the axis goes with unit ids[i], as what reads the unit. `otherwise`: why a unit that it reads
        elsewhere stays where these are none."""
        self._record(Record(ids, tensor, axis, False, True, otherwise))

    def _record(self, new: Record) -> None:
        """An entry has one owner: where a module is called twice or a tensor has two names, the owners are tied."""
        known = self.records.setdefault((new.tensor, new.axis), new)
        if known is not new:
            reason = known.otherwise or new.otherwise or f"{new.tensor} is also used where these are no units"
            self.tie(known.ids, new.ids, reason)
            known.produces |= new.produces
            known.masked &= new.masked

    def protect(self, ids: IntArray | None, reason: str) -> None:
        """Units that stay; the first reason given is the one shown."""
        if ids is not None and len(ids):
            self._protected.append((ids[ids >= 0], reason))

    def roots(self) -> IntArray:
        """(ids,): the lowest id of those that are one unit."""
        none = np.zeros(0, dtype=np.int64)
        a = np.concatenate([none, *(a.reshape(-1) for a, _ in self._ties)])
        b = np.concatenate([none, *(b.reshape(-1) for _, b in self._ties)])
        return components(self.count, a, b)

    def reasons(self, roots: IntArray) -> tuple[IntArray, list[str]]:
        """((ids,) index of the reason why the unit stays, -1: none; the reasons)."""
        texts = list(dict.fromkeys(reason for _, reason in self._protected))
        number = {text: n for n, text in enumerate(texts)}
        first = np.full(self.count, -1, dtype=np.int64)
        for ids, reason in reversed(self._protected):
            first[roots[ids]] = number[reason]
        return first[roots], texts


def components(n: int, a: IntArray, b: IntArray) -> IntArray:
    """(n,): the lowest node that each node is connected with, over edges a[i] - b[i].

    >>> components(5, np.array([0, 3]), np.array([2, 4])).tolist()
    [0, 1, 0, 3, 3]
    """
    label = np.arange(n, dtype=np.int64)
    while True:
        low = np.minimum(label[a], label[b])
        new = label.copy()
        for side in (label[a], label[b]):  # hook whole trees, not only the nodes named
            np.minimum.at(new, side, low)
        while not np.array_equal(shorter := new[new], new):
            new = shorter
        if np.array_equal(new, label):
            return label
        label = new


# groups -------------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The groups, and where each id went."""

    groups: list[UnitGroup]
    group_of: IntArray
    """(ids,): index into `groups`; -1: none."""
    unit_of: IntArray
    """(ids,): unit of that group; -1: none."""

    def at(self, ids: IntArray) -> tuple[IntArray, IntArray]:
        """(group, unit) of each id; -1 where there is none."""
        known = ids >= 0
        return np.where(known, self.group_of[ids], -1), np.where(known, self.unit_of[ids], -1)

    def names(self, ids: IntArray) -> list[str]:
        """Groups of these ids, in order of appearance."""
        return [self.groups[g].name for g in dict.fromkeys(self.at(ids)[0].tolist()) if g >= 0]


def classes(units: Units, rows: Sequence[IntArray]) -> tuple[IntArray, IntArray, dict[int, str]]:
    """Sort the units into classes of equal build: the same number of entries on the same axes, protected alike.

    Args:
        rows: Per layer, the ids of its output rows: they end in one class, protected if its units are built unequally.

    Returns:
        (ids,) root of each id; (ids,) class of each id, -1 where no layer drives it; class -> why it stays.
    """
    roots = units.roots()
    reason, texts = units.reasons(roots)
    label = reason + 1
    for record in units.records.values():  # refine: members of a record part from those that are none
        members, counts = np.unique(roots[record.ids[record.ids >= 0]], return_counts=True)
        if len(members):
            _, inverse = np.unique(np.stack([label[members], counts]), axis=1, return_inverse=True)
            label[members] = label.max() + 1 + inverse.reshape(-1)
    label = label[roots]
    if not units.count:
        return roots, label, {}
    driven = [np.unique(label[ids]) for ids in rows]
    merged = components(int(label.max()) + 1, *_chains(driven))
    protected: dict[int, str] = {}
    for labels in driven:
        if len(labels) > 1:
            protected[int(merged[labels[0]])] = "its units own unequal numbers of entries"
    label = merged[label]
    staying = np.flatnonzero(reason >= 0)
    for number, first in zip(*np.unique(label[staying], return_index=True), strict=True):
        protected[int(number)] = texts[reason[staying[first]]]
    real = np.isin(label, merged[np.concatenate([np.zeros(0, dtype=np.int64), *driven])])
    return roots, np.where(real, label, -1), protected


def _chains(sets: Iterable[IntArray]) -> tuple[IntArray, IntArray]:
    """Edges that connect the members of each set."""
    pairs = [(s[:-1], s[1:]) for s in sets]
    none = np.zeros(0, dtype=np.int64)
    return np.concatenate([none, *(a for a, _ in pairs)]), np.concatenate([none, *(b for _, b in pairs)])


def make_groups(units: Units, rows: Mapping[str, IntArray], parameters: Mapping[str, int]) -> Found:
    """The classes as groups, in the order in which their first unit was met.

    Args:
        rows: Weight of each layer -> ids of its output rows.
        parameters: Tensor -> its size; buffers are not in it.
    """
    roots, label, protected = classes(units, list(rows.values()))
    found = Found([], np.full(units.count, -1, dtype=np.int64), np.full(units.count, -1, dtype=np.int64))
    kept = np.flatnonzero((roots == np.arange(units.count)) & (label >= 0))
    numbers = {number: n for n, number in enumerate(dict.fromkeys(label[kept].tolist()))}
    members: list[IntArray] = [kept[label[kept] == number] for number in numbers]
    for n, own in enumerate(members):
        found.group_of[own], found.unit_of[own] = n, np.arange(len(own))
    found.group_of, found.unit_of = found.group_of[roots], found.unit_of[roots]

    slices = _slices(units, found, [len(own) for own in members], parameters)
    drivers: dict[int, str] = {}
    for weight, ids in rows.items():
        drivers.setdefault(int(found.group_of[ids[0]]), weight)
    taken: set[str] = set()
    for n, (number, own, pieces) in enumerate(zip(numbers, members, slices, strict=True)):
        weight = next((p.tensor for p, produces in pieces if produces and p.tensor in rows), drivers[n])
        name = weight.rpartition(".")[0] or weight
        while name in taken:
            name += "'"
        taken.add(name)
        found.groups.append(
            UnitGroup(
                name=name,
                units=len(own),
                producers=tuple(p for p, produces in pieces if produces),
                consumers=tuple(p for p, produces in pieces if not produces),
                sites=(),
                protected=protected.get(number),
            )
        )
    return found


def _slices(
    units: Units, found: Found, sizes: Sequence[int], parameters: Mapping[str, int]
) -> list[list[tuple[TensorSlice, bool]]]:
    """Per group: (slice, whether it produces), in the order of the walk."""
    slices: list[list[tuple[TensorSlice, bool]]] = [[] for _ in sizes]
    for record in units.records.values():
        group, unit = found.at(record.ids)
        for n in np.unique(group[group >= 0]):
            mine = np.flatnonzero(group == n)
            counts = np.bincount(unit[mine], minlength=sizes[n])
            if (counts != counts[0]).any():
                continue  # a protected group of units that are built unequally
            entries = mine[np.argsort(unit[mine], kind="stable")].reshape(sizes[n], -1)
            piece = TensorSlice(
                tensor=record.tensor,
                axis=record.axis,
                entries=entries,
                masked=record.masked,
                parameters=parameters.get(record.tensor, 0) // len(record.ids),
            )
            slices[n].append((piece, record.produces))
    return slices
