"""What shrinks together, as plain data: groups of units, the layers between them, where activity is seen.

Made once by `front.find_groups`. Masks, compaction, metrics, reports and exporters all read it; nothing here computes
on tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
LayerKind = Literal["conv", "linear"]
Layout = Literal["T,B", "T*B", "call per step", "B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlice:
    """The entries of one axis of one tensor that follow a group: unit u owns `entries[u]`."""

    tensor: str
    """Name in the model's state dict, such as `classifier.0.weight`."""
    axis: int
    entries: IntArray
    """(units, k): k = 1 for a channel, H * W after a flatten, whatever the memory layout."""
    masked: bool = True
    """False for what is only sliced with its unit: running statistics, parameters of the neuron."""
    parameters: int = 1
    """Parameters at each entry: the product of the other axes; 0 for a buffer."""

    def to_json(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "axis": self.axis, "entries": self.entries.tolist(), "masked": self.masked}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place where activity can be seen: what enters or leaves one call of one module."""

    module: str
    call: int
    """0 for the first call of the module in a forward pass."""
    side: Literal["input", "output"]
    layout: Layout
    axis: int = 1
    """Axis of the features in the tensor seen there; the axes that are neither this, time nor batch are positions."""
    constant: bool = False
    """Seen once per pass because it is the same at every step (a direct-encoded image)."""
    nonnegative: bool = False
    """Known from the graph: spikes, rectified values, and pools of them."""

    def __str__(self) -> str:
        return f"{self.side} of {self.module}" + (f", call {self.call}" if self.call else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "call": self.call,
            "side": self.side,
            "layout": self.layout,
            "axis": self.axis,
            "constant": self.constant,
            "nonnegative": self.nonnegative,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Which unit stands behind each index of an axis."""

    groups: tuple[str, ...]
    """In order of appearance."""
    owner: IntArray
    """(N,): index into `groups`; -1 for what is no unit."""
    unit: IntArray
    """(N,): unit of that group, or -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One call of a convolution or linear layer: the synapses between what it reads and what it drives."""

    name: str
    """Path of the module."""
    call: int
    kind: LayerKind
    weight: str
    bias: str | None
    out_group: str
    """Name of the group whose units this layer drives."""
    out_units: IntArray
    """(O,): the unit of `out_group` behind each output feature: a row of the weight (a column where `transposed`)."""
    in_group: tuple[str, ...]
    """Groups that feed the layer, in order of appearance; empty when it reads the network's input only."""
    in_owner: IntArray
    """(I,): index into `in_group` for each input feature (column of the weight, unless grouped); -1 for the network's
    input."""
    in_unit: IntArray
    """(I,): unit of that group; -1 for an entry that is no unit."""
    kernel: int
    """Weights of one synapse: kernel height x width; 1 for a linear layer."""
    positions: int
    """Output positions of one sample in one execution (1 for a linear layer on a vector); input positions where
    `transposed`."""
    steps: int
    """Executions per sample: T, or 1 where a constant input passes once, or 1 in a network without time."""
    macs_per_synapse: int
    """positions x kernel x steps: multiply-accumulates of one (output, input) pair per sample, padding counted."""
    pre: Site | None
    """None: the weight is used without a module call that could be observed."""
    post: Site | None
    post_row: IntArray | None
    """Row of the weight behind each feature of `post`, -1 for those of other layers; None: feature o is row o."""
    post_features: Features | None
    """Units behind the features of `post` where `post_row` is given."""
    spike_divisor: FloatArray | None
    """None: the input is real-valued. Else (I, *space): number of spikes behind an input value = value x divisor
    (1 for spikes, the window's size after an average pool). Linear: (I,). Known from the graph, never from values."""
    fanout: FloatArray
    """(*space,) of the input: how many (kernel position, output position) pairs read each input position; borders
    exact. Linear: shape (), value 1."""
    groups: int = 1
    """Of a grouped convolution: output feature o reads the I / groups input features of its own group. Those live and
    are pruned with it as one unit, so such a layer is no edge between units: it says nothing of units (`post` is
    None), isolates none, and its counts go with its units."""
    inner: Site | None = None
    """Of a grouped convolution, where its output is seen."""
    transposed: bool = False
    """The weight is (I, O / groups, ...), not (O, I / groups, ...)."""

    @property
    def output_site(self) -> Site | None:
        """Where the layer's output is seen, whether it drives units or not."""
        return self.inner if self.post is None else self.post

    @property
    def in_features(self) -> int:
        """Input features that each output feature reads."""
        return len(self.in_unit) // self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronSite:
    """One call of a spiking neuron module, for counting neuron updates."""

    name: str
    call: int
    group: str | None
    """None when its features are no known units."""
    positions: int
    """Neurons per unit."""
    features: int
    steps: int
    layout: Layout
    between: tuple[Site, ...] = ()
    """Modules called between the layers that drive it and the neuron itself: norms, pools, dropout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGroup:
    """Units that are pruned one by one, and every slice of every tensor that goes with each."""

    name: str
    units: int
    producers: tuple[TensorSlice, ...]
    """Output axes: weights, biases, norms, per-channel neuron parameters."""
    consumers: tuple[TensorSlice, ...]
    """Input axes of the layers that read the units."""
    sites: tuple[Site, ...]
    protected: str | None = None
    """Why these units are not pruned; None: they are prunable."""
    reshaped_at: tuple[str, ...] = ()
    """Lines of the model where a reshape folds the units into another axis: where a hard-coded size would sit."""

    def describe(self, alive: int) -> str:
        """In print: the state of the group, what makes and what reads its units, where they are seen."""
        state = f"protected ({self.protected})" if self.protected else f"{alive} of {self.units} alive"
        lines = [f"{self.name}: {self.units} units, {state}"]
        for title, pieces in (("made by", self.producers), ("read by", self.consumers)):
            if pieces:
                lines.append(f"  {title} " + ", ".join(f"{p.tensor}[{p.axis}]" for p in pieces))
        if self.sites:
            lines.append("  seen at " + ", ".join(f"{s} ({s.layout})" for s in self.sites))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "units": self.units,
            "producers": [s.to_json() for s in self.producers],
            "consumers": [s.to_json() for s in self.consumers],
            "sites": [s.to_json() for s in self.sites],
            "protected": self.protected,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Everything the front end found out about a model."""

    groups: tuple[UnitGroup, ...]
    """In order of execution; protected ones included."""
    layers: tuple[Layer, ...]
    """In order of execution."""
    neurons: tuple[NeuronSite, ...]
    num_steps: int
    """T; 1 for a network without time."""
    batch_axis: int = 0
    """Axis of the samples in the model's input: 1 where the input itself is (T, B, ...)."""
    ignored: tuple[str, ...] = ()
    """What `ignore=` or `only=` left out: tensor names."""

    def group(self, name: str) -> UnitGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)
