"""Data sets of events: where they are looked for, how they are split, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from dpap.data import Dataset, EventSettings, load_dataset, load_events
from dpap.data.events import EVENT_SOURCES, Events, framed, frames, read_bin, sets
from dpap.data.events.status import event_status, fetch_events, verify_events
from dpap.data.simulated import SPLITS, load_simulated
from dpap.data.spec import chosen_share
from dpap.errors import DPAPError

Rows = Sequence[tuple[int, int, int, int]]
"""(t, x, y, p)."""
FOUR = EventSettings(num_steps=4)
DATA = os.environ.get("DPAP_DATA")
"""Before every test gets a folder of its own."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a data folder and an empty cache of its own."""
    for name, folder in (("DPAP_DATA", "data"), ("XDG_DATA_HOME", "own"), ("XDG_CACHE_HOME", "cache")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path / "data"


def rows(number: int, count: int = 6) -> Rows:
    """A short recording that no other number has."""
    return [(10 * k + number % 7, (number + k) % 34, (3 * number + k) % 34, (number + k) % 2) for k in range(count)]


def five_bytes(recording: Rows) -> bytes:
    return b"".join(((x << 32) | (y << 24) | (p << 23) | t).to_bytes(5, "big") for t, x, y, p in recording)


def of_rows(recording: Rows, sensor: tuple[int, int]) -> Events:
    t, x, y, p = np.array(recording, np.int64).reshape(-1, 4).T
    return Events(t=t.copy(), x=x.astype(np.int16), y=y.astype(np.int16), p=p.astype(bool), sensor=sensor)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_npz(path: Path, recording: Rows, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t, x, y, p = np.array(recording, np.int64).reshape(-1, 4).T
    np.savez(path, t=t, x=x, y=y, p=p, **more)
    return path


def nmnist_files(train: int = 6, test: int = 2) -> dict[str, bytes]:
    """So many recordings of each of ten classes, numbered on as the official ones are."""
    files = {}
    for split, count in (("Train", train), ("Test", test)):
        for number in range(1, 10 * count + 1):
            files[f"{split}/{number % 10}/{number:05}.bin"] = five_bytes(rows(number))
    return files


def nmnist(home: Path, form: str) -> Path:
    """N-MNIST as it may lie: unpacked, in the two official archives, or packed anew as one."""
    files, folder = nmnist_files(), home / "nmnist"
    folder.mkdir()
    if form == "folders":
        for name, content in files.items():
            write(folder / name, content)
    elif form == "zips":
        for split in ("Train", "Test"):
            with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
                archive.writestr(f"{split}/", b"")
                for name, content in files.items():
                    if name.startswith(split):
                        archive.writestr(name, content)
    else:
        source = folder.parent / "source"
        with tarfile.open(folder / "part.tar.xz", "w:xz") as archive:
            for name, content in reversed(files.items()):
                archive.add(write(source / name, content), name)
    return folder


# -------------------------------------------------------------------------------------------------------------- N-MNIST


@pytest.mark.parametrize("form", ["folders", "zips", "tar"])
def test_nmnist_as_it_may_lie(home: Path, form: str) -> None:
    nmnist(home, form)
    data = load_dataset("nmnist", events=FOUR)
    assert data.spec.sample_shape == (4, 2, 34, 34)
    assert data.spec.num_steps == 4
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 10, 20]
    assert data.validation.labels.bincount().tolist() == [1] * 10
    # In the order of the files' numbers within a class, whatever the archive's order was.
    wanted = [frames(of_rows(rows(number), (34, 34)), 4) for digit in range(10) for number in _test_numbers(digit)]
    assert torch.equal(data.test.images, torch.from_numpy(np.stack(wanted)))
    assert data.test.labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert data.test.images.dtype == torch.uint8


def _test_numbers(digit: int) -> list[int]:
    return [number for number in range(1, 21) if number % 10 == digit]


def test_a_part_is_named_as_one(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    nmnist(home, "folders")
    data = load_dataset("nmnist", events=FOUR)
    assert data.spec.name == "nmnist-subset"
    assert "a subset: 60 of 60,000 (train), 20 of 10,000 (test) recordings" in data.spec.credit
    assert "a subset of the published set" in caplog.text


def test_all_of_it_has_its_own_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nmnist(home, "folders")
    whole = replace(EVENT_SOURCES["nmnist"], samples={"train": 60, "test": 20})
    monkeypatch.setattr(sets, "EVENT_SOURCES", MappingProxyType({"nmnist": whole}))
    assert load_dataset("nmnist", events=FOUR).spec.name == "nmnist"


def test_a_set_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    for name, source in EVENT_SOURCES.items():
        with pytest.raises(DPAPError, match=f"{name} is not here") as caught:
            load_dataset(name)
        assert str(home) in caught.value.where
        for archive in source.archives:
            assert archive.url in caught.value.fix
            assert archive.checksum in caught.value.fix
        assert str(home / source.folders[0]) in caught.value.fix


def test_settings_of_events_are_for_events() -> None:
    with pytest.raises(DPAPError, match="of pictures"):
        load_dataset("digits", events=FOUR)
    with pytest.raises(DPAPError, match="sensor of nmnist is 34 x 34"):
        load_dataset("nmnist", events=replace(FOUR, sensor=(3, 3)))
    for wrong in ({"num_steps": 0}, {"duration": 0}, {"sensor": (0, 3)}):
        with pytest.raises(DPAPError, match="make no sense"):
            replace(FOUR, **wrong)


# ---------------------------------------------------------------------------------------------------------------- cache


def _same(one: Dataset, other: Dataset) -> bool:
    return all(
        torch.equal(getattr(one, split).images, getattr(other, split).images)
        and torch.equal(getattr(one, split).labels, getattr(other, split).labels)
        for split in ("train", "validation", "test")
    )


def test_frames_are_made_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nmnist(home, "tar")
    first = load_dataset("nmnist", events=FOUR)
    (kept,) = (tmp_path / "cache" / "dpap" / "events").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(framed, "frames", lambda *a, **k: pytest.fail("made again"))
        assert _same(load_dataset("nmnist", events=FOUR), first)
        with pytest.raises(BaseException, match="made again"):  # another framing has a place of its own
            load_dataset("nmnist", events=replace(FOUR, by="count"))
    assert load_dataset("nmnist", events=replace(FOUR, num_steps=2)).train.images.shape[1] == 2
    assert kept.is_dir()


def test_files_that_changed_are_read_again(home: Path) -> None:
    folder = nmnist(home, "folders")
    first = load_dataset("nmnist", events=FOUR)
    path = folder / "Test/0/00010.bin"
    path.write_bytes(five_bytes(rows(77)))
    os.utime(path, ns=(1, 1))
    again = load_dataset("nmnist", events=FOUR)
    assert not torch.equal(again.test.images[0], first.test.images[0])
    assert torch.equal(again.test.images[1:], first.test.images[1:])
    assert len(list((home.parent / "cache" / "dpap" / "events").iterdir())) == 1, "what was kept before is replaced"


@pytest.mark.parametrize("spoil", ["bit", "cut", "facts", "gone"])
def test_a_damaged_cache_is_made_again(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    nmnist(home, "folders")
    first = load_dataset("nmnist", events=FOUR)
    (kept,) = (tmp_path / "cache" / "dpap" / "events").iterdir()
    images, facts = kept / "images.npy", kept / "facts.json"
    content = bytearray(images.read_bytes())
    content[-1000] ^= 1
    if spoil == "bit":
        images.write_bytes(content)
    elif spoil == "cut":
        images.write_bytes(content[:-1])
    elif spoil == "facts":
        facts.write_text("{}")
    else:
        facts.unlink()
    assert _same(load_dataset("nmnist", events=FOUR), first)
    assert "the cache is damaged and made again" in caplog.text
    caplog.clear()
    assert _same(load_dataset("nmnist", events=FOUR), first)
    assert "damaged" not in caplog.text


def test_without_a_cache(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nmnist(home, "folders")
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file")
    assert len(load_dataset("nmnist", events=FOUR).test) == 20
    assert "frames are not kept" in caplog.text


def test_a_full_disk_costs_the_cache_alone(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    nmnist(home, "folders")
    monkeypatch.setattr(os, "posix_fallocate", full)
    first = load_dataset("nmnist", events=FOUR)
    assert first.test.images.sum() > 0


# --------------------------------------------------------------------------------------------------------- bad samples


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(five_bytes(rows(1)) + b"\1"), "breaks off within an event"),
    "empty": (lambda path: path.write_bytes(b""), "holds no events"),
    "order": (lambda path: path.write_bytes(five_bytes([(5, 0, 0, 0), (4, 0, 0, 0)])), "Time goes back"),
    "place": (lambda path: path.write_bytes(five_bytes([(5, 34, 0, 0)])), "x is 34"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording_is_an_error_or_counted(home: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    spoil, what = BAD[name]
    folder = nmnist(home, "folders")
    path = folder / "Test/3/00013.bin"
    spoil(path)
    with pytest.raises(DPAPError, match=what) as caught:
        load_dataset("nmnist", events=FOUR)
    assert str(path) in caught.value.where
    assert "--on-bad-sample skip" in caught.value.fix
    for _ in range(2):  # made, and from the cache: never silent
        caplog.clear()
        data = load_dataset("nmnist", events=replace(FOUR, on_bad_sample="skip"))
        assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 10, 19]
        assert data.test.labels.bincount().tolist() == [2, 2, 2, 1, 2, 2, 2, 2, 2, 2]
        assert "1 of 80 recordings are left out, first" in caplog.text
        assert str(path) in caplog.text
    with pytest.raises(DPAPError, match=what):
        load_dataset("nmnist", events=FOUR)


def test_a_class_folder_without_recordings(home: Path) -> None:
    folder = nmnist(home, "folders")
    for path in (folder / "Train/7").iterdir():
        path.unlink()
    with pytest.raises(DPAPError, match="folder holds no recordings") as caught:
        load_dataset("nmnist", events=replace(FOUR, on_bad_sample="skip"))
    assert caught.value.where == f"{folder}/Train/7/"


def test_several_formats(home: Path) -> None:
    folder = nmnist(home, "folders")
    write_npz(folder / "Train/7/one.npz", rows(1))
    with pytest.raises(DPAPError, match="several formats: .bin and .npz") as caught:
        load_dataset("nmnist", events=FOUR)
    assert "one.npz" in caught.value.where


def test_a_class_that_is_not_known(home: Path) -> None:
    folder = nmnist(home, "folders")
    write(folder / "Train/ten/00001.bin", five_bytes(rows(1)))
    with pytest.raises(DPAPError, match="no class 'ten' in nmnist"):
        load_dataset("nmnist", events=FOUR)


def test_a_damaged_archive(home: Path) -> None:
    folder = nmnist(home, "tar")
    path = folder / "part.tar.xz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DPAPError, match="cannot be read: it breaks off") as caught:
        load_dataset("nmnist", events=FOUR)
    assert str(path) in caught.value.where


# ------------------------------------------------------------------------------------------------------ DVS128 Gesture


def gesture_file(path: Path, recording: Rows, labels: Sequence[tuple[int, int, int]] | None) -> None:
    body = b"".join(struct.pack("<II", (x << 17) | (y << 2) | (p << 1) | 1, t) for t, x, y, p in recording)
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(recording), len(recording), len(recording))
    write(path, b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + head + body)
    if labels is not None:
        lines = ["class,startTime_usec,endTime_usec", *(",".join(map(str, label)) for label in labels)]
        path.with_name(f"{path.stem}_labels.csv").write_text("\n".join(lines) + "\n")


def gestures(home: Path) -> Path:
    """Five subjects, each with a gesture of each of the eleven classes; nothing between 1,000 k + 500 and the next."""
    folder = home / "dvsgesture" / "DvsGesture"
    for user in range(1, 6):
        recording = [
            (1000 * k + 100 * event, (user + event) % 128, (k + event) % 128, event % 2)
            for k in range(11)
            for event in range(10)
        ]
        labels = [(k + 1, 1000 * k, 1000 * k + 500) for k in range(11)]
        gesture_file(folder / f"user0{user}_lab.aedat", recording, labels)
    (folder / "trials_to_train.txt").write_text("".join(f"user0{user}_lab.aedat\n" for user in (1, 2, 3, 4)))
    (folder / "trials_to_test.txt").write_text("user05_lab.aedat\n")
    return folder


def test_gestures_are_split_by_subject(home: Path) -> None:
    gestures(home)
    data = load_dataset("dvsgesture", events=FOUR)
    assert data.spec.sample_shape == (4, 2, 128, 128)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [33, 11, 11]
    for split in (data.validation, data.test):
        assert split.labels.tolist() == list(range(11))
    # Five events lie within a gesture: those at 0, 100, ..., 400.
    assert data.test.images.sum((1, 2, 3, 4)).tolist() == [5] * 11
    wanted = of_rows([(100 * event, 5 + event, 2 + event, event % 2) for event in range(5)], (128, 128))
    assert torch.equal(data.test.images[2], torch.from_numpy(frames(wanted, 4)))
    # The last subject of the training list is the validation split.
    held = of_rows([(100 * event, 4 + event, 2 + event, event % 2) for event in range(5)], (128, 128))
    assert torch.equal(data.validation.images[2], torch.from_numpy(frames(held, 4)))


def test_a_label_file_that_is_missing(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = gestures(home)
    (folder / "user02_lab_labels.csv").unlink()
    with pytest.raises(DPAPError, match="label file cannot be read: No such file") as caught:
        load_dataset("dvsgesture", events=FOUR)
    assert caught.value.where == str(folder / "user02_lab_labels.csv")
    data = load_dataset("dvsgesture", events=replace(FOUR, on_bad_sample="skip"))
    assert len(data.train) == 22
    assert "1 of 45 recordings are left out" in caplog.text


def test_lists_of_gestures_that_do_not_fit(home: Path) -> None:
    folder = gestures(home)
    (folder / "user05_lab.aedat").unlink()
    with pytest.raises(DPAPError, match="names is not there: user05_lab.aedat"):
        load_dataset("dvsgesture", events=FOUR)
    (folder / "trials_to_test.txt").unlink()
    with pytest.raises(DPAPError, match="list of a split cannot be read"):
        load_dataset("dvsgesture", events=FOUR)


def test_one_recording_a_class_cannot_be_split(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    for label in range(10):
        write_npz(home / f"dvs128gesture/events_np/{label}/sample_{label}.npz", rows(label))
    with pytest.raises(DPAPError, match="too few samples to set some aside as the test split") as caught:
        load_dataset("dvsgesture", events=FOUR)
    assert "data.test_on_train=true, which only shows that a run works" in caught.value.fix
    data = load_dataset("dvsgesture", events=replace(FOUR, test_on_train=True))
    assert torch.equal(data.train.images, data.test.images)
    assert data.train.labels.tolist() == list(range(10))
    assert "the accuracy means nothing" in caplog.text
    assert data.spec.name == "dvsgesture-subset"


# ---------------------------------------------------------------------------------------- sets without official splits


def jaer(recording: Rows) -> bytes:
    """As CIFAR10-DVS lies: the upright picture's column in the bits of jAER's rows, from below, and the other way."""
    return b"#!AER-DAT2.0\r\n" + b"".join(
        struct.pack(">II", ((127 - x) << 8) | ((127 - y) << 1) | (1 - p), t) for t, x, y, p in recording
    )


def test_cifar10dvs(home: Path) -> None:
    names = EVENT_SOURCES["cifar10dvs"].classes
    for label, name in enumerate(names):
        for number in range(20):
            write(home / f"cifar10dvs/{name}/cifar10_{name}_{number}.aedat", jaer(rows(20 * label + number)))
    data = load_dataset("cifar10dvs", events=FOUR)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [160, 20, 20]
    assert "no official split: a tenth of each class is set aside by dpap" in data.spec.credit
    assert data.test.labels.bincount().tolist() == [2] * 10
    # The split is that of the files in natural order: number 9 comes before 10.
    chosen = chosen_share(torch.zeros(20, dtype=torch.int64), 0.1).nonzero().flatten().tolist()
    wanted = [frames(of_rows(rows(number), (128, 128)), 4) for number in chosen]
    assert torch.equal(data.test.images[:2], torch.from_numpy(np.stack(wanted)))
    assert not data.spec.unmirrored


def test_ncaltech101(home: Path) -> None:
    with zipfile.ZipFile((home / "ncaltech101").mkdir() or home / "ncaltech101/Caltech101.zip", "w") as archive:
        for name in ("ant", "yin_yang"):
            for number in range(1, 21):
                archive.writestr(
                    f"Caltech101/{name}/image_{number:04}.bin",
                    five_bytes([(1, number, 170, 1), (0, 0, 240, 0), (9, 239, 0, 0)]),
                )
    data = load_dataset("ncaltech101", events=FOUR)
    assert data.spec.classes == ("ant", "yin_yang")
    assert data.spec.shape == (2, 180, 240)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [32, 4, 4]
    assert data.train.images.sum((1, 2, 3, 4)).tolist() == [2] * 32, "an overflow of the time is no event"


@pytest.mark.parametrize("name", ["shd", "ssc"])
def test_spikes_of_the_cochlea(home: Path, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    source = EVENT_SOURCES[name]
    (home / name).mkdir()
    for split in source.samples:
        count = 10 * len(source.classes) if split == "train" else len(source.classes)
        short = {"validation": "valid"}.get(split, split)
        with h5py.File(home / name / f"{name}_{short}.h5", "w") as file:
            for kind in ("times", "units"):
                column = file.create_dataset(f"spikes/{kind}", (count,), h5py.vlen_dtype(np.float32))
                for row in range(count):
                    column[row] = [0.0, 0.5, 0.75] if kind == "times" else [row % 700, 699, 699]
            file["labels"] = np.arange(count) % len(source.classes)
    data = load_dataset(name, events=FOUR)
    classes = len(source.classes)
    assert data.spec.sample_shape == (4, 700, 1, 1), "a unit is a channel"
    own = 8 if name == "ssc" else 9  # tenths of the training split: SSC has a validation split of its own
    assert len(data.train) == (10 if name == "ssc" else own) * classes
    assert (len(data.validation), len(data.test)) == (classes, classes)
    assert data.test.images[3].nonzero().tolist() == [[0, 3, 0, 0], [2, 699, 0, 0], [3, 699, 0, 0]]
    (home / name / f"{name}_test.h5").unlink()
    with pytest.raises(DPAPError, match=f"is not complete: {name}_test.h5 is missing"):
        load_dataset(name, events=FOUR)


# ----------------------------------------------------------------------------------------------------------- one's own


def own(folder: Path, count: int = 20, **more: Any) -> Path:
    for label, name in enumerate(("left", "right")):
        for number in range(count):
            write_npz(folder / name / f"{number}.npz", rows(100 * label + number), **({"sensor": (34, 34)} | more))
    return folder


def test_recordings_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load_dataset("events", own(tmp_path / "mine"), FOUR)
    assert (data.spec.name, data.spec.classes, data.spec.shape) == ("mine", ("left", "right"), (2, 34, 34))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [28, 4, 8]
    assert "no test split" in caplog.text
    assert "no validation split" in caplog.text


def test_splits_of_ones_own(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("Test", 3)):
        own(tmp_path / "mine" / split, count)
    data = load_events(tmp_path / "mine", FOUR)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 4, 6]
    write_npz(tmp_path / "mine/left/0.npz", rows(0), sensor=(34, 34))
    with pytest.raises(DPAPError, match="Some recordings lie in the folder of a split, and others do not"):
        load_events(tmp_path / "mine", FOUR)


def test_five_bytes_of_ones_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            write(tmp_path / f"mine/{name}/{number}.bin", five_bytes(rows(number)))
    with pytest.raises(DPAPError, match="only .npz files can say it") as caught:
        load_events(tmp_path / "mine", FOUR)
    assert "data.sensor" in caught.value.fix
    data = load_events(tmp_path / "mine", replace(FOUR, sensor=(40, 50)))
    assert data.spec.shape == (2, 40, 50)
    assert torch.equal(data.train.images[0], torch.from_numpy(frames(read_bin(tmp_path / "mine/a/0.bin", (40, 50)), 4)))


def test_layouts_of_ones_own_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="no such folder of recordings"):
        load_events(tmp_path / "none", FOUR)
    own(tmp_path / "one")
    for path in (tmp_path / "one/right").iterdir():
        path.unlink()
    (tmp_path / "one/right").rmdir()
    with pytest.raises(DPAPError, match="nothing to tell apart: 1 class"):
        load_events(tmp_path / "one", FOUR)
    write_npz(tmp_path / "flat/0.npz", rows(0), sensor=(34, 34))
    with pytest.raises(DPAPError, match="lies in no folder of a class"):
        load_events(tmp_path / "flat", FOUR)
    other = own(tmp_path / "other")
    write_npz(other / "right/5.npz", rows(5), sensor=(35, 34))
    with pytest.raises(DPAPError, match="sensor is 35 x 34, expected 34 x 34") as caught:
        load_events(other, FOUR)
    assert caught.value.where == str(other / "right/5.npz")


def test_a_folder_that_is_called_like_a_split(tmp_path: Path) -> None:
    assert len(load_events(own(tmp_path / "test"), FOUR).train) == 28


def test_folders_within_classes_are_no_classes(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("left", "right"):
        for session in ("one", "two"):
            write_npz(folder / name / session / "0.npz", rows(0), sensor=(34, 34))
    with pytest.raises(DPAPError, match="several layouts: left/one/0.npz and right/one/0.npz"):
        load_events(folder, FOUR)


def test_other_files_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = own(tmp_path / "mine")
    (folder / "left/notes.txt").write_text("mine")
    (folder / "left/.hidden.npz").write_text("mine")
    with caplog.at_level(logging.WARNING):
        assert len(load_events(folder, FOUR).test) == 8
    assert "1 files that are no recordings are left out, such as left/notes.txt" in caplog.text


# ----------------------------------------------------------------------------------------------------------- simulated


def _pictures() -> Dataset:
    """Ten digits for training, ten to validate, ten to test."""
    digits = load_dataset("digits")
    return Dataset(
        spec=digits.spec,
        **{name: getattr(digits, name).part(torch.arange(len(getattr(digits, name))) < 10) for name in SPLITS},
    )


def test_simulated_events_are_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first = load_simulated("few-saccade", _pictures, FOUR)
    assert first.spec.sample_shape == (4, 2, 34, 34)
    assert first.spec.credit.startswith("simulated events of")
    assert "simulating all of it" in caplog.text
    caplog.clear()
    again = load_simulated("few-saccade", _pictures, FOUR)
    assert "simulating" not in caplog.text
    assert _same(again, first)
    assert again.spec == first.spec
    monkeypatch.setattr("dpap.data.simulated.VERSION", 2)
    load_simulated("few-saccade", _pictures, FOUR)
    assert "simulating all of it" in caplog.text


def test_a_simulated_camera_is_not_framed_otherwise() -> None:
    for other in ({"by": "count"}, {"duration": 5}, {"on_bad_sample": "skip"}, {"test_on_train": True}):
        with pytest.raises(DPAPError, match="is simulated: its frames are of equal time"):
            load_dataset("mnist-saccade", events=replace(FOUR, **other))


# ---------------------------------------------------------------------------------------------------------------- state


def test_what_is_here_and_what_is_not(home: Path) -> None:
    missing = event_status("nmnist")
    assert (missing.state, missing.missing, missing.to_download) == ("missing", ("Train.zip", "Test.zip"), 0)
    assert verify_events("nmnist").state == "missing"
    with pytest.raises(DPAPError, match="fetched by hand"):
        fetch_events("nmnist")
    folder = nmnist(home, "folders")
    assert event_status("nmnist").state == "here"
    assert event_status("nmnist").where == home
    assert fetch_events("nmnist").state == "here", "single files have no published checksum"
    (folder / "Test/1/00001.bin").write_bytes(b"\0")
    (folder / "Test/1/00011.bin").write_bytes(b"")
    (file,) = verify_events("nmnist").files
    assert file.state == "damaged"
    assert "2 faults, first" in file.problem
    assert "00001.bin, byte 0" in file.problem


def test_an_official_archive_has_a_checksum(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nmnist(home, "zips")
    assert verify_events("nmnist").state == "damaged"
    md5s = {path.name: f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in folder.iterdir()}
    source = EVENT_SOURCES["nmnist"]
    right = replace(source, archives=tuple(replace(one, checksum=md5s[one.name]) for one in source.archives))
    monkeypatch.setattr("dpap.data.events.status.EVENT_SOURCES", {"nmnist": right})
    assert verify_events("nmnist").state == "ok"


# -------------------------------------------------------------------------------------------------- the samples at hand


@pytest.mark.data
@pytest.mark.slow
def test_the_recordings_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DATA is not None, "the marker skips"
    monkeypatch.setenv("DPAP_DATA", DATA)
    if event_status("nmnist").state == "missing":
        pytest.skip("no N-MNIST there")
    data = load_dataset("nmnist", events=EventSettings(num_steps=2))
    for split in (data.train, data.validation, data.test):
        assert split.labels.unique().tolist() == list(range(10))
        counts = split.images.sum((1, 2, 3, 4), dtype=torch.int64)
        assert counts.min() > 1000
        assert counts.max() < 10_000
        on = split.images[:, :, 1].sum(dtype=torch.int64) / counts.sum()
        assert 0.45 < on < 0.55, "about half of the events are ON"
