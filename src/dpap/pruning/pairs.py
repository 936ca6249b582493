"""What may be pruned in time: the steps of a layer and the steps of a unit, within floors, caps and targets.

A step of a layer is pruned with all its pairs and saves time; a pair saves operations. Every living unit keeps a living
step, and so does every layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpap.errors import DPAPError
from dpap.method.survival import unit_cap
from dpap.pruning.account import BoolArray, FloatArray
from dpap.pruning.targets import check_share

TIME_METRICS = ("pairs", "steps")
Order = Sequence[tuple[float, float, tuple[int, ...], bool]]
"""Survival, use, (neuron, step) or (neuron, unit, step), and whether it fell below the level."""


@dataclass
class PairAccount:
    """Living pairs of the living units of some neurons, and the shares that follow from them.

    Args:
        names: Of the neurons.
        alive: Per neuron, (units, T).
        units: Per neuron, (units,): which units live.
        positions: Per neuron: how many neurons a unit is.
    """

    names: Sequence[str]
    alive: list[BoolArray]
    units: Sequence[BoolArray]
    positions: Sequence[int]
    died_pairs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    died_steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    skipped: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    """Neurons where a cap deferred something."""

    def worth(self) -> list[float]:
        """Per neuron: what one pair is of all pairs of the living neurons."""
        there = sum(
            int(u.sum()) * a.shape[1] * p for a, u, p in zip(self.alive, self.units, self.positions, strict=True)
        )
        return [p / there for p in self.positions]

    def pairs(self) -> float:
        """Living pairs / pairs of the living neurons."""
        living = [int(a[u].sum()) for a, u in zip(self.alive, self.units, strict=True)]
        return float(np.dot(living, self.worth()))

    def living_steps(self, n: int) -> BoolArray:
        """(T,): steps at which some living unit of a neuron lives."""
        return np.asarray(self.alive[n][self.units[n]].any(0))

    def steps(self) -> float:
        """Steps of a layer with a living pair / all steps of all layers."""
        living = np.concatenate([self.living_steps(n) for n in range(len(self.alive))])
        return float(living.mean())

    def kill_step(self, n: int, step: int) -> bool:
        """All pairs of a layer at a step; False (and nothing changed) where that takes a unit's last living step."""
        alive, units = self.alive[n], self.units[n]
        mine = units & alive[:, step]
        if not mine.any():
            return False
        if bool((alive[mine].sum(1) == 1).any()):
            self.skipped.add(f"step {step} of {self.names[n]}: the last living one of some of its units")
            return False
        alive[:, step] = False
        self.died_steps[self.names[n]].append(step)
        return True

    def ends_step(self, n: int, unit: int, step: int) -> bool:
        """Whether a pair is the last living one at a step of its layer."""
        living = self.alive[n][:, step] & self.units[n]
        return bool(living[unit]) and int(living.sum()) == 1

    def kill_pair(self, n: int, unit: int, step: int) -> bool:
        """One pair; False where it is the unit's last."""
        alive = self.alive[n]
        if not alive[unit, step] or not self.units[n][unit] or int(alive[unit].sum()) == 1:
            return False
        alive[unit, step] = False
        self.died_pairs[self.names[n]] += 1
        return True


def take(
    account: PairAccount, steps: Order, pairs: Order, shares: Mapping[str, float], *, elapsed: float, capped: bool
) -> None:
    """What one development step prunes: layers' steps first, then pairs.

    Where a share is given, it says how many are pruned, and survival which; where none is, all below the level.

    Args:
        shares: "pairs" or "steps" -> share that lives after this step.
        elapsed: Share of the run since the previous development step.
        capped: Whether caps apply.
    """
    caps: dict[tuple[int, ...], int] = {
        (n,): unit_cap(int(account.living_steps(n).sum()), elapsed) for n in range(len(account.alive))
    }
    for n, alive in enumerate(account.alive):
        caps |= {(n, unit): unit_cap(int(row.sum()), elapsed) for unit, row in enumerate(alive)}
    taken: dict[tuple[int, ...], int] = defaultdict(int)

    def allowed(owner: tuple[int, ...]) -> bool:
        if capped and taken[owner] >= caps[owner]:
            account.bound.add(account.names[owner[0]])
            return False
        return True

    worth, left, least = account.worth(), account.pairs(), shares.get("pairs", 0.0)
    for _, _, (n, step), fallen in sorted(steps):
        if not _wanted(fallen, shares.get("steps"), account.steps()):
            continue
        spent = worth[n] * int((account.alive[n][:, step] & account.units[n]).sum())
        # Where pairs are counted and steps are not, no step goes that takes the pairs below what is to live.
        if ("steps" in shares or left - spent >= least) and allowed((n,)) and account.kill_step(n, step):
            taken[(n,)] += 1
            left -= spent
    # Nor, the other way round, a pair that takes a step of its layer along.
    least, one = shares.get("steps", 0.0) * (1 - 1e-12), 1 / sum(a.shape[1] for a in account.alive)
    for _, _, (n, unit, step), fallen in sorted(pairs):
        if not _wanted(fallen, shares.get("pairs"), left):
            continue
        if "pairs" not in shares and account.ends_step(n, unit, step) and account.steps() - one < least:
            continue
        if allowed((n, unit)) and account.kill_pair(n, unit, step):
            taken[(n, unit)] += 1
            left -= worth[n]


def _wanted(fallen: bool, share: float | None, left: float) -> bool:
    """Whether one more is to be pruned: those below the level, or as many as the share asks for."""
    return fallen if share is None else left > share * (1 + 1e-12)


def strike(account: PairAccount, pairs: Order) -> None:
    """Rules without limits: all below the level.

    Raises:
        DPAPError: a layer would be silent at every step.
    """
    for _, _, (n, unit, step), fallen in pairs:
        if fallen:
            account.alive[n][unit, step] = False
            account.died_pairs[account.names[n]] += 1
    for n, name in enumerate(account.names):
        if not account.living_steps(n).any():
            raise DPAPError(
                f"This development step would silence {name} at every step.",
                fix='the rule has no floor; use rule="dpap", or other constants.',
            )


def check_time_target(target: Mapping[str, Any], num_steps: int) -> None:
    """Refuse what is no share of pairs or steps, and one that floors rule out."""
    for metric, share in target.items():
        check_share(metric, share)
        if share < 1 / num_steps:
            raise DPAPError(
                f"The target of {share:.2%} {metric} cannot be reached: one of {num_steps} steps stays.",
                fix=f"choose a target of at least {1 / num_steps:.4f}.",
            )


def in_order(
    survival: Sequence[FloatArray], use: Sequence[FloatArray], alive: Sequence[BoolArray], fallen: Sequence[BoolArray]
) -> list[tuple[float, float, tuple[int, ...], bool]]:
    """All that are alive; arrays per neuron of any shape, the same in all four."""
    found = []
    for n, (f, u, lives, falls) in enumerate(zip(survival, use, alive, fallen, strict=True)):
        for place in map(tuple, np.argwhere(lives).tolist()):
            found.append((float(f[place]), float(u[place]), (n, *place), bool(falls[place])))
    return found
