"""Frames of a whole data set, made once and kept in the user's cache folder; what was changed there is made again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dpap.data.store import cache_folder

log = logging.getLogger(__name__)

IMAGES, FACTS = "images.npy", "facts.json"
NOT_KEPT = "frames are not kept, so that they are made at every load: %s: %s"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a recording before it is read."""

    label: int
    split: str | None
    """train, validation, test, or None where the set does not say."""
    where: str
    """What to call it in an error."""


@dataclass(frozen=True, slots=True)
class Framed:
    """Frames of all recordings that were read."""

    images: UInt8[np.ndarray, "N T C H W"]
    samples: list[Sample]
    skipped: list[str]
    """What was wrong with the recordings that were left out."""


def key(*facts: object) -> str:
    """A short name for facts as JSON takes them; other facts get another."""
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=10).hexdigest()


def folder_of(name: str, *facts: object) -> Path:
    """Where the frames of a data set are kept that are made in a certain way."""
    return cache_folder() / "events" / f"{name}-{key(*facts)}"


def kept(folder: Path, source: str) -> Framed | None:
    """What is kept there of a source that has not changed; None where nothing is, or it is damaged.

    Args:
        folder: See `folder_of`.
        source: The `key` of all that the frames were made of.
    """
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["source"] != source:
            return None
        images = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)  # PyTorch wants it writable
        if facts["digest"] == _digest(images):
            return Framed(images, [Sample(**sample) for sample in facts["samples"]], facts["skipped"])
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        pass
    log.warning("the cache is damaged and made again: %s", folder)
    return None


@dataclass(frozen=True, slots=True)
class Draft:
    """Frames in the making, in a folder that takes the place of `folder`; None where nothing can be written."""

    path: Path | None
    folder: Path
    source: str

    def room(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N T C H W"]:
        """Zeros, on the disk where there is room for them: all frames of a data set may exceed the memory."""
        if self.path is None:
            return np.zeros(shape, np.uint8)
        path = self.path / IMAGES
        try:
            images: UInt8[np.ndarray, "N T C H W"] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here; later, it would end the process
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            log.warning(NOT_KEPT, path, error.strerror)
            return np.zeros(shape, np.uint8)
        return images

    def keep(self, found: Framed) -> None:
        """Write what is not yet on the disk, and give it its place; what was kept there is replaced."""
        if self.path is None:
            return
        facts = {
            "source": self.source,
            "digest": _digest(found.images),
            "samples": [asdict(sample) for sample in found.samples],
            "skipped": found.skipped,
        }
        try:
            if not isinstance(found.images, np.memmap):
                np.save(self.path / IMAGES, found.images)
            (self.path / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.path.rename(self.folder)
        except OSError as error:
            log.warning(NOT_KEPT, self.folder, error.strerror)


@contextmanager
def draft_of(folder: Path, source: str) -> Iterator[Draft]:
    """A draft beside `folder`, which is gone afterwards unless it was kept; `source` as for `kept`."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        log.warning(NOT_KEPT, folder.parent, error.strerror)
        yield Draft(None, folder, source)
        return
    try:
        yield Draft(path, folder, source)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _digest(images: UInt8[np.ndarray, "N T C H W"]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=20).hexdigest()
