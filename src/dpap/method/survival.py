"""Survival. Use it or lose it, and gradually decay.

A score becomes growth through a chain of small maps (`Link`); survival is the memory of growth; what falls below the
level is pruned. Pure functions of tensors. Only `survival` remembers anything, so there is one tensor to print, plot
and save. The same functions serve units and synapses: siblings lie along the last axis. Numbers in docstrings are
equations
of the paper (Han et al., IEEE TPAMI 2025, arXiv 2211.12714).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Link = Callable[[Tensor, Tensor], Tensor]
"""(score, alive) -> growth; both have the original length, the dead count as 0."""


ROUNDING = 1e-9
"""Shares and counts are compared with this much room: 1 - 0.9 is not 0.1 in binary, nor is 0.1 - 3 * 0.03 0.01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where a run stands at a development step."""

    progress: float
    """p: share of the run that is over."""
    elapsed: float
    """dp: share of the run since the previous development step."""
    start: float
    stop: float
    memory: float
    """Share of the run over which survival remembers."""
    epoch: int
    """Development steps before this one; the epoch for the rules that develop once an epoch."""

    @property
    def q(self) -> float:
        """How much of the window is over: clip((p - start) / (stop - start), 0, 1)."""
        if self.progress >= self.stop - ROUNDING:
            return 1.0
        return max((self.progress - self.start) / (self.stop - self.start), 0.0)


# links: from a score to growth ----------------------------------------------------------------------------------------


def relative(score: Float[Tensor, "*rows N"], alive: Bool[Tensor, "*rows N"]) -> Float[Tensor, "*rows N"]:
    """Relative to the siblings: u = N score / sum over the living. 1 is the average sibling of the original N.

    The dead count as 0 in a fixed denominator, so the fewer are left the safer each is. A row whose sum is 0 carries no
    information: everyone living gets N / number living.

    >>> relative(torch.tensor([1.0, 3.0, 0.0, 9.0]), torch.tensor([True, True, True, False])).tolist()
    [1.0, 3.0, 0.0, 0.0]
    """
    score = torch.where(alive, score, 0)
    total = score.sum(-1, keepdim=True)
    informed = score * (score.shape[-1] / torch.where(total > 0, total, 1))
    even = alive.to(score) * score.shape[-1] / alive.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(total > 0, informed, even)


def uninformed(score: Float[Tensor, "*rows N"], alive: Bool[Tensor, "*rows N"]) -> int:
    """Number of rows with a living entry whose scores sum to 0."""
    silent = torch.where(alive, score, 0).sum(-1) <= 0
    return int((silent & alive.any(-1)).sum())


def min_max(score: Float[Tensor, "*N"], alive: Bool[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Linear to [0, 1] over the living of the layer; 0.5 if they are all equal. One reading of Eq. (9)'s "Normalized".

    >>> min_max(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([True, True, True])).tolist()
    [0.0, 1.0, 0.5]
    """
    return _scaled(score, alive, score[alive].max() if alive.any() else score.new_zeros(()))


def percentile_scale(percent: float) -> Link:
    """Linear from the minimum (0) to a percentile (1), clipped to [0, 1]; 0.5 for all if the two are equal; the
    released (9)."""

    def link(score: Tensor, alive: Tensor) -> Tensor:
        return _scaled(score, alive, percentile(score[alive], percent)).clamp(0, 1)

    return link


def _scaled(score: Tensor, alive: Tensor, top: Tensor) -> Tensor:
    """(x - min) / (top - min) over the living; 0.5 where the top is the minimum."""
    if not alive.any():
        return torch.zeros_like(score)
    low = score[alive].min()
    return (score - low) / (top - low) if top > low else torch.full_like(score, 0.5)


def percentile(values: Float[Tensor, ...], percent: float) -> Float[Tensor, ""]:
    """Linear interpolation between order statistics, for any number of values (`torch.quantile` stops at 16 million).

    >>> percentile(torch.tensor([4.0, 1.0, 2.0, 3.0]), 75).item()
    3.25
    """
    flat = values.reshape(-1)
    position = percent / 100 * (len(flat) - 1)
    below = math.floor(position)
    low = flat.kthvalue(below + 1).values
    return torch.lerp(low, flat.kthvalue(min(below + 2, len(flat))).values, position - below)


def offset(eps: float) -> Link:
    """Eq. (9): delta = 2 u - eps."""
    return lambda score, alive: 2 * score - eps


def bonus(amount: float, *, at_zero: bool) -> Link:
    """Eq. (10): what did not decay gains `amount`. Printed with delta >= 0, released with delta > 0."""
    return lambda delta, alive: delta + amount * ((delta >= 0) if at_zero else (delta > 0)).to(delta)


def times(factor: float) -> Link:
    """Eq. (11): the annealing factor of an epoch. Rule `dpap` refills with (1 - gamma), which makes survival a mean."""
    return lambda growth, alive: factor * growth


def grow(score: Tensor, alive: Tensor, links: tuple[Link, ...]) -> Tensor:
    """The chain: each link maps what the one before returned."""
    for link in links:
        score = link(score, alive)
    return score


# survival -----------------------------------------------------------------------------------------------------------


def survival_step(survival: Float[Tensor, "*N"], growth: Float[Tensor, "*N"], gamma: float) -> Float[Tensor, "*N"]:
    """Use it or lose it: survival leaks and is refilled by growth; Eq. (11).

    >>> survival_step(torch.tensor([1.0]), torch.tensor([-0.5]), gamma=0.5).tolist()
    [0.0]
    """
    return gamma * survival + growth


def leak(elapsed: float, memory: float) -> float:
    """gamma = exp(-dp / memory): what is left of survival after a share `elapsed` of the run."""
    return math.exp(-elapsed / memory)


def rising_level(q: float, kappa: float) -> float:
    """The level below which a unit or synapse is pruned: kappa (1 - (1 - q)^3), from 0 to kappa over the window.

    >>> rising_level(0.0, 0.6), rising_level(1.0, 0.6)
    (0.0, 0.6)
    """
    return kappa * (1 - (1 - q) ** 3)


def below(
    survival: Float[Tensor, "*N"], alive: Bool[Tensor, "*N"], level: float, tolerance: float
) -> Bool[Tensor, "*N"]:
    """What is pruned: F < level (1 - tolerance). No decision rests on rounding."""
    return alive & (survival < level * (1 - tolerance))


# floors, caps, targets ------------------------------------------------------------------------------------------------


def unit_floor(units: int) -> int:
    """Units of a group that always stay; a group of one or two never loses any.

    >>> unit_floor(1), unit_floor(2), unit_floor(15), unit_floor(300)
    (1, 2, 2, 30)
    """
    return min(units, max(2, math.ceil(0.1 * units - ROUNDING)))


def unit_cap(living: int, elapsed: float) -> int:
    """Units of a group that may be pruned in one development step: a tenth a hundredth of the run, at least one."""
    share: float = 1 - 0.9 ** (100 * elapsed)
    return max(1, math.floor(share * living + ROUNDING))


def synapse_cap(living: int, elapsed: float) -> int:
    """Synapses of a layer that may be pruned in one development step: a fifth a hundredth of the run, at least one."""
    share: float = 1 - 0.8 ** (100 * elapsed)
    return max(1, math.floor(share * living + ROUNDING))


def scheduled_share(q: float, target: float) -> float:
    """What share of a counted quantity lives at q: c* + (1 - c*)(1 - q)^3, from 1 to the target."""
    return target + (1 - target) * (1 - q) ** 3
