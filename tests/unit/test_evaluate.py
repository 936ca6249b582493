"""What is measured on the saved network is what the masked network of the run would have shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny

from dpap.config import Config
from dpap.data import load_dataset
from dpap.errors import DPAPError
from dpap.io import load
from dpap.metrics import measure
from dpap.report.history import ResultLine, read_history
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
        run.dev._engine.strike_weights()


def assert_layers_add_up(result: ResultLine) -> None:
    """The layers hold every synapse and operation of the network, once."""
    layers = result.layers
    living, synapses = (sum(getattr(layer, name) for layer in layers) for name in ("living_synapses", "synapses"))
    assert result.connectivity == living / synapses
    conv = [layer for layer in layers if layer.kind == "conv"]
    if conv:
        share = sum(layer.living_synapses for layer in conv) / sum(layer.synapses for layer in conv)
        assert result.connectivity_conv == share
    assert sum(layer.macs for layer in layers) == result.macs
    assert sum(layer.dense_macs for layer in layers) == result.dense_macs
    assert sum(layer.sops or 0 for layer in layers) == pytest.approx(result.synops)
    assert [layer.sops is None for layer in layers] == [True] + [False] * (len(layers) - 1), "the image is real-valued"
    for layer in layers:
        assert 0 < layer.alive_outputs <= layer.outputs
        assert 0 < layer.alive_inputs <= layer.inputs
        assert 0 < layer.living_synapses <= layer.synapses
        assert layer.macs <= layer.dense_macs
    assert {layer.name: layer.alive_outputs for layer in layers} == result.alive_units
    assert {layer.name: layer.outputs for layer in layers} == result.units
    assert any(layer.alive_outputs < layer.outputs or layer.living_synapses < layer.synapses for layer in layers)


@pytest.mark.slow
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
    masked = measure(run.dev.masked(), run.dev.graph, run.data.test.batches(100), run.dev.alive, run.dev.synapse_masks)
    assert masked.connectivity < 0.9
    assert result.sparsity_paper == pytest.approx(masked.sparsity_paper, abs=1e-12)
    if name != "network without convolutions":
        assert 0 < result.sparsity_paper < 1 - result.connectivity, "weights that read a dead unit are no own zeros"
    assert result.connectivity == masked.connectivity
    assert result.connectivity_conv == masked.connectivity_conv
    assert (result.connectivity_conv is None) == (name == "network without convolutions")
    assert result.test_accuracy == masked.accuracy
    assert result.test_correct == round(masked.accuracy * 450)
    assert result.parameters == masked.parameters < result.dense_parameters
    assert result.macs == masked.macs_per_sample < result.dense_macs
    assert result.synops == pytest.approx(masked.synops.sops_per_sample, rel=1e-9)
    assert result.energy_pj == pytest.approx(masked.energy.compute_pj, rel=1e-9)
    assert result.memory_pj == pytest.approx(masked.energy.memory_pj, rel=1e-9)
    assert result.paper_proxy_pj == pytest.approx(masked.energy.paper_proxy_pj, rel=1e-9)
    assert result.dense_snn_pj == pytest.approx(masked.energy.dense_snn_pj, rel=1e-9)
    assert result.dense_ann_pj == pytest.approx(masked.energy.dense_ann_pj, rel=1e-9)
    assert result.macs_real == masked.macs_real_per_sample <= result.dense_macs_real
    assert result.neuron_updates == masked.neuron_updates_per_sample < result.dense_neuron_updates
    assert_layers_add_up(result)
    assert {n.name: (n.units, n.silent) for n in result.neurons} == {
        group: (rate.units, rate.silent) for group, rate in masked.rates.items()
    }
    for neuron in result.neurons:
        assert neuron.rate == pytest.approx(masked.rates[neuron.name].rate, rel=1e-9)
    assert any(neuron.rate > 0 for neuron in result.neurons)
    assert result.alive_units == {name: int(alive.sum()) for name, alive in run.dev.alive.items()}
    assert result.units == {group.name: group.units for group in run.dev.graph.groups}
    again = evaluate_run(tmp_path / "run").result
    assert again.seconds is None
    assert again.synops == result.synops


@pytest.mark.slow
def test_validation_accuracy_is_measured_only_when_held_out(tmp_path: Path) -> None:
    for hold_out in ("true", "false"):
        train(tiny(epochs="1", data__hold_out=hold_out, development__rule="none"), tmp_path / hold_out)
        (line,) = read_history(tmp_path / hold_out / "history.jsonl").epochs
        assert (line.validation_accuracy is None) == (hold_out == "false")
    assert read_history(tmp_path / "true" / "history.jsonl").run.samples == 1078
    assert read_history(tmp_path / "false" / "history.jsonl").run.samples == 1347


@pytest.mark.slow
def test_training_never_sees_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test split, another result; every line before it is the same."""
    config = tiny(epochs="3")
    train(config, tmp_path / "a")
    data = load_dataset("digits")
    data.test.images.mul_(0.5)
    monkeypatch.setattr("dpap.training.data.load_dataset", lambda name, path: data)
    train(config, tmp_path / "b")
    a, b = (read_history(tmp_path / name / "history.jsonl") for name in "ab")
    assert [line.loss for line in a.epochs] == [line.loss for line in b.epochs]
    assert a.result != b.result


def test_answers_say_which_samples_were_right(tmp_path: Path) -> None:
    result = train(tiny(epochs="2"), tmp_path / "run").result
    with np.load(tmp_path / "run" / "answers.npz", allow_pickle=False) as answers:
        assert answers.files == ["correct"]
        correct = torch.from_numpy(answers["correct"])
    assert correct.dtype == torch.bool
    assert correct.shape == (result.test_samples,) == (450,)
    assert int(correct.sum()) == result.test_correct == round(result.test_accuracy * 450)
    model, data = load(tmp_path / "run" / "model").eval(), load_dataset("digits")
    with torch.no_grad():
        assert torch.equal(model(data.spec.prepared(data.test.images)).argmax(1) == data.test.labels, correct)


def test_latency_is_measured_beside_that_of_the_dense_network(tmp_path: Path) -> None:
    result = train(tiny(epochs="1"), tmp_path / "run").result
    assert result.latency_ms is not None and result.latency_ms > 0
    assert result.dense_latency_ms is not None and result.dense_latency_ms > 0
    assert (result.latency_batch, result.threads) == (64, torch.get_num_threads())


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
