"""Files of published data sets, with small sets of this test in their place: found, verified, unpacked, kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import shutil
import struct
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pooch
import pytest

from dpap.data import set_status, store
from dpap.data.cifar import load_cifar
from dpap.data.idx import load_idx
from dpap.data.set_status import fetch, status, verify
from dpap.data.sources import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, SOURCES, Download, Part, Source
from dpap.data.store import read_parts
from dpap.errors import DPAPError

NOWHERE = "http://127.0.0.1:9/"  # the discard port: nobody answers


def sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def md5(raw: bytes) -> str:
    return f"md5:{hashlib.md5(raw).hexdigest()}"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tar(members: dict[str, bytes], kind: str = "gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


@dataclass(frozen=True)
class Fake:
    """A published set, and the bytes of its downloads and parts by name."""

    source: Source
    packed: dict[str, bytes]
    parts: dict[str, bytes]

    def put(self, folder: Path, *names: str, packed: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        files = self.packed if packed else self.parts
        for name in names or files:
            (folder / name).write_bytes(files[name])
        return folder


def fake_idx(like: Source, seed: int) -> Fake:
    """60 training and 20 test images of MNIST's size."""
    random = np.random.default_rng(seed)
    packed, parts, downloads = {}, {}, []
    for item in like.downloads:
        part = item.parts[0]
        count = 60 if "train" in part.name else 20
        array = (
            random.integers(0, 256, (count, 28, 28), np.uint8)
            if "images" in part.name
            else random.permutation(np.arange(count, dtype=np.uint8) % 10)
        )
        raw = idx(array)
        parts[part.name], packed[item.name] = raw, gzip.compress(raw, mtime=0)
        known = Part(part.name, len(raw), sha256(raw), count)
        downloads.append(
            Download(item.name, NOWHERE + item.name, len(packed[item.name]), md5(packed[item.name]), (known,))
        )
    return Fake(replace(like, downloads=tuple(downloads)), packed, parts)


def fake_cifar(like: Source, seed: int) -> Fake:
    """Files of 20 records, two of each of ten classes."""
    random = np.random.default_rng(seed)
    labels = 1 if like is CIFAR10 else 2
    parts = {}
    for part in like.downloads[0].parts:
        records = random.integers(0, 256, (20, labels + 3072), np.uint8)
        records[:, 0] = 99  # the coarse label, which is not to be read
        records[:, labels - 1] = random.permutation(np.arange(20, dtype=np.uint8) % 10)
        parts[part.name] = records.tobytes()
    known = tuple(Part(name, len(raw), sha256(raw), 20) for name, raw in parts.items())
    members = {f"{like.inside}/{name}": raw for name, raw in parts.items()}
    archive = tar({f"{like.inside}/batches.meta.txt": b"names", **members})
    name = like.downloads[0].name
    item = Download(name, NOWHERE + name, len(archive), md5(archive), known)
    return Fake(replace(like, downloads=(item,)), {name: archive}, parts)


@dataclass(frozen=True)
class Place:
    """The folders of one test."""

    data: Path
    own: Path
    cache: Path
    mnist: Fake
    fashion: Fake
    cifar10: Fake
    cifar100: Fake


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    fakes = (fake_idx(MNIST, 0), fake_idx(FASHION_MNIST, 1), fake_cifar(CIFAR10, 2), fake_cifar(CIFAR100, 3))
    for module in (store, set_status):
        monkeypatch.setattr(module, "SOURCES", MappingProxyType({fake.source.name: fake.source for fake in fakes}))
    folders = {"DPAP_DATA": "data", "XDG_DATA_HOME": "share", "XDG_CACHE_HOME": "cache"}
    for variable, name in folders.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)  # between two tries
    (tmp_path / "data").mkdir()
    return Place(tmp_path / "data", tmp_path / "share" / "dpap", tmp_path / "cache" / "dpap", *fakes)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------ the facts


