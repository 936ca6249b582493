"""One recording of an event camera, and the frames of counts that a network sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int16, Int64, Shaped

from dpap.errors import DPAPError

By = Literal["time", "count"]
BLOCK = 1 << 16
"""Events counted at once: what lies between stays in the processor's cache."""


class BadEvent(DPAPError):
    """An event that cannot be: its number (from 0) in the recording, so that a reader can say where it lies."""

    def __init__(self, event: int, what: str, *, fix: str) -> None:
        self.event = event
        super().__init__(what, where=f"event {event}", fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """One recording, in the order of time. It may be empty.

    Attributes:
        t: Microseconds, not decreasing.
        x: Columns from 0, left to right.
        y: Rows from 0, downwards.
        p: True: brighter (ON); False: darker (OFF).
        sensor: (height, width) in pixels.

    Raises:
        DPAPError: arrays of other types or lengths; `BadEvent`: a time that goes back, or a place off the sensor.

    >>> t, x, y = np.array([0, 5, 9]), np.array([1, 0, 1], np.int16), np.array([0, 0, 2], np.int16)
    >>> events = Events(t=t, x=x, y=y, p=np.array([True, False, True]), sensor=(3, 2))
    >>> len(events), events.duration
    (3, 10)
    """

    t: Int64[np.ndarray, " N"]
    x: Int16[np.ndarray, " N"]
    y: Int16[np.ndarray, " N"]
    p: Bool[np.ndarray, " N"]
    sensor: tuple[int, int]

    def __post_init__(self) -> None:
        for name, kind in (("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.bool_)):
            array = getattr(self, name)
            if array.dtype != kind or array.shape != (len(self.t),):
                raise DPAPError(
                    f"{name} is {array.dtype} of shape {array.shape}, expected {np.dtype(kind)} of shape "
                    f"({len(self.t)},).",
                    where="Events",
                    fix="give one number of that type for each event",
                )
        if not len(self):
            return
        if (back := self.t[1:] < self.t[:-1]).any():
            event = int(back.argmax()) + 1
            raise BadEvent(
                event,
                f"Time goes back from {self.t[event - 1]} to {self.t[event]} us.",
                fix="sort the events by time, or get the file again",
            )
        height, width = self.sensor
        for name, places, size in (("x", self.x, width), ("y", self.y, height)):
            if places.min() < 0 or places.max() >= size:
                event = int(((places < 0) | (places >= size)).argmax())
                raise BadEvent(
                    event,
                    f"{name} is {places[event]} on a sensor {width} wide and {height} high.",
                    fix="give the sensor that recorded it, or get the file again",
                )

    def __len__(self) -> int:
        return len(self.t)

    @property
    def duration(self) -> int:
        """Microseconds from the first event to the last, both included; 0 of an empty recording."""
        return int(self.t[-1] - self.t[0]) + 1 if len(self) else 0

    def between(self, start: int, stop: int) -> Events:
        """The events of `start` <= t < `stop`, at their times; views of these arrays."""
        rows = slice(*np.searchsorted(self.t, (start, stop)))
        return Events(t=self.t[rows], x=self.x[rows], y=self.y[rows], p=self.p[rows], sensor=self.sensor)


def frames(
    events: Events,
    num_steps: int,
    *,
    by: By = "time",
    duration: int | None = None,
    start: int | None = None,
    dtype: npt.DTypeLike = np.uint8,
) -> Shaped[np.ndarray, "T 2 H W"]:
    """Counts of events in `num_steps` bins, for each polarity and pixel: channel 0 is OFF, 1 is ON.

    A count above what `dtype` can hold becomes the largest it can.

    Args:
        events: The recording. An empty one gives zeros.
        num_steps: T.
        by: "time": bins of equal time; bin k has the events with floor((t - start) T / duration) = k. "count": bins of
            equally many events (give or take one) in the order of time.
        duration: Microseconds that the bins share; events after it are left out. None: up to the last event.
        start: Microseconds; events before it are left out. None: the first event.
        dtype: A type of numbers.

    Raises:
        DPAPError: fewer than one step, or a duration that is not above 0.

    >>> four = np.arange(4)
    >>> place = np.zeros(4, np.int16)
    >>> events = Events(t=four, x=place, y=place, p=four > 0, sensor=(1, 1))
    >>> frames(events, 2)[:, :, 0, 0].tolist()
    [[1, 1], [0, 2]]
    """
    if num_steps < 1 or (duration is not None and duration < 1):
        raise DPAPError(
            f"Events cannot be put into {num_steps} steps of {duration} microseconds altogether.",
            where="frames",
            fix="give at least one step, and at least one microsecond",
        )
    height, width = events.sensor
    cells = 2 * height * width
    found = np.empty((num_steps, cells), dtype)
    largest = np.iinfo(np.int64 if found.dtype.kind == "f" else found.dtype).max
    edges = _edges(events, num_steps, by, duration, start)
    together = max(1, num_steps * BLOCK // max(1, len(events)))  # a short recording is counted at once
    for first in range(0, num_steps, together):
        inner = edges[first : first + together + 1]
        rows = slice(int(inner[0]), int(inner[-1]))
        steps = len(inner) - 1
        where = np.repeat(np.arange(steps) * cells, np.diff(inner))
        where += events.p[rows] * np.int64(height * width)
        where += events.y[rows] * np.int64(width)
        where += events.x[rows]
        counts = np.bincount(where, minlength=steps * cells)
        found[first : first + steps] = np.minimum(counts, largest).reshape(steps, cells)
    return found.reshape(num_steps, 2, height, width)


def _edges(
    events: Events, num_steps: int, by: By, duration: int | None, start: int | None
) -> Int64[np.ndarray, " edges"]:
    """Bin k has the events from number `edges[k]` to before `edges[k + 1]`."""
    begin = start if start is not None else int(events.t[0]) if len(events) else 0
    length = duration if duration is not None else max(1, int(events.t[-1]) + 1 - begin) if len(events) else 1
    steps = np.arange(num_steps + 1)
    if by == "time":
        return np.searchsorted(events.t, begin + -(-steps * length // num_steps))
    first, last = (int(edge) for edge in np.searchsorted(events.t, (begin, begin + length)))
    return first + steps * (last - first) // num_steps
