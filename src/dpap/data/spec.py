"""What a data set is to this library: a few facts (`DataSpec`) and three checked splits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from dpap.errors import DPAPError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The facts a model and a table need."""

    name: str
    shape: tuple[int, int, int]
    """One image: (channels, height, width)."""
    classes: tuple[str, ...]
    """Names of the classes; label k is `classes[k]`."""
    credit: str
    """Who made the data and under which licence it is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images and their labels.

    Attributes:
        images: (N, C, H, W), in the range the data set documents.
        labels: (N,), whole numbers from 0.
    """

    images: Float[Tensor, "N C H W"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(images=self.images.to(device), labels=self.labels.to(device))

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, full_only: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) and labels (B,), in an order drawn from `generator`; in stored order without one.

        Args:
            batch_size: B. The last batch holds what is left.
            generator: Decides the whole order at the first batch, and nothing after it.
            full_only: Leave out a last batch that is smaller than B.
        """
        count = len(self)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        order = order.to(self.labels.device)
        stop = count - count % batch_size if full_only else count
        for start in range(0, stop, batch_size):
            rows = order[start : start + batch_size]
            yield self.images[rows], self.labels[rows]

    def batch_count(self, batch_size: int, *, full_only: bool = False) -> int:
        """How many batches `batches` yields."""
        return len(self) // batch_size if full_only else -(-len(self) // batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Three splits that belong together, checked against the spec when made.

    Raises:
        DPAPError: images of another shape, not finite, or labels out of range; with the split and the first bad row.
    """

    spec: DataSpec
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            _check_split(self.spec, name, getattr(self, name))

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on a device, where it stays for the whole run."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return Dataset(spec=self.spec, train=train, validation=validation, test=test)

    def training(self, *, hold_out: bool) -> Split:
        """What a run learns from: the training split, and the validation split with it unless that is held out."""
        if hold_out:
            return self.train
        return Split(
            images=torch.cat([self.train.images, self.validation.images]),
            labels=torch.cat([self.train.labels, self.validation.labels]),
        )


def _check_split(spec: DataSpec, name: str, split: Split) -> None:
    where = f"the {name} split of data set {spec.name!r}"
    if len(split) == 0:
        raise DPAPError("A split holds no samples.", where=where, fix="give it at least one image")
    if tuple(split.images.shape) != (len(split), *spec.shape):
        raise DPAPError(
            f"The images have shape {tuple(split.images.shape)}, expected {(len(split), *spec.shape)}: "
            "(labels, channels, height, width).",
            where=where,
            fix="give one image of the shape in the DataSpec for each label",
        )
    bad = ((split.labels < 0) | (split.labels >= len(spec.classes))).nonzero()
    if len(bad):
        row = int(bad[0])
        raise DPAPError(
            f"Label {int(split.labels[row])} is out of range: {len(spec.classes)} classes have labels 0 to "
            f"{len(spec.classes) - 1}. {len(bad)} of {len(split)} labels are out of range.",
            where=f"row {row} of {where}",
            fix="number the classes from 0, or name every class in the DataSpec",
        )
    broken = (~split.images.isfinite().flatten(1).all(1)).nonzero()
    if len(broken):
        raise DPAPError("An image holds NaN or inf.", where=f"row {int(broken[0])} of {where}", fix="clean the images")


def random_shift(images: Float[Tensor, "B C H W"], most: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Each image moved by its own whole number of pixels, -`most` to `most` along each axis; zeros come in."""
    if most == 0:
        return images
    height, width = images.shape[2:]
    offsets = torch.randint(0, 2 * most + 1, (2, len(images), 1), generator=generator).to(images.device)
    rows = torch.arange(height, device=images.device) + offsets[0]
    columns = torch.arange(width, device=images.device) + offsets[1]
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)
    return padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
