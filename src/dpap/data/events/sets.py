"""The data sets of events: what is known of the published ones, where they are looked for, and how they are split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch

from dpap.data.arrays import TEST_SHARE, VALIDATION_SHARE, no_empty_class, split_off
from dpap.data.events.columns import parse_events_npz
from dpap.data.events.framed import EventSettings, Recordings, framed
from dpap.data.events.layouts import ClassFolders, Gestures, Parse, SpikeFiles, archives_in
from dpap.data.events.places import names_in
from dpap.data.events.readers import DVS128, Raw, mapped, parse_aedat2, parse_bin
from dpap.data.events.recording import Events
from dpap.data.spec import Dataset, DataSpec, Split
from dpap.data.store import data_folders
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

UNITS = 700
"""Of the cochlea model behind SHD and SSC."""
OUR_TEST_SHARE = 0.1
"""Of each class, in a published set that has no official split."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A file at an official address."""

    name: str
    url: str
    checksum: str
    """`md5:...`; empty where none is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """A published set of events, which has to be fetched by hand.

    Attributes:
        name: Of the data set.
        folders: Names of its folder inside the data folder.
        shape: Of a frame: (channels, height, width).
        classes: Their names; nothing: those of the folders.
        folder_classes: How many folders of classes there are, where they have the names.
        credit: Who made it, and under which licence.
        archives: Its files, and where they are.
        samples: How many recordings each published split has; of a set without splits, "all".
        unmirrored: See `DataSpec`.
        unpack: How its files have to lie in its folder.
    """

    name: str
    folders: tuple[str, ...]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    folder_classes: int = 0
    credit: str
    archives: tuple[Archive, ...]
    samples: Mapping[str, int] = field(hash=False)
    unmirrored: str = ""
    unpack: str

    def spec(self, num_steps: int, classes: Sequence[str] = ()) -> DataSpec:
        """The facts of the whole set; `classes` where they are the names of its folders, else those are numbered."""
        return DataSpec(
            name=self.name,
            shape=self.shape,
            classes=self.classes or tuple(classes) or tuple(str(number) for number in range(self.folder_classes)),
            credit=self.credit,
            num_steps=num_steps,
            unmirrored=self.unmirrored,
        )


_MENDELEY = "https://data.mendeley.com/public-files/datasets/"
_ORCHARD = "G. Orchard, A. Jayawant, G. Cohen, N. Thakor, Front. Neurosci. 9:437, 2015"
_CRAMER = "B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke, 2020, CC BY 4.0"
_HEARD = "spikes of a cochlea model are no picture"

NMNIST = EventSource(
    name="nmnist",
    folders=("nmnist", "NMNIST", "N-MNIST"),
    shape=(2, 34, 34),
    classes=tuple("0123456789"),
    credit=f"N-MNIST, {_ORCHARD}, CC BY-SA 4.0",
    archives=(
        Archive(
            "Train.zip",
            f"{_MENDELEY}468j46mzdv/files/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
            "md5:20959b8e626244a1b502305a9e6e2031",
        ),
        Archive(
            "Test.zip",
            f"{_MENDELEY}468j46mzdv/files/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
            "md5:69ca8762b2fe404d9b9bad1103e97832",
        ),
    ),
    samples={"train": 60_000, "test": 10_000},
    unmirrored="a mirrored digit is no digit",
    unpack="Train.zip and Test.zip, or the folders Train and Test",
)
DVSGESTURE = EventSource(
    name="dvsgesture",
    folders=("dvsgesture", "dvs128gesture", "DvsGesture", "DVSGesture", "DVS128Gesture"),
    shape=(2, *DVS128),
    classes=(
        "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise",
        "left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures",
    ),
    credit="DVS128 Gesture, A. Amir et al., CVPR 2017, CC BY 4.0",
    archives=(
        Archive(
            "DvsGesture.tar.gz",
            "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
            "md5:8a5c71fb11e24e5ca5b11866ca6c00a1",
        ),
    ),
    samples={"train": 1_176, "test": 288},
    unmirrored="a mirrored right hand is a left one",
    unpack="DvsGesture.tar.gz, unpacked: the .aedat and _labels.csv files and trials_to_train.txt, trials_to_test.txt",
)  # fmt: skip
CIFAR10DVS = EventSource(
    name="cifar10dvs",
    folders=("cifar10dvs", "CIFAR10DVS", "cifar10-dvs", "CIFAR10-DVS"),
    shape=(2, *DVS128),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    credit="CIFAR10-DVS, H. Li, H. Liu, X. Ji, G. Li, L. Shi, Front. Neurosci. 11:309, 2017, CC BY 4.0",
    archives=(Archive("one .zip for each class", "https://doi.org/10.6084/m9.figshare.4724671", ""),),
    samples={"all": 10_000},
    unpack="a folder for each class with its .aedat files (AEDAT 2; the copy in AEDAT 4 is not read)",
)
NCALTECH101 = EventSource(
    name="ncaltech101",
    folders=("ncaltech101", "NCALTECH101", "N-Caltech101", "NCaltech101"),
    shape=(2, 180, 240),
    classes=(),
    folder_classes=101,
    credit=f"N-Caltech101, {_ORCHARD}, CC BY 4.0",
    archives=(
        Archive(
            "Caltech101.zip",
            f"{_MENDELEY}cy6cvx3ryv/files/36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
            "md5:66201824eabb0239c7ab992480b50ba3",
        ),
    ),
    samples={"all": 8_709},
    unpack="Caltech101.zip, or the folders of its classes",
)
SHD = EventSource(
    name="shd",
    folders=("shd", "SHD"),
    shape=(UNITS, 1, 1),
    classes=tuple(f"{word} ({tongue})" for tongue in ("English", "German") for word in "0123456789"),
    credit=f"Spiking Heidelberg Digits, {_CRAMER}",
    archives=(
        Archive("shd_train.h5.zip", "https://zenkelab.org/datasets/", "md5:f3252aeb598ac776c1b526422d90eecb"),
        Archive("shd_test.h5.zip", "https://zenkelab.org/datasets/", "md5:1503a5064faa34311c398fb0a1ed0a6f"),
    ),
    samples={"train": 8_156, "test": 2_264},
    unmirrored=_HEARD,
    unpack="shd_train.h5 and shd_test.h5, unpacked",
)
SSC = EventSource(
    name="ssc",
    folders=("ssc", "SSC"),
    shape=(UNITS, 1, 1),
    classes=tuple(f"word {number}" for number in range(35)),
    credit=f"Spiking Speech Commands, {_CRAMER}",
    archives=tuple(
        Archive(f"ssc_{split}.h5.zip", "https://zenkelab.org/datasets/", "") for split in ("train", "valid", "test")
    ),
    samples={"train": 75_466, "validation": 9_981, "test": 20_382},
    unmirrored=_HEARD,
    unpack="ssc_train.h5, ssc_valid.h5 and ssc_test.h5, unpacked",
)
EVENT_SOURCES: Mapping[str, EventSource] = MappingProxyType(
    {source.name: source for source in (NMNIST, DVSGESTURE, CIFAR10DVS, NCALTECH101, SHD, SSC)}
)


# ------------------------------------------------------------------------------------------------------------ loading


def load_published(name: str, settings: EventSettings) -> Dataset:
    """A published set of events, as frames.

    Raises:
        DPAPError: it is not here, or its files are not as they should be; what was found of it cannot be split.
    """
    source = EVENT_SOURCES[name]
    if settings.sensor is not None and settings.sensor != source.shape[1:]:
        raise DPAPError(
            f"The sensor of {name} is {source.shape[1]} x {source.shape[2]}.",
            where="data.sensor",
            fix="leave it out: it is known",
        )
    recordings = next((found for folder in places(source) if (found := LAYOUTS[name](source, folder))), None)
    if recordings is None:
        raise missing(source)
    return _dataset(recordings, source, settings)


def load_events(path: str | Path, settings: EventSettings) -> Dataset:
    """Recordings of one's own, `.npz` or `.bin`, in `path/train/CLASS` and `path/test/CLASS`, or in `path/CLASS`.

    There may be `path/val/CLASS`. A split that is not there is a fixed, stratified part of the others, which a log line
    says. The sensor is what the `.npz` files say (`sensor`: height, width), or that of the settings.

    Raises:
        DPAPError: no such folder, another layout, fewer than two classes, files of several formats, or a recording that
            is empty, damaged or of another sensor; with the folder or the file.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DPAPError("There is no such folder of recordings.", where=str(root), fix="name a folder of class folders")
    sensor = settings.sensor or _stored_sensor(root)
    recordings = ClassFolders(root.resolve().name, [root], _parsers(sensor), shape=(2, *sensor))
    return _dataset(recordings, None, settings)


