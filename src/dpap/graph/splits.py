"""Which axis carries the units where a reshape splits theirs into several.

(B, N, 3 * H * d) as (B, N, 3, H, d): one of the three axes carries the units, the units along the others are tied.
Which one works shows only where the tensor goes: the 3 is taken apart by number, d is contracted, so a unit is a head.
Axes are tried from the largest down, each in a walk of its own; all splits that failed go on to their next in one walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dpap.graph.group import IntArray
from dpap.graph.units import Units

ROUNDS = 8
"""Walks at most."""


@dataclass
class Splits:
    """The choices made so far; they outlive a walk."""

    last: bool = False
    """No walk follows: what is wished for cannot be granted any more."""
    _chosen: dict[str, int] = field(default_factory=dict)
    _rejected: dict[str, set[int]] = field(default_factory=dict)
    _met: dict[str, tuple[Sequence[int], IntArray]] = field(default_factory=dict)
    _wishes: dict[str, int] = field(default_factory=dict)

    def choose(self, key: str, sizes: Mapping[int, int], ids: Mapping[int, IntArray]) -> int:
        """The axis of this split that carries the units in this walk.

        Args:
            key: Names the split, the same in every walk.
            sizes: Axis -> size.
            ids: Axis -> units along it, should it be the one.
        """
        order = sorted(sizes, key=lambda axis: -sizes[axis])
        axis = self._chosen.setdefault(key, order[0])
        self._met[key] = order, ids[axis]
        return axis

    @staticmethod
    def mark(key: str, axis: int) -> str:
        """Name of the mark that an axis carries which was not chosen."""
        return f"split {key} {axis}"

    def wish(self, marks: Mapping[str, IntArray]) -> bool:
        """The axis with these marks meets one with units: it should carry those of its split. False: it cannot."""
        if self.last:
            return False
        for key, (order, _) in self._met.items():
            for axis in order:
                index = marks.get(self.mark(key, axis))
                if index is None or axis in self._rejected.get(key, ()):
                    continue
                if np.array_equal(index, np.arange(len(index))):  # the axis itself, not one it was folded into
                    self._wishes.setdefault(key, axis)
                    return True
        return False

    def advance(self, units: Units) -> bool:
        """After a walk: change the choices that failed (units that stay, or all tied to one); whether any changed."""
        before = dict(self._chosen)
        if self._wishes:  # what failed beside them may work once they are granted
            self._chosen |= self._wishes
        else:
            self._reject(units)
        self._met.clear()
        self._wishes.clear()
        return self._chosen != before

    def _reject(self, units: Units) -> None:
        roots = units.roots()
        reason, _ = units.reasons(roots)
        for key, (order, ids) in self._met.items():
            rejected = self._rejected.setdefault(key, set())
            known = ids[ids >= 0]
            failed = bool((reason[known] >= 0).any()) or (len(ids) > 1 and len(np.unique(roots[known])) <= 1)
            if len(rejected) < len(order) and failed:
                rejected.add(self._chosen[key])
                left = [axis for axis in order if axis not in rejected]
                self._chosen[key] = left[0] if left else order[0]
