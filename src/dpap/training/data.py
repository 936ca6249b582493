"""The data of a run: loaded as its config says, and in the memory format of the network."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from dpap.config import Config, DataConfig
from dpap.data import SOURCES, Dataset, DataSpec, Split, load_dataset
from dpap.data.encoding import Encoding
from dpap.data.events import EVENT_SOURCES
from dpap.data.spec import chosen_share
from dpap.errors import DPAPError

BATCH = 256
"""Samples evaluated at once, at most; it changes no answer."""
VALUES = 1 << 22
"""Numbers in a batch of frames that is evaluated, at most: a network holds many times as many."""


def load_data(config: Config) -> Dataset:
    """The data set of a config: recordings as `model.num_steps` frames, pictures with their encoding; dealt
    into folds where the config says so.

    Raises:
        DPAPError: the data are not as they should be, or not here and not to be had; or samples must not be mirrored.
    """
    settings = config.data
    if settings.events:
        data = load_dataset(settings.name, settings.path, settings.event_settings(config.model.num_steps))
        _check_augmentation(config, data.spec)
    else:
        data = load_dataset(settings.name, settings.path)
        data = replace(data, spec=_encoded(config, data.spec))
    return data if settings.folds is None else data.fold(settings.fold, settings.folds)


def spec_of(config: Config) -> DataSpec:
    """The facts of a config's data; those of a published set are known without it.

    Raises:
        DPAPError: data that have to be looked at are not as they should be, or not here.
    """
    name = config.data.name
    if name in SOURCES:
        return _encoded(config, SOURCES[name].spec)
    if name in EVENT_SOURCES:
        return EVENT_SOURCES[name].spec(config.model.num_steps)
    return load_data(config).spec


def evaluation_batch(spec: DataSpec) -> int:
    """Samples to evaluate at once."""
    if spec.num_steps is None:
        return BATCH
    return max(1, min(BATCH, VALUES // (spec.num_steps * spec.shape[0] * spec.shape[1] * spec.shape[2])))


def in_format(seen: Shaped[Tensor, " *seen"], memory_format: torch.memory_format) -> Shaped[Tensor, " *seen"]:
    """What a network sees, (B, C, H, W) or (T, B, C, H, W), each picture in the memory format."""
    if seen.dim() == 4:
        return seen.contiguous(memory_format=memory_format)
    return seen.flatten(0, 1).contiguous(memory_format=memory_format).view(seen.shape)


def _encoded(config: Config, spec: DataSpec) -> DataSpec:
    """The facts of pictures, with the encoding of the config."""
    if config.data.encoding == "direct":
        return spec
    return replace(spec, encoding=Encoding(name=config.data.encoding, num_steps=config.model.num_steps))


def _check_augmentation(config: Config, spec: DataSpec) -> None:
    """No augmentation that makes nonsense of these data."""
    settings = config.data
    if settings.flip and spec.unmirrored:
        raise DPAPError(
            f"Recordings of {spec.name} are not mirrored: {spec.unmirrored}.",
            where="setting data.flip",
            fix="set it to false",
        )
    for name in ("crop", "rotation"):
        if getattr(settings, name) and spec.shape[1:] == (1, 1):
            raise DPAPError(
                f"Recordings of {spec.name} have no picture to move or turn.",
                where=f"setting data.{name}",
                fix="set it to 0",
            )


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def training_samples(data: Dataset, settings: DataConfig) -> Split:
    """What the run learns from.

    Raises:
        DPAPError: a limit above the number of samples.
    """
    samples = data.training(hold_out=settings.hold_out)
    if settings.limit is None:
        return samples
    if settings.limit > len(samples):
        raise DPAPError(
            f"data.limit = {settings.limit}, but there are {len(samples)} training samples.",
            where="setting data.limit",
            fix="lower it, or set it to none",
        )
    part = samples.part(chosen_share(samples.labels.cpu(), settings.limit / len(samples)))
    missing = set(samples.labels.tolist()) - set(part.labels.tolist())
    if missing:
        raise DPAPError(
            f"data.limit = {settings.limit} leaves no sample of class {data.spec.classes[min(missing)]!r}.",
            where="setting data.limit",
            fix=f"raise it; there are {len(samples)} training samples of {len(data.spec.classes)} classes",
        )
    return part


def training_spec(spec: DataSpec, settings: DataConfig) -> DataSpec:
    """With the normalisation of training images.

    Raises:
        DPAPError: that of colour images for images of another number of channels.
    """
    if settings.train_normalization == "data":
        return spec
    if spec.shape[0] != len(IMAGENET_MEAN):
        raise DPAPError(
            f"The normalisation of ImageNet is of three channels; images of {spec.name!r} have {spec.shape[0]}.",
            where="setting data.train_normalization",
            fix='set it to "data"',
        )
    return replace(spec, mean=IMAGENET_MEAN, std=IMAGENET_STD)