EVENT_SETS: Mapping[str, Callable[[EventSettings], Dataset]] = MappingProxyType(
    {name: partial(load_published, name) for name in EVENT_SOURCES}
)


def _dataset(recordings: Recordings, source: EventSource | None, settings: EventSettings) -> Dataset:
    """Frames of all recordings, split as their files say, and otherwise in a fixed and stratified way."""
    where = f"data set {recordings.name!r}"
    if len(recordings.classes) < 2:
        raise DPAPError(f"There is nothing to tell apart: {len(recordings.classes)} class.", where=where)
    found = framed(recordings, settings)
    images = torch.from_numpy(found.images)
    labels = torch.tensor([sample.label for sample in found.samples], dtype=torch.int64)

    def part(split: str) -> Split | None:
        rows = [row for row, sample in enumerate(found.samples) if (sample.split or "train") == split]
        return Split(images=images[rows], labels=labels[rows]) if rows else None

    train, validation, test = part("train"), part("validation"), part("test")
    if train is None:
        raise DPAPError("No training recording is left.", where=where, fix="look at what was left out")
    spec = _spec(recordings, source, settings, (train, validation, test))
    if source is None:
        no_empty_class(recordings.classes, train, where)
    if test is None and settings.test_on_train:
        log.warning("%s: trained and tested on the same %d recordings; the accuracy means nothing", where, len(train))
        return Dataset(spec=spec, train=train, validation=train, test=train)
    set_aside = partial(split_off, where=where, quiet=source is not None)  # of a published set, the credit says it
    try:
        if test is None:
            train, test = set_aside(train, TEST_SHARE if source is None else OUR_TEST_SHARE, "test")
        if validation is None:
            train, validation = set_aside(train, VALIDATION_SHARE, "validation")
    except DPAPError as error:
        fix = f"{error.fix}; or set data.test_on_train=true, which only shows that a run works"
        raise DPAPError(error.what, where=error.where, fix=fix) from error
    return Dataset(spec=spec, train=train, validation=validation, test=test)


