"""Time in rule `dpap`: which (unit, step) pairs and which whole steps of a layer live; scores, survival, deaths.

Siblings of a pair are the other steps of its own unit, siblings of a layer's step the other steps of that layer. Units
are given: who lives among them is decided elsewhere (`dpap`). Each function is one line of the rule, in loops; where
the rule leaves something open, the plainest reading was taken; such places are marked "Choice:".

A layer here is what a spiking neuron module makes: `post` are its spikes, `pre` is what the layer it is fed by reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .chain import BoolArray, FloatArray
from .dpap import COUNT_SLACK, LEVEL_MARGIN, TRACE_DECAY, Tick, cap, level, relative_to_siblings, survival_step

KAPPA_PAIR = 0.5
KAPPA_STEP = 0.3
KEEP = 0.9  # caps "as for units"

Pair = tuple[str, int, int]
LayerStep = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class TimeLayer:
    """A hidden layer of spiking neurons."""

    name: str
    units: int
    positions: int = 1
    """Neurons of one unit: height x width of a convolution's map."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one layer received and fired in one batch, time first, dense T steps (zeros where nothing was computed)."""

    pre: FloatArray
    """(T, B, I) or (T, B, I, P)."""
    post: FloatArray
    """(T, B, O) or (T, B, O, P)."""


Batch = Mapping[str, Seen]


# --- scores ---------------------------------------------------------------------------------------


def total_trace(pre: FloatArray, inputs_alive: BoolArray) -> FloatArray:
    """P^t (T, B) = sum_j S_j^t, S^t = tau S^(t-1) + |x^t|: over living inputs, and over positions.

    Choice: the image has a trace like everybody, of its size |x|. Choice: a trace belongs to the neuron that fires: it
    decays where that one is dead, and what comes while the layer behind is dead counts in it all the same.
    """
    num_steps, batch, inputs = pre.shape[:3]
    total = np.zeros((num_steps, batch))
    for b in range(batch):
        for j in range(inputs):
            trace = 0.0
            for t in range(num_steps):
                fired = float(np.abs(pre[t, b, j]).sum()) if inputs_alive[j] else 0.0
                trace = TRACE_DECAY * trace + fired
                total[t, b] += trace
    return total


def time_importance(batches: Sequence[Seen], inputs_alive: BoolArray, alive: BoolArray, pairs: BoolArray) -> FloatArray:
    """Time_i^t (O, T) = E_W[P^t o_i^t]; 0 for the pairs that are dead and for the dead units."""
    importance = np.zeros(pairs.shape)
    samples = 0
    for seen in batches:
        total = total_trace(seen.pre, inputs_alive)
        for b in range(seen.post.shape[1]):
            for i, t in np.ndindex(pairs.shape):
                if alive[i] and pairs[i, t]:
                    importance[i, t] += total[t, b] * float(np.abs(seen.post[t, b, i]).sum())
            samples += 1
    return importance / samples


def pair_use(importance: FloatArray, alive: BoolArray, pairs: BoolArray) -> FloatArray:
    """u_i^t (O, T) = T Time_i^t / sum over the unit's living t; T / their number where the sum is 0; 0 for the dead."""
    use = np.zeros(importance.shape)
    for i in range(len(alive)):
        if alive[i]:
            use[i], _ = relative_to_siblings(importance[i], pairs[i])
    return use


def step_use(importance: FloatArray, alive: BoolArray, pairs: BoolArray) -> FloatArray:
    """U^t (T,) = T sum_i Time_i^t / sum_{i,t} Time_i^t; T / (living steps) where the sum is 0."""
    use, _ = relative_to_siblings(importance[alive].sum(axis=0), living_steps(alive, pairs))
    return use


def living_steps(alive: BoolArray, pairs: BoolArray) -> BoolArray:
    """(T,): a layer's step lives while a pair of a living unit does."""
    return np.asarray((pairs & alive[:, None]).any(axis=0))


# --- a network, and one development step of it ----------------------------------------------------


