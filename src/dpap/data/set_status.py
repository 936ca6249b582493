"""What is here of the published data sets, for the command line: states of files, verification, downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dpap.data.sources import SOURCES, Download, Part, Source
from dpap.data.store import cache_folder, cached_parts, download_all, find_download, home_folder, read_part, unpack
from dpap.data.web import Progress, megabytes
from dpap.errors import DPAPError, unknown_name

State = Literal["ok", "here", "missing", "damaged"]
"""ok: read and verified. here: found, not read. missing: nowhere. damaged: not the published file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """A file of a data set.

    Attributes:
        name: As it is called here; of a missing one, as it is called officially.
        state: ok, here, missing or damaged.
        where: The file; None where it is missing.
        size: Its bytes; of a missing one, the bytes to download.
        expected: The checksum of what was published: of the download, or of an unpacked part.
        problem: What is wrong and what to do; empty when nothing is.
    """

    name: str
    state: State
    where: Path | None
    size: int
    expected: str
    problem: str = ""

    def __str__(self) -> str:
        place = f"  {self.where}" if self.where else f"  {megabytes(self.size)} to download"
        problem = "".join(f"\n        {line}" for line in self.problem.splitlines())
        return f"{self.state:8}{self.name}{place}{problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus:
    """A data set: its files, and what a table says of it."""

    name: str
    files: tuple[FileStatus, ...]
    credit: str
    folder: Path
    """Where a download would go."""

    @property
    def state(self) -> State:
        """The worst of its files."""
        states = {file.state for file in self.files}
        order: tuple[State, ...] = ("damaged", "missing", "here", "ok")
        return next(state for state in order if state in states)

    @property
    def where(self) -> Path | None:
        """The folder of the first file that is here."""
        return next((file.where.parent for file in self.files if file.where is not None), None)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the files that are nowhere."""
        return tuple(file.name for file in self.files if file.state == "missing")

    @property
    def to_download(self) -> int:
        """Bytes of the files that are missing."""
        return sum(file.size for file in self.files if file.state == "missing")

    def __str__(self) -> str:
        size = f", {megabytes(self.to_download)} to download to {self.folder}" if self.missing else ""
        return "\n".join([f"{self.name}: {self.state}{size}", *(f"    {file}" for file in self.files), self.credit])


def status(name: str) -> SetStatus:
    """What is here of a published data set; of a file in its own folder only the size is compared, nothing is read.

    Raises:
        DPAPError: no published data set of that name.
    """
    source = _source(name)
    files = [file for item in source.downloads for file in _status(source, item)]
    return SetStatus(name=name, files=tuple(files), credit=source.spec.credit, folder=home_folder(source))


def verify(name: str) -> SetStatus:
    """Read every file of a published data set that is here, unpack it, and compare it with its checksum.

    Raises:
        DPAPError: no published data set of that name. A damaged file is not an error: its status says what is wrong.
    """
    source = _source(name)
    files = [file for item in source.downloads for file in _verified(source, item)]
    return SetStatus(name=name, files=tuple(files), credit=source.spec.credit, folder=home_folder(source))


def fetch(name: str, progress: Progress | None = None) -> SetStatus:
    """Download the files of a published data set that are missing, and verify all of them.

    Args:
        name: Of the data set.
        progress: Called with the name of the file, the bytes that are here and the bytes it has.

    Raises:
        DPAPError: no published data set of that name, no connection, another file at the address, or no folder that
            can be written.
    """
    source = _source(name)
    here = (find_download, cached_parts)
    missing = [item for item in source.downloads if all(look(source, item) is None for look in here)]
    download_all(source, missing, progress)
    return verify(name)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise unknown_name("published data set", name, SOURCES)
    return SOURCES[name]


def _status(source: Source, item: Download) -> list[FileStatus]:
    """Of one download, by sizes."""
    found = find_download(source, item)
    if found is None and cached_parts(source, item) is not None:
        return [_file(part, "ok", cache_folder() / source.name / part.name) for part in item.parts]
    if found is None:
        return [_file(item, "missing", None)]
    if found.packed is not None:
        return [_file(item, "here", found.packed)]
    return [
        _file(part, "here", path)
        if path.stat().st_size == part.size
        else _file(part, "damaged", path, f"it has {path.stat().st_size:,} bytes, expected {part.size:,}")
        for part, path in ((part, found.parts[part.name]) for part in item.parts)
    ]


def _verified(source: Source, item: Download) -> list[FileStatus]:
    """Of one download, by checksums."""
    found = find_download(source, item)
    if found is None:
        return _status(source, item)
    if found.packed is not None:
        return [_try(item, found.packed, partial(unpack, source, item, found.packed))]
    paths = found.parts
    return [_try(part, paths[part.name], partial(read_part, source, part, paths[part.name])) for part in item.parts]


def _try(known: Part | Download, path: Path, read: Callable[[], object]) -> FileStatus:
    try:
        read()
    except DPAPError as error:
        return _file(known, "damaged", path, str(error))
    return _file(known, "ok", path)


def _file(known: Part | Download, state: State, where: Path | None, problem: str = "") -> FileStatus:
    name, size = (known.name, known.size) if where is None else (where.name, where.stat().st_size)
    return FileStatus(name=name, state=state, where=where, size=size, expected=known.checksum, problem=problem)
