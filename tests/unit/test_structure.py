"""The structure of a finished run trained from the start, as it is and shuffled."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny

import dpap
from dpap.config import Config, DevelopmentConfig, from_dict, to_toml
from dpap.errors import DPAPError
from dpap.metrics import stored_synapses
from dpap.report.compare import compare_runs
from dpap.report.history import ResultLine, read_history
from dpap.report.page import page
from dpap.training.loop import Progress, resume, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pruned run and two that have its structure, the last one interrupted and resumed; each with two seeds."""
    root = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        pruned = tiny(epochs="3", seed=seed, development__synapses="all", development__target__connectivity="0.25")
        train(pruned, root / "pruned" / seed)
        for name, shuffled in (("kept", False), ("shuffled", True)):
            train(fixed(pruned, root / "pruned" / seed, shuffled), root / name / seed)
    return {path.name: path for path in root.iterdir()}


def fixed(pruned: Config, folder: Path, shuffled: bool = False) -> Config:
    return replace(pruned, development=DevelopmentConfig(rule="fixed", structure=str(folder), shuffled=shuffled))


def result(path: Path) -> ResultLine:
    found = read_history(path / "history.jsonl").result
    assert found is not None
    return found


def test_it_has_the_counts_of_the_run_and_other_weights(runs: dict[str, Path]) -> None:
    pruned, kept, shuffled = (result(runs[name] / "0") for name in ("pruned", "kept", "shuffled"))
    assert pruned.alive_units == kept.alive_units == shuffled.alive_units
    assert pruned.connectivity == kept.connectivity
    assert shuffled.connectivity == pytest.approx(pruned.connectivity, rel=0.02)
    assert kept.effective_macs == pruned.effective_macs
    assert read_history(runs["kept"] / "0" / "history.jsonl").epochs[0].connectivity == pytest.approx(kept.connectivity)
    one, same, other = (dpap.load(runs[name] / "0" / "model") for name in ("pruned", "kept", "shuffled"))
    graph = dpap.find_groups(one, torch.rand(2, 1, 8, 8))
    masks = [stored_synapses(model, graph) for model in (one, same, other)]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    assert any(not torch.equal(mask, masks[2][name]) for name, mask in masks[0].items())
    assert {n: int(m.sum()) for n, m in masks[0].items()} == {n: int(m.sum()) for n, m in masks[2].items()}
    assert not torch.equal(one.get_parameter("conv2.weight"), same.get_parameter("conv2.weight"))


def test_its_report_says_so(runs: dict[str, Path]) -> None:
    text = " ".join(page(runs["shuffled"] / "0").split())
    assert "was trained from the start, its connections shuffled within each layer" in text
    assert "grew again" not in text


def test_seeds_are_one_arm(runs: dict[str, Path]) -> None:
    found = compare_runs([path / seed for path in runs.values() for seed in ("0", "1")])
    assert [arm.seeds for arm in found.arms] == [(0, 1)] * 3


def test_a_resumed_run_ends_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    config = fixed(tiny(epochs="3", development__synapses="all"), runs["pruned"] / "0")

    def copy(now: Progress) -> None:
        if now.epoch == 2 and now.batch == 1:
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")

    whole = train(config, tmp_path / "whole", watch=copy)
    assert resume(tmp_path / "cut").result.test_correct == whole.result.test_correct
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]


def test_settings_and_what_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    config = fixed(tiny(), runs["pruned"] / "0", shuffled=True)
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert config.as_control().development.structure is None
    for wrong in ({"rule": "fixed"}, {"rule": "dpap", "structure": "runs/x"}):
        with pytest.raises(DPAPError, match=r"development\.structure"):
            DevelopmentConfig(**wrong)
    with pytest.raises(DPAPError, match="There is no finished run"):
        train(fixed(tiny(), tmp_path / "nothing"), tmp_path / "run")
    with pytest.raises(DPAPError, match="of another network"):
        train(fixed(tiny(model__blocks="[[4, 8]]"), runs["pruned"] / "0"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
