"""Recurrent layers: the layer = a plain loop written here; masked = compacted; shrunk = not shrunk; what is observed of
the lateral weights = a slow oracle; in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.chain import FloatArray as Array
from oracles.dpap import mean_running_trace
from torch import Tensor, nn
from torch.nn import functional as F

from dpap import DPAP, find_groups, load, save
from dpap.errors import DPAPError
from dpap.graph.group import Graph
from dpap.metrics import count_macs, count_neuron_updates, count_parameters, count_synops
from dpap.models import build
from dpap.neurons import IF, LIF, PLIF, Recurrent, SpikingNeuron, StepByStep
from dpap.pruning.compact import compacted
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Present

STEPS, FEATURES, CLASSES = 7, 9, 3


def loop(x: Tensor, lateral: Tensor, neuron: SpikingNeuron) -> Tensor:
    """current[t] = x[t] + V o[t-1], and one step of the neuron."""
    fired, v, out = torch.zeros_like(x[0]), None, []
    for now in x:
        fired, v = neuron.step(now + fired @ lateral.T, v)
        out.append(fired)
    return torch.stack(out)


NEURONS: dict[str, Any] = {
    "if": IF,
    "lif": partial(LIF, 2.7),
    "plif": partial(PLIF, 1.6),
    "units": partial(PLIF, 2.5, 6),
}
RESETS: dict[str, dict[str, Any]] = {
    "hard": {"v_reset": -0.2},
    "soft": {"v_reset": None},
    "detached": {"v_reset": 0.0, "detach_reset": True},
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", NEURONS)
def test_the_layer_is_the_plain_loop(kind: str, reset: str) -> None:
    torch.manual_seed(1)
    layer = Recurrent(6, NEURONS[kind](v_threshold=0.6, **RESETS[reset])).double()
    if kind == "units":
        layer.neuron.neuron.w.data += torch.linspace(-1, 1, 6)
    x = (torch.randn(STEPS, 5, 6, dtype=torch.float64) + 0.6).requires_grad_()
    found, expected = layer(x), loop(x, layer.lateral.weight, layer.neuron.neuron)
    assert torch.equal(found, expected)
    assert 0.1 < found.mean() < 0.9
    assert not torch.equal(found, layer.neuron.neuron(x)), "the lateral weights do something"
    for t in range(STEPS):
        assert torch.equal(layer(x[: t + 1]), found[: t + 1]), "the past does not know the future"
    leaves, upstream = [x, *layer.parameters()], torch.randn_like(found)
    gradients = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def network(hidden: tuple[int, ...] = (40, 30), seed: int = 0, **settings: Any) -> nn.Module:
    """Busy, its lateral weights strong, and with statistics of its norms."""
    torch.manual_seed(seed)
    settings = {"shape": (FEATURES, 1, 1), "classes": CLASSES, "hidden": hidden, "num_steps": STEPS} | settings
    model = build("recurrent", **({"tau": 3.0, "v_threshold": 0.4} | settings)).double()
    for module in model.modules():
        if isinstance(module, Recurrent):
            module.lateral.weight.data *= 2
        if isinstance(module, nn.BatchNorm1d):
            module.bias.data.uniform_(0.0, 0.6)
    for step in range(4):
        model(batch(step)[0])
    return model


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Counts of events, and whether more come early or late."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(0, 3, (STEPS, size, FEATURES, 1, 1), generator=generator).double()
    halves = torch.stack([x[: STEPS // 2].sum((0, 2, 3, 4)), x[STEPS // 2 + 1 :].sum((0, 2, 3, 4))])
    return x, halves.argmax(0)


def graph_of(model: nn.Module) -> Graph:
    return find_groups(model, batch(0)[0][:, :2], spiking_input=True)


def random_alive(graph: Graph, share: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    alive = {}
    for group in graph.groups:
        alive[group.name] = torch.ones(group.units, dtype=torch.bool)
        if group.protected is None:
            dead = torch.randperm(group.units, generator=generator)[: round(share * group.units)]
            alive[group.name][dead] = False
    return alive


def pair(model: nn.Module, graph: Graph, alive: dict[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """The masked network and its compacted twin."""
    masked, present = copy.deepcopy(model), Present.whole(model, graph)
    parameters = dict(masked.named_parameters())
    for name, dead in dead_masks(parameters, present, alive, {}).items():
        parameters[name].data.masked_fill_(dead, 0)
    return masked, compacted(model, present, alive)


def spikes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each recurrent layer fires, and the outputs."""
    seen: dict[str, Tensor] = {}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Recurrent)]
    hooks = [m.register_forward_hook(lambda _, a, out, name=name: seen.update({name: out})) for name, m in layers]
    seen["out"] = model(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_units_of_a_layer_are_one_group() -> None:
    graph = graph_of(network(neuron="plif"))
    first, second, _ = graph.groups
    groups = [("fc1", 40, None), ("fc2", 30, None), ("classifier", CLASSES, "network output")]
    assert [(g.name, g.units, g.protected) for g in graph.groups] == groups
    norm = [f"norm1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    made = ["fc1.weight", *norm, "neuron1.lateral.weight"]
    assert [(p.tensor, p.axis) for p in first.producers] == [(name, 0) for name in made]
    assert [(p.tensor, p.axis) for p in first.consumers] == [("neuron1.lateral.weight", 1), ("fc2.weight", 1)]
    assert [(p.tensor, p.axis) for p in second.consumers] == [("neuron2.lateral.weight", 1), ("classifier.weight", 1)]
    layers = {layer.name: layer for layer in graph.layers}
    lateral = layers["neuron1.lateral"]
    assert (lateral.out_group, lateral.in_group) == ("fc1", ("fc1",))
    assert (str(lateral.pre), str(lateral.post)) == ("input of neuron1.lateral", "output of neuron1.neuron")
    assert layers["fc1"].post == lateral.post and layers["fc1"].post is not None
    assert all((layer.spike_divisor == 1).all() for layer in graph.layers), "counts of events, and spikes"
    assert graph.num_steps == STEPS
    assert {n.name: n.steps for n in graph.neurons} == dict.fromkeys(("neuron1.neuron", "neuron2.neuron"), STEPS)


def test_time_constants_of_single_units_are_cut_with_them() -> None:
    torch.manual_seed(0)
    layer = Recurrent(12, PLIF(2.0, 12, v_threshold=0.2))
    model = nn.Sequential(nn.Flatten(2), nn.Linear(FEATURES, 12), layer, nn.Linear(12, CLASSES)).double()
    layer.neuron.neuron.w.data.copy_(torch.linspace(-1, 1, 12))
    graph = graph_of(model)
    assert ("2.neuron.neuron.w", 0) in [(p.tensor, p.axis) for p in graph.groups[0].producers]
    masked, small = pair(model, graph, random_alive(graph, 0.5))
    assert small[2].neuron.neuron.w.shape == (6,)
    one, other = spikes(masked, batch(9)[0]), spikes(small, batch(9)[0])
    assert one["2"].mean() > 0.05
    torch.testing.assert_close(one["out"], other["out"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.95])
@pytest.mark.parametrize("training", [True, False])
def test_masked_equals_compacted(share: float, training: bool) -> None:
    model = network(neuron="plif", readout="membrane")
    graph = graph_of(model)
    alive = random_alive(graph, share)
    masked, small = (m.train(training) for m in pair(model, graph, alive))
    x, y = batch(11)
    one, other = spikes(masked, x), spikes(small, x)
    for name, group in (("neuron1", "fc1"), ("neuron2", "fc2")):
        assert torch.equal(one[name][..., alive[group]], other[name])
        assert other[name].mean() > 0.02, "a silent layer proves nothing"
    torch.testing.assert_close(one["out"], other["out"], rtol=1e-11, atol=1e-11)
    for answer in (one["out"], other["out"]):
        F.cross_entropy(answer, y).backward()
    left = Present.whole(model, graph).holding(alive)
    for (name, a), b in zip(masked.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(left.cut(name, a.grad), b.grad, rtol=1e-9, atol=1e-12)
    assert count_parameters(model, graph, alive) == sum(p.numel() for p in small.parameters())


def developer(model: nn.Module, **options: Any) -> DPAP:
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    settings: dict[str, Any] = {"total_steps": 40, "target": {"connectivity": 0.15}, "observe_every": 1}
    return DPAP(model, batch(0)[0][:, :2], optimizer=optimizer, spiking_input=True, **(settings | options))


def train(dev: DPAP, steps: int) -> list[Any]:
    reports = []
    for step in range(steps):
        x, y = batch(100 + step)
        with dev.observing():
            loss = F.cross_entropy(dev.model(x), y)
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        reports.append(dev.step())
    return [report for report in reports if report is not None]


def test_shrinking_changes_no_death_and_no_weight(tmp_path: Path) -> None:
    runs = {}
    for mode in ("never", "always"):
        dev = developer(network(), shrink=mode, target={"macs": 0.3, "connectivity": 0.15})
        runs[mode] = dev, train(dev, 40)
    (never, expected), (always, found) = runs["never"], runs["always"]
    assert any(r.died_units for r in expected) and any(r.died_synapses for r in expected)
    for one, other in zip(expected, found, strict=True):
        assert (one.died_units, one.isolated_units) == (other.died_units, other.isolated_units)
        assert one.died_synapses == other.died_synapses
    died = {weight for report in expected for weight in report.died_synapses}
    assert {"fc1.weight", "neuron1.lateral.weight", "neuron2.lateral.weight"} <= died
    present = always._engine.shrinker.present
    assert present.left and not never._engine.shrinker.present.left
    for name, tensor in always.model.named_parameters():
        whole = dict(never.model.named_parameters())[name]
        assert (present.cut(name, whole.detach()) - tensor).abs().max() <= 1e-9, name
    assert abs(never.connectivity() - 0.15) < 0.01

    small, x = always.compact().eval(), batch(5)[0]
    torch.testing.assert_close(never.masked().eval()(x), small(x), rtol=1e-9, atol=1e-9)
    save(always.compact(), tmp_path / "net")
    again = load(tmp_path / "net").eval()
    torch.testing.assert_close(again(x), small(x), rtol=1e-6, atol=1e-6)  # saved as it is: float64 here
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}


def sums(x: Array, y: Array) -> dict[str, Array]:
    """Of one batch: x (B, I) traces of what came in, y (B, O) of what was fired."""
    total = x.sum(1)
    return {
        "x": x.sum(0),
        "y": y.sum(0),
        "yy": (y**2).sum(0),
        "total_y": total @ y,
        "total_yy": total @ y**2,
        "xy": y.T @ x,
        "xyy": (y**2).T @ x,
    }


def watched(model: nn.Module, x: Tensor, dead: Sequence[int] = (), **options: Any) -> DPAP:
    """After one batch of its first window."""
    dev = developer(model, **({"start": 0.2} | options))
    for unit in dead:
        dev.alive["fc1"][unit] = False  # what dead units emit counts nowhere
    while not dev._engine.watching:
        dev.step()
    with dev.observing():
        model(x)
    return dev


def check_window(dev: DPAP, layer: str, x: Array, y: Array) -> None:
    found = dev._engine.window.sums[(layer, 0)].sums
    for name, values in sums(x, y).items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-12, atol=1e-12, err_msg=f"{layer} {name}")


def late(fired: Array) -> Array:
    """What a layer reads that is fed one step late."""
    return np.concatenate([np.zeros_like(fired[:1]), fired[:-1]])


def test_what_is_observed_of_lateral_weights() -> None:
    """Pre: the layer's own spikes of the step before, none at the first; post: its spikes."""
    model, (x, _) = network((8,)), batch(42, size=5)
    statistics = copy.deepcopy(model)
    current = statistics.train().norm1(model.fc1(x.flatten(2).flatten(0, 1))).view(STEPS, 5, 8).detach()
    fired = loop(current, model.neuron1.lateral.weight.detach(), model.neuron1.neuron.neuron).numpy()
    assert 0.1 < fired.mean() < 0.9
    dev = watched(model, x, dead=[1, 4], score="bcm")
    fired[..., [1, 4]] = 0
    events = np.abs(x.flatten(2).numpy()).mean(0)
    check_window(dev, "neuron1.lateral.weight", mean_running_trace(late(fired)), mean_running_trace(fired))
    check_window(dev, "fc1.weight", events, mean_running_trace(fired))
    for layer in ("neuron1.lateral.weight", "fc1.weight"):
        rate = dev._engine.window.sums[(layer, 0)].sums["rate_y"]
        np.testing.assert_allclose(rate.numpy(), fired.mean(0).sum(0), rtol=1e-12)


def test_a_unit_is_worth_the_mean_of_what_its_two_layers_say() -> None:
    dev = watched(network((8,)), batch(42)[0], target=None)
    use = dev.preview().use["fc1"].double()
    said = []
    for layer in dev.graph.layers[:2]:
        window = dev._engine.window.sums[(layer.weight, 0)]
        y, xy, xyy = (window.sums[name] / window.samples for name in ("y", "total_y", "total_yy"))
        spine = ((xyy - y * xy).abs() * y).sqrt()
        said.append(8 * spine / spine.sum())
    assert (said[0] - said[1]).abs().max() > 1e-3
    torch.testing.assert_close(use, (said[0] + said[1]) / 2, rtol=1e-9, atol=1e-9)


def test_counts_by_hand() -> None:
    """Lateral weights are read at every step, the first one with nothing to read; a spike is an operation per living
    synapse that it reaches one step later, so those of the last step are none."""
    model = network((8,)).eval()
    graph = graph_of(model)
    assert count_macs(graph) == STEPS * (FEATURES * 8 + 8 * 8 + 8 * CLASSES)
    alive = {"fc1": torch.arange(8) != 3}
    assert count_macs(graph, alive) == STEPS * (FEATURES * 7 + 7 * 7 + 7 * CLASSES)
    assert count_neuron_updates(graph, alive) == 7 * STEPS
    masked, _ = pair(model, graph, {"classifier": torch.ones(CLASSES, dtype=torch.bool), **alive})
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    living = mask & alive["fc1"] & alive["fc1"][:, None]
    x, _ = batch(7)
    masked.neuron1.lateral.weight.data.masked_fill_(~living, 0)
    fired = spikes(masked, x)["neuron1"].detach()
    counted = count_synops(masked, graph, [(x, None)], alive, {"neuron1.lateral.weight": living})
    expected = float((fired[:-1].sum((0, 1)) * living.sum(0)).sum()) / x.shape[1]
    assert fired[-1].sum() > 0 and expected > 0
    assert counted.sops_per_layer["neuron1.lateral"] == pytest.approx(expected, rel=1e-12)
    assert counted.sops_per_layer["fc1"] == pytest.approx(float(x.sum()) * 7 / x.shape[1], rel=1e-12)


def test_a_target_of_operations_counts_what_came_one_step_late() -> None:
    model, (x, _) = network((8,)), batch(42)
    fired = spikes(copy.deepcopy(model).train(), x)["neuron1"].detach()
    arrivals = watched(model, x, target={"sops": 0.5})._engine.window.arrivals
    torch.testing.assert_close(arrivals["neuron1.lateral.weight"], fired[:-1].sum((0, 1)))
    torch.testing.assert_close(arrivals["classifier.weight"], fired.sum((0, 1)))


class Written(nn.Module):
    """A recurrent layer written out as a loop, behind a layer that sees all steps at once."""

    def __init__(
        self, first: Callable[[Tensor], Tensor] = torch.zeros_like, *, bare: bool = False, read_in_step: bool = False
    ) -> None:
        super().__init__()
        self.fc1, self.back, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, CLASSES)
        self.neuron = LIF(3.0, v_threshold=0.4) if bare else StepByStep(LIF(3.0, v_threshold=0.4))
        self.first, self.bare, self.read_in_step = first, bare, read_in_step

    def forward(self, x: Tensor) -> Tensor:
        current = self.fc1(x.flatten(2))
        fired, v, out = self.first(current[0]), None, []
        for now in current:
            fired, v = (self.neuron.step if self.bare else self.neuron)(now + self.back(fired), v)
            out.append(self.out(fired) if self.read_in_step else fired)
        return (torch.stack(out) if self.read_in_step else self.out(torch.stack(out))).mean(0)


