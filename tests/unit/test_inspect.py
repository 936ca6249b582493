"""`dpap inspect`: from a name to a network, what is said of it, and what is said to bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from tiny_runs import tiny
from torch import nn

import dpap
from dpap import cli
from dpap.errors import DPAPError
from dpap.find_model import find_model
from dpap.inspection import Inspection, inspect
from dpap.models import build
from dpap.training.loop import train

CODE = """
from __future__ import annotations

import dataclasses

import torch
from torch import nn

import beside


@dataclasses.dataclass
class Settings:
    hidden: int = 8


class Net(nn.Module):
    def __init__(self, activation=torch.relu):
        super().__init__()
        self.activation = activation
        self.a = nn.Linear(4, Settings().hidden)
        self.b = nn.Linear(Settings().hidden, beside.CLASSES)

    def forward(self, x):
        return self.b(self.activation(self.a(x)))


def net():
    return Net()


def with_example():
    return Net(), torch.rand(3, 4)


def odd():
    return Net(torch.erfinv), torch.rand(3, 4)


def one():
    return 1


def fails():
    raise ValueError("no [such] thing")


def asks(width):
    return Net()
"""
LINE = CODE[: CODE.index("    raise ValueError")].count("\n") + 1


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file rewritten within a second is another one
    for name in ("own_nets", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("own_nets.py").write_text(CODE, encoding="utf-8")
    Path("beside.py").write_text("CLASSES = 2\n", encoding="utf-8")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `dpap inspect` with these words: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpap", "inspect", *map(str, words)])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return run


def inspected(name: str, **options: Any) -> Inspection:
    model, example, spiking_input = find_model(name, **options)
    return inspect(model, example, spiking_input, name=name)


# where a network comes from -------------------------------------------------------------------------------------------


def test_a_recipe() -> None:
    state = torch.get_rng_state()
    model, example, _ = find_model("digits-snn")
    assert (type(model).__name__, example.shape) == ("ConvNet", (2, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state), "random numbers of the caller were drawn"
    assert find_model("digits-snn", batch=5)[1].shape == (5, 1, 8, 8)


def test_a_recipe_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpap.training.data.load_dataset", lambda *_: pytest.fail("data were read"))
    model, example, _ = find_model("cifar10-snn-small")
    assert example.shape == (2, 3, 32, 32)
    assert model.classifier.out_features == 10


def test_a_recipe_on_events_has_frames_for_an_example() -> None:
    _, example, _ = find_model("nmnist-snn", batch=3)
    assert example.shape == (20, 3, 2, 34, 34)
    _, example, _ = find_model("nmnist-snn", batch=3, shape=(2, 36, 40))
    assert example.shape == (20, 3, 2, 36, 40)
    assert {layer.name: layer.reads for layer in inspected("shd-snn").layers} == dict.fromkeys(
        ("fc1", "neuron1.lateral", "classifier"), "spikes"
    )
    assert inspected("digits-snn").layers[0].reads == "values"


def test_a_config_file() -> None:
    Path("mine.toml").write_text('[model]\nname = "resnet18"\nwidth = 0.125\n', encoding="utf-8")
    model, example, _ = find_model("mine.toml")
    assert (type(model).__name__, model.conv1.out_channels, example.shape) == ("ResNet", 8, (2, 1, 8, 8))


def test_a_run_folder_and_its_saved_model(tmp_path: Path) -> None:
    done = train(tiny(epochs="2"), tmp_path / "run")
    for folder in ("run", "run/model"):
        found = inspected(folder)
        assert (found.totals.macs, found.totals.parameters) == (done.result.macs, done.result.parameters)
        assert found.input == (2, 1, 8, 8)
    (tmp_path / "run" / "model" / "manifest.json").unlink()
    dense = inspected("run")
    assert dense.totals.macs == done.result.dense_macs > found.totals.macs, "before its end, the network it began with"


def test_a_saved_model_of_another_origin_says_how_to_load_it() -> None:
    dpap.save(nn.Linear(3, 2), "other")
    with pytest.raises(DPAPError, match="not one of this library's models"):
        find_model("other")


def test_a_function_in_a_module_or_a_file(tmp_path: Path) -> None:
    path = list(sys.path)
    for name in ("own_nets:with_example", "own_nets.py:with_example", f"{tmp_path}/own_nets.py:with_example"):
        model, example, _ = find_model(name)
        assert (model.a.out_features, model.b.out_features, example.shape) == (8, 2, (3, 4))
    assert sys.path == path
    assert find_model("own_nets.py:net", shape=[4], batch=6)[1].shape == (6, 4)
    assert find_model("own_nets.py:with_example", shape=[4], batch=6)[1].shape == (6, 4)


def test_a_function_that_gives_no_example_needs_a_shape() -> None:
    with pytest.raises(DPAPError, match="shape of an input is not known") as caught:
        find_model("own_nets.py:net")
    assert "--shape" in caught.value.fix


def test_a_network_of_timm() -> None:
    foreign.timm()
    found = inspected("timm:resnet18", shape=(3, 64, 64))
    assert found.totals.parameters == 11_689_512
    assert find_model("timm:resnet18")[1].shape == (2, 3, 224, 224)
    with pytest.raises(DPAPError, match="no timm model named 'resnet19'") as caught:
        find_model("timm:resnet19")
    assert "resnet18" in caught.value.fix
    with pytest.raises(DPAPError, match="no timm model"):
        find_model("timm:hf-hub:timm/resnet18.a1_in1k")  # would be downloaded


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DPAPError, match="timm is not installed") as caught:
        find_model("timm:resnet18")
    assert caught.value.fix == "pip install timm"


@pytest.mark.parametrize(
    ("name", "what", "detail"),
    [
        ("digit-snn", "no model named 'digit-snn'", "did you mean 'digits-snn'"),
        ("nowhere.py:net", "no such file", "nowhere.py"),
        ("nowhere_at_all:net", "ModuleNotFoundError", "nowhere_at_all:net"),
        ("own_nets.py:nett", "no function named 'nett'", "did you mean 'net'"),
        ("own_nets.py:one", "returned a int, not a torch.nn.Module", "own_nets.py:one"),
        ("own_nets.py:fails", "ValueError: no [such] thing", f"line {LINE} of own_nets.py"),
        ("own_nets.py:asks", "missing 1 required positional argument: 'width'", "called without arguments"),
        (".", "no run folder", "config.toml"),
    ],
)
def test_what_is_no_network(name: str, what: str, detail: str) -> None:
    with pytest.raises(DPAPError) as caught:
        find_model(name)
    assert what.lower() in caught.value.what.lower()
    assert detail in str(caught.value)
    assert "find_model" not in caught.value.where and "importlib" not in caught.value.where, "that line is not theirs"


def test_a_file_is_never_unpickled() -> None:
    """A saved network that somebody made with `torch.save` is refused, not opened."""
    Path("net.pt").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(DPAPError, match="There is no model named 'net.pt'"):
        find_model("net.pt")
    assert not Path("opened").exists()


@pytest.mark.parametrize(("shape", "batch"), [((0, 8, 8), 2), ((), 2), ((1, 8, 8), 0), ((1, -8, 8), 2)])
def test_empty_inputs(shape: tuple[int, ...], batch: int) -> None:
    with pytest.raises(DPAPError, match="is empty"):
        find_model("digits-snn", shape=shape, batch=batch)


# what is said of it ---------------------------------------------------------------------------------------------------


def test_costs_by_hand() -> None:
    """4 inputs, 8 hidden units, 2 outputs."""
    found = inspected("own_nets.py:with_example")
    assert [(layer.name, layer.shape, layer.weights, layer.macs) for layer in found.layers] == [
        ("a", (8, 4), 32, 32),
        ("b", (2, 8), 16, 16),
    ]
    assert (found.totals.weights, found.totals.macs, found.totals.parameters) == (48, 48, 48 + 8 + 2)
    # Two of eight hidden units are the floor: a keeps 2 x 4 weights and 2 biases, b 2 x 2 and 2.
    assert (found.totals.least_macs, found.totals.least_parameters) == (8 + 4, 8 + 2 + 4 + 2)
    assert {layer.reads for layer in found.layers} == {"values"}


def test_costs_of_a_spiking_network_by_hand() -> None:
    """A constant image passes the first convolution once; all else happens at each of the four steps."""
    found = inspected("digits-snn")
    assert [(layer.name, layer.macs, layer.steps, layer.reads) for layer in found.layers] == [
        ("conv1", 16 * 9 * 64, 1, "values"),
        ("conv2", 32 * 16 * 9 * 64 * 4, 4, "spikes"),
        ("fc1", 512 * 256 * 4, 4, "spikes"),
        ("classifier", 2560 * 4, 4, "spikes"),
    ]
    assert found.totals.steps == 4


def test_a_weight_that_is_used_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.shared(self.shared(self.first(x).relu()).relu()).relu())

    found = inspect(Twice(), torch.rand(2, 3))
    assert [(layer.name, layer.weights, layer.macs) for layer in found.layers] == [
        ("first", 12, 12),
        ("shared", 16, 32),
        ("last", 8, 8),
    ]


def test_the_network_stays_as_it_is() -> None:
    model = build("resnet18", shape=(3, 8, 8), classes=3, width=1 / 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect(model, torch.rand(2, 3, 8, 8))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model._forward_pre_hooks


def test_json_has_everything(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("own_nets.py:with_example", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1, "a terminal's width has no place in it"
    found = json.loads(out)
    assert found.keys() == {"model", "input", "groups", "layers", "totals"}
    assert (found["model"], found["input"]) == ("own_nets.py:with_example", [3, 4])
    hidden, outputs = found["groups"]
    assert (hidden["name"], hidden["units"], hidden["protected"]) == ("a", 8, None)
    assert [(piece["tensor"], piece["axis"]) for piece in hidden["consumers"]] == [("b.weight", 1)]
    assert outputs["protected"] == "network output"
    assert found["totals"]["macs"] == sum(layer["macs"] for layer in found["layers"])


def test_tables_say_what_is_prunable_and_why_not(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = command("digits-snn")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "digits-snn, input 2 x 1 x 8 x 8, 4 steps"
    assert "conv1 16 prunable" in lines
    assert "classifier 10 protected: network output" in lines
    for words in ("made by conv1, norm1", "read by fc1", "seen at output of neuron2"):
        assert words in lines
    assert "conv2 32x16x3x3 4,608 3.3 % 1,179,648 68.4 % spikes" in lines
    assert "MACs per sample 1,723,392 27,280 98.4 %" in lines


def test_numbers_and_names_are_whole_in_a_narrow_terminal(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.console, "_width", 80)
    Path("mine.toml").write_text('[model]\nname = "resnet18"\n', encoding="utf-8")
    _, out, _ = command("mine.toml", "--shape", "1,64,64")
    assert "…" not in out
    assert "layer4.0.downsample.0" in out and "made by conv1, bn1, layer1.0.conv2, layer1.0.bn2," in out


def test_the_command_takes_a_shape_and_a_batch(command: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = command("own_nets:net", "--shape", "4", "--batch", 7)
    assert out.startswith("own_nets:net, input 7 x 4")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("digits-snn", "--shape", "3,8,8"), "on the example input ((2, 3, 8, 8))"),
        (("digits-snn", "--shape", "3x8x8"), "--shape 3x8x8 is no shape"),
        (("digits-snn", "--unknown", "guess"), "unknown= is 'guess'"),
        (("own_nets.py:odd",), "The operator aten.erfinv.default has no rule"),
        (("own_nets.py:fails",), "ValueError: no [such] thing"),
        (("digits",), "There is no model named 'digits'"),
    ],
)
def test_bad_input(command: Callable[..., tuple[int, str, str]], words: tuple[str, ...], what: str) -> None:
    code, out, err = command(*words)
    assert (code, out) == (1, "")
    assert what in err
    assert "What to do:" in err
    assert "Traceback" not in err


def test_an_unknown_operator_may_protect_what_it_touches(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = command("own_nets.py:odd", "--unknown", "protect")
    assert code == 0
    assert "protected: touched by aten.erfinv.default, which has no rule" in out
    assert any(line.startswith("MACs per sample") and line.endswith(" 0.0 %") for line in out.splitlines())


def test_the_help_says_that_code_is_run(command: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = command("--help")
    assert "which runs it" in " ".join(out.replace("│", " ").split())
