"""A run that was interrupted ends, bit for bit, like one that was not."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny

from dpap.config import Config
from dpap.errors import DPAPError
from dpap.report.history import EpochLine, from_text, read_history, without_time
from dpap.tensors import read_state
from dpap.training.loop import Progress, resume, train

# What a run may differ in: the rule, what is pruned, the optimizer, the batches, the data, the network.
CASES: dict[str, Config] = {
    "digits-snn": tiny(epochs="4"),
    "released": tiny(development__rule="released", development__target__connectivity="none", epochs="7"),
    "paper": tiny(development__rule="paper", development__target__connectivity="none"),
    "no pruning": tiny(development__rule="none"),
    "units alone, by MACs": tiny(
        epochs="4", development__target__connectivity="none", development__target__macs="0.6", data__limit="600"
    ),
    "SOPs, drawn scores": tiny(
        epochs="4",
        development__target__connectivity="none",
        development__target__sops="0.6",
        development__unit_score="random",
        development__synapse_score="stdp",
    ),
    "no target, tet, membrane": tiny(
        epochs="4",
        data__batch_size="64",
        development__observe_every="3",
        development__target__connectivity="none",
        model__readout="membrane",
        optimizer__loss="tet",
        optimizer__label_smoothing="0.1",
        optimizer__warmup_from="0.1",
        optimizer__cooldown="0.3",
    ),
    "sgd, plif, mse, mean of the weights": tiny(
        epochs="4",
        optimizer__name="sgd",
        optimizer__lr="0.1",
        optimizer__loss="mse",
        optimizer__clip="1.0",
        optimizer__ema="0.9",
        test_each_epoch="true",
        model__neuron="plif",
        model__readout="spikes",
    ),
    "all the augmentation, channels last": tiny(
        epochs="4",
        channels_last="true",
        data__flip="true",
        data__erasing="0.5",
        data__randaugment="5",
        optimizer__precision="bfloat16",
    ),
    "kernels that grow again": tiny(
        epochs="4",
        development__synapses="all",
        development__regrow="gradient",
        development__target__connectivity="0.2",
    ),
    "with control": tiny(control="true", epochs="3", development__start="0.2"),
} | {name: tiny(name, epochs="4") for name in ("nmnist-snn", "shd-snn")}

QUICK = {"digits-snn"}
PARAMETERS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", PARAMETERS)
def test_interrupted_in_the_window_and_after_it(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    whole = tmp_path / "whole"
    stops = (2, config.epochs)

    def copy(now: Progress) -> None:
        """What a power cut in the first batch of an epoch leaves behind."""
        begun = now.control or not (whole / "control").exists()
        if now.batch == 1 and now.epoch in stops and begun:
            shutil.copytree(whole, tmp_path / f"{'control' if now.control else 'run'}-{now.epoch}", dirs_exist_ok=True)

    done = train(config, whole, watch=copy)
    history = read_history(whole / "history.jsonl")
    if config.development.rule == "dpap":
        assert any(line.epoch < 2 for line in history.development), "the window holds no boundary of epochs"
        assert history.epochs[-1].connectivity < 0.95, "nothing was pruned, so nothing is proven"
    cut = sorted(tmp_path.glob("*-*"))
    assert len(cut) == len(stops) * (2 if config.control else 1)
    for folder in cut:
        torch.manual_seed(123)  # nothing may hang on what the process drew before
        torch.rand(7)
        again = resume(folder)
        assert_same_run(folder, whole)
        if config.control:
            assert_same_run(folder / "control", whole / "control")
        assert again.result.test_accuracy == done.result.test_accuracy


@pytest.mark.slow
def test_the_same_config_gives_the_same_run(tmp_path: Path) -> None:
    config = tiny()
    train(config, tmp_path / "a")
    torch.rand(5)
    train(config, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(tiny(seed="1"), tmp_path / "c")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "a", tmp_path / "c")


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    config = tiny()
    train(config, tmp_path / "whole")

    def interrupt(now: Progress) -> None:
        if (now.epoch, now.batch) == (4, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", watch=interrupt)
    history = read_history(tmp_path / "cut" / "history.jsonl")
    assert [line.epoch for line in history.epochs] == [1, 2, 3]
    assert history.result is None
    assert not (tmp_path / "cut" / "model").exists()
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny()
    train(config, tmp_path / "whole")

    def interrupt(now: Progress) -> None:
        if now.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", watch=interrupt)
    kept = sorted((tmp_path / "cut" / "checkpoint").iterdir())
    assert [path.name for path in kept] == ["epoch-0003", "epoch-0004"]
    tensors = kept[1] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        resume(tmp_path / "cut")
    assert "passed over" in caplog.text
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    train(tiny(epochs="2"), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoint").glob("*/state.json"):
        path.write_text("{")
    before = (tmp_path / "run" / "history.jsonl").read_bytes()
    with pytest.raises(DPAPError, match="not JSON"):
        resume(tmp_path / "run")
    assert (tmp_path / "run" / "history.jsonl").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    done = train(tiny(epochs="2"), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert resume(tmp_path / "run") == done
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_cut_off_before_its_result_gets_it(tmp_path: Path) -> None:
    train(tiny(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    lines = (tmp_path / "cut" / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "history.jsonl").write_text("".join(lines[:-1]))
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_a_config_that_was_changed_is_refused(tmp_path: Path) -> None:
    train(tiny(epochs="2"), tmp_path / "run")
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 3"))
    with pytest.raises(DPAPError, match="config was changed") as caught:
        resume(tmp_path / "run")
    assert "dpap train" in caught.value.fix


@pytest.mark.slow
def test_history_and_development_that_were_cut_are_refused(tmp_path: Path) -> None:
    train(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "history.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-2]))
    with pytest.raises(DPAPError, match="The history has"):
        resume(tmp_path / "run")
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    (tmp_path / "run" / "development.npz").write_bytes(b"PK")
    with pytest.raises(DPAPError, match="record of development cannot be read"):
        resume(tmp_path / "run")


@pytest.mark.slow
def test_another_environment_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny(epochs="1", development__rule="none"), tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    with caplog.at_level(logging.WARNING, logger="dpap"):
        resume(tmp_path / "run")
    assert not [record for record in caplog.records if record.name.startswith("dpap")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "2.0"}))
    with caplog.at_level(logging.WARNING, logger="dpap"):
        resume(tmp_path / "run")
    assert "torch 2.0 -> " in caplog.text


@pytest.mark.slow
def test_a_checkpoint_that_was_being_written_is_cleared_away(tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(epochs="3"), tmp_path / "run", watch=interrupt)
    (tmp_path / "run" / "checkpoint" / ".epoch-0002.abc").mkdir()
    resume(tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoint").iterdir())] == ["epoch-0002", "epoch-0003"]


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="no run folder"):
        resume(tmp_path)


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    done = train(tiny(control="true", epochs="4"), path)
    names = [
        "activity.npz",
        "answers.npz",
        "checkpoint",
        "config.toml",
        "control",
        "development.npz",
        "environment.json",
        "history.jsonl",
        "model",
    ]
    assert sorted(p.name for p in path.iterdir()) == names
    assert sorted(p.name for p in (path / "control").iterdir()) == [n for n in names if n != "control"]
    history = read_history(path / "history.jsonl")
    assert history.result == done.result
    assert done.control is not None
    assert done.control.connectivity == 1.0
    with np.load(path / "development.npz") as record:
        steps = len(history.development)
        assert steps > 5
        assert record["step"].tolist() == [line.step for line in history.development]
        assert record["progress"].tolist() == [line.progress for line in history.development]
        for group, units in (("conv1", 4), ("conv2", 6), ("fc1", 12)):
            for kind in ("use", "survival", "alive"):
                assert record[f"{kind}/{group}"].shape == (steps, units)
            alive = record[f"alive/{group}"]
            assert alive.dtype == bool
            assert (alive[1:] <= alive[:-1]).all(), "nobody comes back to life"
            assert alive[-1].sum() == history.epochs[-1].alive_units[group]
    text = (path / "environment.json").read_text()
    assert {"python", "torch", "dpap", "device", "threads"} <= json.loads(text).keys()
    for file in (*path.rglob("*.json"), *path.rglob("*.toml"), *path.rglob("*.jsonl")):
        assert str(tmp_path) not in file.read_text()


@pytest.mark.slow
def test_the_control_has_the_same_start_and_batches(tmp_path: Path) -> None:
    train(tiny(control="true", epochs="4"), tmp_path / "run")
    mine = read_history(tmp_path / "run" / "history.jsonl").epochs
    theirs = read_history(tmp_path / "run" / "control" / "history.jsonl").epochs
    # Nothing dies in the first tenth of a run, so the first batches are the same; an epoch of them is not quite.
    assert abs(mine[0].loss - theirs[0].loss) < 0.3
    assert mine[-1].loss != theirs[-1].loss
    config = tiny(epochs="4", development__start="0.4")  # the whole first epoch is before any death
    train(config, tmp_path / "late")
    assert read_history(tmp_path / "late" / "history.jsonl").epochs[0].loss == theirs[0].loss


def assert_same_run(left: Path, right: Path) -> None:
    """Weights, masks, development state, optimizer state, record and history but for its time fields."""
    for folder in (left, right):
        assert (folder / "model" / "model.safetensors").exists()
    newest = sorted(path.name for path in (right / "checkpoint").iterdir())
    assert sorted(path.name for path in (left / "checkpoint").iterdir()) == newest
    for name in newest:
        assert_equal(read_state(left / "checkpoint" / name), read_state(right / "checkpoint" / name), name)
    tensors, manifest = Path("model/model.safetensors"), Path("model/manifest.json")
    assert (left / tensors).read_bytes() == (right / tensors).read_bytes()
    assert (left / manifest).read_bytes() == (right / manifest).read_bytes()
    for record in ("development.npz", "answers.npz", "activity.npz"):
        if record == "activity.npz" and not (right / record).exists():  # a network without time
            assert not (left / record).exists()
            continue
        with np.load(left / record) as a, np.load(right / record) as b:
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name], strict=True)
    histories = [from_text((folder / "history.jsonl").read_text(), str(folder)) for folder in (left, right)]
    assert any(isinstance(line, EpochLine) for line in histories[0])
    assert without_time(histories[0]) == without_time(histories[1])


def assert_equal(left: object, right: object, where: str) -> None:
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert left.stride() == right.stride(), where
        assert torch.equal(left, right), where
    elif isinstance(left, dict) and isinstance(right, dict):
        assert list(left) == list(right), where
        for key, value in left.items():
            assert_equal(value, right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        assert len(left) == len(right), where
        for n, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_equal(a, b, f"{where}/{n}")
    else:
        assert left == right, where
