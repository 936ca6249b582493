"""The files of a published data set: where they are, whether they are the published ones, and their bytes.

Looked at in turn: the folder named by DPAP_DATA, then `dpap` in the user's data folder. Whatever is read is compared
with its published checksum, at every load. What an archive holds is kept unpacked in the user's cache folder, where it
is verified in the same way; so a damaged cache is noticed, and made again.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from dpap.atomic import replace_file
from dpap.data.sources import SOURCES, Download, Part, Source
from dpap.data.web import Progress, download, megabytes
from dpap.errors import DPAPError

log = logging.getLogger(__name__)


_UNREADABLE = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)


def read_parts(source: Source) -> dict[str, bytes]:
    """The verified bytes of every part of a data set, by name; what is missing is downloaded first.

    Raises:
        DPAPError: a file that is not the published one, or one that is missing and cannot be downloaded.
    """
    parts: dict[str, bytes] = {}
    missing = []
    for item in source.downloads:
        here = _read(source, item)
        if here is None:
            log.warning("downloading %s (%s) to %s", item.name, megabytes(item.size), home_folder(source))
            missing.append(item)
        else:
            parts |= here
    download_all(source, missing)
    for item in missing:
        parts |= _read(source, item) or {}
    return parts


# ------------------------------------------------------------------------------------------------------------ folders


def data_folders() -> tuple[Path, ...]:
    """The folders that are looked at, in turn."""
    own = platformdirs.user_data_path("dpap")
    named = os.environ.get("DPAP_DATA")
    return (Path(named).expanduser(), own) if named else (own,)


def cache_folder() -> Path:
    """Where the contents of archives are kept."""
    return platformdirs.user_cache_path("dpap")


def home_folder(source: Source) -> Path:
    """Where a download goes: the first data folder that can be written."""
    folders = data_folders()
    return next((folder for folder in folders if _writable(folder)), folders[-1]) / source.folders[0]


def _writable(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    # The mode too: root may write everywhere, but a folder that nobody may write is meant to stay as it is.
    return there.is_dir() and bool(there.stat().st_mode & 0o222) and os.access(there, os.W_OK | os.X_OK)


@dataclass(frozen=True, slots=True)
class _Found:
    """Either every part of a download, unpacked, or the download itself."""

    parts: Mapping[str, Path]
    packed: Path | None = None


def find_download(source: Source, item: Download) -> _Found | None:
    for place, named in _places(source):
        for parts in _unpacked(source, item, place, named):
            if len(parts) == len(item.parts):
                return _Found(parts)
        packed = _first(place, item.packed_names, source)
        if packed is not None:
            return _Found({}, packed)
    return None


def _places(source: Source) -> Iterator[tuple[Path, bool]]:
    """Folders where the files of a data set may lie, in turn, and whether they bear its name."""
    for root in data_folders():
        yield from ((root / name, True) for name in source.folders)
        yield root, root.name in source.folders


def _unpacked(source: Source, item: Download, place: Path, named: bool) -> Iterator[dict[str, Path]]:
    """Those parts of a download that lie unpacked in a folder: in the archive's own folder, or directly.

    Directly only in a folder that bears the name of the data set: elsewhere, `train.bin` may be anything.
    """
    folders = [place] if named or not source.inside else []
    for folder in [place / source.inside, *folders] if source.inside else folders:
        paths = {part.name: _first(folder, item.unpacked_names(part), source) for part in item.parts}
        yield {name: path for name, path in paths.items() if path is not None}


def _first(folder: Path, names: tuple[str, ...], source: Source) -> Path | None:
    for path in (folder / name for name in names):
        if os.path.isfile(path) and not (folder in data_folders() and _of_another_set(path, source)):
            return path
    return None


def _of_another_set(path: Path, source: Source) -> bool:
    """MNIST and Fashion-MNIST name their files alike: directly in a data folder, only the checksum tells them apart."""
    if source.inside:
        return False
    known = _identify(_bytes(path))
    return known is not None and known[0] is not source


# ------------------------------------------------------------------------------------------------------------ reading


def _read(source: Source, item: Download) -> dict[str, bytes] | None:
    """The verified parts of one download; None where it is nowhere."""
    found = find_download(source, item)
    if found is not None and found.packed is None:
        return {part.name: read_part(source, part, found.parts[part.name]) for part in item.parts}
    if (cached := cached_parts(source, item)) is not None:
        return cached
    if found is None or found.packed is None:
        return None
    return unpack(source, item, found.packed)


def unpack(source: Source, item: Download, path: Path) -> dict[str, bytes]:
    """The verified parts in a packed file. What took long is kept."""
    if not source.inside:
        return _gunzip(source, item, path)
    log.warning("unpacking %s", path)
    parts = _untar(source, item, path)
    _keep(source, parts)
    return parts


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DPAPError("A data file cannot be read.", where=f"{path}: {error.strerror}") from error


def read_part(source: Source, part: Part, path: Path) -> bytes:
    raw = _bytes(path)
    if not _right(part, raw):
        raise _damaged(source, part, str(path), raw)
    return raw


def _gunzip(source: Source, item: Download, path: Path) -> dict[str, bytes]:
    """The part in a `.gz`. It is the part that is verified: the same, packed by another program, is as good."""
    packed = _bytes(path)
    part = item.parts[0]
    stream = zlib.decompressobj(wbits=31)
    try:
        raw = stream.decompress(packed, part.size + 1)
    except zlib.error as error:
        raise _damaged(source, item, str(path), packed, "it is not a gzip file, or damaged inside") from error
    if not _right(part, raw):
        why = "it breaks off" if not stream.eof and len(raw) <= part.size else ""
        raise _damaged(source, item, str(path), packed, why)
    return {part.name: raw}


def _untar(source: Source, item: Download, path: Path) -> dict[str, bytes]:
    """The parts in an archive. Only they are read, into memory; nothing is extracted."""
    wanted = {part.name: part for part in item.parts}
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _refuse_unsafe(member, path)
                part = wanted.get(member.name.rpartition("/")[2])
                if part is None or not member.isfile():
                    continue
                where = f"{path}, member {member.name}"
                if part.name in parts:
                    raise DPAPError("An archive holds two files of one name.", where=where, fix=_anew(source))
                stream = archive.extractfile(member)
                assert stream is not None
                raw = stream.read(part.size + 1)
                if not _right(part, raw):
                    raise _damaged(source, part, where, raw, size=member.size)
                parts[part.name] = raw
    except _UNREADABLE as error:
        why = f"it breaks off, or is no archive ({error})"
        raise _damaged(source, item, str(path), _bytes(path), why) from error
    if lacking := [name for name in wanted if name not in parts]:
        raise DPAPError(f"The archive holds no {', '.join(lacking)}.", where=str(path), fix=_anew(source))
    return parts


def _refuse_unsafe(member: tarfile.TarInfo, path: Path) -> None:
    """No honest archive of a data set holds these."""
    steps = re.split(r"[/\\]", member.name)
    if member.name.startswith(("/", "\\")) or ".." in steps or re.match(r"[A-Za-z]:", member.name):
        problem = "leads out of its folder"
    elif not (member.isfile() or member.isdir()):
        problem = "is a link or a device"
    else:
        return
    raise DPAPError(
        f"An archive is refused: its member {member.name!r} {problem}.",
        where=str(path),
        fix="do not unpack it; get the archive from its official address",
    )


# -------------------------------------------------------------------------------------------------------------- cache


def cached_parts(source: Source, item: Download) -> dict[str, bytes] | None:
    """The parts of an archive that were unpacked before; None unless all are there and right."""
    folder = cache_folder() / source.name
    paths = {part.name: folder / part.name for part in item.parts}
    if not source.inside or not all(os.path.isfile(path) for path in paths.values()):
        return None
    parts = {}
    for part in item.parts:
        try:
            parts[part.name] = read_part(source, part, paths[part.name])
        except DPAPError:
            log.warning("the cache is damaged and made again: %s", paths[part.name])
            return None
    return parts


def _keep(source: Source, parts: Mapping[str, bytes]) -> None:
    """Write the parts to the cache, each under another name first. A cache that cannot be written is done without."""
    folder = cache_folder() / source.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in parts.items():
            replace_file(folder / name, raw)
    except OSError as error:
        log.warning("no cache, so that the archive is unpacked at every load: %s: %s", folder, error.strerror)


# ------------------------------------------------------------------------------------------------------ what is wrong


def _digest(raw: bytes, checksum: str) -> str:
    algorithm = checksum.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()}"


def _right(known: Part | Download, raw: bytes) -> bool:
    return len(raw) == known.size and _digest(raw, known.checksum) == known.checksum


def _identify(raw: bytes) -> tuple[Source, str] | None:
    """Which published file these bytes are."""
    for source in SOURCES.values():
        for item in source.downloads:
            files: tuple[Part | Download, ...] = (item, *item.parts)
            for known in files:
                if _right(known, raw):
                    return source, known.name
    return None


def _damaged(
    source: Source, known: Part | Download, where: str, raw: bytes, why: str = "", *, size: int | None = None
) -> DPAPError:
    """The error for a file that is not the published one.

    Args:
        source: The data set.
        known: What the file should be.
        where: The file, for the reader.
        raw: Its bytes; only the first of them where it has more than it should.
        why: What is known already; else what the bytes tell.
        size: How many bytes it has; None: those of `raw`.
    """
    size = len(raw) if size is None else size
    fix = _anew(source)
    if (other := _identify(raw)) is not None:
        why = f"it is {other[1]} of {other[0].name}, swapped or renamed"
        fix = "give each file its own name again"
    if source.inside and isinstance(known, Part) and size != known.size:
        why = why or f"it holds {size / (known.size // known.samples):,.10g} samples, expected {known.samples:,}"
    why = why or "its contents are others"
    found = _digest(raw, known.checksum) if size == len(raw) else "not read to its end"
    return DPAPError(
        f"A file is not what was published as {known.name} of {source.name}: {why}. "
        f"Expected {known.size:,} bytes, {known.checksum}; found {size:,} bytes, {found}.",
        where=where,
        fix=fix,
    )


def _anew(source: Source) -> str:
    return f"delete it and run: dpap data fetch {source.name}"


def download_all(source: Source, missing: list[Download], progress: Progress | None = None) -> None:
    """Download files; where that fails, the error names all that are missing and how to put them there."""
    folder = home_folder(source)
    for number, item in enumerate(missing):
        try:
            download(item, folder, progress)
        except DPAPError as error:
            left = missing[number:]
            looked = ", ".join(str(root) for root in data_folders())
            notes = "".join(f" {note}" for note in _almost(source, left))
            raise DPAPError(
                f"Data set {source.name} is not complete: missing {', '.join(one.name for one in left)}. "
                f"{error.what}{notes}",
                where=f"{error.where}; looked in {looked}",
                fix=f"check the connection and run the same again; or put into {folder}: "
                + ", ".join(f"{one.url} ({megabytes(one.size)})" for one in left)
                + "; or name the folder that has the files with DPAP_DATA",
            ) from error


def _almost(source: Source, missing: list[Download]) -> Iterator[str]:
    """What was found that is not enough."""
    for place, named in _places(source):
        for item in missing:
            for parts in _unpacked(source, item, place, named):
                if parts:
                    lacking = ", ".join(part.name for part in item.parts if part.name not in parts)
                    yield f"Found in {next(iter(parts.values())).parent}, but without {lacking}."
        for path in (place / name for name in source.unread):
            if path.exists():
                yield f"{path} is in a format that is never read."
