"""The named rules: `dpap` (the default), `paper` (the equations as printed), `released` (as in the authors' script).

A rule is a frozen bundle of links. All rules share the functions of `plasticity` and `survival`; an ablation swaps one
link:

>>> import dataclasses
>>> units_only = dataclasses.replace(dpap(), kinds=frozenset({"unit"}))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dpap.errors import unknown_name
from dpap.method.plasticity import Kind, SlidingSums, Stats, WindowSums, final_trace_weights, mean_trace_weights
from dpap.method.regrowth import Regrow
from dpap.method.scores import TIME_SCORES, Score, TimeScore, get_score, importance, needs, spine
from dpap.method.survival import (
    Clock,
    Link,
    bonus,
    leak,
    min_max,
    offset,
    percentile_scale,
    relative,
    rising_level,
    times,
)

Synapses = Literal["linear", "all"]
Prune = Literal["units", "synapses", "both"]
KINDS: dict[str, frozenset[Kind]] = {
    "units": frozenset({"unit"}),
    "synapses": frozenset({"synapse"}),
    "both": frozenset({"unit", "synapse"}),
}
"""What may be pruned, by the name that a user gives it."""
LayerKind = Literal["conv", "linear"]
TRACE_DECAY = 0.5  # tau, paper section II
Sums = WindowSums | SlidingSums


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything that tells one way of development from another."""

    name: str
    # How one pass of a layer becomes one number per sample and unit.
    trace_weights: Callable[[int], Tensor]
    """T -> (T,): what each step counts."""
    input_weights: Callable[[int], Tensor]
    """The same for what the network itself receives."""
    mean_positions: bool
    """Mean over positions (True) or their sum, Eq. (2)."""
    rectify: bool
    """Take the size of signed activity."""
    # From sums to growth.
    new_sums: Callable[..., Sums]
    score: Score
    links: Callable[[LayerKind, Kind, Clock], tuple[Link, ...]]
    # Survival.
    initial: float
    """F0."""
    gamma: Callable[[Clock], float]
    level: Callable[[Kind, Clock], float]
    tolerance: float
    """Relative distance to the level within which nothing is pruned."""
    kinds: frozenset[Kind] = frozenset({"unit", "synapse"})
    # When, and within which limits.
    windowed: bool
    """About `development_steps` a run, between start and stop, sampled passes, floors, caps, targets. Else: at every
    `dev.step()`, every pass, no limits."""
    permanent: bool = True
    """Dead in every forward pass, statistics over the living. Else the mask is applied once per step, as released."""
    first_epoch: int = 0
    classifier: bool = True
    """Whether synapses onto protected units (the classifier's) are prunable."""
    synapses: Synapses = "linear"
    """Whose synapses are pruned one by one: those of linear layers, or of convolutions too, where the kernel between an
    input and an output channel is one synapse."""
    crowding: float = 0.0
    """Where convolutions lose synapses to a target, those of all layers go in the order of F / N^crowding, N the inputs
    of a unit. 0: each as it stands among its siblings, so that all layers end about equally sparse; 1: by its share of
    what its unit receives, so that units end with about equally many inputs."""
    regrow: Regrow | None = None
    """Which pruned synapses are born again, in exchange for the weakest; None: none."""
    settled: bool = True
    """The share exchanged is that of one memory of the run, after which the newborn compete; else of one development
    step, and they compete at once."""
    sparse_start: bool = False
    """Start with the connectivity of the target, the connections drawn."""
    adjustable: bool = True
    """Whether a user may change what is scored and pruned; rules that are compared as they are cannot be changed."""
    needs_neurons: bool = False
    time_kinds: frozenset[Kind] = frozenset()
    """What is pruned of time steps: pairs of a unit and a step, steps of a layer."""
    time_score: TimeScore = importance
    """What a step is worth to its siblings, from Eq. (8)."""


def dpap(
    *,
    score: Score | str = spine,
    kappa_unit: float = 0.6,
    kappa_synapse: float = 1.0,
    kappa_pair: float = 0.5,
    kappa_step: float = 0.3,
    crowding: float = 0.5,
    time_score: TimeScore | str = importance,
    kinds: frozenset[Kind] = frozenset({"unit", "synapse"}),
    leaks: bool = True,
    rises: bool = True,
) -> Rule:
    """Competition among siblings: survival is the memory of relative use; what falls below a slowly rising level is
    pruned.

    Args:
        score: What a unit or synapse is worth to its siblings.
        kappa_unit: Level at the end of the window, as a share of the average sibling's use.
        kappa_synapse: The same for synapses.
        kappa_pair: For the steps of a unit, where time steps are pruned.
        kappa_step: For the steps of a layer, likewise.
        crowding: How much larger a share of their synapses layers with few inputs keep; see `Rule.crowding`.
        time_score: What a step is worth to its siblings: "importance", Eq. (8), or "random", its control.
        kinds: What is pruned: units, synapses or both.
        leaks: False (ablation): survival is the mean over all steps so far, nothing is forgotten.
        rises: False (ablation): the level stands at its end value from the start of the window.
    """
    kappa: dict[Kind, float] = {
        "unit": kappa_unit, "synapse": kappa_synapse, "pair": kappa_pair, "step": kappa_step
    }  # fmt: skip

    def gamma(clock: Clock) -> float:
        return leak(clock.elapsed, clock.memory) if leaks else clock.epoch / (clock.epoch + 1)

    return Rule(
        name="dpap",
        trace_weights=partial(mean_trace_weights, decay=TRACE_DECAY),
        input_weights=_even_weights,
        mean_positions=True,
        rectify=True,
        new_sums=WindowSums,
        score=get_score(score) if isinstance(score, str) else score,
        links=lambda layer, kind, clock: (relative, times(1 - gamma(clock))),
        initial=1.0,
        gamma=gamma,
        level=lambda kind, clock: rising_level(clock.q if rises else 1.0, kappa[kind]),
        tolerance=1e-6,
        kinds=kinds,
        crowding=crowding,
        windowed=True,
        time_kinds=frozenset({"pair", "step"}),
        time_score=_time_score(time_score) if isinstance(time_score, str) else time_score,
    )


