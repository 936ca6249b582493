"""Data of one's own that are arrays already: an `.npz` file, or any PyTorch data set. What is lacking is split off."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.lib.npyio import NpzFile
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from dpap.data.spec import Dataset, DataSpec, Split, chosen_share
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.1
"""Of the training samples, where no validation split is given."""
TEST_SHARE = 0.2
"""Of all samples, where no test split is given."""


def own_dataset(
    name: str,
    classes: Sequence[str],
    train: Split,
    *,
    validation: Split | None = None,
    test: Split | None = None,
    where: str,
) -> Dataset:
    """A `Dataset` of somebody's own samples.

    A split that is not given is a fixed, stratified part: the test split, of all samples; the validation split, of the
    training samples that are left. Bytes are normalised with the mean and the standard deviation of the training
    split's channels; floating-point images are taken as they are.

    Args:
        name: Of the data set.
        classes: Names of the classes; label k is `classes[k]`.
        train: Samples to learn from.
        validation: None: a tenth of `train`.
        test: None: a fifth of `train`.
        where: What to call the data in an error.

    Raises:
        DPAPError: fewer than two classes, a class without training samples, too few samples to split, or samples that
            do not fit together.
    """
    if len(classes) < 2:
        raise DPAPError(
            f"There is nothing to tell apart: {len(classes)} class.", where=where, fix="give samples of two classes"
        )
    no_empty_class(classes, train, where)
    if test is None:
        train, test = split_off(train, TEST_SHARE, "test", where)
    if validation is None:
        train, validation = split_off(train, VALIDATION_SHARE, "validation", where)
    mean, std = _moments(train.images)
    channels, height, width = train.images.shape[1:]
    spec = DataSpec(
        name=name,
        shape=(channels, height, width),
        classes=tuple(classes),
        credit="the user's own data",
        mean=mean,
        std=std,
    )
    return Dataset(spec=spec, train=train, validation=validation, test=test)


def load_npz(path: str | Path) -> Dataset:
    """A data set in an `.npz` file.

    Arrays: `images` (N, C, H, W) or (N, H, W), uint8 or float32; `labels` (N,), whole numbers from 0. May be there:
    `test_images` and `test_labels`; `classes`, names of the classes. See `own_dataset` for what is split off.

    Raises:
        DPAPError: not such a file; with the array that is wrong.
    """
    path = Path(path)
    arrays = _npz_arrays(path)
    train = _npz_split(arrays, "", path)
    test = _npz_split(arrays, "test_", path) if arrays.keys() & {"test_images", "test_labels"} else None
    if "classes" in arrays:
        if arrays["classes"].dtype.kind != "U" or arrays["classes"].ndim != 1:
            raise _npz_error(path, "classes", "is not a list of names", "write it as np.array([...names...])")
        classes = [str(name) for name in arrays["classes"]]
    elif int(train.labels.max()) >= len(train):
        problem = f"holds label {int(train.labels.max())}, but there are only {len(train)} samples"
        raise _npz_error(path, "labels", problem, "number the classes from 0 without gaps")
    else:
        classes = [str(label) for label in range(int(train.labels.max()) + 1)]
    return own_dataset(path.stem, classes, train, test=test, where=str(path))


def from_torch(
    train: TorchDataset[Any], test: TorchDataset[Any] | None, *, name: str, classes: Sequence[str]
) -> Dataset:
    """Any map-style PyTorch data set of (picture, label) pairs, read once into memory.

    A picture is a tensor (C, H, W) or (H, W), a NumPy array (H, W, C) or (H, W), or a Pillow image; bytes stay bytes.
    A random transform is drawn once, not in every epoch: leave it out.

    Args:
        train: The training samples. A fixed, stratified tenth of them is the validation split.
        test: The test samples; None: a stratified fifth of `train`.
        name: Of the data set.
        classes: Names of the classes; label k is `classes[k]`.

    Raises:
        DPAPError: a sample that is not such a pair, or pictures of several sizes or types; with its number.

    >>> data = torch.utils.data.TensorDataset(torch.rand(40, 1, 4, 4), torch.arange(40) % 2)
    >>> len(from_torch(data, None, name="noise", classes=("even", "odd")).train)
    28
    """
    return own_dataset(
        name,
        classes,
        _read_all(train, f"the training set of {name!r}"),
        test=None if test is None else _read_all(test, f"the test set of {name!r}"),
        where=f"data set {name!r}",
    )


# --------------------------------------------------------------------------------------------------------- splitting


def no_empty_class(classes: Sequence[str], train: Split, where: str) -> None:
    """Raise a `DPAPError` where a class has no training samples."""
    known = train.labels[(train.labels >= 0) & (train.labels < len(classes))]  # the others are named by `Dataset`
    counts = torch.bincount(known, minlength=len(classes))
    empty = [classes[int(label)] for label in (counts == 0).nonzero()]
    if empty:
        raise DPAPError(
            f"A class has no training samples: {', '.join(map(repr, empty))}.",
            where=where,
            fix="number the classes from 0 without gaps, and give samples of each",
        )


def split_off(split: Split, share: float, name: str, where: str, *, quiet: bool = False) -> tuple[Split, Split]:
    """What is left, and a fixed, stratified part for the split `name`, which a log line says unless `quiet`.

    Raises:
        DPAPError: too few samples of every class.
    """
    chosen = chosen_share(split.labels, share)
    if not chosen.any():
        raise DPAPError(
            f"There are too few samples to set some aside as the {name} split: {len(split)} in all.",
            where=where,
            fix=f"give more samples of a class, or a {name} split",
        )
    if not quiet:
        log.warning("%s: no %s split; a stratified part is set aside, %d samples", where, name, int(chosen.sum()))
    return split.part(~chosen), split.part(chosen)


def _moments(images: Shaped[Tensor, "N C H W"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of byte images on the scale from 0 to 1; none of other images."""
    if images.dtype != torch.uint8:
        return (), ()
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        weight = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = float((weight * values).sum())
        means.append(mean)
        stds.append(max(float((weight * (values - mean) ** 2).sum() ** 0.5), 1 / 255))  # one colour: no division by 0
    return tuple(means), tuple(stds)


