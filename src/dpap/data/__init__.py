"""Data sets by name. A new one is a function that returns a `Dataset`, and one line in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dpap.data.digits import load_digits
from dpap.data.spec import Dataset, DataSpec, Split, random_shift
from dpap.errors import unknown_name

DATASETS: Mapping[str, Callable[[], Dataset]] = MappingProxyType({"digits": load_digits})


def load_dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        DPAPError: no such name (the nearest are shown), or the data are not as they should be.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]()


__all__ = ["DATASETS", "DataSpec", "Dataset", "Split", "load_dataset", "random_shift"]
