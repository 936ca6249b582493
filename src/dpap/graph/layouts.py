"""How time and batch lie in the tensors of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpap.errors import DPAPError
from dpap.graph.group import IntArray, Layout, Site
from dpap.graph.steps import Steps
from dpap.graph.values import Seen, Value


@dataclass(frozen=True, slots=True)
class Layouts:
    """How time and batch lie in a tensor."""

    time_marks: dict[str, int]
    num_steps: int
    steps: Steps
    samples: frozenset[str]
    """Marks of samples."""

    def per_step(self, module: str, value: Value) -> int:
        """How often a module is called in each step with such a value; 0 if one call sees all steps, or none."""
        return 0 if self.num_steps == 1 or self._time(value) is not None else self.steps.per_step(module)

    def of(self, value: Value) -> tuple[Layout, bool]:
        """(layout, constant in time)."""
        if self.num_steps == 1:
            return ("T,B", False) if self._time(value) is not None and value.shape[0] == 1 else ("B", False)
        index = self._time(value)
        if index is None:
            return "B", True
        if len(index) == self.num_steps and np.array_equal(index, np.arange(self.num_steps)):
            return "T,B", False
        batch = len(index) // self.num_steps
        if np.array_equal(index, np.repeat(np.arange(self.num_steps), batch)):
            return "T*B", False
        raise DPAPError(
            "A tensor mixes time and batch in an order that is not time-first.", fix="use (T, B, ...) throughout."
        )

    def _time(self, value: Value) -> IntArray | None:
        for axis, marks in enumerate(value.marks):
            for name, index in marks.items():
                if name in self.time_marks:
                    if axis:
                        raise DPAPError(
                            f"Time lies on axis {axis} of a tensor of shape {value.shape}.",
                            fix="use (T, B, ...) throughout.",
                        )
                    return index
        return None

    def batch(self, value: Value) -> int:
        """Samples of the input, though tokens or windows may lie on their axis, or before it."""
        for name, index in ((name, index) for marks in value.marks for name, index in marks.items()):
            if name in self.samples:
                return len(np.unique(index))
        return self.rows(value)

    def rows(self, value: Value) -> int:
        """What an observer takes for samples."""
        layout, _ = self.of(value)
        size: int = {"T,B": lambda s: s[1], "T*B": lambda s: s[0] // self.num_steps, "B": lambda s: s[0]}[layout](
            value.shape
        )
        return size

    def site(self, seen: Seen) -> Site:
        layout, constant = self.of(seen.value)
        if layout == "T,B" and seen.axis < 2:
            raise DPAPError(
                "Whether time is folded into the batch here is unclear: the example input holds one sample.",
                where=seen.module,
                fix="give an example of two samples or more.",
            )
        times = self.per_step(seen.module, seen.value)
        return Site(
            module=seen.module,
            call=seen.call % times if times else seen.call,
            side=seen.side,
            layout="call per step" if times else layout,
            axis=seen.axis,
            constant=constant and not times,
            nonnegative=seen.value.nonnegative,
        )
