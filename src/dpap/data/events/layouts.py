"""How recordings lie: folders of classes, gestures with their label files, lists of spikes. Each is a `Recordings`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path, PurePosixPath

from dpap.data.events.cache import Sample
from dpap.data.events.columns import read_spikes
from dpap.data.events.framed import Recordings
from dpap.data.events.places import ARCHIVES, members, names_in
from dpap.data.events.readers import DVS128, Label, Raw, mapped, parse_aedat3, read_labels
from dpap.data.events.recording import Events
from dpap.errors import DPAPError

log = logging.getLogger(__name__)

Parse = Callable[[Raw, str], Events]
"""The events in the bytes of a file; the name of the file is for errors."""

SPLITS: Mapping[str, str] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}  # fmt: skip
"""Names of folders, in small letters, that are splits and not classes."""
LAYOUT = "put the recordings into FOLDER/train/CLASS and FOLDER/test/CLASS, or all of them into FOLDER/CLASS"


class ClassFolders(Recordings):
    """Recordings in a folder for each class, in folders or archives; above them there may be a folder for each split.

    Args:
        name: Of the data set.
        places: Folders or archives; one that is called like a split holds that split.
        parsers: What reads a file, by its suffix; files of other suffixes are left out, which a log line says.
        shape: Of a frame.
        classes: Names of the classes, or nothing: the folders' names. A folder may be called by its number.

    Raises:
        DPAPError: when it is looked at: no recordings, recordings of several formats, a class without any, one that is
            not known, recordings outside a class, or splits of which one is lacking; with the folder or the file.
    """

    def __init__(
        self,
        name: str,
        places: Sequence[Path],
        parsers: Mapping[str, Parse],
        *,
        shape: tuple[int, int, int],
        classes: Sequence[str] = (),
    ) -> None:
        self.name, self.shape = name, shape
        self.where = ", ".join(str(place.absolute()) for place in places)
        self._places, self._parsers, self._named = places, parsers, classes

    @cached_property
    def _names(self) -> list[tuple[Path, list[str]]]:
        """Of each place: to list a packed archive, it has to be read as a whole."""
        found = [(place, _recordings_of(place, self._parsers)) for place in self._places]
        if not any(names for _, names in found):
            raise DPAPError(
                f"There are no recordings ({', '.join(self._parsers)}).",
                where=self.where,
                fix=LAYOUT,
            )
        _one_suffix(found)
        for place, names in found:
            for name in names:
                if "/" not in name:
                    raise DPAPError("A recording lies in no folder of a class.", where=f"{place}/{name}", fix=LAYOUT)
            _one_depth(place, names)
        return found

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._named) or tuple(sorted({name.split("/")[-2] for _, names in self._names for name in names}))

    @cached_property
    def samples(self) -> list[Sample]:
        numbers = {name: k for k, name in enumerate(self.classes)}
        if self._named:
            numbers = {str(k): k for k in range(len(self.classes))} | numbers
        samples = [self._sample(place, name, numbers) for place, names in self._names for name in names]
        _check_splits(samples)
        return samples

    def _sample(self, place: Path, name: str, numbers: Mapping[str, int]) -> Sample:
        *above, folder, _ = ["", *name.split("/")] if place.is_dir() else name.split("/")
        where = f"{place}/{name}" if place.is_dir() else f"{place}, member {name}"
        if folder not in numbers:
            raise DPAPError(
                f"There is no class {folder!r} in {self.name}.",
                where=where,
                fix=f"name the folder after one of {', '.join(self.classes[:12])}",
            )
        split = above[-1] if above else place.name.partition(".")[0]  # Train.zip holds the training split
        return Sample(numbers[folder], SPLITS.get(split.lower()), where)

    def files(self) -> list[Path]:
        if not any(place.is_dir() for place in self._places):
            return list(self._places)
        return [place / name for place, names in self._names for name in names]

    def read(self) -> Iterator[tuple[int, Callable[[], Events]]]:
        first = 0
        for place, names in self._names:
            for row, raw, where in members(place, names):
                yield first + row, partial(self._read, raw, where)
            first += len(names)

    def _read(self, raw: Callable[[], Raw], where: str) -> Events:
        suffix = PurePosixPath(where).suffix.lower()
        return self._parsers[suffix](raw(), where)


def _recordings_of(place: Path, suffixes: Mapping[str, Parse]) -> list[str]:
    """The recordings of a place; a folder at the end of its branch that holds none is an error."""
    names = names_in(place)
    found = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
    full = {parent.as_posix() for name in found for parent in PurePosixPath(name).parents}
    for name in names:
        if name.endswith("/") and name.rstrip("/") not in full:
            raise DPAPError(
                f"A folder holds no recordings ({', '.join(suffixes)}).",
                where=f"{place}/{name}",
                fix="put the recordings of that class into it, or remove it",
            )
    left = [name for name in names if not name.endswith("/") and name not in set(found) and len(Path(name).parts) > 1]
    if left:
        log.warning("%s: %d files that are no recordings are left out, such as %s", place, len(left), left[0])
    return found


def _one_suffix(found: Sequence[tuple[Path, Sequence[str]]]) -> None:
    first: dict[str, str] = {}
    for place, names in found:
        for name in names:
            first.setdefault(PurePosixPath(name).suffix.lower(), f"{place}/{name}")
    if len(first) > 1:
        raise DPAPError(
            f"Recordings are of several formats: {' and '.join(first)}.",
            where=" and ".join(first.values()),
            fix="keep one format for a data set",
        )


def _one_depth(place: Path, names: Sequence[str]) -> None:
    """Above classes and splits there may be folders, but the same for all: else a class would be taken for them."""
    first: dict[tuple[str, ...], str] = {}
    for name in names:
        above = name.split("/")[:-2]
        first.setdefault(tuple(above[:-1] if above and above[-1].lower() in SPLITS else above), name)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise DPAPError(
            f"Recordings lie in several layouts: {one} and {other}.",
            where=str(place),
            fix=LAYOUT,
        )


def _check_splits(samples: Sequence[Sample]) -> None:
    counts = Counter(sample.split for sample in samples)
    outside = next((sample for sample in samples if sample.split is None), None)
    if len(counts) > 1 and outside is not None:
        raise DPAPError(
            "Some recordings lie in the folder of a split, and others do not.", where=outside.where, fix=LAYOUT
        )
    if outside is None and "train" not in counts:
        raise DPAPError("There are no training recordings.", where=samples[0].where, fix=LAYOUT)


def archives_in(folder: Path) -> list[Path]:
    """Archives that lie directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(ARCHIVES) and not path.name.startswith("."))