@dataclass(kw_only=True)
class TimeNetwork:
    """What the rule remembers; every dict is keyed by layer name."""

    layers: Sequence[TimeLayer]
    num_steps: int
    alive: dict[str, BoolArray]
    """(O,): units, kept up to date by whoever decides about them."""
    pairs: dict[str, BoolArray]
    """(O, T); what stands in the row of a dead unit means nothing."""
    pair_survival: dict[str, FloatArray]
    step_survival: dict[str, FloatArray]

    @classmethod
    def newborn(cls, layers: Sequence[TimeLayer], num_steps: int) -> TimeNetwork:
        """Everything lives, F = 1."""
        return cls(
            layers=layers,
            num_steps=num_steps,
            alive={layer.name: np.ones(layer.units, dtype=bool) for layer in layers},
            pairs={layer.name: np.ones((layer.units, num_steps), dtype=bool) for layer in layers},
            pair_survival={layer.name: np.ones((layer.units, num_steps)) for layer in layers},
            step_survival={layer.name: np.ones(num_steps) for layer in layers},
        )

    def steps(self, name: str) -> BoolArray:
        return living_steps(self.alive[name], self.pairs[name])

    def pair_share(self) -> float:
        """Living pairs among the pairs of living units; a convolution's unit counts once for each of its positions."""
        lives, there = 0, 0
        for layer in self.layers:
            for i in np.flatnonzero(self.alive[layer.name]):
                lives += layer.positions * int(self.pairs[layer.name][i].sum())
                there += layer.positions * self.num_steps
        return lives / there

    def step_share(self) -> float:
        """Living steps of layers among all."""
        return sum(int(self.steps(layer.name).sum()) for layer in self.layers) / (self.num_steps * len(self.layers))


@dataclass(kw_only=True)
class TimeStep:
    """What one development step did to time. Scores are those all were judged by."""

    importance: dict[str, FloatArray]
    pair_use: dict[str, FloatArray]
    step_use: dict[str, FloatArray]
    pair_survival: dict[str, FloatArray]
    step_survival: dict[str, FloatArray]
    died_steps: list[LayerStep] = field(default_factory=list)
    """In the order of their death; steps that went because their last pair did are not among them."""
    died_pairs: list[Pair] = field(default_factory=list)
    """In the order of their death; those that went with their layer's step are not among them."""
    pairs: dict[str, BoolArray] = field(default_factory=dict)
    """At the end."""


def develop(
    network: TimeNetwork,
    batches: Sequence[Batch],
    inputs_alive: Mapping[str, BoolArray],
    tick: Tick,
    *,
    alive_after: Mapping[str, BoolArray] | None = None,
    memory: float = 0.03,
    target: Mapping[str, float] | None = None,
) -> TimeStep:
    """One development step; `network` is changed in place.

    Args:
        network: state before the step.
        batches: the window.
        inputs_alive: (I,) of each layer: entries whose feeding unit lived in the window.
        tick: where in the run it is.
        alive_after: units that are left when pairs and steps are judged; None: no unit died. Choice: units die first,
            and what died in this very step has no part in U any more.
        memory: time constant of survival as a share of the run.
        target: "pairs", "steps" or both: share that lives at q = 1; None: emergent deaths.
    """
    importance, use, whole_use = {}, {}, {}
    network.alive = {name: a.copy() for name, a in (alive_after or network.alive).items()}
    for layer in network.layers:
        name = layer.name
        alive, pairs = network.alive[name], network.pairs[name]
        importance[name] = time_importance([batch[name] for batch in batches], inputs_alive[name], alive, pairs)
        use[name] = pair_use(importance[name], alive, pairs)
        whole_use[name] = step_use(importance[name], alive, pairs)
        network.pair_survival[name] = survival_step(
            network.pair_survival[name], use[name], pairs & alive[:, None], dp=tick.dp, memory=memory
        )
        network.step_survival[name] = survival_step(
            network.step_survival[name], whole_use[name], living_steps(alive, pairs), dp=tick.dp, memory=memory
        )
    step = TimeStep(
        importance=importance,
        pair_use=use,
        step_use=whole_use,
        pair_survival={name: f.copy() for name, f in network.pair_survival.items()},
        step_survival={name: f.copy() for name, f in network.step_survival.items()},
    )
    _deaths(network, step, tick, {} if target is None else target)
    step.pairs = {name: p.copy() for name, p in network.pairs.items()}
    return step


# --- who dies -------------------------------------------------------------------------------------


