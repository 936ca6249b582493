"""Rule `released`: the arithmetic of the authors' script, as described, oddities included.

- trace of a sample: the final trace S^T with decay 0.5, divided by T, summed over positions;
- theta, one per unit *and slot of the batch*, is the running mean of all batches, used before it takes in the batch;
- the BCM sum and the activity A are never reset; Num runs on through all epochs, shared by all layers;
- importance of a unit: mm(sum_j BCM_ij) * mm(A_i); of a synapse of a hidden linear layer: BCM_ij, the layer as one;
- u = (x - min) / (P75 - min), clipped to [0, 1], the dead included; 0.5 for all where P75 is the minimum;
- survival moves in epochs 5, 6, ...; who falls below 0 is masked for good, yet stays in every statistic;
- the classifier is neither observed nor pruned.

The record's activity does not depend on who is dead: the script's weights regrow between two masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .chain import BoolArray, FloatArray, Kind, LayerSpec
from .records import Batch, LayerActivity, Record

FIRST_EPOCH = 5  # "epoch > 4"
INITIAL_SURVIVAL = 10.0
GAMMA = 0.999
TRACE_DECAY = 0.5
OFFSET = {"conv": 0.65, "linear": 1.5}
PERIOD = {"conv": 12, "linear": 13}
BONUS = {"conv": 5.0, "linear": 2.0}


@dataclass(frozen=True, kw_only=True)
class ReleasedLayer:
    """One hidden layer after one epoch. Synapse fields are None for a convolution, u and margins before epoch 5."""

    theta: FloatArray
    """(B, O)"""
    bcm: FloatArray
    """(O, I): sum since the start of the run."""
    activity: FloatArray
    """(O,): sum since the start of the run."""
    spine: FloatArray
    """(O,): D."""
    unit_u: FloatArray | None
    unit_survival: FloatArray
    unit_mask: BoolArray
    """(O,): False where the unit's own survival was below 0 once."""
    synapse_u: FloatArray | None
    synapse_survival: FloatArray | None
    synapse_mask: BoolArray | None
    """(O, I): False where the synapse's own survival was below 0 once."""
    margin: float
    """Smallest |F| of this epoch over all units and synapses of the layer, the dead included; inf before epoch 5."""

    @property
    def weight_mask(self) -> BoolArray:
        """(O, I): what multiplies the weight: unit mask times, in a linear layer, synapse mask."""
        own = np.ones_like(self.bcm, dtype=bool) if self.synapse_mask is None else self.synapse_mask
        return self.unit_mask[:, None] & own

    @property
    def dead_units(self) -> set[int]:
        return {int(i) for i in np.flatnonzero(~self.unit_mask)}

    @property
    def dead_synapses(self) -> set[tuple[int, int]]:
        """Synapses dead of their own survival, whether or not their unit lives."""
        if self.synapse_mask is None:
            return set()
        return {(int(i), int(j)) for i, j in zip(*np.nonzero(~self.synapse_mask), strict=True)}


def trace(activity: FloatArray) -> FloatArray:
    """(T, B, N) or (T, B, N, P) -> (B, N): final trace over T, summed over positions."""
    num_steps = activity.shape[0]
    running = np.zeros(activity.shape[1:])
    for t in range(num_steps):
        running = TRACE_DECAY * running + activity[t]
    mean = running / num_steps
    return np.asarray(mean.sum(axis=2) if mean.ndim == 3 else mean)


def min_max(x: FloatArray) -> FloatArray:
    """To [0, 1] over the layer; 0.5 everywhere when constant."""
    low, high = x.min(), x.max()
    if high == low:
        return np.full(x.shape, 0.5)
    return np.asarray((x - low) / (high - low))


def scale_to_quartile(x: FloatArray) -> FloatArray:
    """u: min-max with the 75th percentile in place of the maximum, clipped; 0.5 everywhere when the two are equal."""
    low = x.min()
    top = np.percentile(x, 75)  # over all entries, NumPy's linear interpolation
    if top == low:
        return np.full(x.shape, 0.5)
    return np.asarray(np.clip((x - low) / (top - low), 0.0, 1.0))


