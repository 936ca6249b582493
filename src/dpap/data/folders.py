"""Pictures in folders, a folder for each class. Needs Pillow, of the extra `images`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpap.data.arrays import own_dataset
from dpap.data.spec import Dataset, Split
from dpap.errors import DPAPError

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
VALIDATION_NAMES = ("val", "valid", "validation")
LAYOUT = "put the pictures into FOLDER/train/CLASS and FOLDER/test/CLASS, or all of them into FOLDER/CLASS"
GREY = frozenset({"1", "L", "LA"})
COLOUR = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"})


def load_images(path: str | Path) -> Dataset:
    """Pictures (.png, .jpg) of `path/train/CLASS` and `path/test/CLASS`, or of `path/CLASS`; all of one size.

    There may be `path/val/CLASS` too. A split that is not there is a fixed, stratified part of the others, which a log
    line says. The classes are the names of the folders, sorted. Pictures become bytes: of one channel when all of them
    are grey, else of three; transparency is left out.

    Raises:
        DPAPError: Pillow is not installed, another layout, fewer than two classes, a class without pictures, one that
            cannot be read, or pictures of several sizes; with the folder or the file.
    """
    root = Path(path).expanduser()
    _require_pillow()
    try:
        return _load(root)
    except OSError as error:
        raise DPAPError(
            f"A folder of pictures cannot be read: {error.strerror}.",
            where=str(error.filename or root),
            fix="check that you may read it",
        ) from error


def _load(root: Path) -> Dataset:
    splits = _split_folders(root)
    classes = sorted(folder.name for folder in _folders(splits["train"]))
    if len(classes) < 2:
        raise DPAPError(
            f"A picture folder needs two classes; found {len(classes)}: {', '.join(classes) or 'no folder'}.",
            where=str(splits["train"]),
            fix=LAYOUT,
        )
    files = {name: _files(folder, classes) for name, folder in splits.items()}
    grey = {_mode(file) for pairs in files.values() for file, _ in pairs} <= GREY
    reference = files["train"][0][0]
    read = {name: _read(pairs, "L" if grey else "RGB", reference) for name, pairs in files.items()}
    return own_dataset(
        root.resolve().name,
        classes,
        read["train"],
        validation=read.get("validation"),
        test=read.get("test"),
        where=str(root),
    )


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DPAPError(
            "Picture files are read with Pillow, which is not installed.", fix="pip install 'dpap[images]'"
        ) from error


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split that is there; of `train` alone, the folder itself where it holds the classes."""
    if not root.is_dir():
        raise DPAPError("There is no such folder of pictures.", where=str(root), fix=LAYOUT)
    names = [folder.name for folder in _folders(root)]
    if "train" not in names:
        if "test" in names or not names:
            found = ", ".join([f"{name}/" for name in names]) or _content(root)
            raise DPAPError(f"A picture folder has another layout: it holds {found}.", where=str(root), fix=LAYOUT)
        return {"train": root}
    if unknown := [name for name in names if name not in ("train", "test", *VALIDATION_NAMES)]:
        raise DPAPError(
            f"A picture folder has another layout: beside train/ it holds {', '.join(f'{name}/' for name in unknown)}.",
            where=str(root),
            fix=f"rename or remove what is neither train, test nor val; or, where train is a class, {LAYOUT}",
        )
    splits = {name: root / name for name in ("train", "test") if name in names}
    held = [name for name in VALIDATION_NAMES if name in names]
    return splits | ({"validation": root / held[0]} if held else {})


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "nothing"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _files(split: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Every picture of a split and the number of its class, sorted."""
    surplus = sorted({folder.name for folder in _folders(split)} - set(classes))
    if surplus:
        raise DPAPError(
            f"A class has no training pictures: {', '.join(surplus)}.", where=str(split), fix="use the same classes"
        )
    pairs = []
    for number, name in enumerate(classes):
        folder = split / name
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        if not pictures:
            found = f"it holds {_content(folder)}" if folder.is_dir() else "there is no such folder"
            raise DPAPError(f"A class has no .png or .jpg pictures: {found}.", where=str(folder), fix=LAYOUT)
        if other := [file.name for file in files if file not in pictures and not file.name.startswith(".")]:
            log.warning("%s: %d that are not .png or .jpg are left out, such as %s", folder, len(other), other[0])
        pairs += [(file, number) for file in pictures]
    return pairs


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """A picture of which the header is read; whatever goes wrong inside names the file."""
    from PIL import Image

    bomb = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                yield picture
    except (OSError, SyntaxError, ValueError, *bomb) as error:
        raise DPAPError(
            f"A picture cannot be read: {error}.", where=str(file), fix="remove the file, or save it again"
        ) from error


def _mode(file: Path) -> str:
    with _opened(file) as picture:
        mode = picture.mode
    if mode not in GREY | COLOUR:
        raise DPAPError(
            f"A picture has pixels of type {mode!r}; 8 bits a channel are read.",
            where=str(file),
            fix="save it as 8-bit grey or colour",
        )
    return mode


def _read(pairs: Sequence[tuple[Path, int]], mode: str, reference: Path) -> Split:
    """Pictures (N, C, H, W), and labels.

    Args:
        pairs: Files and labels.
        mode: What Pillow converts them to: L or RGB.
        reference: The picture whose size they must have.
    """
    with _opened(reference) as picture:
        width, height = picture.size
    images = torch.empty((len(pairs), 1 if mode == "L" else 3, height, width), dtype=torch.uint8)
    for row, (file, _) in enumerate(pairs):
        with _opened(file) as picture:
            if picture.size != (width, height):
                raise DPAPError(
                    f"Pictures differ in size: {picture.size[0]} x {picture.size[1]}, and {reference} is "
                    f"{width} x {height}.",
                    where=str(file),
                    fix="bring all pictures to one size",
                )
            # With a transparent colour, Pillow warns on the direct way from a palette.
            array = np.array((picture.convert("RGBA") if picture.mode == "P" else picture).convert(mode))
        images[row] = torch.from_numpy(array.reshape(height, width, -1)).permute(2, 0, 1)
    return Split(images=images, labels=torch.tensor([label for _, label in pairs]))