class _Funeral:
    """Makes deaths one at a time within one development step, as floors and caps allow."""

    def __init__(self, network: TimeNetwork, step: TimeStep, tick: Tick, *, caps: bool) -> None:
        self.network = network
        self.step = step
        # Choice: the n of a cap is the number living when the step begins (units that died in it are gone already); a
        # pair that goes with its layer's step is not counted against its unit's cap.
        self.steps_left = {
            layer.name: cap(int(network.steps(layer.name).sum()), KEEP, tick.dp) if caps else math.inf
            for layer in network.layers
        }
        self.pairs_left = {
            (layer.name, i): cap(int(network.pairs[layer.name][i].sum()), KEEP, tick.dp) if caps else math.inf
            for layer in network.layers
            for i in range(layer.units)
        }

    def layer_step(self, victim: LayerStep, *, least_pairs: float = 0.0) -> None:
        """Lets a layer's step die, all pairs at once, unless that ends the layer or a living unit, a cap binds, or
        fewer than the share `least_pairs` of the pairs would be left."""
        name, t = victim
        alive, pairs = self.network.alive[name], self.network.pairs[name]
        left = pairs.copy()
        left[:, t] = False
        if not self.network.steps(name)[t] or self.steps_left[name] < 1:
            return
        if any(alive[i] and not left[i].any() for i in range(len(alive))):  # the last unit's last step is the layer's
            return
        self.network.pairs[name] = left
        if self.network.pair_share() < least_pairs - COUNT_SLACK:
            self.network.pairs[name] = pairs
            return
        self.steps_left[name] -= 1
        self.step.died_steps.append(victim)

    def pair(self, victim: Pair, *, least_steps: float = 0.0) -> None:
        """Lets a pair die unless it is its unit's last, a cap binds, or a step of the layer goes with it and fewer than
        the share `least_steps` of them would be left."""
        name, i, t = victim
        pairs = self.network.pairs[name]
        if not pairs[i, t] or pairs[i].sum() == 1 or self.pairs_left[name, i] < 1:
            return
        left, before = pairs.copy(), self.network.step_share()
        left[i, t] = False
        self.network.pairs[name] = left
        if self.network.step_share() < min(before, least_steps) - COUNT_SLACK:
            self.network.pairs[name] = pairs
            return
        self.pairs_left[name, i] -= 1
        self.step.died_pairs.append(victim)


def _steps_by_survival(network: TimeNetwork, step: TimeStep, below: float) -> list[LayerStep]:
    """Living steps of layers with F below a level, weakest first: by F, then U, then layer, then step."""
    ranked = [
        (network.step_survival[layer.name][t], step.step_use[layer.name][t], position, int(t), layer.name)
        for position, layer in enumerate(network.layers)
        for t in np.flatnonzero(network.steps(layer.name))
        if network.step_survival[layer.name][t] < below
    ]
    return [(name, t) for _, _, _, t, name in sorted(ranked)]


def _pairs_by_survival(network: TimeNetwork, step: TimeStep, below: float) -> list[Pair]:
    """Living pairs of living units with F below a level, weakest first: by F, u, layer, unit, step."""
    ranked = [
        (network.pair_survival[layer.name][i, t], step.pair_use[layer.name][i, t], position, int(i), int(t), layer.name)
        for position, layer in enumerate(network.layers)
        for i, t in zip(*np.nonzero(network.pairs[layer.name]), strict=True)
        if network.alive[layer.name][i] and network.pair_survival[layer.name][i, t] < below
    ]
    return [(name, i, t) for _, _, _, i, t, name in sorted(ranked)]


def _deaths(network: TimeNetwork, step: TimeStep, tick: Tick, target: Mapping[str, float]) -> None:
    """Steps of layers before pairs, each kind by its target's schedule, or at its emergent level where it has none.

    Choice: a death at the emergent level that would take the other kind below its scheduled share is passed over and
    the next is tried; a death for the kind's own target is made whatever it does to the other kind's share. At q = 1 of
    a run with a target no cap applies, to deaths at the emergent level neither.
    """
    wanted = {kind: share + (1.0 - share) * (1.0 - tick.q) ** 3 for kind, share in target.items()}
    funeral = _Funeral(network, step, tick, caps=not wanted or tick.q < 1.0)

    def due(kappa: float) -> float:
        return level(tick.q, kappa) * (1.0 - LEVEL_MARGIN)

    if "steps" in wanted:
        for victim in _steps_by_survival(network, step, math.inf):
            if network.step_share() <= wanted["steps"] + COUNT_SLACK:
                break
            funeral.layer_step(victim)
    else:
        for victim in _steps_by_survival(network, step, due(KAPPA_STEP)):
            funeral.layer_step(victim, least_pairs=wanted.get("pairs", 0.0))
    if "pairs" in wanted:
        for pair in _pairs_by_survival(network, step, math.inf):
            if network.pair_share() <= wanted["pairs"] + COUNT_SLACK:
                break
            funeral.pair(pair)
    else:
        for pair in _pairs_by_survival(network, step, due(KAPPA_PAIR)):
            funeral.pair(pair, least_steps=wanted.get("steps", 0.0))


