"""Augmentation of training images and frames: whole batches, on their device, seeded, and off unless asked for.

Every image gets draws of its own, and what becomes of it depends on no other image. All draws come from a CPU
generator, so a run draws the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

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
        if not 0 <= self.randaugment <= _FULL:
            raise DPAPError(
                f"randaugment is {self.randaugment}.", where="Augment", fix=f"give a magnitude up to {_FULL}, 0 for off"
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

_FULL = 10
"""The largest magnitude."""
_DEVIATION = 0.5
"""Standard deviation of the magnitude."""
_LAYERS = 2
"""Operations drawn for one image."""


def rand_augment(
    images: _Images, magnitude: float, generator: torch.Generator, fill: tuple[float, ...] = (0.5,)
) -> _Images:
    """Two operations drawn for each image, with replacement, each done with probability 1/2.

    RandAugment (Cubuk et al., 2020, arXiv 1909.13719) in the form of timm's `rand-m{magnitude}-mstd0.5-inc1`: fifteen
    operations, their strength from a magnitude drawn from N(magnitude, 0.5) and limited to [0, 10], geometric and
    enhancing ones in either direction.

    An image that is worked on is rounded to 8 bits, and each operation gives 8 bits, as in timm, whose operations are
    Pillow's; one operation here differs from Pillow's by at most one level of 255, in rare pixels. An image that no
    operation meets keeps its values. Where we differ: rotating, shearing and moving always sample bicubically, as timm
    does when told so (its default draws between bilinear and bicubic), and random numbers come from another generator.

    Args:
        images: (B, C, H, W), in [0, 1], with one channel (grey) or three (RGB).
        magnitude: 0 to 10.
        generator: On the CPU.
        fill: What comes in at the edges: one value, or one per channel.

    Raises:
        DPAPError: another number of channels; a fill with another number of values.
    """
    count, channels = images.shape[:2]
    if channels not in (1, 3):
        raise DPAPError(
            f"RandAugment was given images with {channels} channels; it knows grey (1) and RGB (3).",
            where="Augment",
            fix="set randaugment to 0 for these data",
        )
    if len(fill) not in (1, channels):
        raise DPAPError(
            f"fill has {len(fill)} values, but the images have {channels} channels.",
            where="Augment",
            fix="give one value, or one per channel",
        )
    border = (torch.tensor(fill, dtype=torch.float32, device=images.device) * 255).round().expand(channels)
    kinds = torch.randint(len(RANDAUGMENT_OPERATIONS), (_LAYERS, count), generator=generator)
    used = torch.rand(_LAYERS, count, generator=generator) < 0.5
    signs = torch.randint(0, 2, (_LAYERS, count), generator=generator).double() * 2 - 1
    shares = magnitude + _DEVIATION * torch.randn(_LAYERS, count, generator=generator, dtype=torch.float64)
    shares = shares.clamp(0, _FULL) / _FULL

    levels = (images.float() * 255).round().clamp(0, 255)
    for layer in range(_LAYERS):
        done = torch.where(used[layer], kinds[layer], -1)
        levels = apply_operations(levels, done, shares[layer], signs[layer], border)
    touched = used.any(0).to(images.device)
    return torch.where(touched[:, None, None, None], (levels / 255).to(images.dtype), images)


def apply_operations(
    levels: _Images,
    kinds: Int[Tensor, " B"],
    shares: Float[Tensor, " B"],
    signs: Float[Tensor, " B"],
    border: Float[Tensor, " C"],
) -> _Images:
    """One operation on each image; the geometric ones of a batch in one sampling.

    Args:
        levels: Whole numbers from 0 to 255, kept as float32.
        kinds: Which of `RANDAUGMENT_OPERATIONS`; -1: none. This and the next two are on the CPU.
        shares: Magnitude as a share of the largest.
        signs: -1 or 1, the direction of operations that have two.
        border: The levels that come in at the edges.
    """
    levels = levels.clone()
    matrices = torch.eye(2, 3, dtype=torch.float64).repeat(len(levels), 1, 1)
    moved = []
    for kind, name in enumerate(RANDAUGMENT_OPERATIONS):
        rows = (kinds == kind).nonzero()[:, 0]  # on the CPU: no waiting for the device
        if len(rows) == 0:
            continue
        if name in _GEOMETRY:
            matrices[rows] = _GEOMETRY[name](shares[rows] * signs[rows], levels.shape[2], levels.shape[3])
            moved.append(rows)
        else:
            operation = _PIXELS[name]
            strength = operation.strength(shares[rows], signs[rows]).to(levels)[:, None, None, None]
            here = rows.to(levels.device)
            levels[here] = operation.apply(levels[here], strength)
    if moved:
        rows = torch.cat(moved)
        here = rows.to(levels.device)
        levels[here] = _resample(levels[here], matrices[rows].to(levels), border)
    return levels


# Operations on pixels. Images are (B, C, H, W) of whole numbers 0 to 255, kept as floats, strengths (B, 1, 1, 1).


def _auto_contrast(levels: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched until its darkest pixel is 0 and its brightest 255; a channel of one value stays."""
    low, high = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    return torch.where(high > low, ((levels - low) * 255 / (high - low).clamp(min=1)).floor(), levels)


