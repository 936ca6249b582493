"""What a unit or a synapse is worth: the links that an ablation swaps. A user's `score=` is one more of them.

A score takes `Stats` and answers (O,) for units, (O, I) for synapses, never negative. It compares siblings only, so its
scale does not matter. `needs` names what costs something to have: the sums "pairs" (one per synapse) and "stdp", of
backward passes "taylor", and, of units, "norm_scale" and "outgoing".
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

import torch
from torch import Tensor

from dpap.errors import DPAPError, unknown_name
from dpap.method.plasticity import Stats, bcm_closed_form, bcm_turnover, synapse_spine, unit_spine

Score = Callable[[Stats], Tensor]
_S = TypeVar("_S", bound=Score)
SCORES: dict[str, Score] = {}


def score_link(name: str, *needs: str) -> Callable[[_S], _S]:
    """Register a score under a name; duplicates are refused."""

    def register(function: _S) -> _S:
        if name in SCORES:
            raise ValueError(f"there is a score named {name!r} already")
        SCORES[name] = function
        function.needs = frozenset(needs)  # type: ignore[attr-defined]
        return function

    return register


def needs(score: Score) -> frozenset[str]:
    """What a score reads beyond the cheap sums; a user's function gets all but those of spike timing."""
    found: frozenset[str] = getattr(score, "needs", frozenset({"pairs", "norm_scale", "outgoing"}))
    return found


def get_score(name: str) -> Score:
    """The score of that name.

    Raises:
        DPAPError: no such name; the nearest are shown.
    """
    if name not in SCORES:
        raise unknown_name("score", name, SCORES)
    return SCORES[name]


def _sum(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"this score reads the sum {name!r}, which the rule does not keep")
    return tensor


def _spines(stats: Stats, change: Tensor) -> Tensor:
    """From plasticity to spines: sqrt(R A) of a unit, |w| sqrt(|change|) of a synapse."""
    if stats.kind == "unit":
        return unit_spine(change, stats.y / stats.samples)
    return synapse_spine(stats.weight, change.sqrt())


def _bcm(stats: Stats, theta: Tensor) -> Tensor:
    if stats.kind == "unit":
        products, squares = _sum(stats.total_y, "total_y"), _sum(stats.total_yy, "total_yy")
    else:
        products, squares, theta = _sum(stats.xy, "xy"), _sum(stats.xyy, "xyy"), theta[:, None]
    return bcm_closed_form(squares / stats.samples, products / stats.samples, theta, stats.eps)


def _hebb(stats: Stats) -> Tensor:
    products = _sum(stats.total_y, "total_y") if stats.kind == "unit" else _sum(stats.xy, "xy")
    return products.abs() / stats.samples


@score_link("spine")
def spine(stats: Stats) -> Tensor:
    """Rule `dpap`: of a unit sqrt(R A), plasticity and activity; of a synapse |w| E[x], the current that passes it.

    What BCM says of a single pair is weighed by the unit's activity, so that a synapse that keeps its unit silent seems
    of no use; measured, this pruned worse than |w| E[x] (results, E1). No sum of every pair is kept.
    """
    if stats.kind == "unit":
        return bcm_net(stats)
    return synapse_spine(stats.weight, _sum(stats.x, "x") / stats.samples)


@score_link("bcm", "pairs")
def bcm(stats: Stats) -> Tensor:
    """Strength times turnover of a synapse, |w| (E[x y^2] + theta E[x y]): potentiation and depression added."""
    if stats.kind == "unit":
        return bcm_net(stats)
    turnover = bcm_turnover(_sum(stats.xyy, "xyy"), _sum(stats.xy, "xy"), stats.theta[:, None])
    return synapse_spine(stats.weight, turnover / stats.samples)


@score_link("bcm-net", "pairs")
def bcm_net(stats: Stats) -> Tensor:
    """Potentiation and depression netted, also for synapses: |w| sqrt(|BCM|)."""
    return _spines(stats, _bcm(stats, stats.theta))


@score_link("bcm-classical", "pairs")
def bcm_classical(stats: Stats) -> Tensor:
    """BCM with the classical threshold E[y^2] / y0, y0 the layer's mean activity; 0 for a layer with y0 = 0."""
    squared, mean = _sum(stats.theta_squared, "theta_squared"), stats.theta.mean()
    theta = squared / mean if mean > 0 else torch.zeros_like(squared)
    return _spines(stats, _bcm(stats, theta))


@score_link("bcm-alone", "pairs")
def bcm_alone(stats: Stats) -> Tensor:
    """BCM without the strength of the synapse."""
    if stats.kind == "unit":
        return bcm_net(stats)
    return _bcm(stats, stats.theta).sqrt()


@score_link("hebb", "pairs")
def hebb(stats: Stats) -> Tensor:
    """Hebbian plasticity E[x y] in the place of BCM."""
    return _spines(stats, _hebb(stats))


