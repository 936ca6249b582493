"""The command line: its flags, what it prints, and what it says to bad input."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY
from typer.main import get_command

from dpap import cli
from dpap.config import read_config
from dpap.recipes import RECIPES
from dpap.report.history import read_history
from dpap.training.loop import resume, train

FLAGS = {
    "train": {
        "--set",
        "--epochs",
        "--seed",
        "--out",
        "--device",
        "--data-dir",
        "--no-control",
        "--shrink",
        "--on-bad-sample",
    },
    "resume": {"--data-dir"},
    "evaluate": {"--data-dir"},
    "report": set(),
    "compare": {"--against", "--out"},
    "inspect": {"--shape", "--batch", "--json", "--unknown"},
    "data": {"--data-dir"},
    "recipes": set(),
}
SMALL = [part for key, value in TINY.items() if key != "control" for part in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def dpap(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `dpap` with these words: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpap", *map(str, words)])
        capfd.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert isinstance(code, int)
        return code, out, err

    return run


def test_the_set_of_commands_and_flags_is_fixed() -> None:
    """A new flag is a decision: most things are settings (`--set`)."""
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    found = {
        name: {flag for item in command.params if item.param_type_name == "option" for flag in item.opts} - {"--help"}
        for name, command in commands.items()
    }
    assert found == FLAGS


@pytest.mark.slow
def test_python_m_dpap_is_the_same_command() -> None:
    words = [sys.executable, "-m", "dpap", "train", "digit-snn"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "did you mean 'digits-snn'" in done.stderr


def test_recipes_lists_every_recipe_with_what_it_is(dpap: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = dpap("recipes")
    assert code == 0
    for name, make in RECIPES.items():
        assert name in out
        assert (make.__doc__ or "x")[:20] in out


def test_train_prints_the_run_beside_its_control(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = dpap("train", *SMALL)
    assert code == 0
    for row in ("test accuracy", "connectivity", "MACs", "SOPs", "saved network (KB)", "latency (ms, batch of 64)"):
        line = next(line for line in out.splitlines() if row in line)
        assert len(re.findall(r"\d[\d,.]*", line)) >= 3, line
    assert "unpruned control" in out
    assert "run: runs/digits-snn-1" in out
    assert re.search(
        r"pruned epoch 6/6 loss [\d.]+ train acc [\d.]+% val [\d.]+% kept (39\.9|40\.0)%, 0:00:00 to go", err
    )
    assert "control epoch 6/6" in err and max(map(len, err.splitlines())) <= 80
    assert "training samples of digits\n6 epochs on cpu (1 threads), then the unpruned control" in err
    history = read_history(tmp_path / "runs/digits-snn-1/history.jsonl")
    control = read_history(tmp_path / "runs/digits-snn-1/control/history.jsonl")
    assert history.result is not None
    assert control.result is not None
    assert f"{100 * history.result.test_accuracy:.2f} %" in out
    assert f"{100 * control.result.test_accuracy:.2f} %" in out
    assert f"{history.result.macs:,.0f}" in out
    assert f"{control.result.synops:,.0f}" in out
    page = tmp_path / "runs/digits-snn-1/report.html"
    assert "digits-snn" in page.read_text()
    page.unlink()
    assert dpap("report", "runs/digits-snn-1")[0] == 0
    assert page.exists()

    code, again, _ = dpap("evaluate", "runs/digits-snn-1")
    assert code == 0
    for row in ("test accuracy", "connectivity", "parameters", "MACs", "SOPs", "energy"):
        assert next(line for line in again.splitlines() if row in line) in out
    assert "training" not in again


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any data set; the empty folder where they would be."""
    for name in ("DPAP_DATA", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        (tmp_path / "empty" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "empty" / name))
    return tmp_path / "empty" / "DPAP_DATA"


