"""MNIST and Fashion-MNIST, and any file in their format: idx, a header that names type and sizes, then the bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dpap.data.sources import Source
from dpap.data.spec import Dataset, Split, chosen_share
from dpap.data.store import read_parts
from dpap.errors import DPAPError

BYTES = 8
"""The code of unsigned bytes, the only type that images and labels come in."""


def read_idx(path: str | Path) -> UInt8[Tensor, "*shape"]:
    """The array in an idx file of unsigned bytes, gzipped or not. Nothing is verified but the format.

    Raises:
        DPAPError: no such file, damaged gzip, or not such an array.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DPAPError(f"An idx file cannot be read: {error}.", where=str(path), fix="get the file again") from error
    return parse_idx(raw, str(path))


def parse_idx(raw: bytes, where: str) -> UInt8[Tensor, "*shape"]:
    """The array in the bytes of an idx file: two zeros, the type, the number of axes, their sizes, the numbers.

    Args:
        raw: The whole file, unpacked.
        where: What to call it in an error.

    Raises:
        DPAPError: not an array of unsigned bytes, or of another length than its header says.
    """
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != BYTES or len(raw) < (start := 4 + 4 * raw[3]):
        raise DPAPError(
            f"A file does not begin as an idx file of unsigned bytes does: {raw[:4].hex(' ') or 'it is empty'}.",
            where=where,
            fix="images begin with 00 00 08 03, labels with 00 00 08 01; get the file again",
        )
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise DPAPError(
            f"An idx file holds {len(raw) - start:,} numbers; its header says {' x '.join(map(str, shape))}.",
            where=where,
            fix="get the file again",
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def load_idx(source: Source) -> Dataset:
    """MNIST or Fashion-MNIST: the official training images less a stratified twelfth, that twelfth, the test images.

    Raises:
        DPAPError: files that are missing and cannot be downloaded, or that are not the published ones.
    """
    parts = read_parts(source)

    def split(name: str) -> Split:
        images, labels = (
            parse_idx(parts[part], part) for part in (f"{name}-images-idx3-ubyte", f"{name}-labels-idx1-ubyte")
        )
        return Split(images=images.unsqueeze(1), labels=labels.long())

    train = split("train")
    chosen = chosen_share(train.labels, source.held_out)
    return Dataset(spec=source.spec, train=train.part(~chosen), validation=train.part(chosen), test=split("t10k"))
