"""Recordings become frames of counts: how, and what becomes of a bad one."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from dpap.data.events.cache import Draft, Framed, Sample, draft_of, folder_of, kept, key
from dpap.data.events.recording import By, Events, frames
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

OnBadSample = Literal["error", "skip"]
VERSION = 1
"""Of what is cached: frames that are made in another way need another number."""
SKIP = "or leave such recordings out, counted: --on-bad-sample skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """How a data set of events is read.

    Attributes:
        num_steps: T, the frames of a recording.
        by: "time": frames of equal time; "count": of equally many events.
        duration: Microseconds from a recording's first event that the frames share; None: up to its last.
        on_bad_sample: "error": a recording that is empty, damaged or makes no sense is an error; "skip": it is left
            out, which a log line says, with their number and the first.
        sensor: (height, width) of one's own recordings, where the files do not say.
        test_on_train: Where nothing can be set aside, test on the training recordings: it only shows that a run works.

    Raises:
        DPAPError: a field out of its range.
    """

    num_steps: int = 20
    by: By = "time"
    duration: int | None = None
    on_bad_sample: OnBadSample = "error"
    sensor: tuple[int, int] | None = None
    test_on_train: bool = False

    def __post_init__(self) -> None:
        if (
            self.num_steps < 1
            or self.by not in get_args(By)
            or self.on_bad_sample not in get_args(OnBadSample)
            or (self.duration is not None and self.duration < 1)
            or (self.sensor is not None and min(self.sensor) < 1)
        ):
            raise DPAPError(
                f"These settings make no sense: {self}.",
                where="EventSettings",
                fix="give at least one step, microsecond and pixel, frames by time or count, and error or skip",
            )

    def framed(self, events: Events) -> UInt8[np.ndarray, "T 2 H W"]:
        """The frames of one recording."""
        return frames(events, self.num_steps, by=self.by, duration=self.duration)


class Recordings(ABC):
    """The recordings of a data set, as they lie."""

    name: str
    where: str
    """The folder or the archives."""
    shape: tuple[int, int, int]
    """Of a frame: (channels, height, width)."""

    @cached_property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Label k is `classes[k]`."""

    @cached_property
    @abstractmethod
    def samples(self) -> list[Sample]:
        """All of them."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the recordings depend on."""

    @abstractmethod
    def read(self) -> Iterator[tuple[int, Callable[[], Events]]]:
        """The number of a sample and what reads it, of all of them in any order; each before the next is asked for."""


def framed(recordings: Recordings, settings: EventSettings) -> Framed:
    """The frames of every recording, from the cache where they are in it.

    Raises:
        DPAPError: the first recording that is empty, damaged or makes no sense, unless such ones are left out.
    """
    files = [(str(path.absolute()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in recordings.files()]
    framing = (settings.num_steps, settings.by, settings.duration, recordings.shape, settings.sensor)
    folder, source = folder_of(recordings.name, VERSION, framing, recordings.where), key(files)
    found = kept(folder, source)
    if found is None or (found.skipped and settings.on_bad_sample == "error"):
        count = len(recordings.samples)
        log.info("%s: %d recordings become frames of %d steps", recordings.name, count, settings.num_steps)
        with draft_of(folder, source) as draft:
            found = _made(recordings, settings, draft)
            draft.keep(found)
    if found.skipped:
        log.warning(
            "%s: %d of %d recordings are left out, first: %s",
            recordings.name, len(found.skipped), len(found.skipped) + len(found.samples), found.skipped[0],
        )  # fmt: skip
    return found


def _made(recordings: Recordings, settings: EventSettings, draft: Draft) -> Framed:
    steps, (channels, height, width) = settings.num_steps, recordings.shape
    images = draft.room((len(recordings.samples), steps, channels, height, width))
    skipped = {}
    for row, read in recordings.read():
        try:
            counts = settings.framed(_not_empty(read(), recordings.samples[row].where))
        except DPAPError as error:
            if settings.on_bad_sample == "error":
                fix = ", ".join(part for part in (error.fix, SKIP) if part)
                raise DPAPError(error.what, where=error.where, fix=fix) from error
            skipped[row] = f"{error.where}: {error.what}"
        else:  # OFF comes before ON: a set that has no OFF keeps the last of its channels
            images[row] = counts.reshape(steps, -1, height, width)[:, -channels:]
    rows = [row for row in range(len(images)) if row not in skipped]
    return Framed(
        images[rows] if skipped else images,
        [recordings.samples[row] for row in rows],
        [skipped[row] for row in sorted(skipped)],
    )


def _not_empty(events: Events, where: str) -> Events:
    if not len(events):
        raise DPAPError("A recording holds no events.", where=where, fix="remove it")
    return events
