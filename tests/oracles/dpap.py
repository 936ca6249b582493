"""Rule `dpap`, competition among siblings, for one chain of layers: sums, scores, survival, deaths.

Each function is one line of the rule. Where the rule leaves something open, the plainest reading was taken; such places
are marked "Choice:".

Siblings of a unit are the units of its layer, siblings of a synapse the synapses of its own neuron. A window is a list
of batches; everything a development step needs from it are plain sums over its samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from .chain import (
    BoolArray,
    Chain,
    FloatArray,
    LayerSpec,
    all_living_synapses,
    bury_isolated,
    count_living_weights,
    count_weights,
    everything_lives,
    living_entries,
    with_feeders,
)
from .records import Batch, LayerActivity, Record

Unit = tuple[str, int]
Synapse = tuple[str, int, int]

TRACE_DECAY = 0.5
KAPPA_UNIT = 0.6
KAPPA_SYNAPSE = 1.0
RELATIVE_EPS = 1e-12  # a difference of two sums below this share of them is rounding
LEVEL_MARGIN = 1e-6
LEAST_SHARE = 0.25
COUNT_SLACK = 1e-9  # products such as (1 - 0.9) * 20 and 0.1 * (a count) miss their integer by rounding


# --- activity of a sample -------------------------------------------------------------------------


def mean_running_trace(activity: FloatArray) -> FloatArray:
    """(T, B, N) -> (B, N): mean over the steps of S^t, where S^t = tau S^(t-1) + o^t."""
    running = np.zeros(activity.shape[1:])
    total = np.zeros(activity.shape[1:])
    for t in range(activity.shape[0]):
        running = TRACE_DECAY * running + activity[t]
        total = total + running
    return np.asarray(total / activity.shape[0])


def over_positions(activity: FloatArray) -> FloatArray:
    """(T, B, N, P) or (T, B, N) -> (T, B, N): mean over positions."""
    return np.asarray(activity.mean(axis=3) if activity.ndim == 4 else activity)


def pre_activity(seen: LayerActivity, *, first: bool) -> FloatArray:
    """x (B, I). The image counts by its size, |input| averaged over steps and positions; all else by its trace.

    Choice: no trace of the image. That of a constant image is the same multiple of it in every sample: u is the same.
    """
    size = over_positions(np.abs(seen.pre))
    return size.mean(axis=0) if first else mean_running_trace(size)


def post_activity(seen: LayerActivity) -> FloatArray:
    """y (B, O)."""
    return mean_running_trace(over_positions(np.abs(seen.post)))


# --- sums of a window -----------------------------------------------------------------------------


@dataclass(kw_only=True)
class Sums:
    """Sums over the samples of a window for one layer; X = sum of x_j over entries whose feeding unit lives."""

    n: int
    x: FloatArray
    """(I,)"""
    y: FloatArray
    """(O,)"""
    Xy: FloatArray
    """(O,)"""
    Xyy: FloatArray
    """(O,)"""
    xy: FloatArray
    """(O, I)"""
    xyy: FloatArray
    """(O, I)"""


def window_sums(layer: LayerSpec, feeders_alive: BoolArray, batches: Iterable[Batch], *, first: bool) -> Sums:
    """Sums of one layer; `feeders_alive` (I,) excludes what dead units emit. Synapse masks play no part in X."""
    o, i = layer.outputs, layer.inputs
    none = np.zeros((o, i))
    sums = Sums(n=0, x=np.zeros(i), y=np.zeros(o), Xy=np.zeros(o), Xyy=np.zeros(o), xy=none, xyy=none.copy())
    for batch in batches:
        pre, post = pre_activity(batch[layer.name], first=first), post_activity(batch[layer.name])
        for sample in range(post.shape[0]):
            x = np.where(feeders_alive, pre[sample], 0.0)
            X = x.sum()
            sums.x += x
            for unit in range(o):
                y = post[sample, unit]
                sums.y[unit] += y
                sums.Xy[unit] += X * y
                sums.Xyy[unit] += X * y * y
                sums.xy[unit] += x * y
                sums.xyy[unit] += x * y * y
            sums.n += 1
    return sums


# --- scores ---------------------------------------------------------------------------------------


def plasticity(second: float, first: float, theta: float) -> float:
    """E[x y^2] - theta E[x y], 0 where the difference is rounding."""
    difference = second - theta * first
    if abs(difference) < RELATIVE_EPS * (second + theta * first):
        return 0.0
    return difference


def unit_scores(sums: Sums, theta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """R_i, A_i, D_i, each (O,)."""
    R = np.zeros(len(theta))
    for i in range(len(theta)):
        R[i] = abs(plasticity(float(sums.Xyy[i] / sums.n), float(sums.Xy[i] / sums.n), float(theta[i])))
    A = sums.y / sums.n
    return R, A, np.sqrt(R * A)


def bcm_matrix(sums: Sums, theta: FloatArray) -> FloatArray:
    """BCM_ij (O, I)."""
    bcm = np.zeros(sums.xy.shape)
    for i, j in np.ndindex(bcm.shape):
        bcm[i, j] = plasticity(float(sums.xyy[i, j] / sums.n), float(sums.xy[i, j] / sums.n), float(theta[i]))
    return bcm


def current_matrix(weight: FloatArray, sums: Sums) -> FloatArray:
    """|w_ij| E[x_j] (O, I): the current that passes a synapse."""
    current = np.zeros(weight.shape)
    for i, j in np.ndindex(current.shape):
        current[i, j] = abs(float(weight[i, j])) * float(sums.x[j]) / sums.n
    return current


def relative_to_siblings(score: FloatArray, alive: BoolArray) -> tuple[FloatArray, bool]:
    """(u (N,), silent). u = N score / sum of living scores, 0 for the dead; silent siblings read N / living number."""
    u = np.zeros(len(score))
    total = score[alive].sum()
    if total == 0.0:
        if alive.any():
            u[alive] = len(score) / alive.sum()
        return u, bool(alive.any())
    u[alive] = len(score) * score[alive] / total
    return u, False


# --- survival, level, caps, floors ----------------------------------------------------------------


def survival_step(survival: FloatArray, u: FloatArray, alive: BoolArray, *, dp: float, memory: float) -> FloatArray:
    """F <- gamma F + (1 - gamma) u for the living; the dead keep the F they died with."""
    gamma = math.exp(-dp / memory)
    return np.where(alive, gamma * survival + (1.0 - gamma) * u, survival)


def level(q: float, kappa: float) -> float:
    return kappa * (1.0 - (1.0 - q) ** 3)


def target_connectivity(q: float, final: float) -> float:
    return final + (1.0 - final) * (1.0 - q) ** 3


def floor_of_units(original: int) -> int:
    """min(N0, max(2, ceil(0.1 N0))), the ceiling taken exactly."""
    return min(original, max(2, math.ceil(Fraction(original, 10))))


def cap(living: int, keep: float, dp: float) -> int:
    """max(1, floor((1 - keep^(100 dp)) n)); keep is 0.9 for units, 0.8 for synapses."""
    share = 1.0 - math.pow(keep, 100.0 * dp)
    return max(1, math.floor(share * living + COUNT_SLACK))


# --- the clock ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One development step on the clock of a run."""

    call: int
    """Calls of `step()` so far, this one included."""
    p: float
    """Share of the run that is over."""
    dp: float
    """Share of the run since the last tick."""
    q: float
    """Position in the window; 0 before it."""


