"""Readers of event files, on files that are written here byte by byte from the published descriptions."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpap.data.events import (
    Events,
    Label,
    columns,
    read_aedat2,
    read_aedat3,
    read_bin,
    read_events_npz,
    read_labels,
    read_spikes,
    readers,
)
from dpap.errors import DPAPError

Rows = Sequence[tuple[int, int, int, int]]
"""(t, x, y, p)."""

ROWS: Rows = [(0, 0, 0, 0), (7, 33, 1, 1), (7, 2, 33, 1), (65_536, 5, 6, 0), (300_001, 9, 8, 1)]


def rows_of(events: Events) -> Rows:
    columns = (events.t, events.x, events.y, events.p)
    return [(int(t), int(x), int(y), int(p)) for t, x, y, p in zip(*columns, strict=True)]


# ---------------------------------------------------------------------------------------------------------------- bin


def five_bytes(t: int, x: int, y: int, p: int) -> bytes:
    """Bits 39 to 32: x; 31 to 24: y; 23: polarity; 22 to 0: microseconds; the highest bit first."""
    return ((x << 32) | (y << 24) | (p << 23) | t).to_bytes(5, "big")


def bin_file(path: Path, rows: Rows, tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(five_bytes(*row) for row in rows) + tail)
    return path


def test_bin(tmp_path: Path) -> None:
    rows = [*ROWS, (2**22, 0, 0, 0), (2**23 - 1, 33, 33, 1)]  # all 23 bits of the time
    events = read_bin(bin_file(tmp_path / "a.bin", rows), (34, 34))
    assert rows_of(events) == rows
    assert events.sensor == (34, 34)


def test_bin_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK", 3)
    rows = [(100 * k, k % 34, (3 * k) % 34, k % 2) for k in range(10)]
    assert rows_of(read_bin(bin_file(tmp_path / "a.bin", rows), (34, 34))) == rows


def test_bin_without_events(tmp_path: Path) -> None:
    assert len(read_bin(bin_file(tmp_path / "a.bin", []), (34, 34))) == 0


def test_bin_marks_overflows_of_its_time(tmp_path: Path) -> None:
    """y = 240 is no event: it and all after it are 2^13 microseconds later."""
    rows = [(8_000, 1, 1, 1), (8_191, 0, 240, 0), (3, 239, 179, 0), (0, 0, 240, 0), (5, 4, 4, 1)]
    events = read_bin(bin_file(tmp_path / "a.bin", rows), (180, 240))
    assert rows_of(events) == [(8_000, 1, 1, 1), (3 + 8_192, 239, 179, 0), (5 + 16_384, 4, 4, 1)]


@pytest.mark.parametrize(
    ("rows", "tail", "what", "byte"),
    [
        (ROWS, b"\0\0\0", "breaks off within an event: 3 of 5 bytes", 25),
        ([*ROWS, (300_000, 0, 0, 1)], b"", "Time goes back from 300001 to 300000 us", 25),
        ([*ROWS[:2], (8, 34, 0, 1)], b"", "x is 34 on a sensor 34 wide", 10),
        ([*ROWS[:2], (8, 0, 34, 1)], b"", "y is 34", 10),
        # The overflow event itself is counted among the bytes.
        ([(0, 0, 240, 0), (5, 1, 1, 1), (4, 1, 1, 1)], b"", "Time goes back", 10),
    ],
)
def test_a_bad_bin_file_names_the_byte(tmp_path: Path, rows: Rows, tail: bytes, what: str, byte: int) -> None:
    path = bin_file(tmp_path / "a.bin", rows, tail)
    with pytest.raises(DPAPError, match=what) as caught:
        read_bin(path, (34, 34))
    assert caught.value.where == f"{path}, byte {byte}"
    assert caught.value.fix


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="cannot be read") as caught:
        read_bin(tmp_path / "none.bin", (34, 34))
    assert "No such file" in caught.value.where


# ------------------------------------------------------------------------------------------------------------- AEDAT 2


HEADER2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# created by jAER\r\n"


def jaer(t: int, x: int, y: int, p: int) -> bytes:
    """Big-endian address and time. x from the right in bits 1 to 7, y from below in 8 to 14, bit 0 is 0 for ON."""
    return struct.pack(">II", ((127 - y) << 8) | ((127 - x) << 1) | (1 - p), t)


def test_aedat2(tmp_path: Path) -> None:
    rows = [(5, 0, 0, 0), (6, 127, 3, 1), (6, 3, 127, 1), (2**31 + 4, 64, 65, 0)]
    path = tmp_path / "a.aedat"
    special = struct.pack(">II", 0x80000000, 6) + struct.pack(">II", 0x8000, 6)
    path.write_bytes(
        HEADER2 + b"".join(map(jaer, *zip(*rows[:2], strict=True))) + special + jaer(*rows[2]) + jaer(*rows[3])
    )
    events = read_aedat2(path)
    assert rows_of(events) == rows, "a signal from outside the sensor is no event"
    assert events.sensor == (128, 128)


def test_bad_aedat2_files(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"

    def fault(content: bytes) -> DPAPError:
        path.write_bytes(content)
        with pytest.raises(DPAPError) as caught:
            read_aedat2(path)
        return caught.value

    good = jaer(5, 0, 0, 0)
    found = fault(HEADER2 + good + good[:7])
    assert "breaks off within an event: 7 of 8 bytes" in found.what
    assert found.where == f"{path}, byte {len(HEADER2) + 8}"
    special = struct.pack(">II", 0x8000, 6)
    found = fault(HEADER2 + good + special + jaer(4, 1, 1, 1))
    assert "Time goes back from 5 to 4" in found.what
    assert found.where == f"{path}, byte {len(HEADER2) + 16}"
    found = fault(b"#!AER-DAT4.0\r\n" + good)
    assert "does not begin with #!AER-DAT2.0" in found.what
    assert found.where == f"{path}, byte 0"
    assert len(read_aedat2(_written(path, HEADER2))) == 0


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ----------------------------------------------------------------------------------------------------------- AEDAT 3.1


HEADER3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def packet(
    rows: Rows, *, kind: int = 1, overflows: int = 0, invalid: Sequence[int] = (), room: int | None = None
) -> bytes:
    """Little-endian. Event: bit 0 valid, 1 polarity, 2 to 16 y, 17 to 31 x; then the time."""
    room = len(rows) if room is None else room
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflows, room, len(rows), len(rows) - len(invalid))
    body = b"".join(
        struct.pack("<II", (x << 17) | (y << 2) | (p << 1) | (number not in invalid), t)
        for number, (t, x, y, p) in enumerate(rows)
    )
    return head + body + b"\xff" * 8 * (room - len(rows))


def test_aedat3(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    first = [(5, 0, 127, 0), (6, 127, 0, 1)]
    second = [(7, 1, 2, 1), (8, 3, 4, 1), (9, 5, 6, 0)]
    path.write_bytes(
        HEADER3
        + packet(first)
        + packet([(0, 9, 9, 1)], kind=0)  # a special event
        + packet(second, invalid=[1], room=5)
        + packet([(1, 7, 8, 0)], overflows=1)
    )
    events = read_aedat3(path)
    assert rows_of(events) == [*first, second[0], second[2], (2**31 + 1, 7, 8, 0)]
    assert events.sensor == (128, 128)
    assert len(read_aedat3(_written(path, HEADER3))) == 0


def test_bad_aedat3_files(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    one = packet([(5, 0, 0, 1), (6, 1, 1, 1)])
    start = len(HEADER3)

    def fault(content: bytes) -> tuple[str, int]:
        path.write_bytes(content)
        with pytest.raises(DPAPError) as caught:
            read_aedat3(path)
        place, _, byte = caught.value.where.rpartition(", byte ")
        assert place == str(path)
        return caught.value.what, int(byte)

    what, byte = fault(HEADER3 + one + one[:20])
    assert "breaks off within the header of a packet, after 20 of 28 bytes" in what
    assert byte == start + 44
    what, byte = fault(HEADER3 + one[:-3])
    assert "16 bytes are announced, 13 follow" in what
    assert byte == start
    what, byte = fault(HEADER3 + one + packet([(7, 0, 0, 1), (6, 0, 0, 1)]))
    assert "Time goes back from 7 to 6" in what
    assert byte == start + 44 + 28 + 8
    what, byte = fault(HEADER3 + packet([(7, 128, 0, 1)]))
    assert "x is 128 on a sensor 128 wide" in what
    assert byte == start + 28
    what, byte = fault(HEADER3 + struct.pack("<hhiiiiii", 1, 1, 12, 4, 0, 1, 1, 1) + bytes(12))
    assert "makes no sense: kind 1, 1 events of 12 bytes" in what
    what, byte = fault(HEADER3 + struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 1, -1, 1) + bytes(8))
    assert "makes no sense" in what
    what, byte = fault(HEADER3[:40])
    assert "#!END-HEADER is missing" in what
    assert "does not begin with #!AER-DAT3.1" in fault(HEADER2 + one)[0]
    assert fault(b"")[1] == 0


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "user01_labels.csv"
    path.write_text("class,startTime_usec,endTime_usec\n1,80048239,85092709\n11,90000000,95000000\n")
    assert read_labels(path, 11) == [Label(0, 80_048_239, 85_092_709), Label(10, 90_000_000, 95_000_000)]


@pytest.mark.parametrize(
    ("content", "what", "line"),
    [
        ("class,start,end\n1,2,3\n", "does not begin with class,startTime_usec,endTime_usec", 1),
        ("", "does not begin with", 1),
        ("class,startTime_usec,endTime_usec\n1,2,3\n12,5,6\n", "no stretch of one of 11 classes: 12,5,6", 3),
        ("class,startTime_usec,endTime_usec\n0,2,3\n", "no stretch", 2),
        ("class,startTime_usec,endTime_usec\n1,3,3\n", "no stretch", 2),
        ("class,startTime_usec,endTime_usec\n1,two,3\n", "not three whole numbers: 1,two,3", 2),
        ("class,startTime_usec,endTime_usec\n1,2\n", "not three whole numbers", 2),
    ],
)
def test_bad_label_files_name_the_line(tmp_path: Path, content: str, what: str, line: int) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(DPAPError, match=what) as caught:
        read_labels(path, 11)
    assert caught.value.where == f"{path}, line {line}"


def test_a_label_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="No such file") as caught:
        read_labels(tmp_path / "labels.csv", 11)
    assert "beside its recording" in caught.value.fix


# --------------------------------------------------------------------------------------------------------------- HDF5


def spike_file(path: Path, recordings: Sequence[tuple[Sequence[float], Sequence[int]]], labels: Sequence[int]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("spikes")
        for number, (name, kind) in enumerate((("times", np.float16), ("units", np.uint16))):
            column = group.create_dataset(name, (len(recordings),), h5py.vlen_dtype(kind))
            for row, recording in enumerate(recordings):
                column[row] = np.array(recording[number], kind)
        file["labels"] = np.array(labels, np.uint16)
    return path


def test_spikes(tmp_path: Path) -> None:
    path = spike_file(tmp_path / "a.h5", [([0.5, 0.25, 0.5], [3, 699, 0]), ([], [])], [4, 19])
    (first, label), (second, last) = ((read(), label) for read, label in read_spikes(path, 700))
    assert (label, last, len(second)) == (4, 19, 0)
    assert rows_of(first) == [(250_000, 699, 0, 1), (500_000, 3, 0, 1), (500_000, 0, 0, 1)], "sorted, ties as stored"
    assert first.sensor == (1, 700)


@pytest.mark.parametrize(
    ("recording", "what"),
    [
        (([0.5], [3, 4]), "1 times and 2 units"),
        (([float("nan")], [3]), "all times from 0"),
        (([-0.5], [3]), "all times from 0"),
        (([0.5, 0.25], [700, 1]), "x is 700"),
    ],
)
def test_bad_spikes_name_the_recording(tmp_path: Path, recording: Any, what: str) -> None:
    path = spike_file(tmp_path / "a.h5", [([0.5], [1]), recording], [0, 1])
    reads = read_spikes(path, 700)
    assert len(next(reads)[0]()) == 1
    with pytest.raises(DPAPError, match=what) as caught:
        next(reads)[0]()
    assert f"{path}, recording 1" in caught.value.where


def test_spike_files_of_another_kind(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with pytest.raises(DPAPError, match="HDF5 file cannot be read"):
        list(read_spikes(tmp_path / "none.h5", 700))
    (tmp_path / "text.h5").write_text("nothing")
    with pytest.raises(DPAPError, match="HDF5 file cannot be read"):
        list(read_spikes(tmp_path / "text.h5", 700))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["labels"] = np.zeros(2)
    with pytest.raises(DPAPError, match="holds no spikes/times"):
        list(read_spikes(tmp_path / "other.h5", 700))


def test_without_h5py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def without(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(columns.importlib, "import_module", without)
    with pytest.raises(DPAPError, match="h5py, which is not installed") as caught:
        next(read_spikes(tmp_path / "a.h5", 700))
    assert "dpap[events]" in caught.value.fix


# ---------------------------------------------------------------------------------------------------------------- npz


def npz_file(path: Path, rows: Rows, **changes: Any) -> Path:
    t, x, y, p = np.array(rows, np.int64).reshape(-1, 4).T
    arrays: dict[str, Any] = {"t": t.astype(np.uint32), "x": x, "y": y, "p": p.astype(np.uint8)}
    arrays |= {"sensor": np.array([34, 34])} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz(tmp_path: Path) -> None:
    events = read_events_npz(npz_file(tmp_path / "a.npz", ROWS))
    assert rows_of(events) == ROWS
    assert events.sensor == (34, 34)
    bare = npz_file(tmp_path / "b.npz", ROWS, sensor=None, p=np.array([row[3] for row in ROWS], bool))
    assert rows_of(read_events_npz(bare, (40, 50))) == ROWS
    assert len(read_events_npz(npz_file(tmp_path / "c.npz", []))) == 0


@pytest.mark.parametrize(
    ("changes", "what", "where"),
    [
        ({"x": None}, "no array 'x'; found t, y, p, sensor", ""),
        ({"t": None}, "no array 't'", ""),
        ({"x": np.zeros(3, np.int64)}, "'x' is int64 of shape \\(3,\\), expected 5 whole numbers", ""),
        ({"t": np.arange(5.0)}, "'t' is float64", ""),
        ({"p": np.array([0, 1, 2, 0, 0])}, "A polarity is 2", ", event 2"),
        ({"t": np.array([0, 1, 2, 1, 4])}, "Time goes back from 2 to 1", ", event 3"),
        ({"x": np.array([0, 1, 70_000, 1, 4])}, "x is 32767", ", event 2"),
        ({"y": np.array([0, 1, 34, 1, 4])}, "y is 34", ", event 2"),
        ({"sensor": None}, "size of the sensor is not known", ""),
        ({"sensor": np.array([34])}, "sensor is 34, expected", ""),
        ({"p": np.array([None] * 5)}, "damaged, or no .npz file of numbers", ""),
    ],
)
def test_bad_npz_files(tmp_path: Path, changes: dict[str, Any], what: str, where: str) -> None:
    path = npz_file(tmp_path / "a.npz", ROWS, **changes)
    with pytest.raises(DPAPError, match=what) as caught:
        read_events_npz(path)
    assert caught.value.where == f"{path}{where}"
    assert caught.value.fix


def test_an_npz_file_of_another_sensor(tmp_path: Path) -> None:
    path = npz_file(tmp_path / "a.npz", ROWS)
    with pytest.raises(DPAPError, match="sensor is 34 x 34, expected 128 x 128"):
        read_events_npz(path, (128, 128))


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-30], lambda raw: b"", lambda raw: b"PK" + raw[2:200]])
def test_a_damaged_npz_file(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = npz_file(tmp_path / "a.npz", ROWS)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DPAPError, match="damaged, or no .npz"):
        read_events_npz(path)


def test_an_npy_file_is_no_npz_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DPAPError, match="no .npz file"):
        read_events_npz(tmp_path / "a.npy")


# ----------------------------------------------------------------------------------------------- the samples at hand


@pytest.mark.data
@pytest.mark.slow
def test_a_gesture_at_hand(data_dir: Path) -> None:
    folder = data_dir / "dvs128gesture"
    if not folder.is_dir():
        pytest.skip("no dvs128gesture there")
    path, _, _, count, first, last = (folder / "labels.csv").read_text().splitlines()[1].split(",")
    events = read_events_npz(folder / path, (128, 128))
    assert (len(events), events.t[0], events.t[-1]) == (int(count), int(first), int(last))
