"""Augmentation of training images and frames: whole batches, on their device, seeded, and off unless asked for.

Every image gets draws of its own, and what becomes of it depends on no other image. All draws come from a CPU
generator, so a run draws the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from dpap.data.rand_augment import STRONGEST, rand_augment
from dpap.errors import DPAPError

_Images = Float[Tensor, "B C H W"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What is done to a training batch. Called on images in [0, 1]; `after_normalization` on the normalised ones;
    `of_frames` on frames of counts.

    Attributes:
        crop: Pixels of zeros around the image before a random crop of the old size; 0: no crop. See `random_crop`.
        flip: Swap left and right with probability 1/2.
        erasing: Probability that one rectangle becomes noise, after normalisation; 0: off. See `random_erasing`.
        randaugment: Magnitude m, up to 10, of RandAugment as timm's `rand-m{m}-mstd0.5-inc1`; 0: off. See
            `rand_augment`.
        fill: The colour that RandAugment lets in at the edges, on the [0, 1] scale: one value, or one per channel. timm
            takes the mean it normalises with.
        rotation: Degrees by which frames are turned at most; 0: off. See `random_rotation`.
        drop: Probability with which each event of the frames is left out; 0: off. See `random_drop`.
        jitter: Frames by which a recording is moved in time at most; 0: off. See `random_jitter`.

    Raises:
        DPAPError: a field out of its range; images that are not floats, or that RandAugment has no rules for; a
            generator that is not on the CPU.

    >>> images = torch.rand(8, 3, 32, 32)
    >>> generator = torch.Generator().manual_seed(0)
    >>> Augment(crop=4, flip=True)(images, generator).shape
    torch.Size([8, 3, 32, 32])
    >>> Augment()(images, generator) is images
    True
    """

    crop: int = 0
    flip: bool = False
    erasing: float = 0.0
    randaugment: float = 0.0
    fill: tuple[float, ...] = (0.5,)
    rotation: float = 0.0
    drop: float = 0.0
    jitter: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise DPAPError(f"crop is {self.crop}.", where="Augment", fix="give the padding in pixels, 0 for no crop")
        if not 0 <= self.erasing <= 1:
            raise DPAPError(f"erasing is {self.erasing}.", where="Augment", fix="give a probability, 0 for none")
        if not 0 <= self.randaugment <= STRONGEST:
            raise DPAPError(
                f"randaugment is {self.randaugment}.",
                where="Augment",
                fix=f"give a magnitude up to {STRONGEST}, 0 for off",
            )
        if not self.fill or not all(0 <= value <= 1 for value in self.fill):
            raise DPAPError(
                f"fill is {self.fill}.", where="Augment", fix="give one value from 0 to 1, or one per channel"
            )
        if not (0 <= self.rotation <= 180 and 0 <= self.drop < 1 and self.jitter >= 0):
            raise DPAPError(
                f"rotation is {self.rotation}, drop {self.drop}, jitter {self.jitter}.",
                where="Augment",
                fix="give degrees up to 180, a probability below 1, and a number of frames; 0 for none",
            )

    def __call__(self, images: Shaped[Tensor, "B C H W"], generator: torch.Generator) -> _Images:
        """Crop, flip and RandAugment, in this order.

        Args:
            images: (B, C, H, W), floats in [0, 1]; never changed in place.
            generator: On the CPU.
        """
        _check(images, generator)
        if self.crop:
            images = random_crop(images, self.crop, generator)
        if self.flip:
            images = random_flip(images, generator)
        if self.randaugment:
            images = rand_augment(images, self.randaugment, generator, self.fill)
        return images

    def of_frames(self, frames: Shaped[Tensor, "B T C H W"], generator: torch.Generator) -> Float[Tensor, "B T C H W"]:
        """Crop, flip, rotation, drop and jitter, in this order; all frames of a recording move alike.

        Args:
            frames: (B, T, C, H, W), counts as floats; never changed in place. Counts stay counts.
            generator: On the CPU.
        """
        _check(frames, generator)
        images = frames.flatten(1, 2)
        if self.crop:
            images = random_crop(images, self.crop, generator)
        if self.flip:
            images = random_flip(images, generator)
        if self.rotation:
            images = random_rotation(images, self.rotation, generator)
        frames = images.view(*frames.shape[:3], *images.shape[2:])
        if self.drop:
            frames = random_drop(frames, self.drop, generator)
        if self.jitter:
            frames = random_jitter(frames, self.jitter, generator)
        return frames

    def after_normalization(self, images: Shaped[Tensor, "B C H W"], generator: torch.Generator) -> _Images:
        """Random erasing, whose noise is that of images with mean 0 and standard deviation 1."""
        _check(images, generator)
        return random_erasing(images, self.erasing, generator) if self.erasing else images


