"""A run folder that version 0.1.0 wrote, before settings, pages and checkpoints were moved to libraries."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import torch
from typer.testing import CliRunner

import dpap
from dpap.cli import app
from dpap.config import read_config, to_toml
from dpap.report.history import read_history
from dpap.report.page import page

OLD = Path(__file__).parents[1] / "old" / "run"


def test_its_config_is_read_and_written_the_same() -> None:
    written = (OLD / "config.toml").read_text()
    now = tomllib.loads(to_toml(read_config(OLD / "config.toml")))
    newer = {"synapses": "linear", "regrow": "none", "structure": "none", "shuffled": False, "crowding": "none"}
    assert {name: now["development"].pop(name) for name in newer} == newer, "what is newer takes its default"
    assert now["development"]["target"].pop("effective_macs") == "none"
    assert now == tomllib.loads(written)


def test_its_report_is_made_again() -> None:
    result = read_history(OLD / "history.jsonl").result
    assert result is not None
    assert f"{100 * result.test_accuracy:.2f} %" in page(OLD)


def test_its_network_is_loaded_and_its_checkpoint_accepted(tmp_path: Path) -> None:
    model = dpap.load(OLD / "model")
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    run = shutil.copytree(OLD, tmp_path / "run")
    for command in ("resume", "evaluate"):
        answer = CliRunner().invoke(app, [command, str(run)])
        assert answer.exit_code == 0, answer.output
        result = read_history(run / "history.jsonl").result
        assert result is not None
        assert f"{100 * result.test_accuracy:.2f} %" in answer.output
