"""Where recordings lie: a folder, or an archive that is read and never extracted."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dpap.data.events.readers import AGAIN, Raw, mapped
from dpap.errors import DPAPError

_UNREADABLE = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz")
ARCHIVES = (".zip", *TAR)


def names_in(place: Path) -> list[str]:
    """Files of a folder or an archive, with `/` between the parts of a name; folders end with it. In natural order.

    Raises:
        DPAPError: no such place, or a damaged archive.
    """
    try:
        if place.is_dir():
            paths = [path for path in place.rglob("*") if not _hidden(path.relative_to(place).parts)]
            names = [path.relative_to(place).as_posix() + ("/" if path.is_dir() else "") for path in paths]
        elif place.suffix == ".zip":
            with zipfile.ZipFile(place) as zipped:
                names = zipped.namelist()
        else:
            with tarfile.open(place) as tarred:
                names = [item.name + ("/" if item.isdir() else "") for item in tarred if item.isfile() or item.isdir()]
    except _UNREADABLE as error:
        raise _unreadable(str(place), error) from error
    return sorted((name for name in names if not _hidden(name.split("/"))), key=natural)


def members(place: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Callable[[], Raw], str]]:
    """Of the wanted files, in any order: the number, what reads its bytes, and what to call it in an error.

    The bytes can be read until the next file is asked for.

    Raises:
        DPAPError: a damaged archive.
    """
    number = {name: row for row, name in enumerate(wanted)}
    try:
        if place.is_dir():
            for name, row in number.items():
                yield row, partial(mapped, place / name), str(place / name)
        elif place.suffix == ".zip":
            with zipfile.ZipFile(place) as zipped:
                for name, row in number.items():
                    where = f"{place}, member {name}"
                    yield row, partial(_read, partial(zipped.read, name), where), where
        else:
            with tarfile.open(place) as tarred:  # in its own order: there is no way back in a packed one
                for item in tarred:
                    if item.isfile() and item.name in number:
                        stream = tarred.extractfile(item)
                        assert stream is not None, "it is a file"
                        where = f"{place}, member {item.name}"
                        yield number[item.name], partial(_read, stream.read, where), where
    except _UNREADABLE as error:
        raise _unreadable(str(place), error) from error


def _read(read: Callable[[], bytes], where: str) -> Raw:
    try:
        return np.frombuffer(read(), np.uint8)
    except _UNREADABLE as error:
        raise _unreadable(where, error) from error


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts as people do.

    >>> sorted(["b10", "b9", "a"], key=natural)
    ['a', 'b9', 'b10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _unreadable(where: str, error: Exception) -> DPAPError:
    reason = getattr(error, "strerror", None) or f"it breaks off, or is no archive ({error})"
    return DPAPError(f"Recordings cannot be read: {reason}.", where=where, fix=AGAIN)
