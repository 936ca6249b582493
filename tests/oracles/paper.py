"""Rule `paper`: the printed equations (1)-(7) and (9)-(11), with one reading chosen where they leave several.

- (1), (2): trace of a sample = final trace, sum_t tau^(T - t) o^t with tau = 0.5, summed over positions; what the first
  layer receives is the image itself, signs and all; at T = 1 a trace is the activity, (12), (13);
- (3)-(5): theta is one per unit, the running mean of the batches' means over the whole run; its value before the batch
  is used;
- (6): reset every epoch, mean over the epoch's samples (for batches of equal size: the mean of the batches' terms);
- (7): the right-hand form, per sample; `spine="trace_times_sum"` is the other one;
- (9): min-max over the *living* of a layer, no clip; a constant layer reads 0.5;
- (10), (11): bonus from delta >= 0 on, smooth exponential from epoch 0; F < 0 dies, for good.

The dead are in no statistic, and what a dead unit emits is excluded from what its readers receive. A synapse mask does
not change what a unit is judged by: its sum over j runs over all living feeding units. Choices where nothing is said:
deaths of an epoch are decided together at its end; then, unless `isolate=False`, units left without living inputs or
outputs die with them, since death means the same under every permanent rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .chain import (
    BoolArray,
    FloatArray,
    Kind,
    LayerSpec,
    all_living_synapses,
    bury_isolated,
    everything_lives,
    living_entries,
    living_synapses,
    with_feeders,
)
from .records import LayerActivity, Record

GAMMA = 0.999
TRACE_DECAY = 0.5
OFFSET = {"conv": 0.65, "linear": 1.5}
ETA = {"conv": 12.0, "linear": 13.0}
BONUS = {"conv": 5.0, "linear": 2.0}
INITIAL_SURVIVAL = 5.0

Spine = Literal["per_sample", "trace_times_sum"]


class LayerEmptied(Exception):
    """The rule has no floor: all units, or all prunable synapses, of a layer died in this epoch."""

    def __init__(self, layer: str, epoch: int) -> None:
        super().__init__(f"{layer} emptied in epoch {epoch}")
        self.layer = layer
        self.epoch = epoch


@dataclass(frozen=True, kw_only=True)
class PaperLayer:
    """One layer after one epoch. Entries of what was dead before the epoch are NaN in spine, bcm and u."""

    theta: FloatArray
    """(O,): running mean after the epoch; also kept for the dead, whom nothing reads."""
    bcm: FloatArray
    """(O, I): mean over the epoch's samples."""
    spine: FloatArray
    """(O,): D, mean over the epoch's samples."""
    unit_u: FloatArray
    """(O,); NaN throughout for the protected classifier."""
    unit_survival: FloatArray
    alive: BoolArray
    """(O,) at the end of the epoch."""
    synapse_u: FloatArray
    """(O, I); NaN throughout for a convolution."""
    synapse_survival: FloatArray
    synapses: BoolArray
    """(O, I): the synapse mask at the end of the epoch."""
    isolated: tuple[int, ...]
    """Units that died of isolation in this epoch."""


def trace(activity: FloatArray) -> FloatArray:
    """(1), (2): (T, B, N) or (T, B, N, P) -> (B, N)."""
    running = np.zeros(activity.shape[1:])
    for t in range(activity.shape[0]):
        running = TRACE_DECAY * running + activity[t]
    return np.asarray(running.sum(axis=2) if running.ndim == 3 else running)


def min_max_living(x: FloatArray, alive: BoolArray) -> FloatArray:
    """(9), "linearly normalized": to [0, 1] over the living; 0.5 when they are all the same; NaN for the dead."""
    scaled = np.full(x.shape, np.nan)
    low, high = x[alive].min(), x[alive].max()
    if high == low:
        scaled[alive] = 0.5
    else:
        scaled[alive] = (x[alive] - low) / (high - low)
    return scaled


def growth(u: float, kind: Kind, epoch: int) -> float:
    """(9)-(11): what is added to gamma F in this epoch."""
    delta = 2.0 * u - OFFSET[kind]
    if delta >= 0.0:
        delta += BONUS[kind]
    return math.exp(-epoch / ETA[kind]) * delta


class _LayerState:
    def __init__(self, layer: LayerSpec, initial_survival: float) -> None:
        self.layer = layer
        self.theta = np.zeros(layer.outputs)
        self.unit_survival = np.full(layer.outputs, initial_survival)
        self.synapse_survival = np.full((layer.outputs, layer.inputs), initial_survival)
        self.start_epoch()

    def start_epoch(self) -> None:
        self.samples = 0
        self.bcm = np.zeros((self.layer.outputs, self.layer.inputs))
        self.per_sample = np.zeros(self.layer.outputs)
        self.post = np.zeros(self.layer.outputs)

    def observe(self, seen: LayerActivity, feeders_alive: BoolArray, num: int) -> None:
        pre, post = trace(seen.pre), trace(seen.post)
        for b in range(post.shape[0]):
            x = np.where(feeders_alive, pre[b], 0.0)
            for i in range(post.shape[1]):
                y = post[b, i]
                product = x * y * (y - self.theta[i])  # (3), theta from before the batch
                self.bcm[i] += product
                self.per_sample[i] += y * product.sum()  # (7), right-hand side
                self.post[i] += y
        self.samples += post.shape[0]
        batch_mean = post.mean(axis=0)
        self.theta = (self.theta * (num - 1) + batch_mean) / num  # (4)

    def spine(self, form: Spine) -> FloatArray:
        if form == "per_sample":
            return self.per_sample / self.samples
        # (7), left-hand side: the mean trace times the sum over j of the epoch's BCM
        return np.asarray((self.post / self.samples) * (self.bcm / self.samples).sum(axis=1))


