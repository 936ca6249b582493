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
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Shaped, UInt8

from dpap.data.events.recording import Events
from dpap.data.saccade_camera import Saccades, simulate
from dpap.data.spec import Dataset, DataSpec, Split, chosen_share
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

CHUNK = 64
"""Samples simulated at once: what lies between stays in the processor's cache."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""


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
    found = simulate(_checked(image[None], saccades, "image"), [index], saccades, seed)
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
        found = simulate(images[part], numbers[part], saccades, seed)
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
