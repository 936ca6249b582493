"""The event camera of the simulated saccades: what its pixels see on their path, and when they fire."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped

from dpap.errors import DPAPError


@dataclass(frozen=True, slots=True, kw_only=True)
class Saccades:
    """The camera and its movement. Times are in microseconds, lengths in pixels, levels in natural logarithms.

    Attributes:
        window: (height, width) of the sensor.
        corners: (x, y) of the image's centre from the window's, where each saccade begins; the last one ends where the
            first began.
        onsets: When each saccade begins.
        moves: How long each lasts. Its speed rises and falls as a raised cosine.
        duration: Of the recording.
        blur: Standard deviation of the optics' Gaussian.
        floor: Added to the intensity (0 to 1) before the logarithm: light that is there where the image is black.
        negative: Whether the image is shown as a negative, as the polarities of the N-MNIST samples say.
        threshold_on: Rise of the level that is an event.
        threshold_off: Fall of the level that is an event.
        spread: Standard deviation of the logarithm of the thresholds over the pixels, ON and OFF apart.
        refractory: How long a pixel is blind after an event.
        noise: Events without a cause, per pixel and second; all are ON, as nearly all of the real camera's are.
        steps: Of the simulation in one saccade.

    Raises:
        DPAPError: a field out of its range, or saccades that overlap or outlast the recording.
    """

    window: tuple[int, int] = (34, 34)
    corners: tuple[tuple[float, float], ...] = ((-2.85, -1.4), (-0.9, 4.05), (2.95, -1.9))
    onsets: tuple[float, ...] = (6_000, 103_000, 212_000)
    moves: tuple[float, ...] = (85_000, 94_000, 92_000)
    duration: int = 315_000
    blur: float = 0.6
    floor: float = 0.05
    negative: bool = True
    threshold_on: float = 0.255
    threshold_off: float = 0.24
    spread: float = 0.03
    refractory: float = 1_600
    noise: float = 0.36
    steps: int = 36

    def __post_init__(self) -> None:
        counts = [self.duration, self.steps, *self.window]
        positive = [self.floor, self.threshold_on, self.threshold_off, *self.moves]
        others = [self.blur, self.spread, self.refractory, self.noise]
        places = [place for corner in self.corners for place in corner]
        if min(counts) < 1 or len(self.window) != 2:
            raise bad_saccades(
                f"window, duration and steps are {self.window}, {self.duration} and {self.steps}", "at least 1"
            )
        if not all(math.isfinite(value) for value in (*positive, *others, *self.onsets, *places)):
            raise bad_saccades("a number is not finite", "finite numbers")
        if min(positive) <= 0 or min(others) < 0:
            raise bad_saccades(
                "a number is out of its range",
                "floor, thresholds and moves above 0; blur, spread, refractory and noise from 0",
            )
        if not len(self.corners) == len(self.onsets) == len(self.moves) > 1:
            raise bad_saccades(
                f"there are {len(self.corners)} corners, {len(self.onsets)} onsets and {len(self.moves)} moves",
                "one of each for a saccade, and at least two saccades",
            )
        ends = [onset + move for onset, move in zip(self.onsets, self.moves, strict=True)]
        if self.onsets[0] < 0 or any(
            end > later for end, later in zip(ends, (*self.onsets[1:], self.duration), strict=True)
        ):
            raise bad_saccades(
                f"saccades at {self.onsets} that last {self.moves} overlap or outlast {self.duration}", "less"
            )


def margin(saccades: Saccades) -> int:
    """Pixels around the window that come into it, and one for what lies between two."""
    return math.ceil(max(abs(place) for corner in saccades.corners for place in corner)) + 1


class Found(NamedTuple):
    """Events of several samples, in no order."""

    sample: Int64[np.ndarray, " E"]
    pixel: Int64[np.ndarray, " E"]
    """Row by row."""
    on: Bool[np.ndarray, " E"]
    time: Int64[np.ndarray, " E"]


class _Fired(NamedTuple):
    cell: Int64[np.ndarray, " E"]
    """(pixel, sample), counted through."""
    on: Bool[np.ndarray, " E"]
    time: Float[np.ndarray, " E"]


def simulate(images: np.ndarray, indices: Sequence[int], saccades: Saccades, seed: int) -> Found:
    """All events before the recording ends. Arrays are (pixel, sample): samples lie side by side."""
    pixels, count = math.prod(saccades.window), len(images)
    thresholds = _thresholds(saccades, seed)
    phase = np.empty((pixels, count), np.float32)
    noise = []
    for sample, index in enumerate(indices):
        draws = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, index)))
        phase[:, sample] = draws.random(pixels, dtype=np.float32)
        amount = draws.poisson(saccades.noise * pixels * saccades.duration * 1e-6)
        cells = draws.integers(pixels, size=amount) * count + sample
        noise.append(_Fired(cells, np.ones(amount, np.bool_), draws.random(amount) * saccades.duration))
    fired = [*noise, *_changes(_scene(images, saccades), thresholds, phase, saccades)]
    cell, on, time = (np.concatenate([getattr(part, name) for part in fired]) for name in _Fired._fields)
    whole = np.floor(time).astype(np.int64)
    inside = whole < saccades.duration
    pixel, sample_of = np.divmod(cell[inside], count)
    return Found(sample_of, pixel, on[inside], whole[inside])


def _thresholds(saccades: Saccades, seed: int) -> Float32[np.ndarray, "2 pixels"]:
    """Of OFF and ON, the same for all samples."""
    draws = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    spread = draws.standard_normal((2, math.prod(saccades.window)))
    mean = np.array([[saccades.threshold_off], [saccades.threshold_on]])
    return (mean * np.exp(saccades.spread * spread)).astype(np.float32)


def _path(saccades: Saccades) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, "S 2"]]:
    """Times and places (x, y) of the image's centre; between two of them it moves evenly or rests."""
    corners = np.array([*saccades.corners, saccades.corners[0]])
    part = np.arange(saccades.steps + 1) / saccades.steps
    way = part - np.sin(2 * np.pi * part) / (2 * np.pi)  # the integral of a raised cosine
    times = [onset + move * part for onset, move in zip(saccades.onsets, saccades.moves, strict=True)]
    places = [start + way[:, None] * (stop - start) for start, stop in pairwise(corners)]
    return np.concatenate(times), np.concatenate(places)