def _spec(
    recordings: Recordings,
    source: EventSource | None,
    settings: EventSettings,
    splits: tuple[Split, Split | None, Split | None],
) -> DataSpec:
    if source is None:
        return DataSpec(
            name=recordings.name,
            shape=recordings.shape,
            classes=recordings.classes,
            credit="the user's own data",
            num_steps=settings.num_steps,
        )
    counts = {name: len(split) for name, split in zip(("train", "validation", "test"), splits, strict=True) if split}
    name, credit = _named(source, counts)
    return replace(source.spec(settings.num_steps, recordings.classes), name=name, credit=credit)


def _named(source: EventSource, counts: Mapping[str, int]) -> tuple[str, str]:
    """Name and credit: a part of a published set is never called as the set is."""
    published, credit = source.samples, source.credit
    if "all" in published:
        counts = {"all": sum(counts.values())}
        credit = f"{credit}; it has no official split: a tenth of each class is set aside by dpap"
    elif "validation" not in published:
        counts = {"train": counts["train"] + counts.get("validation", 0), "test": counts.get("test", 0)}
    if all(counts.get(split, 0) >= number for split, number in published.items()):
        return source.name, credit
    few = ", ".join(f"{counts.get(split, 0):,} of {number:,} ({split})" for split, number in published.items())
    log.warning("%s: a subset of the published set: %s recordings", source.name, few)
    return f"{source.name}-subset", f"{credit}; a subset: {few} recordings"


