"""RandAugment on whole batches: every image has its own operations, and their strength comes from a CPU generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpap.errors import DPAPError

_Images = Float[Tensor, "B C H W"]

STRONGEST = 10
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
    shares = shares.clamp(0, STRONGEST) / STRONGEST

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