def _views(
    scene: Float32[np.ndarray, "Y X N"], places: Float[np.ndarray, "S 2"], saccades: Saccades
) -> Iterator[Float32[np.ndarray, " cells"]]:
    """What the pixels see at each place, bilinear, flat. The last two views stay, older ones are written over."""
    height, width = saccades.window
    count = scene.shape[2]
    rows, other = np.empty((2, height, width + 1, count), np.float32)
    views = np.empty((2, height, width, count), np.float32)
    corner = margin(saccades) - places  # of the window, in the scene
    for number, (x, y) in enumerate(corner):
        left, top = math.floor(x), math.floor(y)
        right, low = np.float32(x - left), np.float32(y - top)
        strip = scene[top : top + height + 1, left : left + width + 1]
        np.multiply(strip[:-1], 1 - low, out=rows)
        np.multiply(strip[1:], low, out=other)
        rows += other
        view = views[number % 2]
        np.multiply(rows[:, :-1], 1 - right, out=view)
        view += np.multiply(rows[:, 1:], right, out=other[:, 1:])
        yield view.ravel()


def _changes(
    scene: Float32[np.ndarray, "Y X N"],
    thresholds: Float32[np.ndarray, "2 pixels"],
    phase: Float32[np.ndarray, "pixels N"],
    saccades: Saccades,
) -> Iterator[_Fired]:
    """The events of each step of the simulation."""
    times, places = _path(saccades)
    views = _views(scene, places, saccades)
    before = next(views)
    pixels = _Pixels(before, np.repeat(thresholds, scene.shape[2], axis=1), phase.ravel(), saccades.refractory)
    for (start, stop), now in zip(pairwise(times), views, strict=True):
        yield pixels.step(start, stop, before, now)
        before = now