# ------------------------------------------------------------------------------------------------------------ finding


def places(source: EventSource) -> Iterator[Path]:
    """Folders that bear the name of a set, in turn."""
    for root in data_folders():
        yield from (folder for name in source.folders if (folder := root / name).is_dir())


def missing(source: EventSource) -> DPAPError:
    """The error for a set that is not here: how to get it by hand."""
    looked = ", ".join(str(root) for root in data_folders())
    files = "; ".join(f"{one.name}{f' ({one.checksum})' if one.checksum else ''}: {one.url}" for one in source.archives)
    return DPAPError(
        f"Data set {source.name} is not here, and has to be fetched by hand.",
        where=f"looked in {looked}, folder {source.folders[0]}",
        fix=f"get {files}; put into {data_folders()[0] / source.folders[0]}: {source.unpack}",
    )


def _parsers(sensor: tuple[int, int]) -> dict[str, Parse]:
    def parse_npz(raw: Raw, where: str) -> Events:
        return parse_events_npz(raw, sensor, where)

    def parse_five_bytes(raw: Raw, where: str) -> Events:
        return parse_bin(raw, sensor, where)

    return {".npz": parse_npz, ".bin": parse_five_bytes}


def _class_folders(source: EventSource, folder: Path, parsers: Mapping[str, Parse]) -> ClassFolders | None:
    """What lies in folders, else what lies in archives; None where neither is there."""
    unpacked = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    found = [folder] if unpacked else archives_in(folder)
    if not found:
        return None
    return ClassFolders(source.name, found, parsers, shape=source.shape, classes=source.classes)


def _of_pixels(source: EventSource, folder: Path) -> Recordings | None:
    return _class_folders(source, folder, _parsers((source.shape[1], source.shape[2])))


def _gestures(source: EventSource, folder: Path) -> Recordings | None:
    for inner in (folder, folder / "DvsGesture"):
        if inner.is_dir() and any(inner.glob("*.aedat")):
            return Gestures(inner, source.classes)
    return _of_pixels(source, folder)


def _turned(raw: Raw, where: str) -> Events:
    """Of CIFAR10-DVS, upright: the sensor lay on its side, so that columns and rows change places."""
    events = parse_aedat2(raw, where)
    return Events(t=events.t, x=events.y, y=events.x, p=events.p, sensor=events.sensor)


def _cifar10dvs(source: EventSource, folder: Path) -> Recordings | None:
    return _class_folders(source, folder, {".aedat": _turned})


def _spike_files(source: EventSource, folder: Path) -> Recordings | None:
    splits = {"train": "train", "validation": "valid", "test": "test"}
    paths = {split: folder / f"{source.name}_{splits[split]}.h5" for split in source.samples}
    absent = [path.name for path in paths.values() if not path.is_file()]
    if len(absent) == len(paths):
        return None
    if absent:
        raise DPAPError(
            f"Data set {source.name} is not complete: {', '.join(absent)} is missing.",
            where=str(folder),
            fix=f"put there {source.unpack}",
        )
    return SpikeFiles(source.name, paths, UNITS, source.classes)


LAYOUTS: Mapping[str, Callable[[EventSource, Path], Recordings | None]] = MappingProxyType(
    {
        "nmnist": _of_pixels,
        "dvsgesture": _gestures,
        "cifar10dvs": _cifar10dvs,
        "ncaltech101": _of_pixels,
        "shd": _spike_files,
        "ssc": _spike_files,
    }
)


def _stored_sensor(root: Path) -> tuple[int, int]:
    """That of the first `.npz` file."""
    first = next((root / name for name in names_in(root) if name.endswith(".npz")), None)
    if first is None:
        raise DPAPError(
            "The size of the sensor is not known: only .npz files can say it.",
            where=str(root),
            fix="set data.sensor to [height, width]",
        )
    return parse_events_npz(mapped(first), None, str(first)).sensor
