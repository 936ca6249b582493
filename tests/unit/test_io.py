"""Saved networks and states: what comes back, and what happens to files that are damaged, foreign or in the way."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dpap import DPAP
from dpap.errors import DPAPError
from dpap.io import kept_units, load, save
from dpap.models import build
from dpap.tensors import read_state, write_atomic, write_state

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
ARGUMENTS: dict[str, Any] = {"shape": (1, 8, 8), "classes": 4, "blocks": ((6, 8),), "hidden": (20,)}


def dense() -> nn.Module:
    return build("convnet", **ARGUMENTS)


def pruned(model: nn.Module) -> DPAP:
    """A development that has killed units and synapses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    dev = DPAP(model, IMAGES[:2], optimizer=optimizer, total_steps=40, target={"macs": 0.5, "connectivity": 0.3})
    for _ in range(40):
        with dev.observing():
            loss = model(IMAGES).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    return dev


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, DPAP]:
    torch.manual_seed(0)
    dev = pruned(dense())
    compact = dev.compact().eval()
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in dense().parameters())
    return compact, dev


@pytest.fixture
def saved(small: tuple[nn.Module, DPAP], tmp_path: Path) -> Path:
    save(small[0], tmp_path / "small", alive=small[1].alive)
    return tmp_path / "small"


# a saved network


def test_a_compacted_network_is_rebuilt_from_the_file_alone(small: tuple[nn.Module, DPAP], saved: Path) -> None:
    loaded = load(saved)
    assert not loaded.training
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "model.safetensors"]
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), small[0](IMAGES))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in small[0].named_parameters()}
    assert loaded.conv2.out_channels == loaded.conv2.weight.shape[0]


def test_a_given_dense_network_is_cut_to_the_saved_widths(small: tuple[nn.Module, DPAP], saved: Path) -> None:
    model = dense().eval()
    classifier_bias = model.classifier.bias
    assert load(saved, model) is model
    with torch.no_grad():
        assert torch.equal(model(IMAGES), small[0](IMAGES))
    assert model.classifier.bias is classifier_bias  # its shape did not change
    load(saved, model)  # and once more into the network of the saved widths
    with torch.no_grad():
        assert torch.equal(model(IMAGES), small[0](IMAGES))


def test_a_loaded_network_learns(saved: Path) -> None:
    model = load(saved).train()
    optimizer = torch.optim.AdamW(model.parameters())
    before = model.conv1.weight.detach().clone()
    model(IMAGES).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.conv1.weight, before)


def test_the_units_that_are_left_are_on_record(small: tuple[nn.Module, DPAP], saved: Path) -> None:
    record = kept_units(saved)
    assert record.keys() == small[1].alive.keys()
    for name, alive in small[1].alive.items():
        assert record[name] == (len(alive), alive.nonzero().flatten().tolist())
    assert any(len(kept) < units for units, kept in record.values())


