"""Events stored as columns: HDF5 files of SHD and SSC, and NumPy files."""

from __future__ import annotations

import importlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpap.data.events.readers import AGAIN, Raw, located, mapped
from dpap.data.events.recording import Events
from dpap.errors import DPAPError


def read_spikes(path: str | Path, units: int) -> Iterator[tuple[Callable[[], Events], int]]:
    """What reads a recording, and its label, for each of an SHD or SSC file: `spikes/times`, `spikes/units`, `labels`.

    A unit is a column of a sensor one pixel high; all of its events are ON. The spikes of a recording are sorted, since
    the format promises no order. A recording can be read until the next is asked for.

    Args:
        path: The file, unpacked.
        units: How many there are.

    Raises:
        DPAPError: h5py is not installed, no such file, or another layout; reading, a recording that makes no sense,
            with its number.
    """
    try:
        h5py: Any = importlib.import_module("h5py")
    except ImportError as error:
        raise DPAPError(
            "HDF5 files are read with h5py, which is not installed.", fix="pip install 'dpap[events]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            times, numbers, labels = (_column(file, name, path) for name in ("spikes/times", "spikes/units", "labels"))
            if not len(times) == len(numbers) == len(labels):
                raise DPAPError(
                    f"The file has {len(times)} lists of times, {len(numbers)} of units and {len(labels)} labels.",
                    where=str(path),
                    fix=AGAIN,
                )
            for row, label in enumerate(labels[:]):
                yield partial(_spikes, times, numbers, row, units, str(path)), int(label)
    except (OSError, RuntimeError) as error:
        raise DPAPError(f"An HDF5 file cannot be read: {error}.", where=str(path), fix=AGAIN) from error


def _column(file: Any, name: str, path: str | Path) -> Any:
    if name not in file:
        raise DPAPError(f"The file holds no {name}.", where=str(path), fix="give an SHD or SSC file, unpacked")
    return file[name]


def _spikes(times: Any, units_of: Any, row: int, units: int, path: str) -> Events:
    where = f"{path}, recording {row}"
    seconds, numbers = np.asarray(times[row], np.float64), np.asarray(units_of[row])
    if len(seconds) != len(numbers) or not np.isfinite(seconds).all() or (len(seconds) and seconds.min() < 0):
        raise DPAPError(
            f"{len(seconds)} times and {len(numbers)} units: there must be as many, and all times from 0 on.",
            where=where,
            fix=AGAIN,
        )
    # The published files are in order, and to look is ten times as fast as to sort.
    in_order = bool((seconds[1:] >= seconds[:-1]).all())
    order = np.arange(len(seconds)) if in_order else seconds.argsort(kind="stable")
    with located(where, lambda event: int(order[event]), "spike"):
        return Events(
            t=np.rint(seconds[order] * 1e6).astype(np.int64),
            x=numbers[order].astype(np.int16),
            y=np.zeros(len(order), np.int16),
            p=np.ones(len(order), np.bool_),
            sensor=(1, units),
        )


def read_events_npz(path: str | Path, sensor: tuple[int, int] | None = None) -> Events:
    """The events in an `.npz` file: arrays t (microseconds), x, y, p (0 or 1) and perhaps `sensor`, (height, width).

    Args:
        path: The file.
        sensor: Where the file does not say.

    Raises:
        DPAPError: no such file, arrays that are missing or of another kind, no sensor or another one than expected, a
            time that goes back, or a place off the sensor; with the number of the event.
    """
    return parse_events_npz(mapped(path), sensor, str(path))


def parse_events_npz(raw: Raw, sensor: tuple[int, int] | None, where: str) -> Events:
    """`read_events_npz` of the bytes of a file, called `where` in errors."""
    arrays = {}
    try:
        with np.load(io.BytesIO(raw.data), allow_pickle=False) as file:
            for name in ("t", "x", "y", "p", "sensor"):
                if name in file:
                    arrays[name] = file[name]
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DPAPError(
            f"An event file is damaged, or no .npz file of numbers: {error}.",
            where=where,
            fix="write it with np.savez(path, t=..., x=..., y=..., p=...)",
        ) from error
    for name in ("t", "x", "y", "p"):
        _check_column(arrays, name, where)
    with located(where, lambda event: event, "event"):
        return Events(
            t=arrays["t"].astype(np.int64),
            x=_narrow(arrays["x"]),
            y=_narrow(arrays["y"]),
            p=arrays["p"].astype(np.bool_),
            sensor=_sensor(arrays.get("sensor"), sensor, where),
        )


def _check_column(arrays: dict[str, np.ndarray], name: str, where: str) -> None:
    if name not in arrays:
        raise DPAPError(
            f"There is no array {name!r}; found {', '.join(arrays) or 'none of t, x, y, p'}.",
            where=where,
            fix="name the arrays t, x, y and p",
        )
    array, count = arrays[name], len(arrays["t"]) if arrays["t"].ndim else 0
    if array.shape != (count,) or array.dtype.kind not in "iub":
        raise DPAPError(
            f"Array {name!r} is {array.dtype} of shape {array.shape}, expected {count} whole numbers.",
            where=where,
            fix="give one for each event; times in microseconds",
        )
    if name == "p" and len(array) and not 0 <= array.min() <= array.max() <= 1:
        bad = int(((array < 0) | (array > 1)).argmax())
        raise DPAPError(f"A polarity is {array[bad]}.", where=f"{where}, event {bad}", fix="give 1 for ON, 0 for OFF")


def _narrow(places: np.ndarray) -> np.ndarray:
    """As int16; what does not fit stays off every sensor."""
    if np.can_cast(places.dtype, np.int16):
        return places.astype(np.int16)
    return places.clip(-1 if places.dtype.kind == "i" else 0, np.iinfo(np.int16).max).astype(np.int16)


def _sensor(named: np.ndarray | None, expected: tuple[int, int] | None, where: str) -> tuple[int, int]:
    if named is None and expected is None:
        raise DPAPError(
            "The size of the sensor is not known.",
            where=where,
            fix="store it in the file, np.savez(..., sensor=(height, width)), or set data.sensor",
        )
    if named is None:
        assert expected is not None
        return expected
    size = tuple(int(side) for side in named.ravel())
    if len(size) != 2 or min(size) < 1 or (expected is not None and size != expected):
        wanted = f"{expected[0]} x {expected[1]}" if expected else "(height, width)"
        raise DPAPError(
            f"The sensor is {' x '.join(map(str, size))}, expected {wanted}.",
            where=where,
            fix="give recordings of one sensor",
        )
    return size[0], size[1]