def test_the_sets_are_as_published() -> None:
    assert list(SOURCES) == ["mnist", "fashion-mnist", "cifar10", "cifar100"]
    for source in SOURCES.values():
        assert source.spec.credit
        assert len(source.spec.mean) == len(source.spec.std) == source.spec.shape[0]
        assert len(set(source.spec.classes)) == len(source.spec.classes) == (100 if source is CIFAR100 else 10)
        parts = [part for item in source.downloads for part in item.parts]
        assert len({part.checksum for part in parts}) == len(parts)
        for known in (*source.downloads, *parts):
            algorithm, _, digest = known.checksum.partition(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
        for item in source.downloads:
            assert item.url.endswith("/" + item.name)
        pictures = sum(part.samples for part in parts if "labels" not in part.name)
        assert pictures == 70_000 if source.spec.shape[0] == 1 else 60_000


# -------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "MNIST", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_in_the_layouts_of_others(place: Place, folder: str, packed: bool) -> None:
    place.mnist.put(place.data / folder, packed=packed)
    assert read_parts(place.mnist.source) == place.mnist.parts
    assert verify("mnist").state == "ok"


def test_names_with_a_dot(place: Place) -> None:
    for name, raw in place.mnist.parts.items():
        (place.data / name.replace("-idx", ".idx")).write_bytes(raw)
    assert read_parts(place.mnist.source) == place.mnist.parts


@pytest.mark.parametrize("folder", ["cifar10", "CIFAR10", ".", "cifar10/cifar-10-batches-bin"])
def test_cifar_unpacked(place: Place, folder: str) -> None:
    folder = "cifar-10-batches-bin" if folder == "." else folder
    place.cifar10.put(place.data / folder, packed=False)
    assert read_parts(place.cifar10.source) == place.cifar10.parts
    assert not place.cache.exists()


@pytest.mark.parametrize("folder", ["cifar10", "."])
@pytest.mark.parametrize(("kind", "suffix"), [("gz", "tar.gz"), ("gz", "tgz"), ("xz", "tar.xz"), ("", "tar")])
def test_cifar_packed(place: Place, folder: str, kind: str, suffix: str) -> None:
    (place.data / folder).mkdir(exist_ok=True)
    archive = tar({f"cifar-10-batches-bin/{name}": raw for name, raw in place.cifar10.parts.items()}, kind)
    (place.data / folder / f"cifar-10-binary.{suffix}").write_bytes(archive)
    assert read_parts(place.cifar10.source) == place.cifar10.parts


def test_a_data_folder_that_is_the_sets_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.cifar10.put(place.data / "cifar10", packed=False)
    monkeypatch.setenv("DPAP_DATA", str(folder))
    assert read_parts(place.cifar10.source) == place.cifar10.parts


def test_a_stray_train_bin_is_not_taken_for_cifar(place: Place) -> None:
    place.cifar100.put(place.data, packed=False)
    assert status("cifar100").state == "missing"


def test_the_named_folder_comes_before_the_users_own(place: Place) -> None:
    place.mnist.put(place.own / "mnist")
    assert status("mnist").where == place.own / "mnist"
    place.mnist.put(place.data / "mnist")
    assert status("mnist").where == place.data / "mnist"


def test_without_a_named_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPAP_DATA")
    place.mnist.put(place.data / "mnist")
    assert status("mnist").state == "missing"
    assert status("mnist").folder == place.own / "mnist"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert store.data_folders() == (Path("/home/somebody/.local/share/dpap"),)


def test_files_of_one_name_in_one_folder_are_told_apart(place: Place) -> None:
    """MNIST directly in the data folder is not taken for Fashion-MNIST, whose files have the same names."""
    place.mnist.put(place.data, packed=False)
    assert status("mnist").state == "here"
    assert status("fashion-mnist").state == "missing"
    place.fashion.put(place.own / "fashion-mnist")
    assert read_parts(place.fashion.source) == place.fashion.parts


# -------------------------------------------------------------------------------------------------------------- loading


def test_mnist_arrays(place: Place) -> None:
    place.mnist.put(place.data / "mnist")
    data = load_idx(replace(place.mnist.source, held_out=1 / 6))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [60 - 10, 10, 20]
    stored = np.frombuffer(place.mnist.parts["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(20, 1, 28, 28)
    assert np.array_equal(data.test.images.numpy(), stored)
    labels = np.frombuffer(place.mnist.parts["t10k-labels-idx1-ubyte"], np.uint8, offset=8)
    assert data.test.labels.tolist() == labels.tolist()
    assert data.validation.labels.bincount().tolist() == [1] * 10


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_arrays(place: Place, name: str) -> None:
    fake: Fake = getattr(place, name)
    source = replace(fake.source, held_out=0.5)
    fake.put(place.data / name, packed=False)
    data = load_cifar(source)
    labels = 1 if name == "cifar10" else 2
    test = np.frombuffer(fake.parts["test_batch.bin" if labels == 1 else "test.bin"], np.uint8).reshape(20, -1)
    assert np.array_equal(data.test.images.numpy(), test[:, labels:].reshape(20, 3, 32, 32))
    assert data.test.labels.tolist() == test[:, labels - 1].tolist()
    train = np.concatenate(
        [np.frombuffer(raw, np.uint8).reshape(20, -1) for part, raw in fake.parts.items() if "test" not in part]
    )
    both = data.training(hold_out=False)
    assert len(both) == len(train) == (100 if labels == 1 else 20)
    assert sorted(map(bytes, both.images.flatten(1).numpy())) == sorted(map(bytes, train[:, labels:]))
    assert set(data.train.labels.tolist()) == set(range(10))


# ------------------------------------------------------------------------------------------------------------ the cache


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_an_archive_is_unpacked_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.cifar10.put(place.data / "cifar10")
    read_parts(place.cifar10.source)
    assert [line.split()[0] for line in warnings_of(caplog)] == ["unpacking"]
    assert files(place.cache) == [f"cifar10/{name}" for name in sorted(place.cifar10.parts)]
    shutil.rmtree(place.data / "cifar10")
    assert read_parts(place.cifar10.source) == place.cifar10.parts
    assert warnings_of(caplog) == []
    assert status("cifar10").state == fetch("cifar10").state == "ok"


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"\xff" + raw[1:], lambda raw: b""])
def test_a_damaged_cache_is_made_again(place: Place, caplog: pytest.LogCaptureFixture, damage: object) -> None:
    place.cifar10.put(place.data / "cifar10")
    read_parts(place.cifar10.source)
    warnings_of(caplog)
    kept = place.cache / "cifar10" / "data_batch_3.bin"
    kept.write_bytes(damage(kept.read_bytes()))  # type: ignore[operator]
    assert read_parts(place.cifar10.source) == place.cifar10.parts
    lines = warnings_of(caplog)
    assert len([line for line in lines if "the cache is damaged" in line]) == 1
    assert str(kept) in lines[0]
    assert kept.read_bytes() == place.cifar10.parts["data_batch_3.bin"]


def test_without_a_cache_it_works_too(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.cifar10.put(place.data / "cifar10")
    place.cache.parent.mkdir()
    place.cache.write_text("a file where the folder should be")
    assert read_parts(place.cifar10.source) == place.cifar10.parts
    assert any("no cache" in line for line in warnings_of(caplog))


def test_a_broken_archive_leaves_no_cache(place: Place) -> None:
    parts = place.cifar10.parts | {"test_batch.bin": b"x" * len(place.cifar10.parts["test_batch.bin"])}
    (place.data / "cifar-10-binary.tar").write_bytes(tar(parts, ""))
    with pytest.raises(DPAPError, match="test_batch.bin"):
        read_parts(place.cifar10.source)
    assert not place.cache.exists()


# -------------------------------------------------------------------------------------------------------- damaged files


def problem(place: Place, name: str = "mnist") -> DPAPError:
    """What loading says, which is what `verify` says."""
    with pytest.raises(DPAPError) as caught:
        read_parts(store.SOURCES[name])
    checked = verify(name)
    assert checked.state == "damaged"
    assert str(caught.value) in {file.problem for file in checked.files}
    return caught.value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:-100], "it breaks off"),
        (lambda raw: raw[:500], "it breaks off"),
        (lambda raw: b"", "it breaks off"),
        (lambda raw: raw[:2000] + bytes([raw[2000] ^ 255]) + raw[2001:], ""),
        (lambda raw: b"<html>not found</html>", "not a gzip file"),
        (lambda raw: gzip.compress(b"something else"), "its contents are others"),
        (lambda raw: gzip.compress(b"x" * 100_000), "its contents are others"),
    ],
)
def test_damaged_gzip(place: Place, change: object, says: str) -> None:
    place.mnist.put(place.data / "mnist")
    name = "train-images-idx3-ubyte.gz"
    raw = change(place.mnist.packed[name])  # type: ignore[operator]
    (place.data / "mnist" / name).write_bytes(raw)
    error = problem(place)
    assert error.where == str(place.data / "mnist" / name)
    assert says in error.what
    assert md5(place.mnist.packed[name]) in error.what
    assert md5(raw) in error.what
    assert f"found {len(raw):,} bytes" in error.what
    assert "delete it and run: dpap data fetch mnist" in error.fix