def run(
    record: Record,
    *,
    initial_survival: float = INITIAL_SURVIVAL,
    spine: Spine = "per_sample",
    isolate: bool = True,
) -> list[dict[str, PaperLayer]]:
    """Each epoch's outcome: layer's name -> state.

    Raises:
        LayerEmptied: a layer lost its last unit or its last prunable synapse.
    """
    chain = record.chain
    alive, synapses = everything_lives(chain)
    states = {layer.name: _LayerState(layer, initial_survival) for layer in chain}
    num = 0
    outcome = []
    for epoch, batches in enumerate(record.epochs):
        for state in states.values():
            state.start_epoch()
        for batch in batches:
            num += 1  # (5), counted from 1
            for layer, before in with_feeders(chain):
                states[layer.name].observe(batch[layer.name], living_entries(layer, before, alive), num)
        outcome.append(_end_epoch(chain, states, alive, synapses, epoch=epoch, spine=spine, isolate=isolate))
    return outcome


def _end_epoch(
    chain: tuple[LayerSpec, ...],
    states: dict[str, _LayerState],
    alive: dict[str, BoolArray],
    synapses: dict[str, BoolArray],
    *,
    epoch: int,
    spine: Spine,
    isolate: bool,
) -> dict[str, PaperLayer]:
    """Growth, survival and death, `alive` and `synapses` changed in place; all are judged before anybody dies."""
    living_before = all_living_synapses(chain, alive, synapses)
    alive_before = {name: lives.copy() for name, lives in alive.items()}
    spines, unit_u, synapse_u = {}, {}, {}
    for layer in chain:
        state, name = states[layer.name], layer.name
        spines[name] = np.where(alive_before[name], state.spine(spine), np.nan)
        unit_u[name] = np.full(layer.outputs, np.nan)
        synapse_u[name] = np.full(state.bcm.shape, np.nan)
        if not layer.protected:
            unit_u[name] = min_max_living(spines[name], alive_before[name])
            for i in np.flatnonzero(alive_before[name]):
                change = growth(unit_u[name][i], layer.kind, epoch)
                state.unit_survival[i] = GAMMA * state.unit_survival[i] + change
                if state.unit_survival[i] < 0.0:
                    alive[name][i] = False
        if layer.has_prunable_synapses:
            synapse_u[name] = min_max_living(state.bcm / state.samples, living_before[name])
            for i, j in zip(*np.nonzero(living_before[name]), strict=True):
                change = growth(synapse_u[name][i, j], layer.kind, epoch)
                state.synapse_survival[i, j] = GAMMA * state.synapse_survival[i, j] + change
                if state.synapse_survival[i, j] < 0.0:
                    synapses[name][i, j] = False
    isolated = bury_isolated(chain, alive, synapses) if isolate else []
    for layer, before in with_feeders(chain):
        if not alive[layer.name].any() or not living_synapses(layer, before, alive, synapses).any():
            raise LayerEmptied(layer.name, epoch)
    return {
        name: PaperLayer(
            theta=state.theta.copy(),
            bcm=np.where(living_before[name], state.bcm / state.samples, np.nan),
            spine=spines[name],
            unit_u=unit_u[name],
            unit_survival=state.unit_survival.copy(),
            alive=alive[name].copy(),
            synapse_u=synapse_u[name],
            synapse_survival=state.synapse_survival.copy(),
            synapses=synapses[name].copy(),
            isolated=tuple(unit for layer_name, unit in isolated if layer_name == name),
        )
        for name, state in states.items()
    }


def survival_of_a_silent_unit(
    kind: Kind, *, initial_survival: float, epochs: int, staircase: bool = False
) -> FloatArray:
    """(epochs,): F of a unit with u = 0 in every epoch; `staircase` puts floor(e / eta) in the exponent."""
    survival = initial_survival
    history = np.zeros(epochs)
    for epoch in range(epochs):
        exponent = math.floor(epoch / ETA[kind]) if staircase else epoch / ETA[kind]
        survival = GAMMA * survival - math.exp(-exponent) * OFFSET[kind]
        history[epoch] = survival
    return history


def largest_survival_a_silent_unit_can_lose(kind: Kind) -> float:
    """The beta below which (11) can kill at all.

    After n epochs F = gamma^n (beta - sum_{k<n} eps exp(-k / eta) / gamma^(k + 1)); this is the limit of the sum, a
    geometric series.
    """
    ratio = math.exp(-1.0 / ETA[kind]) / GAMMA
    return OFFSET[kind] / GAMMA / (1.0 - ratio)
