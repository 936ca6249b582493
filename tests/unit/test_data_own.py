"""One's own data: `.npz`, PyTorch data sets, folders of pictures, and their names in `load_dataset`."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from dpap.data import DATASETS, EVENTS, NEED_PATH, from_torch, load_dataset, load_images, load_npz
from dpap.errors import DPAPError

COUNT = 60
LABELS = np.arange(COUNT) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 5, 4), np.uint8)


def write(path: Path, **changes: Any) -> Path:
    """A good file but for the changes; None leaves an array out."""
    arrays = {"images": IMAGES, "labels": LABELS} | changes
    np.savez(path / "mine.npz", **{name: array for name, array in arrays.items() if array is not None})
    return path / "mine.npz"


# ----------------------------------------------------------------------------------------------------------------- npz


def test_npz(tmp_path: Path) -> None:
    data = load_npz(write(tmp_path))
    assert (data.spec.name, data.spec.shape, data.spec.classes) == ("mine", (2, 5, 4), ("0", "1", "2"))
    # A fifth of each class of 20, then a tenth (1.6) of the 16 that are left.
    assert [len(split) for split in (data.train, data.validation, data.test)] == [42, 6, 12]
    assert data.test.labels.bincount().tolist() == [4] * 3
    assert data.validation.labels.bincount().tolist() == [2] * 3
    parts = (data.train, data.validation, data.test)
    pairs = {
        (bytes(image.numpy()), int(label))
        for split in parts
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert pairs == {(image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)}
    pixels = data.train.images.double() / 255
    assert data.spec.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.spec.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def test_npz_is_split_the_same_every_time(tmp_path: Path) -> None:
    first, again = load_npz(write(tmp_path)), load_npz(write(tmp_path))
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(first, name).images, getattr(again, name).images)


def test_npz_with_a_test_part_and_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, test_images=IMAGES[:9], test_labels=LABELS[:9], classes=np.array(["cat", "dog", "owl"]))
    data = load_npz(path)
    assert data.spec.classes == ("cat", "dog", "owl")
    assert torch.equal(data.test.images, torch.from_numpy(IMAGES[:9]))
    assert len(data.train) + len(data.validation) == COUNT
    assert ["validation" in line for line in caplog.messages] == [True]


def test_npz_of_numbers_without_channels(tmp_path: Path) -> None:
    images = IMAGES[:, 0].astype(np.float32) * 7 - 3
    data = load_npz(write(tmp_path, images=images, labels=LABELS.astype(np.uint8)))
    assert data.spec.shape == (1, 5, 4)
    assert (data.spec.mean, data.spec.std) == ((), ())
    assert data.train.images.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert {float(image[0, 0, 0]) for image in data.test.images} <= set(images[:, 0, 0].tolist())


def test_one_colour_does_not_divide_by_zero(tmp_path: Path) -> None:
    data = load_npz(write(tmp_path, images=np.full((COUNT, 1, 4, 4), 51, np.uint8)))
    assert data.spec.mean == pytest.approx((0.2,))
    assert data.spec.std == (1 / 255,)
    assert data.spec.prepared(data.train.images).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": None}, "There is no array 'labels'; found images"),
        ({"images": None, "labels": None}, "found none of the known names"),
        ({"test_images": IMAGES}, "There is no array 'test_labels'; found images, labels, test_images"),
        ({"images": LABELS, "labels": IMAGES}, "'images' holds the labels, and 'labels' the images"),
        ({"labels": LABELS[:-1]}, "has 60 images, 'labels' 59 labels"),
        ({"labels": LABELS.astype(float)}, "'labels' is float64 of shape"),
        ({"labels": LABELS[:, None]}, r"'labels' is int64 of shape \(60, 1\)"),
        ({"labels": LABELS - 1}, "Label -1 is out of range"),
        ({"labels": LABELS + 1}, "A class has no training samples: '0'"),
        ({"labels": LABELS * 0}, "There is nothing to tell apart: 1 class"),
        ({"labels": LABELS * 2}, "no training samples: '1', '3'"),
        ({"images": IMAGES.astype(np.float64)}, "'images' is float64 of shape"),
        ({"images": IMAGES[:, 0, 0]}, r"of shape \(60, 4\), expected"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)[..., :1]}, "has its channels last"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "'images' is empty"),
        ({"images": np.full((COUNT, 1, 2, 2), np.nan, np.float32)}, "An image holds NaN"),
        ({"images": IMAGES.astype(object)}, "Array 'images' cannot be read"),
        ({"labels": LABELS.astype(object)}, "Array 'labels' cannot be read"),
        ({"classes": np.array([1, 2, 3])}, "'classes' is not a list of names"),
        ({"classes": np.array(["a", "b"])}, "Label 2 is out of range"),
        ({"classes": np.array(["a", "b", "c", "d"])}, "no training samples: 'd'"),
        ({"test_images": IMAGES[:, :1], "test_labels": LABELS}, r"shape \(60, 1, 5, 4\), expected \(60, 2, 5, 4\)"),
        ({"images": IMAGES[:6], "labels": LABELS[:6]}, "too few samples to set some aside as the test split: 6"),
    ],
)
def test_npz_that_is_wrong(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DPAPError, match=says) as caught:
        load_npz(write(tmp_path, **changes))
    assert "mine" in caught.value.where
    assert caught.value.fix


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    whole = write(tmp_path).read_bytes()
    contents = {
        "cut.npz": whole[:-200],
        "text.npz": b"hello",
        "empty.npz": b"",
        "flip.npz": whole[:300] + b"\xff" + whole[301:],
    }
    for name, raw in contents.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DPAPError, match="damaged, or no .npz"):
            load_npz(tmp_path / name)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(DPAPError, match="one array"):
        load_npz(tmp_path / "one.npy")
    for path in (tmp_path / "missing.npz", tmp_path):
        with pytest.raises(DPAPError, match="No such file|Is a directory"):
            load_npz(path)


class Trap:
    """Unpickled, it would say so."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return spring, ("sprung",)