def _equalize(levels: Tensor, _: Tensor) -> Tensor:
    """Each channel's levels spread so that all are about equally frequent; a channel too small or too even stays."""
    count, channels, height, width = levels.shape
    values = levels.long().flatten(2)
    apart = torch.arange(count * channels, device=levels.device).view(count, channels, 1) * 256
    frequency = (values + apart).flatten().bincount(minlength=count * channels * 256).view(count, channels, 256)
    brightest = frequency.gather(2, values.amax(2, keepdim=True))
    step = (height * width - brightest) // 255
    below = frequency.cumsum(2) - frequency
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(2, values).view(levels.shape).to(levels)
    return torch.where(step[..., None] > 0, spread, levels)


def _invert(levels: Tensor, _: Tensor) -> Tensor:
    return 255 - levels


def _posterize(levels: Tensor, bits: Tensor) -> Tensor:
    """Only the `bits` highest of the 8 bits kept; none at the largest magnitude: black. (New Pillow refuses 0 bits.)"""
    size = 2 ** (8 - bits)
    return (levels / size).floor() * size


def _solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    """Inverted from the threshold on."""
    return torch.where(levels < threshold, levels, 255 - levels)


def _solarize_add(levels: Tensor, addend: Tensor) -> Tensor:
    """Brightened below the middle."""
    return torch.where(levels < 128, (levels + addend).clamp(max=255), levels)


def _color(levels: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(levels), levels, factor)