class _Pixels:
    """What the pixels of a chunk remember; flat, (pixel, sample).

    One that sees waits for its level to leave (low, high); a blind one has infinite bounds until it sees again.
    """

    def __init__(
        self,
        level: Float32[np.ndarray, " cells"],
        thresholds: Float32[np.ndarray, "2 cells"],
        phase: Float32[np.ndarray, " cells"],
        refractory: float,
    ) -> None:
        self.down, self.up = thresholds
        self.refractory = refractory
        self.low = level - phase * (self.down + self.up)  # anywhere within reach: a pixel's past is not known
        self.high = self.low + (self.down + self.up)
        self.until = np.zeros(level.size)
        """When the pixel last began to see, or will."""
        self.blind = np.empty(0, np.int64)
        self._out, self._falls = np.empty((2, level.size), np.bool_)

    def step(
        self, start: float, stop: float, before: Float32[np.ndarray, " cells"], now: Float32[np.ndarray, " cells"]
    ) -> _Fired:
        """The events while the levels go evenly from `before` to `now`."""
        self.blind = self._wake(self.blind, start, stop, before, now)
        np.less(now, self.low, out=self._falls)
        np.greater(now, self.high, out=self._out)
        self._out |= self._falls
        cells = np.flatnonzero(self._out)
        on = ~self._falls[cells]
        # Along the ramp: the first crossing, then one more after each refractory time and climb.
        climb = np.maximum(np.abs(now[cells] - before[cells]), np.float32(1e-6)).astype(np.float64) / (stop - start)
        way = np.abs(np.where(on, self.high[cells], self.low[cells]) - before[cells])
        first = np.minimum(start + way / climb, stop)
        every = np.where(on, self.up[cells], self.down[cells]) / climb + self.refractory
        more = np.floor((stop - first) / every)
        self.until[cells] = first + more * every + self.refractory
        late = self._wake(cells, start, stop, before, now)
        self.low[late], self.high[late] = -np.inf, np.inf
        self.blind = np.concatenate([self.blind, late])
        return _repeated(cells, on, first, every, more.astype(np.int64) + 1)

    def _wake(
        self, cells: Int64[np.ndarray, " C"], start: float, stop: float, before: np.ndarray, now: np.ndarray
    ) -> Int64[np.ndarray, " D"]:
        """Those that see again before the step ends remember the level of that moment. Returns the others."""
        sees = self.until[cells] <= stop
        awake = cells[sees]
        level = before[awake] + (now[awake] - before[awake]) * ((self.until[awake] - start) / (stop - start))
        self.low[awake], self.high[awake] = level - self.down[awake], level + self.up[awake]
        asleep: np.ndarray = cells[~sees]
        return asleep


def _repeated(cells: np.ndarray, on: np.ndarray, first: np.ndarray, every: np.ndarray, counts: np.ndarray) -> _Fired:
    """Events at first, first + every, ... of each cell."""
    number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return _Fired(
        np.repeat(cells, counts), np.repeat(on, counts), np.repeat(first, counts) + number * np.repeat(every, counts)
    )


def bad_saccades(what: str, wanted: str) -> DPAPError:
    return DPAPError(f"{what[0].upper()}{what[1:]}.", where="Saccades", fix=f"give {wanted}")


def _scene(images: Shaped[np.ndarray, "N h w"], saccades: Saccades) -> Float32[np.ndarray, "Y X N"]:
    """ln(intensity + floor), as far around the window as the movement reaches. Border pixels go on outwards."""
    light = images / (255.0 if images.dtype == np.uint8 else 1.0)
    if saccades.negative:
        light = 1 - light
    radius, edge = math.ceil(3 * saccades.blur), margin(saccades)
    free = [size - side for size, side in zip(saccades.window, images.shape[1:], strict=True)]
    around = [(edge + radius + rest // 2, edge + radius + rest - rest // 2) for rest in free]
    light = np.pad(np.moveaxis(light, 0, 2), (*around, (0, 0)), mode="edge")
    for axis in (0, 1) if radius else ():
        light = _blurred(light, axis, radius, saccades.blur)
    return np.log(light + saccades.floor).astype(np.float32)


def _blurred(light: np.ndarray, axis: int, radius: int, sigma: float) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    inner = light.shape[axis] - 2 * radius
    parts = (
        weight * light.take(range(first, first + inner), axis) for first, weight in enumerate(weights / weights.sum())
    )
    return np.asarray(sum(parts))