# --- worked on paper ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HandWorkedTime:
    """One linear layer of two units, three steps, one window of two samples, and what follows from it."""

    batch: Seen
    inputs_alive: BoolArray
    pairs: BoolArray
    """(O, T): who lives."""
    total: FloatArray
    """P, (T, B)."""
    importance: FloatArray
    """(O, T)"""
    pair_use: FloatArray
    step_use: FloatArray


def hand_worked() -> HandWorkedTime:
    """Two inputs, two units, T = 3, two samples, all alive, decay 1/2.

    Sample 1: input 0 fires 110, its trace is 1, 3/2, 3/4; input 1 fires 001: 0, 0, 1.     P = 1,   3/2, 7/4
    Sample 2: input 0 fires 000;                           input 1 fires 101: 1, 1/2, 5/4. P = 1,   1/2, 5/4
    Unit 0 fires 011 in sample 1 and 100 in sample 2:  P o = 0, 3/2, 7/4 and 1, 0, 0; mean 1/2, 3/4, 7/8
    Unit 1 fires 001 in sample 1 and 011 in sample 2:  P o = 0, 0, 7/4 and 0, 1/2, 5/4; mean 0, 1/4, 3/2

    Unit 0: sum 17/8, u = 3 * (4/8, 6/8, 7/8) / (17/8) = 12/17, 18/17, 21/17
    Unit 1: sum 7/4,  u = 3 * (0, 1/4, 6/4) / (7/4)    = 0, 3/7, 18/7
    Layer:  sums 1/2, 1, 19/8, together 31/8, U = 3 * (4/8, 8/8, 19/8) / (31/8) = 12/31, 24/31, 57/31
    """

    def trains(*samples: str) -> FloatArray:
        rows = [[[float(o) for o in train] for train in sample.split()] for sample in samples]
        return np.array(rows).transpose(2, 0, 1)

    return HandWorkedTime(
        batch=Seen(pre=trains("110 001", "000 101"), post=trains("011 001", "100 011")),
        inputs_alive=np.ones(2, dtype=bool),
        pairs=np.ones((2, 3), dtype=bool),
        total=np.array([[1, 1], [3 / 2, 1 / 2], [7 / 4, 5 / 4]]),
        importance=np.array([[1 / 2, 3 / 4, 7 / 8], [0, 1 / 4, 3 / 2]]),
        pair_use=np.array([[12 / 17, 18 / 17, 21 / 17], [0, 3 / 7, 18 / 7]]),
        step_use=np.array([12 / 31, 24 / 31, 57 / 31]),
    )


def hand_worked_with_the_dead() -> HandWorkedTime:
    """The same layer with pair (0, 1) and the whole step 0 dead, and input 1 dead; the dead fire no more.

    Sample 1: input 0 fires 110, its trace is 1, 3/2, 3/4: what it fired at the dead step 0 is in it; sample 2: 000.
    Unit 0 fires 001 and 000: mean of P o = 0, 0, 3/8. Unit 1 fires 001 and 011: mean of P o = 0, 0, 3/8
    Unit 0 lives at step 2 alone: u = 3 there. Unit 1 lives at steps 1 and 2: u = 3 * (0, 3/8) / (3/8) = 0, 3
    Layer: sums 0, 0, 3/4, living steps 1 and 2: U = 0, 0, 3
    """
    whole = hand_worked().batch
    post = whole.post.copy()
    post[0] = 0.0
    post[1, :, 0] = 0.0
    return HandWorkedTime(
        batch=Seen(pre=whole.pre, post=post),
        inputs_alive=np.array([True, False]),
        pairs=np.array([[False, False, True], [False, True, True]]),
        total=np.array([[1, 0], [3 / 2, 0], [3 / 4, 0]]),
        importance=np.array([[0, 0, 3 / 8], [0, 0, 3 / 8]]),
        pair_use=np.array([[0, 0, 3], [0, 0, 3]]),
        step_use=np.array([0, 0, 3]),
    )
