"""Download one file with pooch: verified before it gets its name, never half-written."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dpap.data.sources import Download
from dpap.errors import DPAPError

Progress = Callable[[str, int, int], None]
"""Called with the name of the file, the bytes that are here, and the bytes it has."""

CHUNK = 1 << 18


class _Bar:
    """What pooch tells its progress bar, handed on."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name, self.progress, self.here, self.total = name, progress, 0, 0

    def update(self, size: int) -> None:
        self.here += size
        if size:
            self.progress(self.name, self.here, self.total)

    def reset(self) -> None:
        self.here = 0

    def close(self) -> None:
        pass


def download(
    item: Download, folder: Path, progress: Progress | None = None, *, timeout: float = 30.0, tries: int = 4
) -> Path:
    """Get a file into a folder. It gets its name when its checksum is right.

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
    import pooch  # these two take half a second to import, and few commands download
    import requests

    pooch.get_logger().setLevel("ERROR")
    receive = pooch.HTTPDownloader(
        progressbar=False if progress is None else _Bar(item.name, progress),
        chunk_size=CHUNK,
        timeout=timeout,
        headers={"User-Agent": "dpap"},
    )
    getter = pooch.create(
        path=folder,
        base_url="",
        registry={item.name: item.checksum},
        urls={item.name: item.url},
        retry_if_failed=tries - 1,
    )
    try:
        return Path(getter.fetch(item.name, downloader=receive))
    except requests.HTTPError as error:
        problem = f"could not be downloaded: the server answers {str(error).partition(' for url')[0]}"
    except requests.RequestException as error:
        problem = f"could not be downloaded: no connection ({error})"
    except ValueError as error:  # of pooch: the checksum
        raise DPAPError(
            f"What was received as {item.name} is another file: {error}",
            where=item.url,
            fix=f"if the network asks for a login first, log in; or {by_hand(item, folder)}",
        ) from error
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise DPAPError(
            f"{item.name} cannot be written: {reason}.",
            where=str(folder),
            fix="make room, or name another folder with DPAP_DATA",
        ) from error
    raise DPAPError(
        f"{item.name} {problem}.",
        where=item.url,
        fix=f"check the connection and run the same again, or {by_hand(item, folder)} (checksum {item.checksum})",
    )


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