def _time_score(name: str) -> TimeScore:
    if name not in TIME_SCORES:
        raise unknown_name("time score", name, TIME_SCORES)
    return TIME_SCORES[name]


def _even_weights(num_steps: int) -> Tensor:
    return torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class _Constants:
    """Eq. (9)-(11): eps, C, eta (epochs). The released script's; the paper prints only C."""

    eps: float
    bonus: float
    eta: float


CONSTANTS: dict[LayerKind, _Constants] = {"conv": _Constants(0.65, 5.0, 12.0), "linear": _Constants(1.5, 2.0, 13.0)}
PRINTED_GAMMA = 0.999


def paper(*, beta: float = 5.0, spine: Literal["sum of products", "product of sums"] = "sum of products") -> Rule:
    """The equations as printed, developed once an epoch.

    Args:
        beta: F0. Not printed; with the released 10 and the smooth exponent of Eq. (11) no convolution filter can be
        pruned.
        spine: Which of the two unequal right-hand sides of Eq. (7).
    """

    def links(layer: LayerKind, kind: Kind, clock: Clock) -> tuple[Link, ...]:
        c = CONSTANTS["linear" if kind == "pair" else layer]  # the paper gives none for pairs
        return min_max, offset(c.eps), bonus(c.bonus, at_zero=True), times(math.exp(-clock.epoch / c.eta))

    def score(stats: Stats) -> Tensor:
        if stats.kind == "synapse":
            return _kept(stats.bcm) / stats.samples
        if spine == "sum of products":
            return _kept(stats.spine) / stats.samples
        return stats.y * _kept(stats.bcm_rows) / stats.samples**2

    score.needs = frozenset({"pairs"})  # type: ignore[attr-defined]
    return Rule(
        name="paper",
        trace_weights=partial(final_trace_weights, decay=TRACE_DECAY),
        input_weights=partial(final_trace_weights, decay=TRACE_DECAY),
        mean_positions=False,
        rectify=False,
        new_sums=partial(SlidingSums, per_slot=False, reset=True),
        score=score,
        links=links,
        initial=beta,
        gamma=lambda clock: PRINTED_GAMMA,
        level=lambda kind, clock: 0.0,
        tolerance=0.0,
        windowed=False,
        adjustable=False,
        time_kinds=frozenset({"pair"}),
    )


def released() -> Rule:
    """What the authors' script computes, oddities included; for comparison only. Method card: "Where we differ"."""
    first = 5

    def links(layer: LayerKind, kind: Kind, clock: Clock) -> tuple[Link, ...]:
        c = CONSTANTS[layer]
        stairs = math.exp(-((clock.epoch - first) // c.eta))
        return percentile_scale(75), offset(c.eps), bonus(c.bonus, at_zero=False), times(stairs)

    def score(stats: Stats) -> Tensor:
        if stats.kind == "synapse":
            return _kept(stats.bcm)
        return min_max(_kept(stats.bcm_rows), stats.alive) * min_max(stats.y, stats.alive)

    def trace_weights(num_steps: int) -> Tensor:
        return final_trace_weights(num_steps, TRACE_DECAY) / num_steps

    score.needs = frozenset({"pairs"})  # type: ignore[attr-defined]
    return Rule(
        name="released",
        trace_weights=trace_weights,
        input_weights=trace_weights,
        mean_positions=False,
        rectify=False,
        new_sums=partial(SlidingSums, per_slot=True, reset=False),
        score=score,
        links=links,
        initial=10.0,
        gamma=lambda clock: PRINTED_GAMMA,
        level=lambda kind, clock: 0.0,
        tolerance=0.0,
        windowed=False,
        adjustable=False,
        permanent=False,
        first_epoch=first,
        classifier=False,
        needs_neurons=True,
    )


def _kept(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the rule keeps this sum"
    return tensor


def backward_sums(rule: Rule) -> frozenset[str]:
    """What the rule reads of backward passes: "gradient", "taylor"."""
    return (needs(rule.score) & {"taylor"}) | (frozenset({"gradient"}) if rule.regrow == "gradient" else frozenset())


def costly_sums(rule: Rule) -> frozenset[str]:
    """What the rule reads beyond the cheap sums; see `dpap.method.scores.needs`."""
    return needs(rule.score) | (frozenset({"pairs"}) if rule.regrow == "hebb" else frozenset())
