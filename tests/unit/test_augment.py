"""Augmentation: each operation by hand and beside Pillow's, its draws, and images that do not meddle with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dpap.data.augment import Augment, random_crop, random_erasing, random_flip
from dpap.data.rand_augment import RANDAUGMENT_OPERATIONS, apply_operations, rand_augment
from dpap.errors import DPAPError

ALL = Augment(crop=4, flip=True, erasing=0.25, randaugment=9)
GREY = 128.0
# 600 pixels, 90 of them the brightest: 510 / 255 = 2 a level, so (1 + darker pixels) // 2 is the new level.
EQUAL = ((3,) * 200 + (5,) * 200 + (9,) * 110 + (11,) * 90, [0] * 200 + [100] * 200 + [200] * 110 + [255] * 90)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bytes_(*shape: int, seed: int = 0) -> Tensor:
    """Images of random bytes, in [0, 1]."""
    return torch.randint(0, 256, shape, generator=seeded(seed)) / 255


def operate(name: str, levels: Tensor, share: float = 0.9, sign: int = 1, border: float = GREY) -> Tensor:
    """One operation, at a share of the largest magnitude, on (C, H, W) of 0 to 255."""
    one = torch.ones(1, dtype=torch.float64)
    kind = torch.tensor([RANDAUGMENT_OPERATIONS.index(name)])
    result = apply_operations(levels[None].float(), kind, share * one, sign * one, torch.full((len(levels),), border))
    assert torch.equal(result, result.floor())
    assert (result.min() >= 0) & (result.max() <= 255)
    return result[0]


def line(name: str, *levels: int, share: float = 0.9, sign: int = 1) -> list[int]:
    """The same on a grey image of one row."""
    return operate(name, torch.tensor([[levels]]), share, sign).int().flatten().tolist()


def whole(images: Tensor, generator: torch.Generator, settings: Augment = ALL) -> Tensor:
    return settings.after_normalization(settings(images, generator), generator)


# --- all of it


def test_off_by_default() -> None:
    images = bytes_(4, 3, 8, 8)
    generator = seeded()
    before = generator.get_state()
    assert whole(images, generator, Augment()) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    "shape", [(8, 1, 28, 28), (8, 3, 32, 32), (1, 3, 17, 40), (8, 1, 8, 8), (0, 3, 8, 8), (4, 1, 2, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_type_and_range_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = bytes_(*shape).to(dtype)
    kept = images.clone()
    for seed in range(5):
        result = ALL(images, seeded(seed))
        assert (result.shape, result.dtype) == (images.shape, dtype)
        assert ((result >= 0) & (result <= 1)).all()
        erased = ALL.after_normalization(result, seeded(seed))
        assert (erased.shape, erased.dtype) == (images.shape, dtype)
        assert erased.isfinite().all()
    assert torch.equal(images, kept)


def test_a_seed_decides_everything() -> None:
    images = bytes_(16, 3, 32, 32)
    first = whole(images, seeded(1))
    torch.manual_seed(99)
    assert torch.equal(whole(images, seeded(1)), first)
    assert not torch.equal(whole(images, seeded(2)), first)


def test_nothing_happens_in_place() -> None:
    images = bytes_(32, 3, 16, 16)
    kept = images.clone()
    for settings in (Augment(crop=2), Augment(flip=True), Augment(erasing=1), Augment(randaugment=9), ALL):
        assert not torch.equal(whole(images, seeded(), settings), kept)
        assert torch.equal(images, kept)


def test_images_do_not_meddle_with_each_other() -> None:
    images, others = bytes_(64, 3, 16, 16), bytes_(64, 3, 16, 16, seed=1)
    expected = whole(images, seeded())
    for row in range(0, 64, 7):
        mixed = others.clone()
        mixed[row] = images[row]
        assert torch.equal(whole(mixed, seeded())[row], expected[row])


def test_another_default_type_changes_no_type() -> None:
    images = bytes_(64, 3, 16, 16)
    torch.set_default_dtype(torch.float64)
    result = whole(images, seeded())
    assert result.dtype == torch.float32
    assert not torch.equal(result, images)


def test_crop_then_flip_then_randaugment() -> None:
    images = bytes_(32, 3, 16, 16)
    draws = seeded()
    expected = rand_augment(random_flip(random_crop(images, 4, draws), draws), 9, draws, (0.2, 0.3, 0.4))
    settings = Augment(crop=4, flip=True, erasing=0.25, randaugment=9, fill=(0.2, 0.3, 0.4))
    assert torch.equal(settings(images, seeded()), expected)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"crop": -1}, "crop is -1"),
        ({"erasing": 1.5}, "erasing is 1.5"),
        ({"erasing": -0.1}, "erasing is -0.1"),
        ({"randaugment": 10.5}, "randaugment is 10.5"),
        ({"randaugment": float("nan")}, "randaugment is nan"),
        ({"fill": ()}, r"fill is \(\)"),
        ({"fill": (0.5, 128.0, 0.5)}, "fill is"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, Any], shown: str) -> None:
    with pytest.raises(DPAPError, match=shown) as caught:
        Augment(**fields)
    assert caught.value.fix


def test_unfit_images_are_refused() -> None:
    with pytest.raises(DPAPError, match="uint8"):
        ALL(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), seeded())
    with pytest.raises(DPAPError, match="uint8"):
        ALL.after_normalization(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), seeded())
    with pytest.raises(DPAPError, match="2 channels"):
        ALL(torch.zeros(2, 2, 8, 8), seeded())
    with pytest.raises(DPAPError, match="3 values, but the images have 1 channels"):
        Augment(randaugment=9, fill=(0.1, 0.2, 0.3))(torch.zeros(2, 1, 8, 8), seeded())
    assert Augment(crop=1, flip=True, erasing=0.5)(torch.zeros(2, 2, 8, 8), seeded()).shape == (2, 2, 8, 8)


@pytest.mark.gpu
def test_a_gpu_draws_the_same() -> None:
    images = bytes_(64, 3, 32, 32)
    here, there = ALL(images, seeded()), ALL(images.cuda(), seeded())
    assert there.device.type == "cuda"
    apart = (here - there.cpu()).abs()
    assert apart.max() <= 1.01 / 255  # bicubic sampling: a sum may be cut to the other level
    assert (apart > 0).float().mean() < 1e-3
    erased = ALL.after_normalization(images.cuda(), seeded())
    assert torch.equal(erased.cpu(), ALL.after_normalization(images, seeded()))
    with pytest.raises(DPAPError, match="CPU generator"):
        ALL(images.cuda(), torch.Generator("cuda"))


# --- crop and flip


def test_crop_moves_by_the_offset_that_was_drawn() -> None:
    images = torch.arange(1.0, 1 + 5 * 2 * 4 * 6).view(5, 2, 4, 6)
    cropped = random_crop(images, 3, seeded())
    assert cropped.is_contiguous()
    offsets = torch.randint(0, 7, (2, 5), generator=seeded()).tolist()
    assert len(set(zip(*offsets, strict=True))) > 1
    for image, (down, right) in enumerate(zip(*offsets, strict=True)):
        for y in range(4):
            for x in range(6):
                row, column = y + down - 3, x + right - 3
                inside = 0 <= row < 4 and 0 <= column < 6
                expected = images[image, :, row, column] if inside else torch.zeros(2)
                assert torch.equal(cropped[image, :, y, x], expected)


def test_every_crop_occurs_and_nothing_else() -> None:
    images = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).repeat(64, 1, 1, 1)
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1))[0, 0]
    allowed = {tuple(padded[y : y + 3, x : x + 3].flatten().tolist()) for y in range(3) for x in range(3)}
    assert {tuple(image.flatten().tolist()) for image in random_crop(images, 1, seeded())} == allowed


def test_flip_swaps_left_and_right_of_half_the_images() -> None:
    images = bytes_(400, 2, 3, 5)
    result = random_flip(images, seeded())
    flipped = (result == images.flip(3)).flatten(1).all(1)
    assert torch.equal(result[~flipped], images[~flipped])
    assert 160 < int(flipped.sum()) < 240  # four standard deviations


# --- random erasing


def rectangle(changed: Tensor) -> tuple[int, int]:
    """Height and width of the changed region (H, W), which must be a full rectangle."""
    rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    assert changed[top:bottom, left:right].all()
    assert int(changed.sum()) == (bottom - top) * (right - left)
    return bottom - top, right - left


def test_one_rectangle_becomes_noise() -> None:
    images = torch.full((300, 3, 32, 32), 9.0)  # far from the noise: every erased pixel shows
    changed = random_erasing(images, 1.0, seeded()) != images
    assert torch.equal(changed.any(1), changed.all(1))  # all channels at once
    sizes = [rectangle(mask) for mask in changed[:, 0]]
    areas = torch.tensor([tall * wide for tall, wide in sizes]) / 1024
    assert 0.015 < areas.min() < 0.04  # 0.02, before sides were rounded
    assert 0.29 < areas.max() < 0.36
    assert abs(float(areas.mean()) - (0.02 + 1 / 3) / 2) < 0.02
    aspects = torch.tensor([tall / wide for tall, wide in sizes]).log()
    assert -1.5 < aspects.min() < -1.0
    assert 1.0 < aspects.max() < 1.5
    assert abs(float(aspects.mean())) < 0.15
    reached = changed.any(1).any(0)
    assert reached.any(0).all()  # the outermost rows and columns too
    assert reached.any(1).all()


def test_the_noise_is_normal_and_of_each_pixel() -> None:
    images = torch.full((300, 3, 32, 32), 9.0)
    erased = random_erasing(images, 1.0, seeded())
    noise = erased[erased != images]
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise.abs() < 1).float().mean()) - 0.6827) < 0.01
    assert len(noise.unique()) > 0.9 * len(noise)


def test_erasing_has_its_probability() -> None:
    images = torch.full((400, 1, 16, 16), 9.0)
    erased = (random_erasing(images, 0.25, seeded()) != images).flatten(1).any(1)
    assert 65 < int(erased.sum()) < 135  # four standard deviations
    assert torch.equal(random_erasing(images, 0.0, seeded()), images)


# --- the operations of RandAugment, worked by hand


@pytest.mark.parametrize(
    ("name", "share", "sign", "levels", "expected"),
    [
        ("AutoContrast", 0.9, 1, (10, 20, 30, 60), [0, 51, 102, 255]),
        ("AutoContrast", 0.9, 1, (77, 77, 77), [77, 77, 77]),
        ("Equalize", 0.9, 1, (1, 2, 200), [1, 2, 200]),  # too few pixels
        ("Equalize", 0.9, 1, (100,) * 256 + (200,) * 256, [0] * 256 + [255] * 256),
        ("Equalize", 0.9, 1, EQUAL[0], EQUAL[1]),
        ("Invert", 0.9, 1, (0, 10, 200, 255), [255, 245, 55, 0]),
        ("PosterizeIncreasing", 0.5, 1, (63, 64, 200, 255), [0, 64, 192, 192]),  # 2 bits
        ("PosterizeIncreasing", 0.9, 1, (127, 128, 255), [0, 128, 128]),  # 1 bit
        ("PosterizeIncreasing", 1.0, 1, (127, 128, 255), [0, 0, 0]),  # none
        ("SolarizeIncreasing", 0.9, 1, (0, 25, 26, 255), [0, 25, 229, 0]),  # 256 - 230
        ("SolarizeIncreasing", 0.0, 1, (0, 128, 255), [0, 128, 255]),
        ("SolarizeAdd", 0.9, 1, (0, 100, 127, 128, 255), [99, 199, 226, 128, 255]),
        ("BrightnessIncreasing", 0.9, 1, (0, 101, 200), [0, 182, 255]),  # 1.81
        ("BrightnessIncreasing", 0.9, -1, (0, 101, 200), [0, 19, 38]),  # 0.19
        ("ContrastIncreasing", 1.0, 1, (80, 122), [61, 140]),  # 1.9, about 101
        ("ContrastIncreasing", 1.0, -1, (80, 122), [98, 103]),  # 0.1
        ("ColorIncreasing", 0.9, 1, (80, 122), [80, 122]),  # grey has no colour
        ("SharpnessIncreasing", 0.9, 1, (80, 122), [80, 122]),  # nothing but edge
    ],
)  # fmt: skip
def test_operations_on_pixels(name: str, share: float, sign: int, levels: tuple[int, ...], expected: list[int]) -> None:
    assert line(name, *levels, share=share, sign=sign) == expected


def test_channels_are_stretched_and_equalized_apart() -> None:
    levels = torch.tensor([[[10, 20]], [[0, 100]], [[7, 7]]])
    assert operate("AutoContrast", levels).int().tolist() == [[[0, 255]], [[0, 255]], [[7, 7]]]
    levels = torch.stack([torch.arange(512) // 256 + 3, torch.full((512,), 7), torch.arange(512) // 2]).view(3, 16, 32)
    result = operate("Equalize", levels)
    assert result[0].unique().tolist() == [0, 255]
    assert result[1].unique().tolist() == [7]
    assert len(result[2].unique()) == 256


def test_color_goes_from_grey() -> None:
    red = torch.tensor([255, 0, 0]).view(3, 1, 1)  # luma 76
    assert operate("ColorIncreasing", red, sign=-1).flatten().tolist() == [110, 61, 61]  # 76 + 0.19 (x - 76)
    assert operate("ColorIncreasing", red, sign=1).flatten().tolist() == [255, 0, 0]


def test_sharpness_goes_from_a_smoothed_image() -> None:
    levels = torch.zeros(1, 3, 3)
    levels[0, 1, 1] = 143  # smoothed: 5 / 13 of it, 55
    centre = [int(operate("SharpnessIncreasing", levels, 1.0, sign)[0, 1, 1]) for sign in (1, -1)]
    assert centre == [222, 63]  # 55 + 1.9 * 88, 55 + 0.1 * 88
    assert operate("SharpnessIncreasing", levels, 1.0, 1).sum() == 222


@pytest.mark.parametrize("sign", [1, -1])
def test_translation_brings_in_the_border_colour(sign: int) -> None:
    levels = torch.randint(0, 256, (3, 20, 40))
    moved = operate("TranslateXRel", levels, 1.0, sign)  # 0.45 of 40 pixels: 18
    kept, new = (moved[..., :22], moved[..., 22:]) if sign == 1 else (moved[..., 18:], moved[..., :18])
    assert torch.equal(kept.int(), (levels[..., 18:] if sign == 1 else levels[..., :22]).int())
    assert (new == GREY).all()
    moved = operate("TranslateYRel", levels, 1.0, sign)  # 9
    kept, new = (moved[:, :11], moved[:, 11:]) if sign == 1 else (moved[:, 9:], moved[:, :9])
    assert torch.equal(kept.int(), (levels[:, 9:] if sign == 1 else levels[:, :11]).int())
    assert (new == GREY).all()


@pytest.mark.parametrize("flat", [False, True])
def test_shear_moves_rows_by_their_distance_from_the_corner(flat: bool) -> None:
    ramp = (5 * torch.arange(20)).repeat(1, 20, 1)
    name, levels = ("ShearX", ramp) if not flat else ("ShearY", ramp.mT)
    result = operate(name, levels, 2 / 3)  # a fifth of a pixel per row
    result = result.mT if flat else result
    for row, shift in ((2, 0.5), (7, 1.5), (12, 2.5)):
        expected = 5 * torch.arange(2, 15) + int(5 * shift)  # cut to whole levels
        assert result[0, row, 2:15].tolist() == expected.tolist()
        assert result[0, row, 20 - int(shift + 0.5) :].tolist() == [GREY] * int(shift + 0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_counter_clockwise_about_the_centre(sign: int) -> None:
    levels = torch.zeros(1, 32, 32)
    levels[0, 15:17, 27:29] = 255  # 12 pixels right of the centre
    turned = operate("Rotate", levels, 1.0, sign, border=0.0)[0]  # 30 degrees
    place = torch.arange(32) + 0.5 - 16
    right, down = ((turned * place).sum() / turned.sum(), (turned * place[:, None]).sum() / turned.sum())
    assert abs(float(right) - 12 * 3**0.5 / 2) < 0.3
    assert abs(float(down) + sign * 6) < 0.3


def test_a_constant_image_stays_constant_under_resampling() -> None:
    levels = torch.full((3, 24, 24), GREY)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        for share in (0.13, 0.5, 0.9):
            assert torch.equal(operate(name, levels, share), levels)


# --- what is drawn


def test_what_randaugment_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, ...]] = []

    def record(levels: Tensor, *draws: Tensor) -> Tensor:
        drawn.append(draws)
        return levels

    monkeypatch.setattr("dpap.data.rand_augment.apply_operations", record)
    rand_augment(torch.zeros(3000, 3, 1, 1), 5, seeded(), (0.485, 0.456, 0.406))
    assert len(drawn) == 2
    for kinds, shares, signs, border in drawn:
        used = kinds[kinds >= 0]
        assert abs(len(used) / 3000 - 0.5) < 0.04
        assert (used.bincount(minlength=15) - len(used) / 15).abs().max() < 45  # about 100 each
        assert len(used.bincount()) == 15
        assert abs(float(shares.mean()) - 0.5) < 0.005
        assert abs(float(shares.std()) - 0.05) < 0.005
        assert set(signs.tolist()) == {-1, 1}
        assert abs(float(signs.mean())) < 0.08
        assert border.tolist() == [124, 116, 104]
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][1], drawn[1][1])
    drawn.clear()
    rand_augment(torch.zeros(3000, 1, 1, 1), 10, seeded())
    assert 0.4 < float((drawn[0][1] == 1).double().mean()) < 0.6  # limited to 10
    assert drawn[0][3].tolist() == [128]


def test_an_image_without_an_operation_keeps_its_values() -> None:
    images = 0.2 + 0.5 * torch.rand(400, 3, 24, 24, generator=seeded())  # between the levels
    result = rand_augment(images, 9, seeded())
    same = (result == images).flatten(1).all(1)
    assert 65 < int(same.sum()) < 135  # a quarter; four standard deviations
    levels = result[~same] * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_there_are_the_fifteen_operations_of_the_increasing_set() -> None:
    increasing = {
        f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    }
    others = {"AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd", "ShearX", "ShearY"}
    assert set(RANDAUGMENT_OPERATIONS) == increasing | others | {"TranslateXRel", "TranslateYRel"}
    assert len(RANDAUGMENT_OPERATIONS) == 15


# --- beside Pillow


def by_pillow(name: str, levels: Tensor, share: float, sign: int) -> Tensor:
    """The operation as timm defines it, by Pillow, on (C, H, W) of uint8."""
    image_module = pytest.importorskip("PIL.Image")
    enhance, ops = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.ImageOps")
    grey = len(levels) == 1
    image = image_module.fromarray((levels[0] if grey else levels.permute(1, 2, 0).contiguous()).numpy())
    width, height = image.size
    factor = max(0.1, 1 + sign * share * 0.9)
    fill = int(GREY) if grey else (int(GREY),) * 3
    bicubic = image_module.Resampling.BICUBIC

    def affine(*matrix: float) -> Any:
        method = image_module.Transform.AFFINE
        return image.transform(image.size, method, matrix, resample=bicubic, fillcolor=fill)

    def solarize_add() -> Any:
        table = [min(255, level + min(128, int(share * 110))) if level < 128 else level for level in range(256)]
        return image.point(table if grey else table * 3)

    known: dict[str, Callable[[], Any]] = {
        "AutoContrast": lambda: ops.autocontrast(image),
        "Equalize": lambda: ops.equalize(image),
        "Invert": lambda: ops.invert(image),
        "PosterizeIncreasing": lambda: ops.posterize(image, 4 - int(share * 4)),
        "SolarizeIncreasing": lambda: ops.solarize(image, 256 - int(share * 256)),
        "SolarizeAdd": solarize_add,
        "ColorIncreasing": lambda: enhance.Color(image).enhance(factor),
        "ContrastIncreasing": lambda: enhance.Contrast(image).enhance(factor),
        "BrightnessIncreasing": lambda: enhance.Brightness(image).enhance(factor),
        "SharpnessIncreasing": lambda: enhance.Sharpness(image).enhance(factor),
        "Rotate": lambda: image.rotate(sign * share * 30, resample=bicubic, fillcolor=fill),
        "ShearX": lambda: affine(1, sign * share * 0.3, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, sign * share * 0.3, 1, 0),
        "TranslateXRel": lambda: affine(1, 0, sign * share * 0.45 * width, 0, 1, 0),
        "TranslateYRel": lambda: affine(1, 0, 0, 0, 1, sign * share * 0.45 * height),
    }
    data = torch.tensor(list(known[name]().tobytes()), dtype=torch.float32)
    return data.view(1, height, width) if grey else data.view(height, width, 3).permute(2, 0, 1)


def pictures(channels: int) -> list[Tensor]:
    """Noise, a dull smooth picture, one mostly black, as (C, H, W) of uint8."""
    noise = torch.randint(0, 256, (channels, 32, 32), generator=seeded())
    coarse = torch.rand(1, channels, 5, 5, generator=seeded(1))
    smooth = torch.nn.functional.interpolate(coarse, (28, 36), mode="bilinear")[0] * 120 + 50
    return [part.to(torch.uint8) for part in (noise, smooth, torch.where(smooth < 110, 0, smooth))]


@pytest.mark.parametrize("name", RANDAUGMENT_OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_equal_pillow(name: str, channels: int) -> None:
    for levels in pictures(channels):
        for share, sign in ((0.0, 1), (0.37, 1), (0.37, -1), (0.92, 1), (0.92, -1)):
            apart = (operate(name, levels, share, sign) - by_pillow(name, levels, share, sign)).abs()
            assert apart.max() <= 1, f"share {share}, sign {sign}"
            assert (apart > 0).float().mean() < 0.01, f"share {share}, sign {sign}"