def test_damaged_unpacked(place: Place) -> None:
    place.mnist.put(place.data / "mnist", packed=False)
    path = place.data / "mnist" / "t10k-labels-idx1-ubyte"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"\x05" if raw[-1] != 5 else raw[:-1] + b"\x06")
    error = problem(place)
    assert sha256(raw) in error.what
    assert error.where == str(path)
    assert status("mnist").state == "here"
    path.write_bytes(raw[:-1])
    assert status("mnist").state == "damaged"
    assert "it has 27 bytes, expected 28" in str(status("mnist"))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
    ],
)
def test_swapped_files_are_named(place: Place, packed: bool, first: str, second: str) -> None:
    folder = place.mnist.put(place.data / "mnist", packed=packed)
    first, second = (f"{name}.gz" if packed else name for name in (first, second))
    raw = (folder / first).read_bytes()
    (folder / first).write_bytes((folder / second).read_bytes())
    (folder / second).write_bytes(raw)
    error = problem(place)
    assert f"published as {first} of mnist: it is {second} of mnist, swapped or renamed" in error.what
    assert "own name" in error.fix


def test_files_of_the_other_set_are_named(place: Place) -> None:
    place.mnist.put(place.data / "fashion-mnist")
    error = problem(place, "fashion-mnist")
    assert "it is train-images-idx3-ubyte.gz of mnist" in error.what