def _contrast(levels: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(levels).mean((2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, levels, factor)


def _brightness(levels: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros_like(levels), levels, factor)


def _sharpness(levels: Tensor, factor: Tensor) -> Tensor:
    """Away from a smoothed image, or towards it; the outermost pixels stay."""
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = levels.clone()
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * levels[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(smooth, levels, factor)


def _blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """`first` at factor 0, `second` at 1, and beyond it above 1; cut to whole levels towards zero."""
    return (first + factor * (second - first)).clamp(0, 255).floor()


def _grey(levels: Tensor) -> Tensor:
    """(B, 1, H, W): luma by ITU-R 601, in the whole numbers that Pillow takes; exact in float32."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels[:, 0:1], levels[:, 1:2], levels[:, 2:3]
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor()


def _none(share: Tensor, sign: Tensor) -> Tensor:
    return share


def _factor(share: Tensor, sign: Tensor) -> Tensor:
    """1 changes nothing; stronger is away from it, in either direction, but never below 0.1."""
    return (1 + sign * share * 0.9).clamp(min=0.1)


class _Pixels(NamedTuple):
    """An operation that leaves pixels in their place."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """(images, strength) -> images."""
    strength: Callable[[Tensor, Tensor], Tensor] = _none
    """(magnitude as a share of the largest, sign) -> what `apply` takes; all (B,)."""


_PIXELS = {
    "AutoContrast": _Pixels(_auto_contrast),
    "Equalize": _Pixels(_equalize),
    "Invert": _Pixels(_invert),
    "PosterizeIncreasing": _Pixels(_posterize, lambda share, _: 4 - (share * 4).floor()),
    "SolarizeIncreasing": _Pixels(_solarize, lambda share, _: 256 - (share * 256).floor()),
    "SolarizeAdd": _Pixels(_solarize_add, lambda share, _: (share * 110).floor()),
    "ColorIncreasing": _Pixels(_color, _factor),
    "ContrastIncreasing": _Pixels(_contrast, _factor),
    "BrightnessIncreasing": _Pixels(_brightness, _factor),
    "SharpnessIncreasing": _Pixels(_sharpness, _factor),
}


# Geometric operations: (B, 2, 3) matrices that say where each pixel comes from, in pixels from the upper left corner.


def _rotate(share: Tensor, height: int, width: int) -> Tensor:
    """About the centre of the image, counter-clockwise, up to 30 degrees."""
    angle = -torch.deg2rad(30 * share)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], dim=1).view(-1, 2, 3)


def _shear_x(share: Tensor, height: int, width: int) -> Tensor:
    return _with_entry(0, 1, 0.3 * share)


def _shear_y(share: Tensor, height: int, width: int) -> Tensor:
    return _with_entry(1, 0, 0.3 * share)


def _translate_x(share: Tensor, height: int, width: int) -> Tensor:
    return _with_entry(0, 2, 0.45 * width * share)


def _translate_y(share: Tensor, height: int, width: int) -> Tensor:
    return _with_entry(1, 2, 0.45 * height * share)


def _with_entry(row: int, column: int, values: Tensor) -> Tensor:
    """Matrices that change nothing but for one entry."""
    matrices = torch.eye(2, 3, dtype=values.dtype).repeat(len(values), 1, 1)
    matrices[:, row, column] = values
    return matrices


_GEOMETRY: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "Rotate": _rotate,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}

RANDAUGMENT_OPERATIONS = (*_PIXELS, *_GEOMETRY)
"""Names of the operations that RandAugment draws from, as timm calls them."""


def _resample(levels: Tensor, matrices: Tensor, border: Tensor) -> Tensor:
    """Each pixel from the place its matrix names, bicubically; from outside of the image, the border colour."""
    count, channels, height, width = levels.shape
    x = torch.arange(width, device=levels.device, dtype=levels.dtype) + 0.5
    y = torch.arange(height, device=levels.device, dtype=levels.dtype)[:, None] + 0.5
    entry = matrices[..., None, None]
    source = entry[:, :, 0] * x + entry[:, :, 1] * y + entry[:, :, 2]  # (B, 2, H, W)
    outside = (source < 0).any(1) | (source[:, 0] >= width) | (source[:, 1] >= height)

    corner = (source - 0.5).floor()
    part_x, part_y = (source - 0.5 - corner)[:, :, None].unbind(1)  # (B, 1, H, W)
    four = torch.arange(-1, 3, device=levels.device)[:, None, None]
    columns = (corner[:, :1].long() + four).clamp(0, width - 1)  # (B, 4, H, W); an edge goes on beyond itself
    rows = (corner[:, 1:].long() + four).clamp(0, height - 1)
    pixels = levels.flatten(2)
    lines = []
    for row in rows.unbind(1):
        index = (row[:, None] * width + columns).flatten(1)[:, None].expand(-1, channels, -1)
        lines.append(_cubic(pixels.gather(2, index).view(count, channels, 4, height, width).unbind(2), part_x))
    value = _cubic(lines, part_y).clamp(0, 255).floor()
    return torch.where(outside[:, None], border[:, None, None], value)


def _cubic(values: list[Tensor] | tuple[Tensor, ...], part: Tensor) -> Tensor:
    """Between the second and the third of four values: cubic convolution with a = -1, which is Pillow's.

    In this form four equal values give themselves exactly, which cutting to whole levels rests on.
    """
    first, second, third, fourth = values
    cubed = second - first + fourth - third
    squared = 2 * (first - second) + third - fourth
    return second + part * (third - first + part * (squared + part * cubed))