def test_data_says_what_is_missing(dpap: Callable[..., tuple[int, str, str]], no_data: Path) -> None:
    code, out, _ = dpap("data")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("mnist"))
    assert "missing" in line and "0 of 4" in line and "MB" in line
    code, out, _ = dpap("data", "verify", "mnist")
    assert code == 0
    assert "missing" in out and "cifar" not in out
    assert not any(no_data.iterdir())


DATA_SAYS = {
    "action": (["lst"], "did you mean 'list'"),
    "nothing to fetch": (["fetch"], "nothing named to fetch"),
    "name": (["verify", "mnits"], "did you mean 'mnist'"),
    "folder": (["--data-dir", "nowhere"], "no such folder"),
}


@pytest.mark.parametrize("name", DATA_SAYS)
def test_bad_words_about_data(name: str, dpap: Callable[..., tuple[int, str, str]], no_data: Path) -> None:
    words, says = DATA_SAYS[name]
    code, _, err = dpap("data", *words)
    assert code == 1
    assert says in err


def test_data_dir_is_another_way_to_name_the_folder(
    dpap: Callable[..., tuple[int, str, str]], no_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "mnist").mkdir(parents=True)
    (tmp_path / "other" / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    code, out, _ = dpap("data", "list", "mnist", "--data-dir", tmp_path / "other")
    assert "1 of 4" in out or "damaged" in out
    assert code in (0, 1)


@pytest.mark.slow
def test_each_run_gets_a_folder_of_its_own(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for n in (1, 2):
        code, out, err = dpap(
            "train", *SMALL, "--epochs", 1, "--no-control", "--seed", n, "--set", "development.rule=none"
        )
        assert code == 0
        assert "1 epochs on cpu" in err and "unpruned epoch 1/1" in err and "control" not in err and "kept" not in err
        assert f"run: runs/digits-snn-{n}" in out
        assert "control" not in out
        config = read_config(tmp_path / f"runs/digits-snn-{n}/config.toml")
        assert (config.epochs, config.seed, config.control) == (1, n, False)


def test_a_config_file_runs_again(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    dpap("train", "digits-ann", *SMALL, "--epochs", 1, "--no-control", "--out", "first")
    code, out, _ = dpap("train", "first/config.toml", "--out", "second")
    assert code == 0
    assert (tmp_path / "first/model/model.safetensors").read_bytes() == (
        tmp_path / "second/model/model.safetensors"
    ).read_bytes()
    assert read_config(tmp_path / "first/config.toml") == read_config(tmp_path / "second/config.toml")
    assert "run: second" in out


SAYS = {
    "recipe": (["digit-snn"], "did you mean 'digits-snn'"),
    "config file": (["none.toml"], "No such file"),
    "rule": (["--set", "development.rule=dpep"], "did you mean 'dpap'"),
    "key": (["--set", "optimizer.learning=1"], "no setting named 'optimizer.learning'"),
    "no value": (["--set", "optimizer.lr"], "is not KEY=VALUE"),
    "section": (["--set", "optimizer=1"], "is a section"),
    "negative epochs": (["--epochs", "-3"], "epochs = -3 is not allowed"),
    "negative seed": (["--seed", "-1"], "seed = -1 is not allowed"),
    "device": (["--device", "tpu"], "no device named 'tpu'"),
    "type": (["--set", "data.batch_size=many"], "data.batch_size = 'many' is not allowed"),
    "target": (["--set", "development.target.connectivity=0.0001"], "cannot be reached"),
    "too many blocks": (["--set", "model.blocks=[[2],[2],[2],[2]]"], "to nothing"),
    "score": (["digits-ann", "--set", "development.unit_score=stdp"], "more than one time step"),
    "released without spikes": (["digits-ann", "--set", "development.rule=released"], "released"),
    "batch": (["--set", "development.rule=released", "--set", "data.batch_size=5000"], "larger than the 1347"),
}


@pytest.mark.parametrize("name", SAYS)
def test_bad_input_is_one_paragraph_and_writes_nothing(
    name: str, dpap: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words, says = SAYS[name]
    code, out, err = dpap("train", *words)
    assert code == 1
    assert out == ""
    assert err.startswith("Error: ")
    assert says in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = dpap("train", "--device", "cuda")
    assert code == 1
    assert "no CUDA device" in err
    assert "--device cpu" in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_untouched(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("important")
    code, _, err = dpap("train", *SMALL, "--out", folder)
    assert code == 1
    assert "is there already" in err
    assert f"dpap resume {folder}" in err.replace("\n", " ")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    code, _, err = dpap("train", *SMALL, "--out", folder / "thesis.txt")
    assert code == 1
    assert "is there already" in err


def test_commands_on_what_is_no_run(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for command in ("resume", "evaluate", "report", "compare"):
        code, _, err = dpap(command, tmp_path / "nothing")
        assert code == 1
        assert "no run folder" in err
    code, _, err = dpap("resumee", tmp_path)
    assert code == 2


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
    dpap: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cli.loop.Run.forward
    calls = 0

    def forward(self: cli.loop.Run, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        outputs, loss = real(self, images, labels)
        return outputs, loss * (float("nan") if calls == 5 * 2 + 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(cli.loop.Run, "forward", forward)
        code, _, err = dpap("train", *SMALL, "--out", "run", "--no-control")
    assert code == 1
    text = " ".join(err.split())
    assert "The loss became nan in epoch 3, batch 3; the state after epoch 2 is kept in run/checkpoint" in text
    assert "optimizer.lr" in text
    assert [line.epoch for line in read_history(tmp_path / "run/history.jsonl").epochs] == [1, 2]
    code, _, _ = dpap("resume", "run")  # the state is good: the run can go on
    assert code == 0


def test_weights_that_are_no_numbers_never_get_into_a_checkpoint(
    dpap: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update of an epoch may break the weights after the last loss was seen."""

    def develop(self: cli.loop.Run, epoch: int, batch: int) -> list[object]:
        if batch == self.batch_count - 1:
            with torch.no_grad():
                self.model.get_parameter("fc1.weight")[0, 0] = torch.inf
        return []

    monkeypatch.setattr(cli.loop.Run, "develop", develop)
    code, _, err = dpap("train", *SMALL, "--out", "run", "--no-control")
    assert code == 1
    text = " ".join(err.split())
    assert "fc1.weight is no longer finite in epoch 1, batch 5; no epoch was completed" in text
    assert not (tmp_path / "run/checkpoint").exists()


@pytest.mark.slow
def test_no_space(dpap: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        code, _, err = dpap("train", *SMALL, "--out", "run", "--no-control")
    assert code == 1
    assert "No space left on device" in err
    assert not list((tmp_path / "run").rglob(".*")), "no temporary files are left"
    code, _, _ = dpap("resume", "run")
    assert code == 0

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        code, _, err = dpap("train", *SMALL, "--out", "other")
    assert code == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    words = ["train", *SMALL, "--epochs", "40", "--out", "run", "--no-control"]
    # A shell that started the tests in the background has SIGINT ignored, and a child inherits that.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{listen}; from dpap.cli import main; main()"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint/epoch-0003").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "dpap resume run" in err
    assert "Traceback" not in err
    history = read_history(tmp_path / "run/history.jsonl")
    assert 3 <= len(history.epochs) < 40
    resumed = resume(tmp_path / "run")
    assert resumed.result == read_history(tmp_path / "run/history.jsonl").result
    train(read_config(tmp_path / "run/config.toml"), tmp_path / "whole")
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (
        tmp_path / "whole/model/model.safetensors"
    ).read_bytes()


def test_ctrl_c_before_anything_was_written(
    dpap: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.loop, "train", interrupted)
    code, _, err = dpap("train")
    assert code == 130
    assert "Nothing was written." in err
    assert list(tmp_path.iterdir()) == []