def test_packed_by_another_program(place: Place) -> None:
    folder = place.mnist.put(place.data / "mnist")
    for name, raw in place.mnist.parts.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw, compresslevel=1, mtime=1))
        assert (folder / f"{name}.gz").read_bytes() != place.mnist.packed[f"{name}.gz"]
    assert read_parts(place.mnist.source) == place.mnist.parts


def test_a_part_of_cifar100_is_not_cifar100(place: Place) -> None:
    """The first records of a set, under its name: how many are there, and how many should be."""
    raw = place.cifar100.parts["train.bin"]
    folder = place.cifar100.put(place.data / "cifar100", packed=False)
    (folder / "train.bin").write_bytes(raw[: 7 * 3074])
    assert "it holds 7 samples, expected 20" in problem(place, "cifar100").what
    shutil.rmtree(folder)
    archive = tar({"cifar-100-binary-part/train.bin": raw[: 7 * 3074]})
    (place.data / "cifar-100-binary.tar.gz").write_bytes(archive)
    error = problem(place, "cifar100")
    assert "it holds 7 samples, expected 20" in error.what
    assert "member cifar-100-binary-part/train.bin" in error.where


def test_a_file_that_may_not_be_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    place.mnist.put(place.data / "mnist")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DPAPError, match="cannot be read") as caught:
        read_parts(place.mnist.source)
    assert caught.value.where == f"{place.data / 'mnist' / 'train-images-idx3-ubyte.gz'}: Permission denied"


