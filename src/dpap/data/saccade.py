"""A simulated event camera that looks at still images: events for anyone, offline. Results on them are simulated.

N-MNIST was recorded by a camera that moved in three saccades along an isosceles triangle while it looked at MNIST on a
monitor (Orchard et al., Frontiers in Neuroscience 9:437, 2015). Here the image moves instead. Of each pixel:

    L(t)    = ln(intensity + floor) of the blurred image where the pixel looks, linear within a step of the simulation
    ON      when L rises by the pixel's threshold above the level that it remembers, OFF when it falls by as much
    then    it is blind for the refractory time, and remembers the level at the end of it

so the number and the times of a step's events have a closed form, and events lie between steps. What is drawn for a
sample (the remembered levels at the start, noise events) depends on (seed, index) alone: a sample has the same events
whatever samples are simulated with it. The thresholds are the sensor's and depend on the seed.

The defaults are those of `docs/simulated-events.md`: chosen to match the statistics of 1,000 real training samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8

from dpap.data.events.recording import Events
from dpap.data.spec import Dataset, DataSpec, Split, chosen_share
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

CHUNK = 64
"""Samples simulated at once: what lies between stays in the processor's cache."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""


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
            raise _bad(f"window, duration and steps are {self.window}, {self.duration} and {self.steps}", "at least 1")
        if not all(math.isfinite(value) for value in (*positive, *others, *self.onsets, *places)):
            raise _bad("a number is not finite", "finite numbers")
        if min(positive) <= 0 or min(others) < 0:
            raise _bad(
                "a number is out of its range",
                "floor, thresholds and moves above 0; blur, spread, refractory and noise from 0",
            )
        if not len(self.corners) == len(self.onsets) == len(self.moves) > 1:
            raise _bad(
                f"there are {len(self.corners)} corners, {len(self.onsets)} onsets and {len(self.moves)} moves",
                "one of each for a saccade, and at least two saccades",
            )
        ends = [onset + move for onset, move in zip(self.onsets, self.moves, strict=True)]
        if self.onsets[0] < 0 or any(
            end > later for end, later in zip(ends, (*self.onsets[1:], self.duration), strict=True)
        ):
            raise _bad(f"saccades at {self.onsets} that last {self.moves} overlap or outlast {self.duration}", "less")


LIKE_NMNIST = Saccades()
"""Constants that were chosen so that MNIST resembles N-MNIST."""


def saccade_events(
    image: Shaped[np.ndarray, "*shape"], saccades: Saccades = LIKE_NMNIST, *, seed: int = 0, index: int = 0
) -> Events:
    """One recording.

    Args:
        image: (h, w), grey, bytes or floating-point numbers in [0, 1].
        saccades: The camera.
        seed: Of the camera and of all that is drawn.
        index: The sample's number: other draws.

    Returns:
        From time 0. Without any event where the image is uniform and the camera has no noise.

    Raises:
        DPAPError: an image of another shape, range or size.

    >>> image = np.zeros((28, 28), np.uint8)
    >>> image[8:20, 12:16] = 255
    >>> events = saccade_events(image)
    >>> events.sensor, events.duration <= 315_000
    ((34, 34), True)
    """
    found = _simulate(_checked(image[None], saccades, "image"), [index], saccades, seed)
    order = found.time.argsort(kind="stable")
    row, column = np.divmod(found.pixel[order], saccades.window[1])
    return Events(
        t=found.time[order],
        x=column.astype(np.int16),
        y=row.astype(np.int16),
        p=found.on[order],
        sensor=saccades.window,
    )