def clock(
    total_steps: int, *, development_steps: int = 100, start: float = 0.10, stop: float = 0.50, memory: float = 0.03
) -> list[Tick]:
    """The development steps of a run: from 3 memories before `start` to the first with p >= stop, which has q = 1.

    Choice: development steps are spread evenly over the *whole* run, one at each call that passes another
    development_steps-th of it (each call, when there are fewer calls); those before the observing starts do nothing,
    but dp is counted from the last of them.
    """
    ticks = []
    last_p = 0.0
    for call in range(1, total_steps + 1):
        if call * development_steps // total_steps == (call - 1) * development_steps // total_steps:
            continue
        p = call / total_steps
        dp, last_p = p - last_p, p
        if p <= start - 3.0 * memory + COUNT_SLACK:
            continue
        if p >= stop - COUNT_SLACK:
            ticks.append(Tick(call=call, p=p, dp=dp, q=1.0))
            break
        ticks.append(Tick(call=call, p=p, dp=dp, q=min(1.0, max(0.0, (p - start) / (stop - start)))))
    return ticks


# --- a network, and one development step of it ----------------------------------------------------


@dataclass(kw_only=True)
class Network:
    """What the rule remembers of a chain; every dict is keyed by layer name."""

    chain: Chain
    weights: dict[str, FloatArray]
    """(O, I) or (O, I, k, k); only those of layers with prunable synapses are read."""
    alive: dict[str, BoolArray]
    synapses: dict[str, BoolArray]
    unit_survival: dict[str, FloatArray]
    synapse_survival: dict[str, FloatArray]
    theta: dict[str, FloatArray] = field(default_factory=dict)
    """Mean activity in the previous window; empty before the first."""

    @classmethod
    def newborn(cls, chain: Chain, weights: Mapping[str, FloatArray]) -> Network:
        """Everything lives, F = 1."""
        alive, synapses = everything_lives(chain)
        return cls(
            chain=chain,
            weights=dict(weights),
            alive=alive,
            synapses=synapses,
            unit_survival={layer.name: np.ones(layer.outputs) for layer in chain},
            synapse_survival={layer.name: np.ones((layer.outputs, layer.inputs)) for layer in chain},
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """One development step. Scores are those all were judged by, before anybody died in the step."""

    tick: Tick
    sums: dict[str, Sums]
    theta: dict[str, FloatArray]
    """The theta that was used: of the previous window, or in the first step the window's own."""
    R: dict[str, FloatArray]
    A: dict[str, FloatArray]
    D: dict[str, FloatArray]
    unit_u: dict[str, FloatArray]
    """Unprotected layers only; 0 for the dead."""
    bcm: dict[str, FloatArray]
    """Layers with prunable synapses only, as the next two."""
    s: dict[str, FloatArray]
    synapse_u: dict[str, FloatArray]
    unit_survival: dict[str, FloatArray]
    synapse_survival: dict[str, FloatArray]
    silent_groups: list[str]
    """Layers whose living units' D were all 0."""
    silent_rows: dict[str, list[int]]
    """Living neurons whose living synapses' s were all 0."""
    at_threshold: dict[str, int]
    """Living units that are active and score 0."""
    died_units: dict[str, list[int]]
    """Of their own survival, or as victims of a target, in the order of their death."""
    died_synapses: dict[str, list[tuple[int, int]]]
    isolated_units: dict[str, list[int]]
    capped_units: set[str]
    """Layers in which the cap on units kept somebody alive who was due."""
    capped_synapses: set[str]
    skipped: list[Unit | Synapse]
    """Deaths not made because of what they would isolate: (layer, unit) or (layer, unit, entry)."""
    alive: dict[str, BoolArray]
    synapses: dict[str, BoolArray]
    connectivity: float


def develop(
    network: Network, batches: Sequence[Batch], tick: Tick, *, memory: float = 0.03, target: float | None = None
) -> Step:
    """One development step; `network` is changed in place.

    Args:
        network: state before the step.
        batches: the window.
        tick: where in the run it is.
        memory: time constant of survival as a share of the run.
        target: connectivity at q = 1; None: emergent deaths.
    """
    chain, names = network.chain, [layer.name for layer in network.chain]
    living = all_living_synapses(chain, network.alive, network.synapses)
    sums = {
        layer.name: window_sums(layer, living_entries(layer, before, network.alive), batches, first=before is None)
        for layer, before in with_feeders(chain)
    }
    own_mean = {name: sums[name].y / sums[name].n for name in names}
    theta = {name: network.theta.get(name, own_mean[name]) for name in names}

    R, A, D, unit_u = {}, {}, {}, {}
    silent_groups, at_threshold = [], {}
    for layer in chain:
        name, alive = layer.name, network.alive[layer.name]
        R[name], A[name], D[name] = unit_scores(sums[name], theta[name])
        if layer.protected:
            continue
        unit_u[name], silent = relative_to_siblings(D[name], alive)
        silent_groups += [name] if silent else []
        at_threshold[name] = int((alive & (A[name] > 0.0) & (D[name] == 0.0)).sum())
        network.unit_survival[name] = survival_step(
            network.unit_survival[name], unit_u[name], alive, dp=tick.dp, memory=memory
        )

    bcm, s, synapse_u = {}, {}, {}
    silent_rows: dict[str, list[int]] = {}
    for layer in chain:
        name = layer.name
        if not layer.has_prunable_synapses:
            continue
        bcm[name] = bcm_matrix(sums[name], theta[name])
        s[name] = current_matrix(network.weights[name], sums[name])
        synapse_u[name] = np.zeros(s[name].shape)
        silent_rows[name] = []
        for i in range(layer.outputs):
            synapse_u[name][i], silent = relative_to_siblings(s[name][i], living[name][i])
            silent_rows[name] += [i] if silent else []
        network.synapse_survival[name] = survival_step(
            network.synapse_survival[name], synapse_u[name], living[name], dp=tick.dp, memory=memory
        )

    funeral = _Funeral(network, tick, caps=target is None or tick.q < 1.0)
    if target is None:
        _emergent_deaths(funeral, unit_u, synapse_u)
    else:
        _deaths_for_target(funeral, unit_u, synapse_u, target_connectivity(tick.q, target))
    network.theta = own_mean
    return Step(
        tick=tick,
        sums=sums,
        theta=theta,
        R=R,
        A=A,
        D=D,
        unit_u=unit_u,
        bcm=bcm,
        s=s,
        synapse_u=synapse_u,
        unit_survival={name: f.copy() for name, f in network.unit_survival.items()},
        synapse_survival={name: f.copy() for name, f in network.synapse_survival.items()},
        silent_groups=silent_groups,
        silent_rows=silent_rows,
        at_threshold=at_threshold,
        died_units=funeral.died_units,
        died_synapses=funeral.died_synapses,
        isolated_units=funeral.isolated_units,
        capped_units=funeral.capped_units,
        capped_synapses=funeral.capped_synapses,
        skipped=funeral.skipped,
        alive={name: a.copy() for name, a in network.alive.items()},
        synapses={name: a.copy() for name, a in network.synapses.items()},
        connectivity=count_living_weights(chain, network.alive, network.synapses) / count_weights(chain),
    )


def run(
    record: Record,
    weights: Mapping[str, FloatArray],
    *,
    development_steps: int = 100,
    start: float = 0.10,
    stop: float = 0.50,
    memory: float = 0.03,
    target: float | None = None,
) -> list[Step]:
    """The rule on a record: one call of `step()` per batch, all observed; a window is all since the last tick."""
    network = Network.newborn(record.chain, weights)
    batches = list(record.batches())
    steps = []
    for tick in clock(len(batches), development_steps=development_steps, start=start, stop=stop, memory=memory):
        first = tick.call - round(tick.dp * len(batches))
        steps.append(develop(network, batches[first : tick.call], tick, memory=memory, target=target))
    return steps


# --- who dies -------------------------------------------------------------------------------------


class _Funeral:
    """Makes deaths one at a time within one development step, each with what it isolates, as floors and caps allow."""

    def __init__(self, network: Network, tick: Tick, *, caps: bool) -> None:
        self.network = network
        self.tick = tick
        self.layers = {layer.name: layer for layer in network.chain}
        living = all_living_synapses(network.chain, network.alive, network.synapses)
        # Choice: the n of a cap is the number living when the step begins; synapses that go with their unit are not
        # counted against it.
        self.units_left = {n: cap(int(a.sum()), 0.9, tick.dp) if caps else math.inf for n, a in network.alive.items()}
        self.synapses_left = {n: cap(int(a.sum()), 0.8, tick.dp) if caps else math.inf for n, a in living.items()}
        self.died_units: dict[str, list[int]] = {name: [] for name in self.layers}
        self.died_synapses: dict[str, list[tuple[int, int]]] = {name: [] for name in self.layers}
        self.isolated_units: dict[str, list[int]] = {name: [] for name in self.layers}
        self.capped_units: set[str] = set()
        self.capped_synapses: set[str] = set()
        self.skipped: list[Unit | Synapse] = []

    def living_synapses(self) -> dict[str, BoolArray]:
        return all_living_synapses(self.network.chain, self.network.alive, self.network.synapses)

    def weights_left(self) -> int:
        return count_living_weights(self.network.chain, self.network.alive, self.network.synapses)

    def unit(self, victim: Unit, *, spare: Callable[[int], bool] | None = None) -> None:
        """Lets a unit die unless it is dead already, its group is at the floor or capped, or the death must be skipped.

        `spare` is asked with the number of weights that would be left, and may refuse.
        """
        name, i = victim
        alive = self.network.alive[name]
        if not alive[i] or alive.sum() <= floor_of_units(len(alive)):
            return
        if self.units_left[name] < 1:
            self.capped_units.add(name)
            return
        units = {n: a.copy() for n, a in self.network.alive.items()}
        units[name][i] = False
        if self._bury(victim, units, self.network.synapses, spare):
            self.units_left[name] -= 1
            self.died_units[name].append(i)

    def synapse(self, victim: Synapse) -> None:
        """Lets a synapse die unless it is its neuron's last input, its layer is capped, or it must be skipped."""
        name, i, j = victim
        living = self.living_synapses()[name]
        if not living[i, j]:
            return
        if living[i].sum() == 1:  # the floor of a neuron; a protected one's is reported
            if self.layers[name].protected:
                self.skipped.append(victim)
            return
        if self.synapses_left[name] < 1:
            self.capped_synapses.add(name)
            return
        synapses = {n: a.copy() for n, a in self.network.synapses.items()}
        synapses[name][i, j] = False
        if self._bury(victim, {n: a.copy() for n, a in self.network.alive.items()}, synapses, None):
            self.synapses_left[name] -= 1
            self.died_synapses[name].append((i, j))

    def _bury(
        self,
        victim: Unit | Synapse,
        units: dict[str, BoolArray],
        synapses: dict[str, BoolArray],
        spare: Callable[[int], bool] | None,
    ) -> bool:
        """Adds the isolated to a trial death, and commits all of it or nothing."""
        chain = self.network.chain
        isolated = bury_isolated(chain, units, synapses)
        before, after = self.living_synapses(), all_living_synapses(chain, units, synapses)
        for layer in chain:
            name = layer.name
            # A death that isolates a unit of a group at its floor (or several of one just above it) is not made.
            below_floor = units[name].sum() < floor_of_units(layer.outputs)
            if any(n == name for n, _ in isolated) and below_floor:
                self.skipped.append(victim)
                return False
            # Nor one that takes a protected unit's last living input.
            if layer.protected and (before[name].any(axis=1) & ~after[name].any(axis=1)).any():
                self.skipped.append(victim)
                return False
        if spare is not None and spare(count_living_weights(chain, units, synapses)):
            return False
        self.network.alive, self.network.synapses = units, synapses
        for name, i in isolated:
            self.isolated_units[name].append(i)
        return True


def _units_by_survival(network: Network, u: Mapping[str, FloatArray], below: float) -> list[Unit]:
    """Living, unprotected units with F below a level, weakest first: by F, then u, then layer, then index.

    Choice: one order across all layers, in emergent mode too (there it matters only where a death is skipped).
    """
    ranked = [
        (network.unit_survival[layer.name][i], u[layer.name][i], position, int(i), layer.name)
        for position, layer in enumerate(network.chain)
        if not layer.protected
        for i in np.flatnonzero(network.alive[layer.name])
        if network.unit_survival[layer.name][i] < below
    ]
    return [(name, i) for _, _, _, i, name in sorted(ranked)]


def _synapses_by_survival(network: Network, u: Mapping[str, FloatArray], below: float) -> list[Synapse]:
    """Living, prunable synapses with F below a level, weakest first: by F, then u, then layer, then index."""
    living = all_living_synapses(network.chain, network.alive, network.synapses)
    ranked = [
        (network.synapse_survival[layer.name][i, j], u[layer.name][i, j], position, int(i), int(j), layer.name)
        for position, layer in enumerate(network.chain)
        if layer.has_prunable_synapses
        for i, j in zip(*np.nonzero(living[layer.name]), strict=True)
        if network.synapse_survival[layer.name][i, j] < below
    ]
    return [(name, i, j) for _, _, _, i, j, name in sorted(ranked)]


def _level_with_margin(q: float, kappa: float) -> float:
    return level(q, kappa) * (1.0 - LEVEL_MARGIN)


def _emergent_deaths(funeral: _Funeral, unit_u: Mapping[str, FloatArray], synapse_u: Mapping[str, FloatArray]) -> None:
    """Who is below the level dies. Choice: units first, then the synapses that are left."""
    network, q = funeral.network, funeral.tick.q
    for unit in _units_by_survival(network, unit_u, _level_with_margin(q, KAPPA_UNIT)):
        funeral.unit(unit)
    for synapse in _synapses_by_survival(network, synapse_u, _level_with_margin(q, KAPPA_SYNAPSE)):
        funeral.synapse(synapse)


def _deaths_for_target(
    funeral: _Funeral, unit_u: Mapping[str, FloatArray], synapse_u: Mapping[str, FloatArray], share: float
) -> None:
    """Units at their emergent level, then synapses, then units again where synapses cannot or should not pay.

    Choice: an emergent death that would go below the share is passed over and the next, perhaps smaller, one is tried.
    At q = 1 no cap applies, to units at their emergent level neither. Synapses pay alone as long as the layers that
    lose them keep a quarter of the share of their own: a small classifier must not pay for large convolutions. Then, if
    no cap on synapses bound (else the rest waits for the next step), units pay beyond their level, and what is left
    after them is paid by the last synapses.
    """
    network, q = funeral.network, funeral.tick.q
    total = count_weights(network.chain)
    wanted = share * total
    synaptic = [layer for layer in network.chain if layer.has_prunable_synapses]
    kept = LEAST_SHARE * share * sum(layer.kernel * layer.outputs * layer.inputs for layer in synaptic)

    def goes_below(weights: int) -> bool:
        return weights < wanted - COUNT_SLACK * total

    def reached() -> bool:
        return funeral.weights_left() <= wanted + COUNT_SLACK * total

    def synaptic_weights() -> int:
        living = all_living_synapses(network.chain, network.alive, network.synapses)
        return sum(layer.kernel * int(living[layer.name].sum()) for layer in synaptic)

    for unit in _units_by_survival(network, unit_u, _level_with_margin(q, KAPPA_UNIT)):
        funeral.unit(unit, spare=goes_below)
    for synapse in _synapses_by_survival(network, synapse_u, math.inf):
        if reached():
            return
        if synaptic_weights() <= kept:
            break
        funeral.synapse(synapse)
    if reached() or funeral.capped_synapses:
        return
    for unit in _units_by_survival(network, unit_u, math.inf):
        if reached():
            return
        funeral.unit(unit)
    for synapse in _synapses_by_survival(network, synapse_u, math.inf):
        if reached():
            return
        funeral.synapse(synapse)