def put_archive(place: Place, raw: bytes, suffix: str = "tar.gz") -> Path:
    path = place.data / f"cifar-10-binary.{suffix}"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar"])
@pytest.mark.parametrize("length", [0, 100, 40_000])
def test_an_archive_that_breaks_off(place: Place, suffix: str, length: int) -> None:
    whole = tar(
        {f"cifar-10-batches-bin/{name}": raw for name, raw in place.cifar10.parts.items()},
        {"tar.gz": "gz", "tar.xz": "xz", "tar": ""}[suffix],
    )
    path = put_archive(place, whole[:length], suffix)
    error = problem(place, "cifar10")
    assert error.where.startswith(str(path))
    assert "dpap data fetch cifar10" in error.fix


def test_an_archive_without_a_file(place: Place) -> None:
    put_archive(place, tar({"test_batch.bin": place.cifar10.parts["test_batch.bin"]}))
    assert "holds no data_batch_1.bin, data_batch_2.bin" in problem(place, "cifar10").what


def test_an_archive_with_a_file_twice(place: Place) -> None:
    raw = place.cifar10.parts["test_batch.bin"]
    put_archive(place, tar({"a/test_batch.bin": raw, "b/test_batch.bin": raw}))
    assert "two files of one name" in problem(place, "cifar10").what