def saccade_frames(
    images: Shaped[np.ndarray, "*shape"],
    num_steps: int,
    saccades: Saccades = LIKE_NMNIST,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> UInt8[np.ndarray, "N T 2 H W"]:
    """Counts of events in `num_steps` bins of equal time: the `frames` of the recordings, without making these.

    Args:
        images: (N, h, w), grey, bytes or floating-point numbers in [0, 1].
        num_steps: T, over the camera's whole duration.
        saccades: The camera.
        seed: Of the camera and of all that is drawn.
        indices: The samples' numbers, one for each image; None: 0 to N - 1.

    Returns:
        Channel 0 is OFF, 1 is ON. A count above 255 is 255.

    Raises:
        DPAPError: images of another shape, range or size, not as many indices, or fewer than one step.
    """
    if num_steps < 1:
        raise DPAPError(
            f"Events cannot be put into {num_steps} steps.", where="saccade_frames", fix="give at least one step"
        )
    images = _checked(images, saccades, "images")
    numbers = range(len(images)) if indices is None else indices
    if len(numbers) != len(images):
        raise DPAPError(
            f"There are {len(images)} images and {len(numbers)} indices.", where="saccade_frames", fix="give one each"
        )
    shape = (num_steps, 2, *saccades.window)
    frames = np.empty((len(images), *shape), np.uint8)
    for first in range(0, len(images), CHUNK):
        part = slice(first, first + CHUNK)
        found = _simulate(images[part], numbers[part], saccades, seed)
        place = found.sample * num_steps + found.time * num_steps // saccades.duration
        place = (place * 2 + found.on) * math.prod(saccades.window) + found.pixel
        counts = np.bincount(place, minlength=frames[part].size)
        frames[part] = np.minimum(counts, 255, out=counts).reshape(-1, *shape)
    return frames


def as_saccades(
    data: Dataset, num_steps: int, saccades: Saccades = LIKE_NMNIST, *, seed: int = 0, limit: int | None = None
) -> Dataset:
    """A data set of pictures as the camera sees it; its name and credit say that it is simulated.

    The samples are numbered through training, validation and test, in stored order. Colours become grey. About 300
    samples a second; one of 34 x 34 pixels takes 2.3 kB a step.

    Args:
        data: Still pictures.
        num_steps: T.
        saccades: The camera.
        seed: Of the camera and of all that is drawn.
        limit: Simulate a fixed, stratified part of about so many of the training and validation samples, each with the
            events it has without a limit; all of the test samples. None: everything.

    Raises:
        DPAPError: pictures of another range or size, data that are no pictures, a limit that is not from 1 to the
            number of samples, or fewer than one step.
    """
    where = f"data set {data.spec.name!r}"
    if data.spec.timed or data.spec.shape[0] not in (1, 3):
        raise DPAPError(
            f"A sample is {' x '.join(map(str, data.spec.sample_shape))} numbers, no grey or coloured picture.",
            where=where,
            fix="give still pictures without an encoding",
        )
    whole = len(data.train) + len(data.validation)
    if limit is not None and not 1 <= limit <= whole:
        raise DPAPError(f"limit is {limit}.", where=where, fix=f"give a whole number from 1 to {whole}, or none")

    def seen(split: Split, first: int, share: float = 1.0) -> Split:
        chosen = chosen_share(split.labels.cpu(), share)
        rows = first + chosen.nonzero().flatten().numpy()
        frames = saccade_frames(_grey(split.images[chosen]), num_steps, saccades, seed=seed, indices=rows.tolist())
        if silent := int((~frames.reshape(len(frames), -1).any(1)).sum()):
            log.warning("%s: %d of %d simulated recordings hold no event", where, silent, len(frames))
        return Split(images=torch.from_numpy(frames), labels=split.labels[chosen])

    log.info("%s: simulating an event camera, about 300 samples a second", where)
    share = 1.0 if limit is None else limit / whole
    return Dataset(
        spec=saccade_spec(data.spec, num_steps, saccades),
        train=seen(data.train, 0, share),
        validation=seen(data.validation, len(data.train), share),
        test=seen(data.test, whole),
    )


def saccade_spec(spec: DataSpec, num_steps: int, saccades: Saccades = LIKE_NMNIST) -> DataSpec:
    """The facts of a data set of pictures as the camera sees it."""
    return replace(
        spec,
        name=f"{spec.name}-saccade",
        shape=(2, *saccades.window),
        credit=f"simulated events of: {spec.credit}",
        mean=(),
        std=(),
        num_steps=num_steps,
    )


# --------------------------------------------------------------------------------------------------------- the images


def _grey(images: torch.Tensor) -> Shaped[np.ndarray, "N h w"]:
    pictures = images.cpu().numpy()
    if pictures.shape[1] == 1:
        return pictures[:, 0]
    grey = sum(weight * pictures[:, channel].astype(np.float64) for channel, weight in enumerate(GREY))
    assert isinstance(grey, np.ndarray)
    return grey.round().astype(np.uint8) if pictures.dtype == np.uint8 else grey.astype(np.float32)


def _checked(images: np.ndarray, saccades: Saccades, where: str) -> Shaped[np.ndarray, "N h w"]:
    height, width = saccades.window
    if images.ndim != 3 or not 1 <= images.shape[1] <= height or not 1 <= images.shape[2] <= width:
        raise DPAPError(
            f"{where} of shape {images.shape}: expected (images, height, width), of at most {height} x {width} pixels.",
            where="the simulated camera",
            fix="give grey images without a channel axis, or a larger Saccades.window",
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f" or not ((images >= 0) & (images <= 1)).all():  # False for NaN as well
        raise DPAPError(
            f"{where} of type {images.dtype} hold other numbers than bytes, or floats from 0 to 1.",
            where="the simulated camera",
            fix="give bytes, or divide by the largest value",
        )
    return images


def _scene(images: Shaped[np.ndarray, "N h w"], saccades: Saccades) -> Float32[np.ndarray, "Y X N"]:
    """ln(intensity + floor), as far around the window as the movement reaches. Border pixels go on outwards."""
    light = images / (255.0 if images.dtype == np.uint8 else 1.0)
    if saccades.negative:
        light = 1 - light
    radius, margin = math.ceil(3 * saccades.blur), _margin(saccades)
    free = [size - side for size, side in zip(saccades.window, images.shape[1:], strict=True)]
    around = [(margin + radius + rest // 2, margin + radius + rest - rest // 2) for rest in free]
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


def _margin(saccades: Saccades) -> int:
    """Pixels around the window that come into it, and one for what lies between two."""
    return math.ceil(max(abs(place) for corner in saccades.corners for place in corner)) + 1


# ----------------------------------------------------------------------------------------------------- the simulation


class _Found(NamedTuple):
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


def _simulate(images: np.ndarray, indices: Sequence[int], saccades: Saccades, seed: int) -> _Found:
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
    return _Found(sample_of, pixel, on[inside], whole[inside])


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
    corner = _margin(saccades) - places  # of the window, in the scene
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


def _bad(what: str, wanted: str) -> DPAPError:
    return DPAPError(f"{what[0].upper()}{what[1:]}.", where="Saccades", fix=f"give {wanted}")