# --------------------------------------------------------------------------------------------------------------- npz


def _npz_error(path: Path, array: str, problem: str, fix: str) -> DPAPError:
    return DPAPError(f"Array {array!r} {problem}.", where=str(path), fix=fix)


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    known = ("images", "labels", "test_images", "test_labels", "classes")
    layout = "write it with np.savez(path, images=..., labels=...)"
    arrays = {}
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, NpzFile):
                raise DPAPError("The file holds one array, not several with names.", where=str(path), fix=layout)
            for name in (name for name in known if name in file):
                try:
                    arrays[name] = file[name]
                except ValueError as error:
                    objects = "store numbers: objects are never unpickled"
                    raise _npz_error(path, name, f"cannot be read ({error})", objects) from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged, or no .npz file"
        raise DPAPError(f"Data cannot be read: {reason}.", where=str(path), fix=layout) from error
    return arrays


def _npz_split(arrays: dict[str, np.ndarray], prefix: str, path: Path) -> Split:
    pair = (f"{prefix}images", f"{prefix}labels")
    for name in pair:
        if name not in arrays:
            raise DPAPError(
                f"There is no array {name!r}; found {', '.join(sorted(arrays)) or 'none of the known names'}.",
                where=str(path),
                fix="name the arrays images and labels, and test_images and test_labels",
            )
    images, labels = arrays[pair[0]], arrays[pair[1]]
    if images.ndim == 1 and labels.ndim >= 3:
        raise _npz_error(path, pair[0], f"holds the labels, and {pair[1]!r} the images", "swap the two names")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _npz_error(
            path, pair[1], f"is {labels.dtype} of shape {labels.shape}, expected whole numbers of shape (N,)",
            "give one class number for each image",
        )  # fmt: skip
    if images.dtype not in (np.uint8, np.float32) or images.ndim not in (3, 4):
        raise _npz_error(
            path, pair[0], f"is {images.dtype} of shape {images.shape}, expected uint8 or float32, (N, C, H, W)",
            "convert it, for example images.astype(np.float32)",
        )  # fmt: skip
    if images.ndim == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] > 4:
        raise _npz_error(
            path, pair[0], f"of shape {images.shape} has its channels last", "store images.transpose(0, 3, 1, 2)"
        )
    if len(images) != len(labels):
        raise _npz_error(
            path, pair[0], f"has {len(images)} images, {pair[1]!r} {len(labels)} labels", "give one label an image"
        )
    if not len(images):
        raise _npz_error(path, pair[0], "is empty", "give at least one image")
    if images.ndim == 3:
        images = images[:, None]
    return Split(
        images=torch.from_numpy(np.ascontiguousarray(images)), labels=torch.from_numpy(labels.astype(np.int64))
    )


# ------------------------------------------------------------------------------------------------- a PyTorch data set


def _read_all(samples: TorchDataset[Any], where: str) -> Split:
    if not hasattr(samples, "__len__"):
        raise DPAPError("The data set has no length.", where=where, fix="give a map-style one: samples by number")
    count = len(samples)
    if not count:
        raise DPAPError("There are no samples.", where=where, fix="give at least one")
    first, _ = _pair(samples[0], f"sample 0 of {where}")
    images = first.new_empty((count, *first.shape))
    labels = torch.empty(count, dtype=torch.int64)
    for row in range(count):
        picture, label = _pair(samples[row], f"sample {row} of {where}")
        if picture.shape != first.shape or picture.dtype != first.dtype:
            raise DPAPError(
                f"The pictures differ: {picture.dtype} of shape {tuple(picture.shape)}, and sample 0 is {first.dtype} "
                f"of shape {tuple(first.shape)}.",
                where=f"sample {row} of {where}",
                fix="bring all pictures to one size, number of channels and type in the data set's transform",
            )
        images[row], labels[row] = picture, label
    return Split(images=images, labels=labels)


def _pair(sample: Any, where: str) -> tuple[Shaped[Tensor, "C H W"], int]:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise DPAPError(
            f"A sample is {type(sample).__name__}, not a pair.", where=where, fix="give (picture, label) pairs"
        )
    picture, label = sample
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise DPAPError(f"A label is {label!r}.", where=where, fix="give the number of the class") from error
    if number != label:
        raise DPAPError(f"A label is {label!r}.", where=where, fix="give the number of the class")
    if not isinstance(picture, Tensor):  # a Pillow image or an array: channels last
        array = np.array(picture)  # a copy: the memory may be read-only
        if array.dtype.kind not in "uif":
            raise DPAPError(f"A picture is {type(picture).__name__}.", where=where, fix="give a tensor or an array")
        picture = torch.from_numpy(array)
        picture = picture.permute(2, 0, 1) if picture.ndim == 3 else picture
    if picture.ndim == 2:
        picture = picture.unsqueeze(0)
    if picture.ndim != 3:
        raise DPAPError(
            f"A picture has shape {tuple(picture.shape)}.", where=where, fix="give (channels, height, width)"
        )
    if picture.dtype != torch.uint8:
        picture = picture.float()
    return picture, number