def test_a_foreign_network_needs_the_network(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    save(model, tmp_path / "net")
    with pytest.raises(DPAPError, match="not one of this library's models") as caught:
        load(tmp_path / "net")
    assert "dpap.load(path, model)" in caught.value.fix
    wide = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    x = torch.rand(5, 3)
    assert torch.equal(load(tmp_path / "net", wide)(x), model(x))
    assert (wide[0].out_features, wide[2].in_features) == (4, 4)


def test_strides_types_and_tied_tensors_come_back(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.second.weight = self.first.weight
            self.norm = nn.BatchNorm1d(5)

    model = Net()
    save(model, tmp_path / "net")
    other = Net()
    load(tmp_path / "net", other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
        assert other.state_dict()[name].stride() == tensor.stride()
        assert other.state_dict()[name].dtype == tensor.dtype
    assert other.second.weight is other.first.weight
    stored = json.loads((tmp_path / "net" / "manifest.json").read_text())["tensors"]
    assert stored["second.weight"]["stored_as"] == "first.weight"

    plain = Net()
    plain.conv = nn.Conv2d(4, 6, 3)
    load(tmp_path / "net", plain)
    assert plain.conv.weight.stride() == model.conv.weight.stride()


def test_double_precision_is_kept(tmp_path: Path) -> None:
    model = dense().double().eval()
    save(model, tmp_path / "net")
    loaded = load(tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES.double()), model(IMAGES.double()))
    single = load(tmp_path / "net", dense())
    assert single.conv1.weight.dtype == torch.float32


def test_saving_and_loading_leave_the_random_numbers_alone(saved: Path) -> None:
    state = torch.random.get_rng_state()
    save(load(saved), saved)
    assert torch.equal(torch.random.get_rng_state(), state)


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def no_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def manifest_cut_short(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def foreign_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": "something else"}')


def list_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def edited(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


DAMAGE = {
    "cut short": (cut_short, "its hash is not the one"),
    "one bit": (flip_a_byte, "its hash is not the one"),
    "no tensors": (no_tensors, "No such file"),
    "no manifest": (no_manifest, "No such file"),
    "manifest cut short": (manifest_cut_short, "not JSON"),
    "foreign manifest": (foreign_manifest, r"not a dpap\.model file"),
    "no mapping": (list_manifest, r"not a dpap\.model file"),
    "newer": (edited(format_version=3), "format version 3; this dpap .* reads 1 to 2"),
    "no version": (edited(format_version="one"), "format version one"),
    "no entries": (edited(tensors=None), "not as it should be"),
    "wrong key": (
        edited(tensors={"conv1.weight": {"stored_as": "x", "shape": [1], "dense_shape": [1]}}),
        "'x' is missing",
    ),
    "unknown tensor": (edited(strides={"x": [1]}), "damaged"),
    "overlapping strides": (edited(strides={"fc1.weight": [0, 0]}), "has strides"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_and_foreign_files_are_refused_and_the_target_is_untouched(saved: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    damage(saved)
    model = dense()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for target in (None, model):
        with pytest.raises(DPAPError, match=says) as caught:
            load(saved, target)
        assert str(saved) in caught.value.where
    assert_same(model.state_dict(), before)


def test_a_manifest_that_names_no_known_model_is_refused(saved: Path) -> None:
    edited(built_from={"name": "vgg", "arguments": {}})(saved)
    with pytest.raises(DPAPError, match="no model named 'vgg'"):
        load(saved)
    for made in ({"name": "convnet", "arguments": {"hidden": 3}}, {"arguments": {}}, "convnet"):
        edited(built_from=made)(saved)
        with pytest.raises(DPAPError, match="does not describe one of the models"):
            load(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": (19,)}, r"fc1\.weight has shape \(19, 128\)"),
        ({"blocks": ((3, 8),)}, r"conv1\.weight has shape \(3, 1, 3, 3\)"),
        ({"classes": 3}, r"classifier\.weight has shape \(3, 20\)"),
        ({"hidden": (20, 20)}, "has other tensors than the saved one: missing in the file fc2"),
        ({"norm": False}, "has other tensors than the saved one"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_and_untouched(saved: Path, change: dict[str, Any], says: str) -> None:
    model = build("convnet", **{**ARGUMENTS, **change})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DPAPError, match=says):
        load(saved, model)
    assert_same(model.state_dict(), before)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Net(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(DPAPError, match="_extra_state"):
        save(Net(2, 2), tmp_path / "net")
    assert not (tmp_path / "net").exists()


# the state of a run


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.rand(3)
    state: dict[str, Any] = {
        "plain": [1, 2.5, float("inf"), 0.1 + 0.2, True, None, "text", (1, (2, 3)), {}],
        "keys": {0: "zero", "0": "text", (1, 2): "pair"},
        "tensors": {
            "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "one channel": torch.rand(4, 1, 3, 3).to(memory_format=torch.channels_last),
            "transposed": torch.rand(3, 4).T,
            "scalar": torch.tensor(3.0),
            "empty": torch.rand(0, 3),
            "bool": torch.tensor([True, False]),
            "int": torch.tensor([2**62]),
            "half": torch.rand(3, dtype=torch.bfloat16),
            "double": torch.rand(3, dtype=torch.float64),
            "part": torch.rand(10)[2:5],
            "expanded": torch.rand(3, 1).expand(3, 4),
        },
        "tied": [shared, shared],
    }
    write_state(tmp_path / "state", state)
    read = read_state(tmp_path / "state")
    assert read["plain"] == state["plain"]
    assert read["keys"] == state["keys"]
    for name, tensor in state["tensors"].items():
        assert read["tensors"][name].dtype == tensor.dtype
        assert torch.equal(read["tensors"][name], tensor)
        if name != "expanded":
            assert read["tensors"][name].stride() == tensor.stride(), name
    assert read["tied"][0] is read["tied"][1]
    assert torch.equal(read["tied"][0], shared)


def test_tensors_that_are_not_the_same_memory_are_kept_apart(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    state = {
        "a": base[:3],
        "b": base[3:],
        "c": base,
        "made for the moment": [torch.full((4,), float(i)) for i in range(9)],
    }
    write_state(tmp_path / "state", state)
    read = read_state(tmp_path / "state")
    assert [read[name].tolist() for name in "abc"] == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert [tensor[0].item() for tensor in read["made for the moment"]] == list(range(9))


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a state holds a set"):
        write_state(tmp_path / "state", {"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    write_state(folder, {"x": torch.rand(3)})
    whole = (folder / "state.json").read_text()
    for broken, says in (
        (whole[:-5], "not JSON"),
        (whole.replace("$tensor", "$picture"), r"\$picture"),
        (whole.replace('{"$tensor": "0"}', '{"$tensor": "1"}'), "'1' is missing"),
        (json.dumps({**json.loads(whole), "state": [1]}), "holds no mapping"),
        (json.dumps({**json.loads(whole), "format": "dpap.model"}), r"not a dpap\.state file"),
    ):
        (folder / "state.json").write_text(broken)
        with pytest.raises(DPAPError, match=says):
            read_state(folder)


# writing


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fsync)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.usefixtures("full_disk")
def test_no_space_is_one_clear_error_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(DPAPError, match="No space left on device") as caught:
        write_atomic(path, b"new")
    assert caught.value.where == str(path)
    assert "free some space" in caught.value.fix
    assert path.read_bytes() == b"old"
    with pytest.raises(DPAPError, match="No space left on device"):
        write_state(tmp_path / "state", {"x": torch.rand(3)})
    assert files_in(tmp_path) == ["file"]


def test_a_saved_network_survives_a_full_disk(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_in(saved)

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(DPAPError, match="No space left"):
            save(dense(), saved)
    assert files_in(saved) == before
    load(saved)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DPAPError, match="cannot be written") as caught:
        save(dense(), tmp_path / "file" / "model")
    assert "choose a place" in caught.value.fix
    with pytest.raises(DPAPError, match="cannot be written"):
        write_atomic(tmp_path / "nowhere" / "file", b"")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert files_in(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_nothing_is_ever_unpickled(repository: Path) -> None:
    sources = list((repository / "src").rglob("*.py"))
    assert len(sources) > 20
    for path in sources:
        text = path.read_text()
        assert not re.search(
            r"(import|from) c?(pickle|dill)\b|(?<!safetensors\.)torch\.(load|save)\(|allow_pickle=True", text
        ), path


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