class Gestures(Recordings):
    """DVS128 Gesture as it was published: recordings of many gestures, each with a label file, split by subject.

    `trials_to_train.txt` and `trials_to_test.txt` name the recordings of the two splits. The last tenth of the subjects
    of the training split, at least one, is the validation split: no subject is in two splits.

    Raises:
        DPAPError: a list or a recording that is not there. A label file that is missing or makes no sense is a fault of
            its recording, found when that is read.
    """

    name = "dvsgesture"
    shape = (2, *DVS128)

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        self._folder, self._classes, self.where = folder, classes, str(folder.absolute())
        train, test = (_trials(folder / f"trials_to_{split}.txt") for split in ("train", "test"))
        subjects = sorted({_subject(path) for path in train})
        held = set(subjects[-max(1, round(len(subjects) / 10)) :]) if len(subjects) > 1 else set()
        splits = {path: "validation" if _subject(path) in held else "train" for path in train}
        self._trials = {path: _labels_or_fault(path, len(classes)) for path in [*train, *test]}
        self._splits = splits

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @cached_property
    def samples(self) -> list[Sample]:
        return [
            Sample(label.label, self._splits.get(path, "test"), f"{path}, {label.start} to {label.stop} us")
            if isinstance(label, Label)
            else Sample(0, self._splits.get(path, "test"), str(path))
            for path, labels in self._trials.items()
            for label in labels
        ]

    def files(self) -> list[Path]:
        lists = [self._folder / f"trials_to_{split}.txt" for split in ("train", "test")]
        labels = [path for path in map(_label_file, self._trials) if path.is_file()]
        return [*lists, *labels, *self._trials]

    def read(self) -> Iterator[tuple[int, Callable[[], Events]]]:
        row = 0
        for path, labels in self._trials.items():
            recording = cache(partial(_read_aedat3, path))  # one file, several gestures
            for label in labels:
                yield row, partial(_gesture, recording, label)
                row += 1


def _read_aedat3(path: Path) -> Events:
    return parse_aedat3(mapped(path), DVS128, str(path))


def _gesture(recording: Callable[[], Events], label: Label | DPAPError) -> Events:
    if isinstance(label, DPAPError):
        raise label
    return recording().between(label.start, label.stop)


def _trials(path: Path) -> list[Path]:
    try:
        names = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise DPAPError(
            f"The list of a split cannot be read: {error.strerror}.", where=str(path), fix="unpack the whole data set"
        ) from error
    for name in names:
        if not (path.parent / name).is_file():
            raise DPAPError(
                f"A recording that the list names is not there: {name}.",
                where=str(path),
                fix="unpack the whole data set",
            )
    return [path.parent / name for name in names]


def _subject(path: Path) -> str:
    """`user01` of `user01_fluorescent.aedat`."""
    return path.name.partition("_")[0]


def _label_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_labels.csv")


def _labels_or_fault(path: Path, classes: int) -> Sequence[Label | DPAPError]:
    try:
        return read_labels(_label_file(path), classes)
    except DPAPError as error:
        return [error]


class SpikeFiles(Recordings):
    """SHD or SSC: one HDF5 file for each split, units of a cochlea model instead of pixels.

    A unit is a channel of a frame of one pixel: what reads it first is a layer over units, not over their neighbours.
    """

    def __init__(self, name: str, paths: Mapping[str, Path], units: int, classes: tuple[str, ...]) -> None:
        self.name, self.shape = name, (units, 1, 1)
        self._paths, self._units, self._classes = paths, units, classes
        self.where = ", ".join(str(path.absolute()) for path in paths.values())

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @cached_property
    def samples(self) -> list[Sample]:
        return [
            Sample(label, split, f"{path}, recording {row}")
            for split, path in self._paths.items()
            for row, (_, label) in enumerate(read_spikes(path, self._units))
        ]

    def files(self) -> list[Path]:
        return list(self._paths.values())

    def read(self) -> Iterator[tuple[int, Callable[[], Events]]]:
        row = 0
        for path in self._paths.values():
            for read, _ in read_spikes(path, self._units):
                yield row, read
                row += 1