def survival_change(u: float, kind: Kind, epoch: int) -> float:
    """What is added to gamma F in this epoch, as a function of u."""
    delta = 2.0 * u - OFFSET[kind]
    if delta > 0.0:
        delta += BONUS[kind]
    factor = math.exp(-((epoch - FIRST_EPOCH) // PERIOD[kind]))
    return factor * delta


class _LayerState:
    """The accumulators of one layer; nothing is ever reset."""

    def __init__(self, layer: LayerSpec, batch_size: int) -> None:
        self.layer = layer
        self.theta = np.zeros((batch_size, layer.outputs))
        self.bcm = np.zeros((layer.outputs, layer.inputs))
        self.activity = np.zeros(layer.outputs)
        self.unit_survival = np.full(layer.outputs, INITIAL_SURVIVAL)
        self.unit_mask = np.ones(layer.outputs, dtype=bool)
        self.synapse_survival = np.full(self.bcm.shape, INITIAL_SURVIVAL)
        self.synapse_mask = np.ones(self.bcm.shape, dtype=bool)

    def observe(self, seen: LayerActivity, num: int) -> None:
        """Takes in a batch; `num` counts the batches of the run from 1."""
        pre, post = trace(seen.pre), trace(seen.post)
        if post.shape != self.theta.shape:
            raise ValueError(f"theta is per slot of the batch {self.theta.shape}; this batch has {post.shape}")
        for b in range(post.shape[0]):
            for i in range(post.shape[1]):
                change = post[b, i] * (post[b, i] - self.theta[b, i])  # theta from before the batch
                self.bcm[i] += change * pre[b]
                self.activity[i] += post[b, i]
        self.theta = (self.theta * (num - 1) + post) / num

    def end_epoch(self, epoch: int) -> ReleasedLayer:
        """Importance, and from epoch 5 on survival and masks."""
        kind = self.layer.kind
        has_synapses = self.layer.has_prunable_synapses
        spine = min_max(self.bcm.sum(axis=1)) * min_max(self.activity)
        unit_u: FloatArray | None = None
        synapse_u: FloatArray | None = None
        margin = math.inf
        if epoch >= FIRST_EPOCH:
            unit_u = scale_to_quartile(spine)
            for i in range(self.layer.outputs):
                change = survival_change(float(unit_u[i]), kind, epoch)
                self.unit_survival[i] = GAMMA * self.unit_survival[i] + change
                margin = min(margin, abs(float(self.unit_survival[i])))
                if self.unit_survival[i] < 0.0:
                    self.unit_mask[i] = False
        if epoch >= FIRST_EPOCH and has_synapses:
            synapse_u = scale_to_quartile(self.bcm)
            for i, j in np.ndindex(self.bcm.shape):
                change = survival_change(float(synapse_u[i, j]), kind, epoch)
                self.synapse_survival[i, j] = GAMMA * self.synapse_survival[i, j] + change
                margin = min(margin, abs(float(self.synapse_survival[i, j])))
                if self.synapse_survival[i, j] < 0.0:
                    self.synapse_mask[i, j] = False
        return ReleasedLayer(
            theta=self.theta.copy(),
            bcm=self.bcm.copy(),
            activity=self.activity.copy(),
            spine=spine,
            unit_u=unit_u,
            unit_survival=self.unit_survival.copy(),
            unit_mask=self.unit_mask.copy(),
            synapse_u=synapse_u,
            synapse_survival=self.synapse_survival.copy() if has_synapses else None,
            synapse_mask=self.synapse_mask.copy() if has_synapses else None,
            margin=margin,
        )


def run(record: Record) -> list[dict[str, ReleasedLayer]]:
    """Each epoch's outcome: hidden layer's name -> state. The last layer is the classifier and is left alone."""
    first: Batch = record.epochs[0][0]
    states = {
        layer.name: _LayerState(layer, first[layer.name].post.shape[1]) for layer in record.chain if not layer.protected
    }
    num = 0
    outcome = []
    for epoch, batches in enumerate(record.epochs):
        for batch in batches:
            num += 1  # once per batch, for all layers
            for name, state in states.items():
                state.observe(batch[name], num)
        outcome.append({name: state.end_epoch(epoch) for name, state in states.items()})
    return outcome


def death_epoch(u: float, kind: Kind, *, epochs: int = 300) -> int | None:
    """Epoch in which something of constant importance u dies under the released constants; None: it never does."""
    survival = INITIAL_SURVIVAL
    for epoch in range(FIRST_EPOCH, epochs):
        survival = GAMMA * survival + survival_change(u, kind, epoch)
        if survival < 0.0:
            return epoch
    return None