def spring(_: str) -> None:
    raise AssertionError("an object was unpickled")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "trap.npz").write_bytes(pickle.dumps(Trap()))
    for path in (tmp_path / "trap.npz", write(tmp_path, labels=np.array([Trap()] * COUNT, dtype=object))):
        with pytest.raises(DPAPError):
            load_npz(path)


# -------------------------------------------------------------------------------------------------- a PyTorch data set


class Samples(TorchDataset[Any]):
    """A map-style data set of these samples."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def pairs(make: Callable[[np.ndarray], Any]) -> Samples:
    return Samples([(make(image), int(label)) for image, label in zip(IMAGES[:, 0], LABELS, strict=True)])


MAKERS: dict[str, Callable[[np.ndarray], Any]] = {
    "pillow": Image.fromarray,
    "array": lambda image: image,
    "array, channels last": lambda image: image[:, :, None],
    "tensor": lambda image: torch.from_numpy(image.copy()),
    "tensor, channels first": lambda image: torch.from_numpy(image.copy())[None],
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_any_form_of_picture(make: Callable[[np.ndarray], Any]) -> None:
    data = from_torch(pairs(make), pairs(make), name="mine", classes=["a", "b", "c"])
    assert (data.spec.name, data.spec.shape, data.spec.classes) == ("mine", (1, 5, 4), ("a", "b", "c"))
    assert torch.equal(data.test.images, torch.from_numpy(IMAGES[:, :1]))
    assert data.test.labels.tolist() == LABELS.tolist()
    assert [len(data.train), len(data.validation)] == [54, 6]
    assert len(data.spec.mean) == 1


def test_colour_pictures_of_pillow() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 4, 3), np.uint8)
    samples = Samples([(Image.fromarray(picture), label) for label in LABELS])
    data = from_torch(samples, samples, name="mine", classes="abc")
    assert torch.equal(data.test.images[0], torch.from_numpy(picture.transpose(2, 0, 1).copy()))


def test_numbers_stay_as_they_are() -> None:
    images = torch.randn(COUNT, 1, 3, 3, dtype=torch.float64)
    data = from_torch(TensorDataset(images, torch.from_numpy(LABELS)), None, name="mine", classes="abc")
    assert data.spec.mean == ()
    assert data.train.images.dtype == torch.float32
    assert [len(data.train), len(data.validation), len(data.test)] == [42, 6, 12]


class Stream(IterableDataset[Any]):
    """A data set without numbers."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())


