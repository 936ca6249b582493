"""What a data set is to this library: a few facts (`DataSpec`) and three checked splits in memory.

A sample is a picture, or a recording of events as the frames of counts that were made of it. A network sees pictures
as (B, C, H, W), or, encoded, as spikes (T, B, C, H, W); counts as (T, B, C, H, W), neither scaled nor normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from dpap.data.encoding import Encoding
from dpap.errors import DPAPError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The facts a model and a table need."""

    name: str
    shape: tuple[int, int, int]
    """One image, or one frame: (channels, height, width)."""
    classes: tuple[str, ...]
    """Names of the classes; label k is `classes[k]`."""
    credit: str
    """Who made the data and under which licence it is used."""
    mean: tuple[float, ...] = ()
    """Of each channel, pixels in [0, 1]. A network sees (pixel - mean) / std; without them, the pixel itself."""
    std: tuple[float, ...] = ()
    num_steps: int | None = None
    """T, the frames of counts that a sample is; None: still pictures."""
    encoding: Encoding | None = None
    """How still pictures become spikes; None: a network sees the pixels themselves."""
    unmirrored: str = ""
    """Why a mirrored sample may have another label; empty: it keeps it. Runs on events are refused `data.flip` then."""

    @property
    def timed(self) -> bool:
        """Whether a network sees (T, B, C, H, W)."""
        return self.num_steps is not None or self.encoding is not None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """One sample as it is stored."""
        return self.shape if self.num_steps is None else (self.num_steps, *self.shape)

    def normalized(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] as a network sees them that is not given spikes."""
        if not self.mean:
            return images
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def prepared(
        self, images: Shaped[Tensor, " B *sample"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "*seen"]:
        """Samples as they are stored in a split, as a network sees them.

        Args:
            images: (B, C, H, W), or frames (B, T, C, H, W).
            generator: Of an encoding's draws, on the CPU; None: the same draws at every call.
        """
        if self.num_steps is not None:
            return images.to(torch.get_default_dtype()).transpose(0, 1)
        images = unit_range(images)
        return self.normalized(images) if self.encoding is None else self.encoding(images, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images, or frames of counts, and their labels.

    Attributes:
        images: (N, C, H, W), bytes or floating-point numbers (in [0, 1] where the data are pictures); frames are
            (N, T, C, H, W).
        labels: (N,), whole numbers from 0.
    """

    images: Shaped[Tensor, " N *sample"]
    labels: Int[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same samples on a device."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, full_only: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples (B, ...) as stored and labels (B,), in an order drawn from `generator`; else in stored order.

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

    def part(self, chosen: Bool[Tensor, " N"]) -> Split:
        """The chosen samples, in their order."""
        return Split(images=self.images[chosen], labels=self.labels[chosen])

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

    def fold(self, index: int, folds: int) -> Dataset:
        """One part of a cross-validation over all samples, the published splits joined: for subsets too small for them.

        The samples are dealt to the folds in turn, class after class, in their stored order, so that every sample is
        tested in exactly one fold. The next fold is the validation split, the others the training split.

        Raises:
            DPAPError: a class has fewer samples than there are folds.
        """
        splits = (self.train, self.validation, self.test)
        joined = Split(images=torch.cat([s.images for s in splits]), labels=torch.cat([s.labels for s in splits]))
        dealt, dealt_before = torch.empty_like(joined.labels), 0
        for label, name in enumerate(self.spec.classes):
            rows = (joined.labels == label).nonzero().flatten()
            if len(rows) < folds:
                raise DPAPError(
                    f"Class {name!r} has {len(rows)} samples, too few for {folds} folds.",
                    where=f"data set {self.spec.name!r}",
                    fix=f"set data.folds to {len(rows)} or less" if len(rows) > 2 else "leave data.folds out",
                )
            dealt[rows] = (dealt_before + torch.arange(len(rows), device=rows.device)) % folds
            dealt_before += len(rows)
        test, validation = dealt == index, dealt == (index + 1) % folds
        return Dataset(
            spec=self.spec,
            train=joined.part(~test & ~validation),
            validation=joined.part(validation),
            test=joined.part(test),
        )

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in stored order, as a network sees it; an encoding draws the same for it at every pass."""
        draws = torch.Generator().manual_seed(0)
        for images, labels in split.batches(batch_size):
            yield self.spec.prepared(images, draws), labels


def unit_range(images: Shaped[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Bytes become numbers in [0, 1]; floating-point images stay as they are."""
    return images if images.is_floating_point() else images.to(torch.get_default_dtype()) / 255


def chosen_share(labels: Int[Tensor, " N"], share: float) -> Bool[Tensor, " N"]:
    """A fixed part of a data set, stratified: of each class the same share, evenly spread over the stored order.

    >>> chosen_share(tensor([0, 1, 0, 1, 0, 0]), 0.5).tolist()
    [False, False, True, True, False, True]
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1):
        rows = (labels == label).nonzero().flatten()
        count = round(share * len(rows))
        if count:  # the last of each of `count` equal stretches
            chosen[rows[(torch.arange(1, count + 1) * len(rows)) // count - 1]] = True
    return chosen


def _check_split(spec: DataSpec, name: str, split: Split) -> None:
    where = f"the {name} split of data set {spec.name!r}"
    if len(split) == 0:
        raise DPAPError("A split holds no samples.", where=where, fix="give it at least one image")
    expected = (len(split), *spec.sample_shape)
    if tuple(split.images.shape) != expected:
        raise DPAPError(
            f"The images have shape {tuple(split.images.shape)}, expected {expected}: "
            f"(labels, {'' if spec.num_steps is None else 'steps, '}channels, height, width).",
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
    if not split.images.is_floating_point():
        return
    broken = (~split.images.isfinite().flatten(1).all(1)).nonzero()
    if len(broken):
        raise DPAPError("An image holds NaN or inf.", where=f"row {int(broken[0])} of {where}", fix="clean the images")
