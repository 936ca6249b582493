"""Recordings of events, and frames of counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpap.data.events import BadEvent, Events, frames
from dpap.data.events import recording as module
from dpap.errors import DPAPError


def events(*rows: tuple[int, int, int, int], sensor: tuple[int, int] = (3, 4)) -> Events:
    """A recording of (t, x, y, p)."""
    t, x, y, p = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(t=t.copy(), x=x.astype(np.int16), y=y.astype(np.int16), p=p.astype(bool), sensor=sensor)


def by_hand(recording: Events, num_steps: int, begin: int, length: int) -> np.ndarray:
    """Frames of equal time, one event after another."""
    found = np.zeros((num_steps, 2, *recording.sensor), np.int64)
    for t, x, y, p in zip(recording.t, recording.x, recording.y, recording.p, strict=True):
        step = (int(t) - begin) * num_steps // length
        if 0 <= step < num_steps:
            found[step, int(p), y, x] += 1
    return found


def test_a_recording() -> None:
    recording = events((5, 0, 0, 1), (5, 3, 2, 0), (9, 1, 1, 1))
    assert len(recording) == 3
    assert recording.duration == 5
    assert (len(events()), events().duration) == (0, 0)
    part = recording.between(5, 9)
    assert part.t.tolist() == [5, 5]
    assert len(recording.between(6, 9)) == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        recording.sensor = (1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("row", "what", "event"),
    [
        ((3, 0, 0, 1), "Time goes back from 5 to 3 us", 1),
        ((5, 4, 0, 1), "x is 4 on a sensor 4 wide and 3 high", 1),
        ((5, -1, 0, 1), "x is -1", 1),
        ((5, 0, 3, 1), "y is 3", 1),
        ((5, 0, -2, 1), "y is -2", 1),
    ],
)
def test_an_event_that_cannot_be_is_named(row: tuple[int, int, int, int], what: str, event: int) -> None:
    with pytest.raises(BadEvent, match=what) as caught:
        events((5, 0, 0, 1), row, (7, 0, 0, 1))
    assert caught.value.event == event
    assert caught.value.where == f"event {event}"


def test_arrays_of_another_length() -> None:
    recording = events((5, 0, 0, 1), (6, 0, 0, 1))
    with pytest.raises(Exception, match="N|x is int16 of shape"):  # the shape checks of the tests may see it first
        dataclasses.replace(recording, x=recording.x[:1])


def test_frames_of_equal_time_by_hand() -> None:
    recording = events((10, 0, 0, 1), (12, 0, 0, 1), (13, 3, 2, 0), (19, 1, 1, 1))
    found = frames(recording, 2)
    assert (found.shape, found.dtype) == ((2, 2, 3, 4), np.uint8)
    assert (found[0, 1, 0, 0], found[0, 0, 2, 3], found[1, 1, 1, 1], found.sum()) == (2, 1, 1, 4)
    # From 0, in 20 microseconds: two halves of 10, so that nothing is in the first.
    assert frames(recording, 2, start=0, duration=20).sum((1, 2, 3)).tolist() == [0, 4]
    # What is outside is left out: before 12, and from 18 on.
    assert frames(recording, 3, start=12, duration=6).sum((1, 2, 3)).tolist() == [2, 0, 0]


def test_frames_of_equal_counts_by_hand() -> None:
    recording = events(*((t, 0, 0, 1) for t in (0, 0, 0, 0, 900, 1000, 1000)))
    assert frames(recording, 3, by="count").sum((1, 2, 3)).tolist() == [2, 2, 3]
    assert frames(recording, 2, by="count", duration=900).sum((1, 2, 3)).tolist() == [2, 2]
    assert frames(recording, 9, by="count").sum() == 7, "more frames than events: some are empty"


def test_a_count_saturates() -> None:
    recording = events(*((t, 1, 1, 1) for t in range(300)))
    assert frames(recording, 1)[0, 1, 1, 1] == 255
    assert frames(recording, 1, dtype=np.int8)[0, 1, 1, 1] == 127
    assert frames(recording, 1, dtype=np.uint16)[0, 1, 1, 1] == 300
    assert frames(recording, 1, dtype=np.float32)[0, 1, 1, 1] == 300


def test_frames_of_nothing() -> None:
    for by in ("time", "count"):
        assert frames(events(), 4, by=by).shape == (4, 2, 3, 4)
        assert frames(events(), 4, by=by).sum() == 0


@pytest.mark.parametrize("wrong", [{"num_steps": 0}, {"num_steps": 2, "duration": 0}])
def test_frames_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(DPAPError, match="cannot be put into"):
        frames(events((0, 0, 0, 1)), **wrong)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_however_many_steps_are_counted_at_once(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(0)
    columns = (np.sort(rng.integers(0, 1000, 50)), *rng.integers(0, (4, 3, 2), (50, 3)).T)
    recording = events(*zip(*(column.tolist() for column in columns), strict=True))
    wanted = by_hand(recording, 6, int(recording.t[0]), recording.duration)
    monkeypatch.setattr(module, "BLOCK", block)
    assert (frames(recording, 6) == wanted).all()
    assert (frames(recording, 6, dtype=np.float32) == wanted).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_frames_equal_counting_one_by_one(data: st.DataObject) -> None:
    row = st.tuples(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1))
    recording = events(*sorted(data.draw(st.lists(row, min_size=1, max_size=40))))
    num_steps = data.draw(st.integers(1, 7))
    own = frames(recording, num_steps)
    assert (own == by_hand(recording, num_steps, int(recording.t[0]), recording.duration)).all()
    assert own.sum() == len(recording), "the whole recording is in its own frames"
    start, duration = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 10**6))
    window = frames(recording, num_steps, start=start, duration=duration)
    assert (window == by_hand(recording, num_steps, start, duration)).all()
    counts = frames(recording, num_steps, by="count").sum((1, 2, 3))
    assert counts.sum() == len(recording)
    assert counts.max() - counts.min() <= 1
