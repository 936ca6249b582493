"""What the walk knows of tensors and calls: the types that operator rules, the walk and the layers share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dpap.graph.group import FloatArray, IntArray, LayerKind


@dataclass(slots=True)
class Value:
    """What is known of one tensor of the graph."""

    shape: tuple[int, ...]
    units: list[IntArray | None]
    """Per axis: the id of the unit at each index (-1: no unit); None: no units on this axis."""
    marks: list[dict[str, IntArray]]
    """Per axis: indices along the axes (of the input, or made by `expand`) that it came from; finds time and batch."""
    divisor: FloatArray | None = None
    """Full shape, often by broadcasting: spikes = value x divisor; None for a real-valued tensor."""
    nonnegative: bool = False
    awaiting: frozenset[int] = frozenset()
    """Layer calls whose units have not met an activation yet."""
    parameter: str | None = None
    entered: tuple[str, int] | None = None
    """Module call that this very tensor enters."""
    sized: str | None = None
    """The line of the model that made this tensor of zeros in a size of its own, which no unit can leave."""

    @property
    def tracked(self) -> bool:
        return any(u is not None for u in self.units)


def plain(shape: Iterable[int]) -> Value:
    """A tensor of which nothing is known."""
    shape = tuple(shape)
    return Value(shape=shape, units=[None] * len(shape), marks=[{} for _ in shape])


def no_units(value: Value) -> str | None:
    """Why the units stay that meet zeros of a fixed size, such as a first state; None: these are none."""
    return value.sized and f"meets zeros of a fixed size; zeros_like would shrink with it: {value.sized}"


def feature_axis(value: Value) -> int | None:
    """The one axis that carries units; None if there is none or several."""
    axes = [a for a, u in enumerate(value.units) if u is not None]
    return axes[0] if len(axes) == 1 else None


@dataclass(slots=True)
class LayerCall:
    name: str
    call: int
    kind: LayerKind
    weight: str
    bias: str | None
    out_ids: IntArray
    in_ids: IntArray
    kernel: int
    fanout: FloatArray
    input: Value
    input_axis: int
    output: Value
    output_axis: int
    observed: bool
    groups: int = 1
    transposed: bool = False
    post: Seen | None = None
    post_ids: IntArray | None = None


@dataclass(slots=True)
class Seen:
    """A site before its layout is known."""

    module: str
    call: int
    side: Literal["input", "output"]
    value: Value
    axis: int


@dataclass(slots=True)
class NeuronCall:
    name: str
    call: int
    value: Value
    axis: int
    """Of its units."""
