"""When a run develops, observes and prunes; and whether the learning rate leaves time to learn."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch.optim import Optimizer

from dpap.errors import DPAPError
from dpap.method.survival import ROUNDING, Clock

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The clockwork of a run; steps are calls of `dev.step()`.

    Raises:
        DPAPError: A count below 1, no window, or a window that holds no development step.
    """

    total_steps: int
    start: float
    stop: float
    memory: float
    development_steps: int
    observe_every: int
    windowed: bool
    """False: develop at every step and observe every pass, with no window (rules `paper` and `released`)."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "development_steps", "observe_every"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise DPAPError(f"{name}={value!r} is no count.", fix="give an integer of at least 1.")
        if not 0 <= self.start < self.stop <= 1:
            raise DPAPError(
                f"start={self.start}, stop={self.stop} is no window.",
                fix="give shares of the run with 0 <= start < stop <= 1.",
            )
        if not self.memory > 0:
            raise DPAPError(f"memory={self.memory} is no share of the run.", fix="give a positive number such as 0.03.")
        if self.windowed and (self.stop - self.start) * self.developments < 1 - ROUNDING:
            raise DPAPError(
                f"The window from {self.start} to {self.stop} holds less than one of the {self.developments} "
                "development steps.",
                fix="widen the window, or call dev.step() more often (each iteration) with more development_steps.",
            )

    @property
    def developments(self) -> int:
        """Development steps in the whole run."""
        return min(self.development_steps, self.total_steps) if self.windowed else self.total_steps

    def develops_at(self, step: int) -> bool:
        """Whether a development step is due; in integers, so that none is lost to rounding."""
        return step * self.developments // self.total_steps > (step - 1) * self.developments // self.total_steps

    def watches_after(self, step: int) -> bool:
        """Whether the window that begins here is observed: from 3 memories before `start`, before the last one ends."""
        progress = step / self.total_steps
        return not self.windowed or self.start - 3 * self.memory - ROUNDING <= progress < self.stop - ROUNDING

    def observes(self, block: int) -> bool:
        """Whether the `observing()` block with this number in its window is looked at: the first, and every k-th."""
        return not self.windowed or block % self.observe_every == 0

    def clock(self, step: int, *, last: int, developments: int) -> Clock:
        """Where the run stands; `last`: the previous development step, `developments`: how many there were."""
        return Clock(
            progress=step / self.total_steps,
            elapsed=(step - last) / self.total_steps,
            start=self.start,
            stop=self.stop,
            memory=self.memory,
            epoch=developments,
        )


class RateWatch:
    """Warns when units are pruned while the learning rate still rises, or after it has become too small."""

    def __init__(self, schedule: Schedule, optimizers: Iterable[Optimizer]) -> None:
        self.schedule, self.optimizers = schedule, tuple(optimizers)
        self.peak = self.previous = self._rate()

    def _rate(self) -> float:
        return max((float(g["lr"]) for o in self.optimizers for g in o.param_groups if "lr" in g), default=0.0)

    def after(self, step: int) -> None:
        """Look at the rate after a step of the run."""
        rate, s = self._rate(), self.schedule
        self.peak = max(self.peak, rate)
        before, now = (step - 1) / s.total_steps, step / s.total_steps
        if s.windowed and before < s.start <= now and rate > self.previous:
            log.warning("The learning rate still rises at start=%g: begin after its warm-up.", s.start)
        if s.windowed and before < s.stop <= now and rate < self.peak / 4:
            log.warning("The learning rate at stop=%g is under a quarter of its peak: stop earlier.", s.stop)
        self.previous = rate
