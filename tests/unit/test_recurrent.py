"""Recurrent layers and networks of them: by hand, wrong inputs, who is isolated, the recipe from file to report."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dpap import DPAP, find_groups
from dpap.cli import app
from dpap.config import ModelConfig
from dpap.errors import DPAPError
from dpap.models import RecurrentNet, build, built_from, settings_of
from dpap.neurons import IF, LIF, PLIF, Recurrent, StepByStep
from dpap.pruning.account import Account, Victim
from dpap.recipes import recipe
from dpap.report.history import read_history
from dpap.training.data import spec_of

SMALL: dict[str, Any] = {"shape": (5, 1, 1), "classes": 3, "hidden": (6, 4), "num_steps": 4}


# the layer ------------------------------------------------------------------------------------------------------------


def by_hand() -> Recurrent:
    """Two units that add up: the second hears the first, the first is stopped by the second."""
    layer = Recurrent(2, IF())
    layer.lateral.weight.data = torch.tensor([[0.0, -1.0], [0.5, 0.0]])
    return layer


def test_spikes_come_back_one_step_later() -> None:
    x = torch.tensor([[1.0, 0.5], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])[:, None]
    # step 1: both receive x alone: the first fires, the second is at 0.5
    # step 2: the second receives 0.5 from the first and fires
    # step 3: the second stops the first, 1 - 1 = 0, which is below 1; nobody fires
    # step 4: the first fires
    assert by_hand()(x)[:, 0].tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]


def test_a_step_of_a_neuron_as_a_module() -> None:
    neuron = LIF(2.0)
    spikes, v = StepByStep(neuron)(torch.tensor([[1.5, 1.0]]), torch.tensor([[0.5, 0.5]]))
    assert (spikes.tolist(), v.tolist()) == ([[1.0, 0.0]], [[0.0, 0.75]])
    assert torch.equal(StepByStep(neuron)(torch.ones(1, 2))[1], neuron.step(torch.ones(1, 2))[1])


def test_lateral_weights_learn_where_the_reset_is_detached() -> None:
    torch.manual_seed(0)
    layer = Recurrent(6, LIF(v_threshold=0.3, detach_reset=True))
    layer(torch.rand(5, 3, 6)).sum().backward()
    grad = layer.lateral.weight.grad
    assert grad is not None and grad.abs().min() > 0


def test_half_precision_of_the_currents() -> None:
    torch.manual_seed(0)
    layer = Recurrent(6, LIF(v_threshold=0.2))
    with torch.autocast("cpu", torch.bfloat16):
        spikes = layer(torch.rand(5, 3, 6))
    assert spikes.dtype == torch.float32
    assert set(spikes.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("units", "neuron", "message"),
    [(0, LIF(), "units=0"), (4, nn.ReLU(), "a ReLU as its neuron"), (4, StepByStep(LIF()), "a StepByStep")],
)
def test_layers_that_cannot_be(units: int, neuron: Any, message: str) -> None:
    with pytest.raises(DPAPError, match=message):
        Recurrent(units, neuron)


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 2, 5)])
def test_what_a_layer_does_not_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(DPAPError, match=r"layer of 4 units was given an input of shape \(., 2, .\)"):
        Recurrent(4, LIF())(torch.zeros(shape))


# the network ----------------------------------------------------------------------------------------------------------


def test_what_stands_where() -> None:
    model = RecurrentNet(**SMALL, dropout=0.1, readout="membrane")
    assert [name for name, _ in model.named_children()] == [
        "flatten", "dropout1", "fc1", "norm1", "repeat", "neuron1", "dropout2", "fc2", "norm2", "neuron2",
        "classifier", "membrane",
    ]  # fmt: skip
    weights = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    assert weights == {
        "fc1.weight": (6, 5),
        "neuron1.lateral.weight": (6, 6),
        "fc2.weight": (4, 6),
        "neuron2.lateral.weight": (4, 4),
        "classifier.weight": (3, 4),
    }
    half = RecurrentNet(**SMALL, width=0.5, neuron="plif", tau=3.0, v_threshold=0.7, norm=False, detach_reset=True)
    neuron = half.neuron1.neuron.neuron
    assert (half.neuron1.lateral.in_features, half.neuron2.lateral.in_features) == (3, 2)
    assert isinstance(neuron, PLIF) and neuron.firing.detach_reset and neuron.v_threshold == 0.7
    assert float(1 / neuron.rate().detach()) == pytest.approx(3.0)
    assert half.fc1.bias is not None and not hasattr(half, "norm1")


def test_frames_and_still_pictures() -> None:
    torch.manual_seed(0)
    model = RecurrentNet(**SMALL, v_threshold=0.3)
    frames = torch.rand(7, 8, 5, 1, 1)
    steps = model(frames, every_step=True)  # in training mode: norms keep the neurons busy
    assert steps.shape == (7, 8, 3)
    torch.testing.assert_close(model(frames), model.answer(steps))
    picture = frames[0]
    torch.testing.assert_close(model(picture), model(picture.expand(4, *picture.shape)))
    assert model(picture).shape == (8, 3)
    assert not torch.equal(steps[1], steps[2])


def test_the_best_moment_is_a_readout() -> None:
    torch.manual_seed(0)
    model = RecurrentNet(**SMALL, v_threshold=0.3, readout="max").eval()
    frames = torch.rand(7, 8, 5, 1, 1)
    assert torch.equal(model(frames), model(frames, every_step=True).amax(0))


def test_a_network_knows_how_it_was_made() -> None:
    made = built_from(build("recurrent", **SMALL))
    assert made is not None and made.name == "recurrent"
    again = build(made.name, **made.arguments)
    assert isinstance(again, RecurrentNet)
    assert {"hidden", "neuron", "num_steps", "readout", "dropout"} <= set(settings_of("recurrent"))
    assert not {"blocks", "kernel", "pool", "votes", "learn_slope"} & set(settings_of("recurrent"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"hidden": ()}, "no hidden layer"), ({"neuron": "relu"}, 'neuron = "relu"'), ({"readout": "mex"}, "mean 'max'")],
)
def test_networks_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DPAPError, match=message):
        build("recurrent", **{**SMALL, **wrong})


def test_settings_of_other_networks_are_refused() -> None:
    with pytest.raises(DPAPError, match='model.blocks = .* does not apply to model.name = "recurrent"'):
        ModelConfig(name="recurrent", blocks=((8,),))


@pytest.mark.parametrize("mode", ["leak", "silence"])
def test_time_steps_of_a_recurrent_layer_stay(mode: Any) -> None:
    model = RecurrentNet(**SMALL)
    with pytest.raises(DPAPError, match="units of this recurrent layer hear of each other") as caught:
        DPAP(
            model,
            torch.rand(4, 2, 5, 1, 1),
            optimizer=torch.optim.SGD(model.parameters(), 0.1),
            total_steps=20,
            time=mode,
        )
    assert caught.value.where == "neuron1.neuron"
    assert "time=" in caught.value.fix


# who is isolated ------------------------------------------------------------------------------------------------------


def account(inputs: Tensor, lateral: Tensor, outputs: Tensor) -> Account:
    """Of 2 inputs, 5 recurrent units and 3 classes, with these synapses, (to, from)."""
    model = nn.Sequential(
        OrderedDict(fc=nn.Linear(2, 5), layer=Recurrent(5, LIF(v_threshold=0.1)), out=nn.Linear(5, 3))
    )
    graph = find_groups(model, torch.rand(3, 2, 2))
    alive = {g.name: np.ones(g.units, dtype=bool) for g in graph.groups}
    given = {"fc.weight": inputs, "layer.lateral.weight": lateral, "out.weight": outputs}
    assert {layer.weight for layer in graph.layers} == given.keys()
    return Account.of(graph, alive, {name: mask.numpy() for name, mask in given.items()})


FED, READ = torch.ones(5, 2, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
EVERY, ITSELF = torch.ones(5, 5, dtype=torch.bool), torch.eye(5, dtype=torch.bool)


def test_a_unit_hears_of_its_neighbours_but_not_of_itself() -> None:
    found = account(FED, EVERY, READ)
    assert found.inputs[0].tolist() == [2 + 4] * 5
    assert found.outputs[0].tolist() == [3 + 4] * 5
    alone = account(FED, ITSELF, READ)
    assert (alone.inputs[0].tolist(), alone.outputs[0].tolist()) == ([2] * 5, [3] * 5)
    assert alone.connectivity() == 10 + 5 + 15, "it counts as a synapse all the same"


def test_the_last_input_of_a_unit_is_not_its_own_spike() -> None:
    fed = FED.clone()
    fed[3, 1] = False
    found = account(fed, ITSELF, READ)
    assert not found.kill(Victim(False, 0, 3 * 2)), "unit 3 would hear of itself alone"
    assert found.kill(Victim(False, 1, 3 * 5 + 3)), "its own synapse may go"
    assert found.inputs[0][3] == 1
    heard = account(fed, EVERY, READ)
    assert heard.kill(Victim(False, 0, 3 * 2)), "it hears of its neighbours"
    assert heard.alive[0].all()


def test_a_unit_that_only_itself_reads_is_isolated() -> None:
    read = READ.clone()
    read[1:, 3] = False
    found = account(FED, ITSELF, read)
    assert found.kill(Victim(False, 2, 3))
    assert found.isolated == [(0, 3)]
    heard = account(FED, EVERY, read)
    assert heard.kill(Victim(False, 2, 3)) and heard.alive[0].all(), "its neighbours read it"


def test_a_dead_unit_takes_both_ends_of_its_lateral_synapses() -> None:
    found = account(FED, EVERY, READ)
    assert found.kill(Victim(True, 0, 2))
    assert found.inputs[0].tolist() == [5, 5, 0, 5, 5]
    assert found.outputs[0].tolist() == [6, 6, 0, 6, 6]
    again = account(FED, EVERY, READ)
    again.alive[0][2] = False
    again._count()
    assert [c.tolist() for c in again.inputs] == [c.tolist() for c in found.inputs]
    assert [c.tolist() for c in again.outputs] == [c.tolist() for c in found.outputs]
    assert again.macs() == found.macs() == 3 * (4 * 2 + 4 * 4 + 3 * 4)


def test_many_synapses_at_once_are_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(25, generator=generator)[:18].numpy()
    once, single = account(FED, EVERY, READ), account(FED, EVERY, READ)
    assert {0, 6, 12, 18, 24} & set(order.tolist()), "some of them return"
    assert once.kill_at_once(np.ones(len(order), dtype=np.int64), order)
    assert all(single.kill(Victim(False, 1, int(place))) for place in order)
    for a, b in ((once.inputs, single.inputs), (once.outputs, single.outputs)):
        assert [c.tolist() for c in a] == [c.tolist() for c in b]
    once._count()
    assert [c.tolist() for c in once.inputs] == [c.tolist() for c in single.inputs]


# the recipe -----------------------------------------------------------------------------------------------------------


def test_the_network_of_the_recipe() -> None:
    config = recipe("shd-snn")
    spec = spec_of(config)
    model = build(config.model.name, shape=spec.shape, classes=len(spec.classes), **config.model.arguments())
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert weights == 700 * 256 + 256 * 256 + 256 * 20 == 249_856
    assert (spec.num_steps, spec.shape, len(spec.classes)) == (100, (700, 1, 1), 20)


def test_inspect_shows_the_layer() -> None:
    done = CliRunner().invoke(app, ["inspect", "shd-snn", "--json"])
    assert done.exit_code == 0, done.output
    for said in ('"neuron1.lateral.weight"', '"fc1"', '"macs": 6553600'):
        assert said in done.output


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A data directory with files as SHD's, of a few recordings: word k sounds around channel 35 k."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "shd").mkdir()
    draws = np.random.default_rng(0)
    for split, count in (("train", 200), ("test", 40)):
        with h5py.File(tmp_path / "shd" / f"shd_{split}.h5", "w") as file:
            columns = {
                name: file.create_dataset(f"spikes/{name}", (count,), h5py.vlen_dtype(np.float32))
                for name in ("times", "units")
            }
            for row in range(count):
                events = 300
                columns["times"][row] = np.sort(draws.uniform(0, 1.0, events))
                columns["units"][row] = (35 * (row % 20) + draws.integers(0, 40, events)) % 700
            file["labels"] = np.arange(count) % 20
    return tmp_path


def test_from_file_to_report(spoken: Path) -> None:
    out = spoken / "run"
    settings = {
        "model.width": "0.125", "model.num_steps": "8", "data.batch_size": "32", "optimizer.lr": "0.02",
        "development.development_steps": "20", "threads": "1",
    }  # fmt: skip
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments += ["--epochs", "6", "--no-control", "--data-dir", str(spoken), "--out", str(out)]
    done = CliRunner().invoke(app, ["train", "shd-snn", *arguments])
    assert done.exit_code == 0, done.output
    history = read_history(out / "history.jsonl")
    result = history.result
    assert result is not None
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert result.test_accuracy > 0.2, "chance is 1 in 20"
    assert 0.09 < result.connectivity <= 0.105
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "neuron1" in page and "shd" in page
