"""What is measured on the saved network is what the masked network of the run would have shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import tiny

from dpap.config import Config
from dpap.data import load_dataset
from dpap.errors import DPAPError
from dpap.metrics import measure
from dpap.report.history import read_history
from dpap.training.checkpoint import RunFolder
from dpap.training.evaluate import evaluate_run
from dpap.training.loop import own_settings, train
from dpap.training.run import Run

CASES: dict[str, Config] = {
    "synapses": tiny(),
    "units": tiny(development__target__connectivity="none", development__target__macs="0.5"),
    "released": tiny(development__rule="released", development__target__connectivity="none", epochs="12"),
    "network without convolutions": tiny(model__blocks="[]", model__hidden="[20]"),
}


def strike(run: Run) -> None:
    """Rule `released` needs far more epochs to kill anybody: kill by hand."""
    assert run.dev is not None
    run.dev.alive["conv2"][:3] = False
    run.dev.synapse_masks["fc1.weight"][:, ::2] = False
    with torch.no_grad():
        run.dev._strike_weights()


@pytest.mark.parametrize("name", CASES)
def test_saved_equals_masked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    real = Run.final_model

    def final_model(self: Run) -> object:
        if name == "released":
            strike(self)
        runs.append(self)
        return real(self)

    monkeypatch.setattr(Run, "final_model", final_model)
    result = train(CASES[name], tmp_path / "run").result
    (run,) = runs
    assert run.dev is not None
    masked = measure(run.model, run.dev.graph, run.data.test.batches(100), run.dev.alive, run.dev.synapse_masks)
    assert masked.connectivity < 0.9
    assert result.connectivity == masked.connectivity
    assert result.connectivity_conv == masked.connectivity_conv
    assert (result.connectivity_conv is None) == (name == "network without convolutions")
    assert result.test_accuracy == masked.accuracy
    assert result.test_correct == round(masked.accuracy * 450)
    assert result.parameters == masked.parameters < result.dense_parameters
    assert result.macs == masked.macs_per_sample < result.dense_macs
    assert result.synops == pytest.approx(masked.synops.sops_per_sample, rel=1e-9)
    assert result.energy_pj == pytest.approx(masked.energy.compute_pj, rel=1e-9)
    assert result.alive_units == {name: int(alive.sum()) for name, alive in run.dev.alive.items()}
    assert result.units == {group.name: group.units for group in run.dev.graph.groups}
    again = evaluate_run(tmp_path / "run").result
    assert again.seconds is None
    assert again.synops == result.synops


def test_validation_accuracy_is_measured_only_when_held_out(tmp_path: Path) -> None:
    for hold_out in ("true", "false"):
        train(tiny(epochs="1", data__hold_out=hold_out, development__rule="none"), tmp_path / hold_out)
        (line,) = read_history(tmp_path / hold_out / "history.jsonl").epochs
        assert (line.validation_accuracy is None) == (hold_out == "false")
    assert read_history(tmp_path / "true" / "history.jsonl").run.samples == 1078
    assert read_history(tmp_path / "false" / "history.jsonl").run.samples == 1347


def test_training_never_sees_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test split, another result; every line before it is the same."""
    config = tiny(epochs="3")
    train(config, tmp_path / "a")
    data = load_dataset("digits")
    data.test.images.mul_(0.5)
    monkeypatch.setattr("dpap.training.run.load_dataset", lambda name: data)
    train(config, tmp_path / "b")
    a, b = (read_history(tmp_path / name / "history.jsonl") for name in "ab")
    assert [line.loss for line in a.epochs] == [line.loss for line in b.epochs]
    assert a.result != b.result


def test_an_unfinished_run_is_not_evaluated(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", tiny())
    with pytest.raises(DPAPError, match="not finished") as caught:
        evaluate_run(tmp_path / "run")
    assert "dpap resume" in caught.value.fix


def test_the_caller_keeps_his_threads_and_random_numbers(tmp_path: Path) -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with own_settings(tiny(threads="3")):
        assert torch.get_num_threads() == 3
        torch.rand(5)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    train(tiny(epochs="1"), tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = train(tiny(epochs="1", development__rule="none"), tmp_path / "empty")
    assert done.path == tmp_path / "empty"
