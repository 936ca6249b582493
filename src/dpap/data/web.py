"""Download one file: resumed where it broke off, verified before it gets its name, never half-written."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dpap.data.sources import Download
from dpap.errors import DPAPError

if sys.platform != "win32":
    import fcntl

Progress = Callable[[str, int, int], None]
"""Called with the name of the file, the bytes that are here, and the bytes it has."""

CHUNK = 1 << 18
PAUSE = 1.0
"""Seconds before a broken connection is tried again."""


class _Broken(Exception):
    """The connection ended before the file did."""


def download(
    item: Download, folder: Path, progress: Progress | None = None, *, timeout: float = 30.0, tries: int = 4
) -> Path:
    """Get a file into a folder; what an earlier, interrupted call received is not received again.

    While it comes in, the file is called `NAME.part`. It becomes `NAME` when size and checksum are right.

    Args:
        item: Name, address, size and checksum.
        folder: Made if it is not there.
        progress: Called after every piece.
        timeout: Seconds of silence after which the connection counts as broken.
        tries: How often the connection may break.

    Returns:
        The file.

    Raises:
        DPAPError: no connection, no such address, another file at the address, or the folder cannot be written; with
            how to put the file there by hand.
    """
    target, part = folder / item.name, folder / f"{item.name}.part"
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.touch()
        with part.open("r+b") as out:
            _wait_for_others(out)
            if target.exists():  # another process got it while this one waited
                part.unlink(missing_ok=True)
                return target
            _Transfer(item, folder, out, progress, timeout).run(tries)
            if sys.platform != "win32":
                part.replace(target)  # inside the lock, so that nobody starts anew in between
        if sys.platform == "win32":
            part.replace(target)
    except DPAPError:
        with suppress(OSError):  # another process may have done it, or need it
            if not part.stat().st_size:
                part.unlink()
                if new:
                    folder.rmdir()
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DPAPError(
            f"{item.name} cannot be written: {reason}.",
            where=str(folder),
            fix="make room, or name another folder with DPAP_DATA; what was received is kept",
        ) from error
    return target


def digest(file: IO[bytes], checksum: str) -> str:
    """The checksum of an open file, by the algorithm and in the form of `checksum`."""
    algorithm = checksum.partition(":")[0]
    file.seek(0)
    hashed = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))  # type: ignore[arg-type]
    return f"{algorithm}:{hashed.hexdigest()}"


def megabytes(size: int) -> str:
    """A size as people say it.

    >>> megabytes(170_052_171), megabytes(28_881)
    ('170 MB', '0.03 MB')
    """
    return f"{size / 1e6:.3g} MB" if size >= 1e6 else f"{size / 1e6:.1g} MB"


def by_hand(item: Download, folder: Path) -> str:
    """What to do where there is no connection."""
    return f"get {item.url} ({megabytes(item.size)}) and put it into {folder} as {item.name}"


def _wait_for_others(out: IO[bytes]) -> None:
    """One process at a time writes a file; the others wait here."""
    if sys.platform != "win32":
        fcntl.flock(out, fcntl.LOCK_EX)


@dataclass(slots=True)
class _Transfer:
    """One file on its way into `out`, an open file that holds what is here."""

    item: Download
    folder: Path
    out: IO[bytes]
    progress: Progress | None
    timeout: float

    @property
    def here(self) -> int:
        return self.out.seek(0, 2)

    def run(self, tries: int) -> None:
        """Receive the whole file and verify it."""
        kept = self.here
        self._receive_all(tries)
        found = digest(self.out, self.item.checksum)
        if found != self.item.checksum and kept:  # what was kept of an earlier call may have been the fault
            self.out.truncate(0)
            self._receive_all(tries)
            found = digest(self.out, self.item.checksum)
        if found != self.item.checksum:
            self.out.truncate(0)
            raise DPAPError(
                f"What was received as {self.item.name} is another file: expected {self.item.checksum}, found {found}.",
                where=self.item.url,
                fix=f"try again later, or {by_hand(self.item, self.folder)}",
            )

    def _receive_all(self, tries: int) -> None:
        if self.here > self.item.size:
            self.out.truncate(0)
        reason = ""
        for attempt in range(tries):
            before = self.here
            if before == self.item.size:
                return
            if attempt:
                time.sleep(PAUSE)
            try:
                return self._receive()
            except _Broken as error:
                reason = str(error)
            if self.here == before:  # not even a piece of it
                break
        here = self.here
        kept = f" {here:,} of {self.item.size:,} bytes are kept." if here else ""
        raise DPAPError(
            f"{self.item.name} could not be downloaded: {reason}.{kept}",
            where=self.item.url,
            fix=f"check the connection and run the same again, or {by_hand(self.item, self.folder)}",
        )

    def _receive(self) -> None:
        """Receive from where the file breaks off to its end."""
        here = self.here
        with self._request(here) as answer:
            here = self._checked_start(here, answer)
            while piece := _read(answer):
                self.out.write(piece)
                here += len(piece)
                if here > self.item.size:
                    raise self._other_file(f"more than {self.item.size:,} bytes")
                if self.progress is not None:
                    self.progress(self.item.name, here, self.item.size)
        if here < self.item.size:
            raise _Broken("the connection broke off")

    def _request(self, here: int) -> Any:
        headers = {"User-Agent": "dpap"} | ({"Range": f"bytes={here}-"} if here else {})
        try:
            return urllib.request.urlopen(urllib.request.Request(self.item.url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing after `here`: what is here is not a beginning of that file
                self.out.truncate(0)
                raise _Broken("the server has no rest to send") from error
            raise DPAPError(
                f"{self.item.name} could not be downloaded: the server answers {error.code} {error.reason}.",
                where=self.item.url,
                fix=f"try again later, or get the file from somewhere else (checksum {self.item.checksum}) and put it "
                f"into {self.folder} as {self.item.name}",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _no_connection(error) from error

    def _checked_start(self, here: int, answer: Any) -> int:
        """Where the answer begins, as a position in the file. An answer that cannot be this file is refused unread."""
        length = int(answer.headers.get("Content-Length") or -1)
        if answer.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != here:
                self.out.truncate(0)
                raise _Broken("the server sent another part than the one asked for")
            length = -1 if span[2] == "*" else int(span[2])
        else:  # the whole file, whatever was asked for
            self.out.truncate(0)
            here = 0
        if length not in (-1, self.item.size):
            raise self._other_file(f"{length:,} bytes")
        self.out.seek(here)
        return here

    def _other_file(self, found: str) -> DPAPError:
        self.out.truncate(0)
        return DPAPError(
            f"What the address sends is not {self.item.name}: it has {found}, expected {self.item.size:,}.",
            where=self.item.url,
            fix=f"if the network asks for a login first, log in; else {by_hand(self.item, self.folder)}",
        )


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _no_connection(error) from error


def _no_connection(error: Exception) -> _Broken:
    reason = getattr(error, "reason", None) or error
    return _Broken(f"no connection ({reason})" if str(reason) else f"no connection ({type(error).__name__})")