GOOD = (torch.zeros(1, 2, 2), 0)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (Stream(), "has no length"),
        (Samples([]), "There are no samples"),
        (Samples([GOOD, torch.zeros(1, 2, 2)]), "A sample is Tensor, not a pair"),
        (Samples([GOOD, (1, 2, 3)]), "A sample is tuple, not a pair"),
        (Samples([GOOD, (torch.zeros(1, 2, 2), "cat")]), "A label is 'cat'"),
        (Samples([GOOD, (torch.zeros(1, 2, 2), 0.5)]), "A label is 0.5"),
        (Samples([GOOD, (torch.zeros(1, 2, 3), 1)]), r"shape \(1, 2, 3\), and sample 0 is .* shape \(1, 2, 2\)"),
        (Samples([GOOD, (torch.zeros(1, 2, 2, dtype=torch.uint8), 1)]), "torch.uint8 of shape"),
        (Samples([GOOD, (torch.zeros(2), 1)]), r"A picture has shape \(2,\)"),
        (Samples([GOOD, ("picture.png", 1)]), "A picture is str"),
        (Samples([GOOD, (torch.zeros(1, 2, 2), 7)]), "Label 7 is out of range|no training samples"),
    ],
)
def test_torch_data_that_are_wrong(samples: TorchDataset[Any], says: str) -> None:
    with pytest.raises(DPAPError, match=says) as caught:
        from_torch(samples, None, name="mine", classes="ab")
    assert "'mine'" in caught.value.where
    if isinstance(samples, Samples) and len(samples) and "range" not in says:
        assert "sample 1 of" in caught.value.where


# --------------------------------------------------------------------------------------------------- picture folders


def picture(path: Path, value: int = 0, *, size: tuple[int, int] = (6, 5), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "P", "1") else (value,) * len(mode)).save(path)
    return path


def folder(
    root: Path, splits: tuple[str, ...] = ("",), *, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10
) -> Path:
    for split in splits:
        for number, name in enumerate(classes):
            for row in range(count):
                picture(root / split / name / f"{row:03}.png", 100 * number + row)
    return root


def test_classes_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_images(folder(tmp_path / "pets"))
    assert (data.spec.name, data.spec.shape, data.spec.classes) == ("pets", (1, 5, 6), ("cat", "dog"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 2, 4]
    assert [("no test" in line, "no validation" in line) for line in caplog.messages] == [(True, False), (False, True)]
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.images[:, 0, 0, 0] >= 100, split.labels == 1)
    assert data.train.images.dtype == torch.uint8


def test_splits_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_images(folder(tmp_path, ("train", "test")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 2, 20]
    assert data.test.images[:, 0, 0, 0].tolist() == [*range(10), *range(100, 110)]
    assert len(caplog.messages) == 1
    caplog.clear()
    data = load_images(folder(tmp_path, ("val",)))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 20, 20]
    assert caplog.messages == []


def test_a_training_folder_alone(tmp_path: Path) -> None:
    data = load_images(folder(tmp_path, ("train",)))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 2, 4]


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("LA", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "png", 3),
        ("P", "png", 3),
        ("RGB", "JPG", 3),
        ("L", "jpeg", 1),
        ("CMYK", "jpg", 3),
    ],
)
def test_kinds_of_pictures(tmp_path: Path, mode: str, suffix: str, channels: int) -> None:
    for name in ("a", "b"):
        for row in range(10):
            picture(tmp_path / name / f"{row}.{suffix}", 1 if mode == "1" else 40, mode=mode)
    data = load_images(tmp_path)
    assert data.spec.shape == (channels, 5, 6)
    if mode in ("L", "LA", "RGB", "RGBA"):
        assert data.train.images.unique().tolist() == [40]
    if mode == "1":
        assert data.train.images.unique().tolist() == [255]


def test_one_colour_picture_makes_all_of_them_colour(tmp_path: Path) -> None:
    folder(tmp_path)
    picture(tmp_path / "dog" / "zzz.png", 200, mode="RGB")
    data = load_images(tmp_path)
    assert data.spec.shape == (3, 5, 6)
    assert (data.train.images[:, 0] == data.train.images[:, 2]).all()


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    folder(tmp_path)
    image = Image.new("P", (6, 5), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "cat" / "p.png", transparency=bytes([0, 128]))
    data = load_images(tmp_path)
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert (40, 50, 60) in {tuple(pixels.tolist()) for pixels in images[:, :, 0, 0]}


def test_other_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path)
    (tmp_path / "notes.txt").write_text("at the root nobody minds")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("")
    (tmp_path / "cat" / "notes.txt").write_text("")
    picture(tmp_path / "cat" / "old.bmp", 3)
    assert len(load_images(tmp_path).training(hold_out=False)) == 16
    assert [line for line in caplog.messages if "left out" in line] == [
        f"{tmp_path / 'cat'}: 2 that are not .png or .jpg are left out, such as notes.txt"
    ]


