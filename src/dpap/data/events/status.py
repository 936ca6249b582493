"""What is here of the published sets of events, for the command line. None of them is downloaded: see `missing`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpap.data.events.framed import Recordings
from dpap.data.events.layouts import archives_in
from dpap.data.events.sets import EVENT_SOURCES, LAYOUTS, Archive, EventSource, missing, places
from dpap.data.set_status import FileStatus, SetStatus, State
from dpap.data.store import data_folders
from dpap.data.web import digest
from dpap.errors import DPAPError


def event_status(name: str) -> SetStatus:
    """What is here of a published set of events; nothing is read."""
    source = EVENT_SOURCES[name]
    files = [_file(path, "here") for path in _found(source)] or [_absent(one) for one in source.archives]
    return _set(source, files)


def verify_events(name: str) -> SetStatus:
    """Compare archives with their published checksums, and read every recording that is here.

    No checksums of single recordings are published: a set that lies unpacked, or in an archive of another name, is
    "here" when all of it can be read, never "ok".
    """
    source = EVENT_SOURCES[name]
    return _set(source, [_verified(source, path) for path in _found(source)] or list(event_status(name).files))


def fetch_events(name: str) -> SetStatus:
    """Verify what is here.

    Raises:
        DPAPError: it is not here; with what to get, from where, and where to put it.
    """
    if not list(_found(EVENT_SOURCES[name])):
        raise missing(EVENT_SOURCES[name])
    return verify_events(name)


def _found(source: EventSource) -> Iterator[Path]:
    """The archives of a set, or the folder that it is unpacked in; of the first place that has any."""
    for folder in places(source):
        if any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
            yield folder
            return
        if files := archives_in(folder) or sorted([*folder.glob("*.aedat"), *folder.glob("*.h5")]):
            yield from files
            return


def _verified(source: EventSource, path: Path) -> FileStatus:
    published = {one.name: one.checksum for one in source.archives}
    if checksum := published.get(path.name):
        with path.open("rb") as file:
            found = digest(file, checksum)
        wrong = "" if found == checksum else f"expected {checksum}, found {found}; get the file again"
        return _file(path, "damaged" if wrong else "ok", wrong)
    try:
        recordings = LAYOUTS[source.name](source, path if path.is_dir() else path.parent)
        faults = [] if recordings is None else list(_faults(recordings))
    except DPAPError as error:
        faults = [str(error)]
    return _file(path, "damaged" if faults else "here", f"{len(faults)} faults, first: {faults[0]}" if faults else "")


def _faults(recordings: Recordings) -> Iterator[str]:
    for row, read in recordings.read():
        try:
            if not len(read()):
                yield f"{recordings.samples[row].where}: a recording holds no events"
        except DPAPError as error:
            yield str(error)


def _set(source: EventSource, files: list[FileStatus]) -> SetStatus:
    return SetStatus(
        name=source.name, files=tuple(files), credit=source.credit, folder=data_folders()[0] / source.folders[0]
    )


def _file(path: Path, state: State, problem: str = "") -> FileStatus:
    size = path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return FileStatus(name=path.name, state=state, where=path, size=size, expected="", problem=problem)


def _absent(archive: Archive) -> FileStatus:
    return FileStatus(name=archive.name, state="missing", where=None, size=0, expected=archive.checksum)
