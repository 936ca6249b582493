"""The file formats that events come in, read with NumPy: no loop over events, and every fault named with its place.

A file is mapped into memory, not read as a whole, and decoded block by block into the arrays of its recording.

| format | one event | of |
| --- | --- | --- |
| `.bin` | 5 bytes: x, y, then polarity (1 bit) and microseconds (23 bits, big-endian) | N-MNIST, N-Caltech101 |
| AEDAT 2 | 8 bytes, big-endian: address, microseconds; the DVS128's addresses | CIFAR10-DVS |
| AEDAT 3.1 | packets with a header of 28 bytes; 8 bytes, little-endian: address, microseconds | DVS128 Gesture |
| HDF5 | lists of seconds and of units, one of each for a recording | SHD, SSC |
| `.npz` | arrays t, x, y, p; perhaps sensor, (height, width) | one's own |
"""

from __future__ import annotations

import csv
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dpap.data.events.recording import BadEvent, Events
from dpap.errors import DPAPError

Raw = UInt8[np.ndarray, " bytes"]

BLOCK = 1 << 18
"""Events decoded at once: what lies between stays in the processor's cache."""
AGAIN = "get the file again"


def mapped(path: str | Path) -> Raw:
    """The bytes of a file, read when they are looked at.

    Raises:
        DPAPError: no such file, or one that may not be read.
    """
    try:
        with open(path, "rb") as file:
            if not file.seek(0, 2):
                return np.empty(0, np.uint8)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise DPAPError("An event file cannot be read.", where=f"{path}: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------------------------- bin


OVERFLOW_ROW, OVERFLOW = 240, 1 << 13
"""An event in this row is no event: the times of all that follow are so many microseconds later."""


def read_bin(path: str | Path, sensor: tuple[int, int]) -> Events:
    """A `.bin` file of N-MNIST or N-Caltech101. See `parse_bin`."""
    return parse_bin(mapped(path), sensor, str(path))


def parse_bin(raw: Raw, sensor: tuple[int, int], where: str) -> Events:
    """Events of 5 bytes: x, y, then polarity (the highest bit) and microseconds (23 bits, big-endian).

    What has y = 240 marks an overflow of the time, as in the published reader of both data sets.

    Args:
        raw: The whole file.
        sensor: (height, width), which the file does not say.
        where: What to call the file in an error.

    Raises:
        DPAPError: a file that breaks off within an event, a time that goes back, or a place off the sensor; with the
            byte.
    """
    count = _whole_events(raw, 5, 0, where)
    rows = raw.reshape(-1, 5)

    def decode(part: slice, into: _Arrays) -> None:
        block = rows[part]
        into.x[part], into.y[part], into.p[part] = block[:, 0], block[:, 1], block[:, 2] > 127
        time = into.t[part]
        time[:] = block[:, 2] & 127
        for byte in (3, 4):
            time <<= 8
            time |= block[:, byte]

    found = _decoded(count, decode)
    numbers = None
    if sensor[0] <= OVERFLOW_ROW and (overflow := found.y == OVERFLOW_ROW).any():
        np.add(found.t, OVERFLOW * np.cumsum(overflow), out=found.t)
        numbers = (~overflow).nonzero()[0]
        found = found.part(numbers)
    with located(where, lambda event: 5 * (event if numbers is None else int(numbers[event]))):
        return found.events(sensor)


# -------------------------------------------------------------------------------------------------------------- AEDAT


DVS128 = (128, 128)
_SPECIAL = 0x80008000
"""Bits of an address that mark a signal from outside the sensor."""


def read_aedat2(path: str | Path) -> Events:
    """An AEDAT 2 file of a DVS128. See `parse_aedat2`."""
    return parse_aedat2(mapped(path), str(path))


def parse_aedat2(raw: Raw, where: str) -> Events:
    """Lines that begin with `#`, then events of 8 bytes, big-endian: an address and microseconds.

    Of an address, as jAER reads a DVS128: bit 0 is 0 for ON, bits 1 to 7 are the column from the right, 8 to 14 the row
    from below; bits 15 and 31 mark what is no event of a pixel. Columns and rows are given from the upper left.

    Raises:
        DPAPError: another version of the format, a file that breaks off, or a time that goes back; with the byte.
    """
    start = _text_end(raw, b"#!AER-DAT2.0", where)
    count = _whole_events(raw[start:], 8, start, where)
    words = raw[start:].view(">u4").reshape(-1, 2)
    normal = np.empty(count, np.bool_)

    def decode(part: slice, into: _Arrays) -> None:
        address = words[part, 0].astype(np.uint32)
        into.t[part] = words[part, 1]
        into.x[part] = 127 - ((address >> 1) & 127)
        into.y[part] = 127 - ((address >> 8) & 127)
        into.p[part] = (address & 1) == 0
        normal[part] = (address & _SPECIAL) == 0

    found, numbers = _decoded(count, decode).where(normal)
    with located(where, lambda event: start + 8 * int(numbers[event])):
        return found.events(DVS128)


_PACKET = struct.Struct("<hhiiiiii")
"""Of a packet: type, source, bytes of an event, offset of its time, overflows of the time, room, events, valid ones."""
_POLARITY = 1


def read_aedat3(path: str | Path, sensor: tuple[int, int] = DVS128) -> Events:
    """An AEDAT 3.1 file. See `parse_aedat3`."""
    return parse_aedat3(mapped(path), sensor, str(path))


def parse_aedat3(raw: Raw, sensor: tuple[int, int], where: str) -> Events:
    """Lines up to `#!END-HEADER`, then packets: a header of 28 bytes, and events of 8, all little-endian.

    An event: bit 0 is 1 for a valid one, bit 1 for ON, bits 2 to 16 are y, 17 to 31 x; then microseconds, to which the
    header adds 2^31 for each overflow. Invalid events and packets of another kind than polarity events are no events.

    Raises:
        DPAPError: another version, a packet that breaks off or makes no sense, a time that goes back, or a place off
            the sensor; with the byte.
    """
    packets = list(_packets(raw, _text_end(raw, b"#!AER-DAT3.1", where, b"#!END-HEADER"), where))
    counts = np.array([packet.count for packet in packets], np.int64)
    bodies = [raw[packet.start : packet.start + 8 * packet.count] for packet in packets]
    words = np.concatenate([np.empty(0, np.uint8), *bodies]).view("<u4").reshape(-1, 2)
    valid = np.empty(len(words), np.bool_)

    def decode(part: slice, into: _Arrays) -> None:
        data, into.t[part] = words[part].T
        into.x[part], into.y[part] = data >> 17, (data >> 2) & 0x7FFF
        into.p[part], valid[part] = data & 2, data & 1

    found = _decoded(len(words), decode)
    if any(packet.overflows for packet in packets):
        np.add(found.t, np.repeat([packet.overflows << 31 for packet in packets], counts), out=found.t)
    found, numbers = found.where(valid)

    def byte(event: int) -> int:
        number = int(numbers[event])
        row = int(np.searchsorted(counts.cumsum(), number, side="right"))
        return packets[row].start + 8 * (number - int(counts[:row].sum()))

    with located(where, byte):
        return found.events(sensor)


@dataclass(frozen=True, slots=True)
class _Packet:
    start: int
    """The byte of its first event."""
    count: int
    overflows: int


def _packets(raw: Raw, start: int, where: str) -> Iterator[_Packet]:
    """The packets of polarity events from byte `start` on."""
    while start < len(raw):
        here = f"{where}, byte {start}"
        if len(raw) - start < _PACKET.size:
            raise DPAPError(
                f"The file breaks off within the header of a packet, after {len(raw) - start} of {_PACKET.size} bytes.",
                where=here,
                fix=AGAIN,
            )
        kind, _, size, offset, overflows, room, count, _ = _PACKET.unpack(raw[start : start + _PACKET.size].tobytes())
        if not 0 <= count <= room or size < 1 or overflows < 0 or (kind == _POLARITY and (size, offset) != (8, 4)):
            raise DPAPError(
                f"The header of a packet makes no sense: kind {kind}, {count} events of {size} bytes in room for "
                f"{room}, time at byte {offset}.",
                where=here,
                fix=AGAIN,
            )
        first = start + _PACKET.size
        start = first + room * size
        if start > len(raw):
            raise DPAPError(
                f"The file breaks off within a packet: {room * size} bytes are announced, {len(raw) - first} follow.",
                where=here,
                fix=AGAIN,
            )
        if kind == _POLARITY:
            yield _Packet(first, count, overflows)


def _text_end(raw: Raw, begins: bytes, where: str, ends: bytes | None = None) -> int:
    """The byte after the lines of text at the beginning: those that begin with `#`, up to the line `ends`."""
    if raw[: len(begins)].tobytes() != begins:
        found = raw[:12].tobytes()
        raise DPAPError(
            f"A file does not begin with {begins.decode()}, but with {found!r}.",
            where=f"{where}, byte 0",
            fix="give a file of that version; AEDAT 4 is not read",
        )
    start = 0
    while raw[start : start + 1].tobytes() == b"#":
        line = raw[start : start + 4096].tobytes().partition(b"\n")[0]
        start += len(line) + 1
        if ends is not None and line.startswith(ends):
            return start
    if ends is not None:
        raise DPAPError(f"The line {ends.decode()} is missing.", where=f"{where}, byte {start}", fix=AGAIN)
    return min(start, len(raw))


@dataclass(frozen=True, slots=True)
class Label:
    """A stretch of a recording that shows one class."""

    label: int
    """From 0."""
    start: int
    """Microseconds."""
    stop: int
    """Microseconds, not included."""


def read_labels(path: str | Path, classes: int) -> list[Label]:
    """The label file of an AEDAT 3.1 recording: `class,startTime_usec,endTime_usec`, classes from 1.

    Raises:
        DPAPError: no such file, another header, or a line that makes no sense; with the line.
    """
    try:
        lines = list(csv.reader(Path(path).read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DPAPError(
            f"A label file cannot be read: {reason}.", where=str(path), fix="put it beside its recording"
        ) from error
    names = ["class", "startTime_usec", "endTime_usec"]
    if not lines or [name.strip() for name in lines[0]] != names:
        raise DPAPError(f"A label file does not begin with {','.join(names)}.", where=f"{path}, line 1", fix=AGAIN)
    return [_label(line, classes, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2) if line]


def _label(line: list[str], classes: int, where: str) -> Label:
    try:
        number, start, stop = (int(entry) for entry in line)
    except ValueError as error:
        raise DPAPError(f"A line is not three whole numbers: {','.join(line)}.", where=where, fix=AGAIN) from error
    if not 1 <= number <= classes or start >= stop:
        raise DPAPError(f"A line is no stretch of one of {classes} classes: {','.join(line)}.", where=where, fix=AGAIN)
    return Label(number - 1, start, stop)


# ------------------------------------------------------------------------------------------------------- for them all


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A recording in the making."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    @classmethod
    def empty(cls, count: int) -> _Arrays:
        return cls(*(np.empty(count, kind) for kind in (np.int64, np.int16, np.int16, np.bool_)))

    def part(self, rows: np.ndarray) -> _Arrays:
        return _Arrays(self.t[rows], self.x[rows], self.y[rows], self.p[rows])

    def where(self, chosen: np.ndarray) -> tuple[_Arrays, np.ndarray | range]:
        """The chosen events, and their numbers."""
        if chosen.all():
            return self, range(len(chosen))
        numbers = chosen.nonzero()[0]
        return self.part(numbers), numbers

    def events(self, sensor: tuple[int, int]) -> Events:
        return Events(t=self.t, x=self.x, y=self.y, p=self.p, sensor=sensor)


def _decoded(count: int, decode: Callable[[slice, _Arrays], None]) -> _Arrays:
    found = _Arrays.empty(count)
    for first in range(0, count, BLOCK):
        decode(slice(first, min(first + BLOCK, count)), found)
    return found


def _whole_events(raw: Raw, size: int, start: int, where: str) -> int:
    if rest := len(raw) % size:
        raise DPAPError(
            f"The file breaks off within an event: {rest} of {size} bytes.",
            where=f"{where}, byte {start + len(raw) - rest}",
            fix=AGAIN,
        )
    return len(raw) // size


@contextmanager
def located(where: str, place: Callable[[int], int], unit: str = "byte") -> Iterator[None]:
    """A `BadEvent` becomes an error that names the file and the place in it."""
    try:
        yield
    except BadEvent as error:
        raise DPAPError(error.what, where=f"{where}, {unit} {place(error.event)}", fix=error.fix) from error
