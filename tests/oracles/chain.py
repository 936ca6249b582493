"""A chain of layers as plain data, who lives in it, and what follows from that.

Layer l reads the units of layer l - 1 (the first reads the image), perhaps pooled and flattened. A *unit* is an output
channel of a convolution or an output neuron of a linear layer; an *input entry* j of a layer is a column of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Kind = Literal["conv", "linear"]
IMAGE = -1


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer of a chain, and where its input entries come from."""

    name: str
    kind: Kind
    outputs: int
    in_unit: tuple[int, ...]
    """(I,): unit of the layer before that feeds entry j; `IMAGE` for an entry of the network's input."""
    kernel: int = 1
    """Weights of one synapse: kernel height x width."""
    protected: bool = False
    """The units are the network's outputs: they never die. Their synapses may."""
    synapses_prunable: bool | None = None
    """None: linear layers' synapses die one by one, convolutions lose units only."""

    @property
    def inputs(self) -> int:
        return len(self.in_unit)

    @property
    def has_prunable_synapses(self) -> bool:
        return self.kind == "linear" if self.synapses_prunable is None else self.synapses_prunable


Chain = Sequence[LayerSpec]
Alive = Mapping[str, BoolArray]  # layer name -> (O,)
Synapses = Mapping[str, BoolArray]  # layer name -> (O, I): the synapse masks, True where they let through


def everything_lives(chain: Chain) -> tuple[dict[str, BoolArray], dict[str, BoolArray]]:
    """(units, synapses) of a chain nobody has died in."""
    units = {layer.name: np.ones(layer.outputs, dtype=bool) for layer in chain}
    synapses = {layer.name: np.ones((layer.outputs, layer.inputs), dtype=bool) for layer in chain}
    return units, synapses


def with_feeders(chain: Chain) -> Iterator[tuple[LayerSpec, LayerSpec | None]]:
    """Each layer with the layer it reads; None for the first, which reads the image."""
    before: LayerSpec | None = None
    for layer in chain:
        yield layer, before
        before = layer


def living_entries(layer: LayerSpec, before: LayerSpec | None, alive: Alive) -> BoolArray:
    """(I,): whether the unit that feeds entry j lives; entries of the image always do."""
    lives = np.ones(layer.inputs, dtype=bool)
    for j, unit in enumerate(layer.in_unit):
        if unit != IMAGE:
            assert before is not None
            lives[j] = alive[before.name][unit]
    return lives


def living_synapses(layer: LayerSpec, before: LayerSpec | None, alive: Alive, synapses: Synapses) -> BoolArray:
    """(O, I): mask 1, unit alive, feeding unit alive."""
    return synapses[layer.name] & alive[layer.name][:, None] & living_entries(layer, before, alive)[None, :]


def all_living_synapses(chain: Chain, alive: Alive, synapses: Synapses) -> dict[str, BoolArray]:
    return {layer.name: living_synapses(layer, before, alive, synapses) for layer, before in with_feeders(chain)}


def count_living_weights(chain: Chain, alive: Alive, synapses: Synapses) -> int:
    return sum(
        layer.kernel * int(living_synapses(layer, before, alive, synapses).sum())
        for layer, before in with_feeders(chain)
    )


def count_weights(chain: Chain) -> int:
    return sum(layer.kernel * layer.outputs * layer.inputs for layer in chain)


def connectivity(chain: Chain, alive: Alive, synapses: Synapses) -> float:
    """Living synapses over the synapses of the dense chain, every layer counted, each kernel weight one synapse."""
    return count_living_weights(chain, alive, synapses) / count_weights(chain)


def isolated_units(chain: Chain, alive: Alive, synapses: Synapses) -> list[tuple[str, int]]:
    """Living, unprotected units without a living input or without a living output, once (not yet the fixpoint)."""
    living = all_living_synapses(chain, alive, synapses)
    found = []
    for position, layer in enumerate(chain):
        if layer.protected:
            continue
        after = chain[position + 1] if position + 1 < len(chain) else None
        for unit in range(layer.outputs):
            if not alive[layer.name][unit]:
                continue
            has_input = bool(living[layer.name][unit].any())
            has_output = True  # units nobody in the chain reads are the network's outputs
            if after is not None:
                entries = [j for j, feeding in enumerate(after.in_unit) if feeding == unit]
                has_output = bool(living[after.name][:, entries].any())
            if not (has_input and has_output):
                found.append((layer.name, unit))
    return found


def bury_isolated(chain: Chain, alive: dict[str, BoolArray], synapses: Synapses) -> list[tuple[str, int]]:
    """Lets isolated units die, in place, until nobody is isolated any more; returns them in order of death."""
    buried: list[tuple[str, int]] = []
    while found := isolated_units(chain, alive, synapses):
        for name, unit in found:
            alive[name][unit] = False
        buried += found
    return buried
