"""The idx format and CIFAR's records, byte by byte."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dpap.data.cifar import parse_records, split_of
from dpap.data.idx import parse_idx, read_idx
from dpap.data.sources import CIFAR100
from dpap.errors import DPAPError

SMALL = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 20, 30, 40, 50, 60])


def test_idx_by_hand() -> None:
    assert parse_idx(SMALL, "x").tolist() == [[10, 20, 30], [40, 50, 60]]
    assert parse_idx(SMALL, "x").dtype == torch.uint8
    assert parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 0]), "x").tolist() == []


def test_idx_from_a_file_packed_or_not(tmp_path: Path) -> None:
    for name, raw in (("plain", SMALL), ("packed.gz", gzip.compress(SMALL)), ("packed", gzip.compress(SMALL))):
        (tmp_path / name).write_bytes(raw)
        assert read_idx(tmp_path / name).tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "it is empty"),
        (b"\0\0\x08", "00 00 08"),
        (b"\x89PNG" + bytes(20), "89 50 4e 47"),
        (b"\0\1\x08\1" + bytes(8), "00 01 08 01"),
        (b"\0\0\x0d\1" + struct.pack(">If", 1, 1.0), "00 00 0d 01"),  # floats
        (SMALL[:10], "00 00 08 02"),
        (SMALL[:-1], "holds 5 numbers; its header says 2 x 3"),
        (SMALL + b"x", "holds 7 numbers; its header says 2 x 3"),
    ],
)
def test_what_is_not_idx(raw: bytes, says: str) -> None:
    with pytest.raises(DPAPError, match=says) as caught:
        parse_idx(raw, "the file")
    assert caught.value.where == "the file"


def test_idx_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(SMALL)[:-6])
    (tmp_path / "bad.gz").write_bytes(gzip.compress(SMALL)[:12] + b"\xff" * 8)
    for name in ("cut.gz", "bad.gz", "missing"):
        with pytest.raises(DPAPError, match="cannot be read") as caught:
            read_idx(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_records(label_bytes: int) -> None:
    """Labels first, then 1,024 red, green, blue, each row by row; of two labels the second is the fine one."""
    red, green, blue = (np.full(1024, colour, np.uint8) for colour in (1, 2, 3))
    red[33] = 9  # row 1, column 1
    records = [bytes([19, 7][-label_bytes:]) + bytes([*red, *green, *blue]), bytes(label_bytes + 3072)]
    split = split_of(
        [parse_records(b"".join(records), label_bytes, "x"), parse_records(records[0], label_bytes, "y")], label_bytes
    )
    assert split.images.shape == (3, 3, 32, 32)
    assert split.images.dtype == torch.uint8
    assert split.labels.tolist() == [7, 0, 7]
    assert split.images[0, 0, 1, 1] == 9
    assert (split.images[0, 0] == 1).sum() == 1023
    assert (split.images[2, 1] == 2).all()
    assert (split.images[2, 2] == 3).all()
    assert not split.images[1].any()


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 + 1])
def test_half_a_record(size: int) -> None:
    with pytest.raises(DPAPError, match=f"A file of {size:,} bytes is not a whole number of records of 3,073"):
        parse_records(bytes(size), 1, "x")


@pytest.mark.data
@pytest.mark.slow
def test_real_records_of_cifar100(data_dir: Path) -> None:
    """The first records of each file, with both labels: each fine class lies in one coarse class."""
    path = data_dir / "cifar100-part" / "cifar-100-binary-part.tar.xz"
    if not path.is_file():
        pytest.skip("no part of CIFAR-100 there")
    coarse_of: dict[int, int] = {}
    with tarfile.open(path) as archive:
        for name, count in (("train", 1117), ("test", 916)):
            file = archive.extractfile(f"cifar-100-binary-part/{name}.bin")
            assert file is not None
            records = parse_records(file.read(), 2, name)
            split = split_of([records], 2)
            assert len(split) == count
            assert split.labels.unique().tolist() == list(range(100))
            for coarse, fine in records[:, :2].tolist():
                assert coarse_of.setdefault(fine, coarse) == coarse
        names = archive.extractfile("cifar-100-binary-part/fine_label_names.txt")
        assert names is not None
        assert tuple(names.read().decode().split()) == CIFAR100.spec.classes
    assert sorted(coarse_of.values()) == [coarse for coarse in range(20) for _ in range(5)]