def _check(images: Tensor, generator: torch.Generator) -> None:
    if not images.is_floating_point():
        raise DPAPError(
            f"The images to augment are {images.dtype}.", where="Augment", fix="convert them to floats in [0, 1] first"
        )
    if generator.device.type != "cpu":
        raise DPAPError(
            f"The generator is on {generator.device}.",
            where="Augment",
            fix="pass a CPU generator: its draws are the same on every device",
        )


def random_crop(
    images: Shaped[Tensor, "B C H W"], padding: int, generator: torch.Generator
) -> Shaped[Tensor, "B C H W"]:
    """Each image moved by its own whole number of pixels, -`padding` to `padding` along each axis; zeros come in."""
    height, width = images.shape[2:]
    offsets = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=generator).to(images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, offsets, offsets, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, offsets[0], offsets[1]]


def random_flip(images: Shaped[Tensor, "B C H W"], generator: torch.Generator) -> Shaped[Tensor, "B C H W"]:
    """Left and right swapped in each image with probability 1/2."""
    flipped = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


# --- frames of counts


def random_rotation(images: _Images, degrees: float, generator: torch.Generator) -> _Images:
    """Each image turned about its middle by its own angle, -`degrees` to `degrees`; zeros come in.

    A pixel takes the value of the one nearest to where it comes from, so that counts stay counts.
    """
    angles = (2 * torch.rand(len(images), generator=generator, dtype=torch.float64) - 1) * math.radians(degrees)
    height, width = images.shape[2:]
    cosine, sine = angles.cos(), angles.sin()
    zero = torch.zeros_like(angles)
    # grid_sample counts both sides of an image from -1 to 1, whichever is longer
    rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
    matrices = torch.stack(rows, 1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)


def random_drop(
    frames: Float[Tensor, "B T C H W"], probability: float, generator: torch.Generator
) -> Float[Tensor, "B T C H W"]:
    """Every event left out with that probability, by itself: a count n becomes a draw from Binomial(n, 1 - p)."""
    counts = frames.cpu()
    some = counts > 0
    kept = torch.zeros_like(counts)
    there = counts[some]
    kept[some] = torch.binomial(there, torch.full_like(there, 1 - probability), generator=generator)
    return kept.to(frames.device)


def random_jitter(
    frames: Shaped[Tensor, "B T C H W"], most: int, generator: torch.Generator
) -> Shaped[Tensor, "B T C H W"]:
    """Each recording moved by its own whole number of frames, -`most` to `most`; empty frames come in."""
    steps = frames.shape[1]
    starts = torch.randint(0, 2 * most + 1, (len(frames),), generator=generator)
    padded = F.pad(frames, (0, 0, 0, 0, 0, 0, most, most))
    rows = (starts[:, None] + torch.arange(steps)).to(frames.device)
    return padded[torch.arange(len(frames), device=frames.device)[:, None], rows]


# --- random erasing

_AREA = (0.02, 1 / 3)
"""Least and largest share of the image that a rectangle takes."""
_LOG_ASPECT = math.log(0.3)
"""Height over width lies between 0.3 and 1 / 0.3, evenly on a logarithmic scale."""
_TRIES = 10


def random_erasing(images: _Images, probability: float, generator: torch.Generator) -> _Images:
    """One rectangle of each image, with that probability, replaced by normal noise (mean 0, deviation 1) per pixel.

    A rectangle that does not fit is drawn again, up to ten times; an image for which none fits stays as it is. Zhong
    et al., "Random Erasing Data Augmentation", AAAI 2020, with the ranges and the "pixel" mode of timm's
    `RandomErasing`, which works on normalised images as well.
    """
    count, channels, height, width = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, count, generator=generator, dtype=torch.float64)

    chosen = uniform() < probability
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * uniform(_TRIES)) * height * width
    aspect = (_LOG_ASPECT * (1 - 2 * uniform(_TRIES))).exp()
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)
    tall, wide = tall.gather(0, first)[0], wide.gather(0, first)[0]
    top, left = (uniform() * (height - tall + 1)).floor(), (uniform() * (width - wide + 1)).floor()

    hit = (chosen & fits.any(0)).nonzero()[:, 0]
    rows, columns = _span(top[hit], tall[hit], height), _span(left[hit], wide[hit], width)
    inside = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    noise = torch.randn(len(hit), channels, height, width, generator=generator).to(images)
    hit = hit.to(images.device)
    result = images.clone()
    result[hit] = torch.where(inside, noise, images[hit])
    return result


def _span(start: Tensor, length: Tensor, size: int) -> Bool[Tensor, "B size"]:
    """True at `length` places from `start`, in each row."""
    place = torch.arange(size)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


# --- RandAugment


# Operations on pixels. Images are (B, C, H, W) of whole numbers 0 to 255, kept as floats, strengths (B, 1, 1, 1).


# Geometric operations: (B, 2, 3) matrices that say where each pixel comes from, in pixels from the upper left corner.
