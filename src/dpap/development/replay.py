"""A recorded history of pruning, replayed with another choice: the control at matched counts and the same schedule.

The record says how many units of each group are pruned at each development step and how many synapses of each weight
are left after it; a score says which, by its use of that window alone. What cannot be met at a step is made up for at
the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpap.development.report import DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.group import IntArray
from dpap.method.schedule import Schedule
from dpap.pruning.choose import Candidates, Taker
from dpap.report.history import DevelopmentLine, read_history

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDeaths:
    """What was left after one development step."""

    step: int
    """Calls of `dev.step()` up to it."""
    units: dict[str, int] = field(default_factory=dict)
    """Group -> units, isolated ones included."""
    synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses left after it, of the weights that lose them one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """How much was pruned when, in a whole run; for `dpap.DPAP(replay=)`."""

    total_steps: int
    """Calls of `dev.step()` in the run."""
    units: Mapping[str, int]
    """Group -> units of the dense network."""
    steps: tuple[StepDeaths, ...]
    """Development steps, in order."""
    rule: str | None = None
    """Of the run; None: not known, and not checked."""

    @classmethod
    def of(cls, reports: Sequence[DevelopmentReport]) -> Deaths:
        """Of the reports that `dev.step()` returned, those of the whole run.

        Raises:
            DPAPError: There is no report.
        """
        if not reports:
            raise DPAPError("There is no report to take a record from.", fix="keep what dev.step() returns.")
        last = reports[-1]
        return cls(
            total_steps=round(last.step / last.progress),
            units={name: len(alive) for name, alive in last.alive.items()},
            steps=_counted(reports),
        )

    @classmethod
    def read(cls, folder: str | Path) -> Deaths:
        """Of a finished run, from its folder.

        Raises:
            DPAPError: The folder holds no history, or one that is not complete.
        """
        path = Path(folder) / "history.jsonl"
        if not path.is_file():
            raise DPAPError(
                "There is no record of deaths: the folder holds no history.jsonl.",
                where=str(folder),
                fix="give the folder of a finished run.",
            )
        history = read_history(path)
        if history.result is None:
            raise DPAPError(
                "The run is not over, so its record of pruning is not complete.",
                where=str(folder),
                fix=f"finish it first: dpap resume {folder}",
            )
        if any(line.died_synapses and not line.living_synapses for line in history.development):
            raise DPAPError(
                "The run was recorded before living synapses were, so its counts cannot be matched.",
                where=str(path),
                fix="run it again with this version.",
            )
        return cls(
            total_steps=history.run.epochs * history.run.batches,
            units=history.result.units,
            steps=_counted(history.development),
            rule=history.run.rule,
        )

    def check(self, schedule: Schedule, rule: str, units: Mapping[str, int], prunable: Mapping[str, int]) -> None:
        """Whether a run can replay this.

        Args:
            schedule: Of the run.
            rule: Its name.
            units: Group -> units of the dense network.
            prunable: Units that may be pruned of each group, synapses of each weight.

        Raises:
            DPAPError: The record is of another rule, another network, another number of steps or another window.
        """
        if self.rule not in (None, rule):
            raise DPAPError(
                f"The record is of rule {self.rule!r}; this run has {rule!r}.", fix="replay a run of the same rule."
            )
        if dict(self.units) != dict(units):
            name = sorted(dict(self.units).items() ^ dict(units).items())[0][0]
            raise DPAPError(
                f"The record is of another network: {name} has {self.units.get(name, 'no')} units there, "
                f"{units.get(name, 'none')} here.",
                fix="build the model as in the recorded run.",
            )
        if self.total_steps != schedule.total_steps:
            raise DPAPError(
                f"The record is of a run with total_steps {self.total_steps}; this one has {schedule.total_steps}.",
                fix="train for as many epochs, with batches of the same size.",
            )
        possible, before = _deadly(schedule), dict(prunable)
        for at in self.steps:
            fewer = {name for name, left in at.synapses.items() if left < before.get(name, left + 1)}
            died = {*at.units, *fewer}
            before |= at.synapses
            for name in died - prunable.keys():
                raise DPAPError(
                    f"The record prunes {name}, where nothing can be pruned in this run.",
                    fix="protect the same parts (ignore=, only=, frozen parameters) and prune the same kinds.",
                )
            if died and at.step not in possible:
                raise DPAPError(
                    f"The record prunes at step {at.step}, where nothing can be pruned in this run.",
                    fix="give start, stop and development_steps of the recorded run.",
                )

    def take(self, taker: Taker, units: Candidates, synapses: Candidates, step: int) -> None:
        """Take as many as the record has up to this step, from the least survival up.

        Args:
            taker: Prunes them, without caps: those were in force when the record was made.
            units: Units that could be pruned.
            synapses: Synapses that could be pruned.
            step: Calls of `dev.step()` so far.
        """
        account, missing = taker.account, {}
        past = [at for at in self.steps if at.step <= step]
        left = [g.units - sum(at.units.get(g.name, 0) for at in past) for g in account.graph.groups]
        # as floors, so that isolation does not take more than the record has either
        account.floors = [max(floor, living) for floor, living in zip(account.floors, left, strict=True)]
        taker.every_unit(units)
        for n, edge in enumerate(account.edges):
            if not past or edge.weight not in past[-1].synapses:
                continue
            goal = _Number(int(edge.row.sum()) - past[-1].synapses[edge.weight])
            for owner, index in synapses.in_chunks(synapses.owner == n):
                taker.take_synapses(owner, index, [goal])
            missing[edge.weight] = goal.left
        for group, alive, living in zip(account.graph.groups, account.alive, left, strict=True):
            missing[group.name] = int(alive.sum()) - living
        for name, number in missing.items():
            if number > 0:
                account.skipped.add(f"{number} of {name} that the record prunes")
                if past == list(self.steps):
                    log.warning("%d of %s that the record prunes were kept.", number, name)


class _Number:
    """So many synapses are to be pruned."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def reached(self) -> bool:
        return self.left <= 0

    def enough(self, owner: IntArray, index: IntArray) -> int:
        return min(self.left, len(owner))

    def spent(self, owner: IntArray, index: IntArray) -> None:
        self.left -= len(owner)


def _counted(reports: Iterable[DevelopmentReport | DevelopmentLine]) -> tuple[StepDeaths, ...]:
    found = []
    for report in reports:
        units: dict[str, int] = {}
        for deaths in (report.died_units, report.isolated_units):
            for name, dead in deaths.items():
                units[name] = units.get(name, 0) + len(dead)
        found.append(StepDeaths(step=report.step, units=units, synapses=dict(report.living_synapses)))
    return tuple(found)


def _deadly(schedule: Schedule) -> set[int]:
    """The steps of a run at which something may be pruned."""
    found, last = set(), 0
    for step in range(1, schedule.total_steps + 1):
        if schedule.develops_at(step):
            if schedule.watches_after(last) and schedule.clock(step, last=last, developments=0).q > 0:
                found.add(step)
            last = step
    return found
