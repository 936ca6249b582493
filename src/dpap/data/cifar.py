"""CIFAR-10 and CIFAR-100 in their binary form: records of one or two label bytes and 3,072 bytes of picture."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8

from dpap.data.sources import Source
from dpap.data.spec import Dataset, Split, chosen_share
from dpap.data.store import read_parts
from dpap.errors import DPAPError

PICTURE = 3 * 32 * 32


def parse_records(raw: bytes, label_bytes: int, where: str) -> UInt8[np.ndarray, "N record"]:
    """The records of one file, as a view of its bytes: `label_bytes` of labels, then red, green and blue, row by row.

    Args:
        raw: The whole file.
        label_bytes: 1 in CIFAR-10; 2 in CIFAR-100, the coarse label and the fine one.
        where: What to call the file in an error.

    Raises:
        DPAPError: not a whole number of records.
    """
    record = label_bytes + PICTURE
    if not raw or len(raw) % record:
        raise DPAPError(
            f"A file of {len(raw):,} bytes is not a whole number of records of {record:,} bytes.",
            where=where,
            fix="get the file again, in the binary version of the data set",
        )
    return np.frombuffer(raw, np.uint8).reshape(-1, record)


def split_of(records: list[UInt8[np.ndarray, "_ record"]], label_bytes: int) -> Split:
    """Pictures (N, 3, 32, 32) and labels, of CIFAR-100 the fine ones, of files in turn."""
    pictures = np.concatenate([part[:, label_bytes:] for part in records]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part[:, label_bytes - 1] for part in records])
    return Split(images=torch.from_numpy(pictures), labels=torch.from_numpy(labels).long())


def load_cifar(source: Source) -> Dataset:
    """The official training pictures less a stratified tenth, that tenth, the test pictures. CIFAR-100: fine labels.

    Raises:
        DPAPError: files that are missing and cannot be downloaded, or that are not the published ones.
    """
    parts = read_parts(source)
    first = source.downloads[0].parts[0]
    label_bytes = first.size // first.samples - PICTURE

    records = {name: parse_records(raw, label_bytes, name) for name, raw in parts.items()}
    train = split_of([part for name, part in records.items() if not name.startswith("test")], label_bytes)
    test = split_of([part for name, part in records.items() if name.startswith("test")], label_bytes)
    chosen = chosen_share(train.labels, source.held_out)
    return Dataset(spec=source.spec, train=train.part(~chosen), validation=train.part(chosen), test=test)