def test_a_loop_of_the_user_is_understood_likewise() -> None:
    """Also behind a layer that sees all steps at once: an axis of which call t picks index t is time."""
    graph = graph_of(Written().double())
    assert graph.num_steps == STEPS
    layers = {layer.name: layer for layer in graph.layers}
    steps = {name: (layer.steps, layer.positions) for name, layer in layers.items()}
    assert steps == dict.fromkeys(("fc1", "back", "out"), (STEPS, 1))
    layouts = {name: layer.pre.layout for name, layer in layers.items() if layer.pre}
    assert layouts == {"fc1": "T,B", "back": "call per step", "out": "T,B"}
    assert layers["back"].spike_divisor is not None and layers["back"].pre.nonnegative
    assert layers["fc1"].post == layers["back"].post
    assert [(g.name, g.units, g.protected is None) for g in graph.groups] == [("fc1", 8, True), ("out", CLASSES, False)]


def test_a_neuron_that_nobody_sees() -> None:
    """It is seen where its own step reads it. Where only the next one does, its spikes would be taken for those of the
    step before, and the last ones would be missing."""
    with pytest.raises(DPAPError, match="What fc1 drives is seen one step late, where back reads it") as caught:
        graph_of(Written(bare=True).double())
    assert "StepByStep" in caught.value.fix
    torch.manual_seed(0)
    model = Written(bare=True, read_in_step=True).double()
    model.fc1.bias.data += 0.4
    x, _ = batch(42, size=5)
    fired = loop(model.fc1(x.flatten(2)).detach(), model.back.weight.detach(), model.neuron).numpy()
    assert 0.1 < fired.mean() < 0.9
    dev = watched(model, x, score="bcm")
    check_window(dev, "back.weight", mean_running_trace(late(fired)), mean_running_trace(fired))


@pytest.mark.parametrize("first", [lambda x: torch.zeros(2, 8).to(x), lambda x: x.new_zeros(2, 8)])
def test_a_first_state_of_a_fixed_size_keeps_the_units_and_says_so(first: Callable[[Tensor], Tensor]) -> None:
    """It would not fit the smaller network. What reads it does operations on spikes all the same."""
    graph = graph_of(Written(first).double())
    reason = graph.groups[0].protected
    assert reason is not None and "zeros of a fixed size; zeros_like would shrink" in reason
    assert "test_recurrent.py, line" in reason
    layers = {layer.name: layer for layer in graph.layers}
    assert layers["back"].spike_divisor is not None and (layers["back"].spike_divisor == 1).all()