@pytest.mark.parametrize(
    "name", ["../test_batch.bin", "/etc/passwd", "a/../../b", "a\\..\\b", "C:\\b", "cifar-10-batches-bin/../x"]
)
def test_an_archive_that_leads_out_is_refused(place: Place, name: str) -> None:
    path = put_archive(place, tar({name: b"x", **place.cifar10.parts}))
    before = files(place.data.parent)
    error = problem(place, "cifar10")
    assert repr(name) in error.what
    assert "leads out of its folder" in error.what
    assert error.where == str(path)
    assert files(place.data.parent) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_with_a_link_is_refused(place: Place, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    put_archive(place, buffer.getvalue(), "tar")
    assert "is a link or a device" in problem(place, "cifar10").what


def test_a_member_of_enormous_size_is_not_read_to_its_end(place: Place) -> None:
    put_archive(place, tar({"cifar-10-batches-bin/test_batch.bin": bytes(3073 * 1000)}))
    error = problem(place, "cifar10")
    assert "it holds 1,000 samples, expected 20" in error.what
    assert "found 3,073,000 bytes, not read to its end" in error.what


# -------------------------------------------------------------------------------------------------------------- missing


def test_offline_says_what_is_missing_and_how_to_put_it_there(place: Place) -> None:
    place.mnist.put(place.data / "mnist", "train-images-idx3-ubyte.gz")
    before = files(place.data.parent)
    with pytest.raises(DPAPError) as caught:
        load_idx(place.mnist.source)
    error = caught.value
    left = [name for name in place.mnist.packed if name != "train-images-idx3-ubyte.gz"]
    assert f"missing {', '.join(left)}." in error.what
    assert "no connection" in error.what
    assert str(place.data) in error.where
    assert str(place.own) in error.where
    for name in left:
        assert f"{NOWHERE}{name} (" in error.fix
    assert f"put into {place.data / 'mnist'}: " in error.fix
    assert "DPAP_DATA" in error.fix
    assert files(place.data.parent) == before


def test_the_pickled_form_is_recognised_and_not_read(place: Place) -> None:
    (place.data / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(DPAPError, match="cifar-10-python.tar.gz is in a format that is never read"):
        load_cifar(place.cifar10.source)


def test_part_of_an_unpacked_set_is_not_enough(place: Place) -> None:
    folder = place.cifar10.put(place.data / "cifar10", packed=False)
    (folder / "data_batch_2.bin").unlink()
    assert status("cifar10").state == "missing"
    with pytest.raises(DPAPError, match=f"Found in {folder}, but without data_batch_2.bin"):
        load_cifar(place.cifar10.source)


def test_a_folder_that_cannot_be_written_is_passed_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status("mnist").folder == place.data / "mnist"
    place.data.chmod(0o555)  # root could write there all the same, and does not
    assert status("mnist").folder == place.own / "mnist"
    place.data.chmod(0o755)
    monkeypatch.setattr(store.os, "access", lambda path, mode: Path(path) != place.data)
    assert status("mnist").folder == place.own / "mnist"


def test_fetch_gets_what_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[str] = []

    def serve(item: Download, folder: Path, progress: object) -> Path:
        got.append(item.name)
        return place.mnist.put(folder, item.name)

    monkeypatch.setattr(store, "download", serve)
    place.mnist.put(place.data / "MNIST" / "raw", "train-labels-idx1-ubyte.gz")
    assert status("mnist").missing == tuple(name for name in place.mnist.packed if "train-labels" not in name)
    done = fetch("mnist")
    assert done.state == "ok"
    assert got == [name for name in place.mnist.packed if "train-labels" not in name]
    assert {file.where.parent for file in done.files if file.where} == {
        place.data / "mnist",
        place.data / "MNIST" / "raw",
    }
    assert fetch("mnist").state == "ok"
    assert len(got) == 3


def test_loading_downloads_and_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "download", lambda item, folder, progress: place.cifar10.put(folder, item.name))
    assert read_parts(place.cifar10.source) == place.cifar10.parts
    assert "downloading cifar-10-binary.tar.gz (0." in warnings_of(caplog)[0]
    assert files(place.data) == ["cifar10/cifar-10-binary.tar.gz"]


# --------------------------------------------------------------------------------------------------------------- status


def test_status_as_a_table_needs_it(place: Place) -> None:
    place.mnist.put(place.data / "mnist", "train-images-idx3-ubyte.gz")
    found = status("mnist")
    assert (found.name, found.state, found.where) == ("mnist", "missing", place.data / "mnist")
    assert found.credit == MNIST.spec.credit
    assert [file.state for file in found.files] == ["here", "missing", "missing", "missing"]
    assert found.files[0].where == place.data / "mnist" / "train-images-idx3-ubyte.gz"
    assert found.to_download == sum(len(raw) for name, raw in place.mnist.packed.items() if "train-im" not in name)
    text = str(found)
    assert text.startswith("mnist: missing")
    assert text.count("\n") == 5
    assert "missing t10k-labels-idx1-ubyte.gz" in text


def test_unknown_name() -> None:
    for function in (status, verify, fetch):
        with pytest.raises(DPAPError, match="There is no published data set named 'digits'"):
            function("digits")


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.data
@pytest.mark.slow
def test_the_real_files_are_the_published_ones(data_dir: Path) -> None:
    if not (data_dir / "mnist").is_dir():
        pytest.skip("no MNIST there")
    assert verify("mnist").state == "ok"
    data = load_idx(MNIST)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [54_999, 5_001, 10_000]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = data.training(hold_out=False).images.double() / 255
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (*MNIST.spec.mean, *MNIST.spec.std)


@pytest.mark.data
@pytest.mark.slow
def test_real_cifar10(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if status("cifar10").state == "missing":
        pytest.skip("no CIFAR-10 there")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load_cifar(CIFAR10)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert data.train.labels.bincount().tolist() == [4_500] * 10
    assert data.test.labels.bincount().tolist() == [1_000] * 10
    sums = [int(channel.sum(dtype=np.int64)) for channel in data.training(hold_out=False).images.numpy().swapaxes(0, 1)]
    means = [total / (50_000 * 1024 * 255) for total in sums]
    assert means == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)