def break_layout(change: str, root: Path) -> None:
    if change == "no folder":
        return
    root.mkdir()
    if change == "empty":
        return
    if change == "flat":
        for row in range(5):
            picture(root / f"{row}.png")
        return
    if change == "one class":
        folder(root, classes=("cat",))
    elif change == "one class, split":
        folder(root, ("train", "test"), classes=("cat",))
    elif change == "no train":
        folder(root, ("test",))
    elif change == "typo":
        folder(root, ("train", "tset"))
    elif change == "empty class":
        folder(root)
        (root / "owl").mkdir()
    elif change == "other pictures":
        folder(root)
        picture(root / "owl" / "1.bmp")
    elif change == "deeper":
        folder(root, ("cat", "dog"), classes=("images",))
    elif change == "new in test":
        folder(root, ("train", "test"))
        picture(root / "test" / "owl" / "1.png")
    elif change == "none in test":
        folder(root, ("train",))
        folder(root, ("test",), classes=("cat",))
    elif change == "no classes":
        (root / "train").mkdir()
    elif change == "few":
        folder(root, count=2)


@pytest.mark.parametrize(
    ("change", "says", "where"),
    [
        ("no folder", "There is no such folder", ""),
        ("empty", "it holds nothing", ""),
        ("flat", "it holds 0.png, 1.png, 2.png and 2 more", ""),
        ("one class", "needs two classes; found 1: cat", ""),
        ("one class, split", "needs two classes; found 1: cat", "train"),
        ("no classes", "needs two classes; found 0: no folder", "train"),
        ("no train", "it holds test/", ""),
        ("typo", "beside train/ it holds tset/", ""),
        ("empty class", "no .png or .jpg pictures: it holds nothing", "owl"),
        ("other pictures", "no .png or .jpg pictures: it holds 1.bmp", "owl"),
        ("deeper", "no .png or .jpg pictures: it holds images", "cat"),
        ("new in test", "A class has no training pictures: owl", "test"),
        ("none in test", "no .png or .jpg pictures: there is no such folder", "test/dog"),
        ("few", "too few samples to set some aside as the test split: 4", ""),
    ],
)
def test_another_layout(tmp_path: Path, change: str, says: str, where: str) -> None:
    break_layout(change, tmp_path / "root")
    with pytest.raises(DPAPError, match=says) as caught:
        load_images(tmp_path / "root")
    assert caught.value.where == str(tmp_path / "root" / where)
    assert caught.value.fix


@pytest.mark.parametrize("change", ["text", "cut", "empty", "link"])
def test_a_picture_that_cannot_be_read(tmp_path: Path, change: str) -> None:
    path = folder(tmp_path) / "dog" / "003.png"
    raw = path.read_bytes()
    path.unlink()
    if change == "link":
        path.symlink_to(tmp_path / "nowhere.png")
    else:
        path.write_bytes({"text": b"hello", "cut": raw[:-30], "empty": b""}[change])
    with pytest.raises(DPAPError, match="A picture cannot be read") as caught:
        load_images(tmp_path)
    assert caught.value.where == str(path)


def test_pictures_of_two_sizes(tmp_path: Path) -> None:
    odd = picture(folder(tmp_path) / "dog" / "004.png", size=(7, 5))
    with pytest.raises(DPAPError, match="7 x 5, and .*cat/000.png is 6 x 5") as caught:
        load_images(tmp_path)
    assert caught.value.where == str(odd)


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path) / "dog" / "004.png"
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(path)
    with pytest.raises(DPAPError, match="pixels of type 'I;16'") as caught:
        load_images(tmp_path)
    assert caught.value.where == str(path)


def test_an_enormous_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DPAPError, match="A picture cannot be read: Image size"):
        load_images(folder(tmp_path))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    folder(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DPAPError, match="Permission denied") as caught:
        load_images(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    folder(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DPAPError, match="Pillow, which is not installed") as caught:
        load_images(tmp_path)
    assert "dpap[images]" in caught.value.fix


# --------------------------------------------------------------------------------------------------------------- names


def test_by_name(tmp_path: Path) -> None:
    pictures = {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "images", "npz"}
    assert DATASETS.keys() - EVENTS.keys() == pictures
    assert {"nmnist", "dvsgesture", "cifar10dvs", "ncaltech101", "shd", "ssc", "events"} <= EVENTS.keys()
    assert load_dataset("npz", write(tmp_path)).spec.name == "mine"
    assert load_dataset("images", str(folder(tmp_path / "pets"))).spec.name == "pets"
    assert load_dataset("digits").spec.name == "digits"


def test_a_path_too_many_or_too_few() -> None:
    for name in DATASETS:
        with pytest.raises(DPAPError, match="needs a path" if name in NEED_PATH else "takes no path"):
            load_dataset(name, None if name in NEED_PATH else "somewhere")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(DPAPError, match="did you mean 'fashion-mnist'"):
        load_dataset("fashionmnist")


def test_one_stray_label_is_named_at_once(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[7] = 2_000_000_000
    with pytest.raises(DPAPError, match="label 2000000000, but there are only 60 samples"):
        load_npz(write(tmp_path, labels=labels))
