"""Data sets by name. A new one is a function that returns a `Dataset`, and one line in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from dpap.data.arrays import from_torch, load_npz
from dpap.data.cifar import load_cifar
from dpap.data.digits import load_digits
from dpap.data.events import EVENT_SETS, EventSettings, load_events
from dpap.data.folders import load_images
from dpap.data.idx import load_idx
from dpap.data.set_status import FileStatus, SetStatus, fetch, status, verify
from dpap.data.simulated import load_simulated
from dpap.data.sources import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, SOURCES
from dpap.data.spec import Dataset, DataSpec, Split
from dpap.data.web import Progress
from dpap.errors import DPAPError, unknown_name

PICTURES: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {
        "digits": load_digits,
        "mnist": partial(load_idx, MNIST),
        "fashion-mnist": partial(load_idx, FASHION_MNIST),
        "cifar10": partial(load_cifar, CIFAR10),
        "cifar100": partial(load_cifar, CIFAR100),
        "images": load_images,
        "npz": load_npz,
    }
)
EVENTS: Mapping[str, Callable[..., Dataset]] = MappingProxyType(
    {
        **EVENT_SETS,
        "mnist-saccade": partial(load_simulated, "mnist-saccade", PICTURES["mnist"]),
        "events": load_events,
    }
)
"""Sets of events: the function takes `EventSettings`, after the path where there is one."""
DATASETS: Mapping[str, Callable[..., Dataset]] = MappingProxyType({**PICTURES, **EVENTS})
NEED_PATH = frozenset({"images", "npz", "events"})
"""One's own data: the function takes the path."""


def load_dataset(name: str, path: str | Path | None = None, events: EventSettings | None = None) -> Dataset:
    """The data set of that name, in memory. A published one that is not here is downloaded, which a log line says.

    Args:
        name: One of `DATASETS`.
        path: The folder of "images" or "events", the file of "npz". The other sets take none: they are looked for in
            the folder named by the environment variable DPAP_DATA, then in `dpap` in the user's data folder.
        events: How recordings become frames, for sets of `EVENTS` alone; None: as `EventSettings()`.

    Raises:
        DPAPError: no such name (the nearest are shown), a path too many or too few, settings of events for pictures, or
            the data are not as they should be, or not here and not to be had.
    """
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    if name in NEED_PATH and path is None:
        raise DPAPError(f"Data set {name!r} needs a path.", where="data.path", fix="name its folder or file")
    if name not in NEED_PATH and path is not None:
        raise DPAPError(
            f"Data set {name!r} takes no path.", where="data.path", fix="name the folder that has it with DPAP_DATA"
        )
    if name not in EVENTS and events is not None:
        raise DPAPError(f"Data set {name!r} is of pictures, not of events.", fix="leave `events` out")
    given = [] if path is None else [path]
    return EVENTS[name](*given, events or EventSettings()) if name in EVENTS else PICTURES[name](*given)


__all__ = [
    "DATASETS",
    "EVENTS",
    "NEED_PATH",
    "SOURCES",
    "DataSpec",
    "Dataset",
    "EventSettings",
    "FileStatus",
    "Progress",
    "SetStatus",
    "Split",
    "fetch",
    "from_torch",
    "load_dataset",
    "load_events",
    "load_images",
    "load_npz",
    "status",
    "verify",
]