@score_link("stdp", "pairs", "stdp")
def stdp(stats: Stats) -> Tensor:
    """Spike-timing plasticity in the place of BCM; needs more than one time step."""
    change = _sum(stats.stdp, "stdp") / stats.samples
    return _spines(stats, (change.sum(1) if stats.kind == "unit" else change).abs())


@score_link("trace")
def trace(stats: Stats) -> Tensor:
    """The trace alone: E[y] of a unit, E[x] of a synapse's input."""
    return _by_kind(stats, stats.y, _sum(stats.x, "x"))


@score_link("activity")
def activity_only(stats: Stats) -> Tensor:
    """Firing rate alone, without a trace."""
    return _by_kind(stats, _sum(stats.rate_y, "rate_y"), _sum(stats.rate_x, "rate_x"))


def _by_kind(stats: Stats, unit: Tensor, synapse: Tensor) -> Tensor:
    chosen = unit if stats.kind == "unit" else synapse.expand(len(unit), -1)
    return chosen.abs() / stats.samples


@score_link("magnitude")
def magnitude(stats: Stats) -> Tensor:
    """|w| of a synapse, L1 norm of a unit's incoming weights."""
    return _over_inputs(stats, stats.weight.abs())


@score_link("weighted-input")
def weighted_input(stats: Stats) -> Tensor:
    """|w| E[x]: how much current a synapse carries; summed over its inputs for a unit."""
    mean = (_sum(stats.x, "x") / stats.samples).abs()
    return _over_inputs(stats, stats.weight.abs() * mean.view(*mean.shape, *[1] * (stats.weight.dim() - 2)))


def _over_inputs(stats: Stats, values: Tensor) -> Tensor:
    return values.flatten(1).sum(1) if stats.kind == "unit" else values


@score_link("taylor", "taylor")
def taylor(stats: Stats) -> Tensor:
    """sum |w dL/dw| of a synapse: what the loss would lose with it, to first order, summed over the window (Molchanov
    et al. 2017). The use of a synapse as learning sees it: what passes it times what is made of it."""
    if stats.kind == "unit":
        return bcm_net(stats)
    return _sum(stats.taylor, "taylor")


@score_link("norm-scale", "norm_scale")
def norm_scale(stats: Stats) -> Tensor:
    """|scale| of the norm behind a unit (network slimming, Liu et al. 2017); |w| of a synapse."""
    if stats.kind == "synapse":
        return magnitude(stats)
    if stats.norm_scale is None:
        raise DPAPError(
            "The score 'norm-scale' reads the scale of a norm behind the layer, and there is none.",
            where=stats.layer,
            fix="use another score, or a network with normalisation",
        )
    return stats.norm_scale.abs()


@score_link("outgoing", "outgoing")
def outgoing(stats: Stats) -> Tensor:
    """E[y] sum |w| over the weights that read a unit: the current it sends out; |w| E[x] of a synapse."""
    if stats.kind == "synapse":
        return weighted_input(stats)
    return _sum(stats.outgoing, "outgoing") * stats.y.abs() / stats.samples


@score_link("random")
def random(stats: Stats) -> Tensor:
    """Drawn once per run, the same at every development step (redrawn, it would average out and nothing would be
    pruned)."""
    shape = stats.weight.shape[:1] if stats.kind == "unit" else stats.weight.shape[:2]
    return drawn(tuple(shape), stats.seed, stats.layer, stats.kind).to(stats.y)


def drawn(shape: tuple[int, ...], *key: object) -> Tensor:
    """Uniform from 0 to 1, always the same for the same key."""
    digest = blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


# What a time step is worth to the other steps of its unit: (units, T) from Eq. (8), the seed and the neuron's name.
TimeScore = Callable[[Tensor, int, str], Tensor]


def importance(found: Tensor, seed: int, neuron: str) -> Tensor:
    """Eq. (8) itself."""
    return found


def random_time(found: Tensor, seed: int, neuron: str) -> Tensor:
    """Drawn once per run, for each step of the layer and each unit at it: the control of Eq. (8)."""
    units, num_steps = found.shape
    values = drawn((num_steps,), seed, neuron, "step") * drawn((units, num_steps), seed, neuron, "pair")
    return values.to(found)


TIME_SCORES: dict[str, TimeScore] = {"importance": importance, "random": random_time}


def per_kind(*, unit: Score | str, synapse: Score | str) -> Score:
    """One score for units and another for synapses."""
    chosen: dict[str, Score] = {
        kind: get_score(s) if isinstance(s, str) else s for kind, s in (("unit", unit), ("synapse", synapse))
    }

    def score(stats: Stats) -> Tensor:
        return chosen[stats.kind](stats)

    score.needs = needs(chosen["unit"]) | needs(chosen["synapse"])  # type: ignore[attr-defined]
    return score
