"""Simulated sets of events by name: what `dpap.data.saccade` simulates, kept in the cache as recorded events are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict

import torch

from dpap.data.events.cache import Framed, Sample, draft_of, folder_of, kept, key
from dpap.data.events.framed import EventSettings
from dpap.data.saccade import as_saccades, saccade_spec
from dpap.data.saccade_camera import Saccades
from dpap.data.spec import Dataset, Split
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

VERSION = 1
"""Of what is kept: a simulation that gives other events needs another number."""
SPLITS = ("train", "validation", "test")


def load_simulated(name: str, pictures: Callable[[], Dataset], settings: EventSettings) -> Dataset:
    """Pictures as a simulated camera sees them, all of them; minutes at the first time, then from the cache.

    Args:
        name: Of the data set of events.
        pictures: Loads the pictures.
        settings: Only `num_steps` is free: the camera's movement decides about the rest.

    Raises:
        DPAPError: other settings; what `pictures` raises.
    """
    if settings != EventSettings(num_steps=settings.num_steps):
        raise DPAPError(
            f"Data set {name} is simulated: its frames are of equal time, over the camera's whole movement.",
            where="data.framing, data.duration, data.sensor, data.on_bad_sample, data.test_on_train",
            fix="leave them as they are",
        )
    seen, saccades = pictures(), Saccades()
    folder = folder_of(name, settings.num_steps)
    source = key(VERSION, asdict(saccades), [len(getattr(seen, split)) for split in SPLITS])
    if (found := kept(folder, source)) is not None:
        spec = saccade_spec(seen.spec, settings.num_steps, saccades)
        return Dataset(spec=spec, **{split: _part(found, split) for split in SPLITS})
    log.warning("%s: simulating all of it, which takes minutes, once", name)
    data = as_saccades(seen, settings.num_steps, saccades)
    with draft_of(folder, source) as draft:
        draft.keep(_framed(data))
    return data


def _framed(data: Dataset) -> Framed:
    images = torch.cat([getattr(data, split).images for split in SPLITS]).numpy()
    samples = [Sample(label, split, "") for split in SPLITS for label in getattr(data, split).labels.tolist()]
    return Framed(images, samples, [])


def _part(found: Framed, split: str) -> Split:
    """Stored one after another, so that a part of the file is a split: nothing is copied."""
    rows = [row for row, sample in enumerate(found.samples) if sample.split == split]
    labels = torch.tensor([found.samples[row].label for row in rows])
    return Split(images=torch.from_numpy(found.images[rows[0] : rows[-1] + 1]), labels=labels)
