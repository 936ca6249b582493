"""Spiking networks of other libraries: SpikingJelly in both step modes, snnTorch in the user's loop; own neurons step
by step. Groups, what is observed, counts, and that masked = compacted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from nets import randomised
from torch import Tensor, nn

from dpap import DPAP, DPAPError, find_groups
from dpap.graph.adapters import channel_tensors, enlist, independent_copy, neuron_info, reset_state
from dpap.graph.export import export
from dpap.graph.group import Graph
from dpap.metrics import count_macs, count_neuron_updates, count_synops
from dpap.neurons import LIF, PLIF
from dpap.pruning.compact import compacted
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Present

pytestmark = pytest.mark.slow

Forward = Callable[[nn.Module, Any], Any] | None


class Own(nn.Module):
    """Our neurons, all steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 12), LIF(v_threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(12, 10), PLIF(channels=10, v_threshold=0.3)
        self.fc3 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))).mean(0)


class OwnLoop(Own):
    """The same, step by step."""

    def forward(self, x: Tensor) -> Tensor:
        v1 = v2 = None
        out = []
        for step in x:
            s1, v1 = self.lif1.step(self.fc1(step), v1)
            s2, v2 = self.lif2.step(self.fc2(s1), v2)
            out.append(self.fc3(s2))
        return torch.stack(out).mean(0)


class Jelly(nn.Module):
    """SpikingJelly's layers on events (T, B, 2, 8, 8), all steps at once or in a loop of the user."""

    def __init__(self, step_mode: str) -> None:
        super().__init__()
        sj = foreign.spikingjelly()
        self.step_mode = step_mode
        self.net = nn.Sequential(
            sj.layer.Conv2d(2, 6, 3, padding=1, bias=False),
            sj.layer.BatchNorm2d(6),
            sj.neuron.LIFNode(v_threshold=0.4),
            sj.layer.AvgPool2d(2),
            sj.layer.Conv2d(6, 8, 3, padding=1),
            sj.neuron.ParametricLIFNode(v_threshold=0.3),
            sj.layer.MaxPool2d(2),
            sj.layer.Flatten(),
            sj.layer.Linear(8 * 4, 10),
            sj.neuron.IFNode(v_reset=None),
            sj.layer.Linear(10, 3),
        )
        sj.functional.set_step_mode(self.net, step_mode)
        self.net[5].w = nn.Parameter(torch.linspace(-1, 1, 8).reshape(8, 1, 1))  # one time constant per channel

    def forward(self, x: Tensor) -> Tensor:
        return jelly_reset(self.net, x).mean(0) if self.step_mode == "m" else jelly_loop(self.net, x)


def sew(blocks: int) -> nn.Module:
    """A residual network: the additions tie the stream of each stage."""
    sj = foreign.spikingjelly()
    made = sj.model.sew_resnet
    net = made.SEWResNet(made.BasicBlock, [blocks] * 4, num_classes=10, cnf="ADD", spiking_neuron=sj.neuron.IFNode)
    sj.functional.set_step_mode(net, "m")
    return net


def fires(x: Tensor) -> Tensor:
    """A spike with a gradient, in the precision of the potential; snnTorch's own answer float32."""
    soft = torch.sigmoid(4 * x)
    return (x > 0).to(x) + (soft - soft.detach())


class TorchMlp(nn.Module):
    """The fully-connected network of snnTorch's tutorials, with learned decay and threshold of each neuron."""

    def __init__(self, num_steps: int = 5) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.num_steps = num_steps
        learned = {"learn_beta": True, "threshold": 0.2 + 0.3 * torch.rand(12), "learn_threshold": True}
        self.fc1, self.lif1 = nn.Linear(6, 12), snn.Leaky(beta=torch.rand(12), spike_grad=fires, **learned)
        self.fc2 = nn.Linear(12, 10)
        self.lif2 = snn.Synaptic(alpha=0.6, beta=torch.rand(10), threshold=0.4, spike_grad=fires)
        self.fc3, self.lif3 = nn.Linear(10, 4), snn.Leaky(beta=0.8, threshold=0.3, spike_grad=fires)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.lif2.init_synaptic()
        mem3 = self.lif3.init_leaky()
        out = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            out.append((spk3, mem3))
        return stacked(out)


class TorchConv(nn.Module):
    """The convolutional network of snnTorch's tutorials: the state lies in the neurons, the loop outside."""

    def __init__(self) -> None:
        super().__init__()
        snn = foreign.snntorch()
        hidden = {"spike_grad": fires, "init_hidden": True}
        self.conv1, self.pool1 = nn.Conv2d(1, 6, 3), nn.MaxPool2d(2)
        self.lif1 = snn.Leaky(beta=torch.rand(6, 1, 1), threshold=0.2, **hidden)
        self.conv2, self.lif2 = nn.Conv2d(6, 8, 2), snn.Lapicque(beta=0.7, threshold=0.2, **hidden)
        self.fc, self.lif3 = nn.Linear(8 * 4, 3), snn.Leaky(beta=0.9, threshold=0.3, output=True, **hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.lif1(self.conv1(x)))
        return self.lif3(self.fc(self.lif2(self.conv2(x)).flatten(1)))


def torch_conv_forward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    foreign.snntorch().utils.reset(model)
    return stacked([model(x) for _ in range(4)])


def stacked(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    spikes, potentials = zip(*steps, strict=True)
    return torch.stack(spikes), torch.stack(potentials)


def jelly_reset(model: nn.Module, x: Tensor) -> Any:
    foreign.spikingjelly().functional.reset_net(model)
    return model(x)


def jelly_loop(model: nn.Module, x: Tensor) -> Any:
    foreign.spikingjelly().functional.reset_net(model)
    return sum(model(x[t]) for t in range(len(x))) / len(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Forward]] = {
    "own step by step": (OwnLoop, (4, 8, 6), None),
    "jelly m": (partial(Jelly, "m"), (4, 8, 2, 8, 8), None),
    "jelly s": (partial(Jelly, "s"), (4, 8, 2, 8, 8), None),
    "snntorch mlp": (TorchMlp, (16, 6), None),
    "snntorch conv": (TorchConv, (8, 1, 8, 8), torch_conv_forward),
    "sew": (partial(sew, blocks=1), (2, 2, 3, 32, 32), jelly_reset),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Forward]:
    """A network whose neurons are busy, with everything away from where it begins, and a batch."""
    make, shape, forward = NETWORKS[name]
    model, x = make().to(dtype), torch.rand(shape, dtype=dtype) * 2
    enliven(model, x, forward)
    return model, x, forward


@torch.no_grad()
def enliven(model: nn.Module, x: Tensor, forward: Forward) -> None:
    """Currents of size one behind every layer, and everything randomised: silence proves nothing."""
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            size = m.weight.flatten(1).norm(dim=1)
            m.weight.mul_(2.5 / size[size > 0].mean())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:  # statistics of the batch, which what is drawn next moves
        m.momentum = 1.0
    answer(model.train(), x, forward)
    statistics = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    randomised(model)
    for m, (mean, var) in zip(norms, statistics, strict=True):
        m.running_mean.mul_(var.sqrt()).add_(mean)
        m.running_var.mul_(var).add_(1e-6)
    reset_state(model.eval())


def answer(model: nn.Module, x: Any, forward: Forward) -> Any:
    return model(x) if forward is None else forward(model, x)


def hooked(model: nn.Module, names: Iterable[str], hook: Callable[..., None], x: Tensor, forward: Forward) -> Any:
    """One pass in which `hook` gets the name, the input and the output of each module, at each call."""

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args, out: hook(name, args[0].detach().clone(), out[0] if isinstance(out, tuple) else out)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        out = answer(model, x, forward)
    for handle in handles:
        handle.remove()
    return out


def spikes(model: nn.Module, x: Tensor, forward: Forward) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """What every neuron emits in each call, and the outputs."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    neurons = [name for name, m in model.named_modules() if neuron_info(m) is not None]
    out = hooked(model, neurons, lambda name, _, emitted: seen[name].append(emitted), x, forward)
    return seen, list(out) if isinstance(out, tuple) else [out]


def random_alive(graph: Graph, share: float) -> dict[str, Tensor]:
    """Who lives if a share of each prunable group dies; every group loses one."""
    alive = {}
    for group in graph.groups:
        alive[group.name] = torch.ones(group.units, dtype=torch.bool)
        if group.protected is None:
            dead = min(max(1, round(share * group.units)), group.units - 1)
            alive[group.name][torch.randperm(group.units)[:dead]] = False
    return alive


@torch.no_grad()
def masked(model: nn.Module, graph: Graph, alive: dict[str, Tensor]) -> nn.Module:
    parameters = dict(model.named_parameters())
    for name, dead in dead_masks(parameters, Present.whole(model, graph), alive, {}).items():
        parameters[name].masked_fill_(dead, 0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_equals_compacted(name: str) -> None:
    model, x, forward = build(name)
    graph = find_groups(model, x, forward=forward)
    assert any(g.protected is None for g in graph.groups)
    alive = random_alive(graph, 0.5 if name.startswith("snn") else 0.3)
    enliven(masked(model, graph, alive), x, forward)  # few living inputs are weak inputs
    small = compacted(model, Present.whole(model, graph), alive)
    large = masked(independent_copy(model), graph, alive)
    (a, out_a), (b, out_b) = spikes(large, x, forward), spikes(small, x, forward)
    group_of = {n.name: n.group for n in graph.neurons}
    assert a.keys() == b.keys()
    for neuron in a:
        living = alive[str(group_of[neuron])]
        for one, other in zip(a[neuron], b[neuron], strict=True):
            axis = next(d for d in range(1, one.dim()) if one.shape[d] == len(living) and d >= one.dim() - 3)
            assert torch.equal(one.index_select(axis, living.nonzero().reshape(-1)), other), f"spikes of {neuron}"
    assert all(sum(float(s.sum()) for s in emitted) > 0 for emitted in a.values()), "a silent neuron proves nothing"
    for one, other in zip(out_a, out_b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(one.abs().max()))
        across = one.std(-2) if one.dim() > 2 else one.std(0)
        assert across.mean() > 1e-3 * one.abs().mean(), "the output hardly depends on the input: nothing is proven"


def owners(graph: Graph) -> dict[str, Any]:
    tensors = lambda leaves: {leaf.tensor for leaf in leaves}  # noqa: E731
    return {g.name: (g.units, g.protected, tensors(g.producers), tensors(g.consumers)) for g in graph.groups}


def norm(name: str) -> set[str]:
    return {f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}


JELLY = {
    "net.0": (6, None, {"net.0.weight"} | norm("net.1"), {"net.4.weight"}),
    "net.4": (8, None, {"net.4.weight", "net.4.bias", "net.5.w"}, {"net.8.weight"}),
    "net.8": (10, None, {"net.8.weight", "net.8.bias"}, {"net.10.weight"}),
    "net.10": (3, "network output", {"net.10.weight", "net.10.bias"}, set()),
}
GROUPS: dict[str, dict[str, Any]] = {
    "jelly m": JELLY,
    "jelly s": JELLY,
    "snntorch mlp": {  # decays and thresholds of each neuron go with their unit; states tie nothing else
        "fc1": (12, None, {"fc1.weight", "fc1.bias", "lif1.beta", "lif1.threshold"}, {"fc2.weight"}),
        "fc2": (10, None, {"fc2.weight", "fc2.bias", "lif2.beta"}, {"fc3.weight"}),
        "fc3": (4, "network output", {"fc3.weight", "fc3.bias"}, set()),
    },
    "snntorch conv": {
        "conv1": (6, None, {"conv1.weight", "conv1.bias", "lif1.beta"}, {"conv2.weight"}),
        "conv2": (8, None, {"conv2.weight", "conv2.bias"}, {"fc.weight"}),
        "fc": (3, "network output", {"fc.weight", "fc.bias"}, set()),
    },
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str) -> None:
    model, x, forward = build(name)
    graph = find_groups(model, x, forward=forward)
    assert owners(graph) == GROUPS[name]
    assert graph.num_steps == (5 if name == "snntorch mlp" else 4)
    sites = {(s.layout, s.constant) for layer in graph.layers for s in (layer.pre, layer.post) if s}
    if "jelly" in name:
        assert sites == {("T,B" if name == "jelly m" else "call per step", False)}
        assert [str(layer.post)[14:] for layer in graph.layers] == ["2", "5", "9", "10"]
    if name == "snntorch mlp":
        unmasked = {p.tensor for g in graph.groups for p in g.producers if not p.masked}
        assert unmasked == {"lif1.beta", "lif1.threshold", "lif2.beta"}


def test_groups_of_sew_resnet18() -> None:
    """In every stage the stream, tied by the additions, and the inner channels of each block."""
    graph = find_groups(sew(blocks=2), torch.rand(2, 1, 3, 64, 64), forward=jelly_reset)
    inner = {f"layer{stage}.{block}.conv1": 32 * 2**stage for stage in range(1, 5) for block in range(2)}
    streams = {"conv1": 64} | {f"layer{stage}.0.conv2": 32 * 2**stage for stage in range(2, 5)}
    assert {g.name: g.units for g in graph.groups} == inner | streams | {"fc": 10}
    assert [g.name for g in graph.groups if g.protected] == ["fc"]
    weights = {t for t in owners(graph)["layer2.0.conv2"][2] if "bn" not in t}
    convs = {f"layer2.{conv}.weight" for conv in ("0.conv2", "1.conv2", "0.downsample.0")}
    assert weights == convs | norm("layer2.0.downsample.1")
    divisors = {float(np.unique(x.spike_divisor)[0]) for x in graph.layers if x.spike_divisor is not None}
    assert divisors == {1.0, 4.0}, "sums of spikes count as spikes; the last pool averages 2 x 2"


def test_containers_of_spikingjelly() -> None:
    """Parts that run step by step between parts that run at once."""
    sj = foreign.spikingjelly()
    model = nn.Sequential(
        sj.layer.MultiStepContainer(sj.layer.Linear(6, 8), sj.neuron.IFNode(v_threshold=0.3)),
        sj.layer.SeqToANNContainer(nn.Linear(8, 10)),
        sj.neuron.LIFNode(step_mode="m", v_threshold=0.1),
        sj.layer.StepModeContainer(True, "m", sj.layer.Linear(10, 7), sj.neuron.LIFNode(v_threshold=0.1)),
        nn.Linear(7, 3),
    ).double()
    x = torch.rand(5, 4, 6, dtype=torch.float64)
    graph = find_groups(model, x, forward=jelly_reset)
    assert [(g.units, g.protected) for g in graph.groups] == [(8, None), (10, None), (7, None), (3, "network output")]
    per_step = (5, "call per step", "call per step")
    sites = [(x.steps, x.pre.layout, x.post.layout) for x in graph.layers if x.pre and x.post]
    assert sites == [per_step, (5, "T*B", "T,B"), per_step, (5, "T,B", "T,B")]
    assert all(x.spike_divisor is not None for x in graph.layers[1:]), "a spike stays a spike"
    assert all(sums["n"] == 4 for sums in observed(model, [x], jelly_reset).values())


def test_the_number_of_steps_changes_no_group_and_no_layer() -> None:
    few, many = (find_groups(TorchMlp(num_steps=t), torch.rand(3, 6)) for t in (2, 7))
    assert [g.to_json() for g in few.groups] == [g.to_json() for g in many.groups]
    assert (few.num_steps, many.num_steps) == (2, 7)
    assert [[x.steps for x in graph.layers] for graph in (few, many)] == [[2] * 3, [7] * 3]
    assert count_macs(few) * 7 == count_macs(many) * 2
    assert count_neuron_updates(many) == 7 * (12 + 10 + 4)
    at_once = {len(export(Own(), torch.rand(t, 2, 6)).graph.nodes) for t in (2, 9)}
    assert len(at_once) == 1


def test_a_loop_that_was_not_handed_over_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    model, x, forward = build("snntorch conv", torch.float32)
    find_groups(model, x, forward=forward)
    assert not [record for record in caplog.records if record.name.startswith("dpap")]
    assert find_groups(model, x).num_steps == 1
    assert "lif1 runs one step per call and is called once in a pass, so T = 1" in caplog.text


@pytest.mark.parametrize(
    ("forms", "shape", "macs", "updates"),
    [
        ((Own, OwnLoop), (4, 3, 6), 4 * (72 + 120 + 40), 4 * 22),
        ((partial(Jelly, "m"), partial(Jelly, "s")), (4, 2, 2, 8, 8), None, 4 * (6 * 64 + 8 * 16 + 10)),
    ],
    ids=["own", "jelly"],
)
def test_the_other_form_counts_the_same(forms: Any, shape: tuple[int, ...], macs: int | None, updates: int) -> None:
    whole, loop = (find_groups(form(), torch.rand(shape)) for form in forms)
    for a, b in zip(whole.groups, loop.groups, strict=True):
        assert [p.to_json() for p in a.producers + a.consumers] == [p.to_json() for p in b.producers + b.consumers]
    assert macs in (None, count_macs(whole)) and count_macs(whole) == count_macs(loop)
    assert count_neuron_updates(whole) == count_neuron_updates(loop) == updates


class Odd(nn.Module):
    """Loops in which it is not clear what a step is; `kind` may be a whole forward pass."""

    def __init__(self, kind: str | Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.kind = kind
        self.a, self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.lif, self.last = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)
        self.relu, self.at_once = nn.ReLU(), LIF()

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.kind, str):
            return self.kind(self, x)
        mem, last, out = self.lif.reset_mem(), self.last.reset_mem(), []
        for step in range(3):
            if self.kind == "restarted" and step == 2:
                mem = self.lif.reset_mem()
            if self.kind == "zeros" and step == 2:
                mem = torch.zeros(len(x), 8)
            spikes, mem = self.lif(self.a(x), mem)
            if self.kind == "shared neuron":
                spikes, mem = self.lif(self.b(spikes), mem)
            if self.kind == "sometimes" and step != 1:
                spikes = self.b(spikes)
            if self.kind == "shared layer":
                spikes = self.b(self.b(spikes))
            if self.kind == "recurrent" and out:
                spikes = spikes + self.b(spikes)
            if self.kind == "shared activation":
                spikes = self.relu(self.relu(self.b(spikes)))
            spikes, last = self.last(self.c(spikes), last)
            out.append(spikes)
        return torch.stack(out)


def once(net: Odd, x: Tensor) -> Tensor:
    """What is the same at all steps passes before the loop."""
    current, mem, out = net.a(x), net.lif.reset_mem(), []
    for _ in range(4):
        spikes, mem = net.lif(current, mem)
        out.append(spikes)
    return net.c(net.b(torch.stack(out))).mean(0)


def twice(net: Odd, x: Tensor) -> Tensor:
    """T = 2 and two calls: of the whole sequence, and of a constant image."""
    current = net.a(net.a(x))
    return net.b(net.b(net.a(net.a(net.at_once(torch.stack([current, current])))))).mean(0)


def two(net: Odd, x: Tensor) -> Tensor:
    """The first step and the second are driven by layers of their own, which the state ties."""
    first, mem = net.lif(net.a(x), net.lif.reset_mem())
    second, mem = net.lif(net.b(x), mem)
    return net.c(first) + net.d(second)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (once, ["a: 1 B", "b: 4 T,B", "c: 4 T,B"]),
        (twice, ["a: 1 B", "a, call 1: 1 B", "a, call 2: 2 T,B", "a, call 3: 2 T,B", "b: 2 T,B", "b, call 1: 2 T,B"]),
        (two, ["a: 1 B", "b: 1 B", "c: 1 B", "d: 1 B"]),
        ("shared layer", [f"{call}: 3 call per step" for call in ("a", "b", "b, call 1", "c")]),
    ],
)
def test_layers_and_their_steps(kind: Any, layers: list[str]) -> None:
    graph = find_groups(Odd(kind), torch.rand(3, 8))
    found = [f"{x.pre}: {x.steps} {x.pre.layout}" for x in graph.layers if x.pre]
    assert found == [f"input of {layer}" for layer in layers]
    if kind is two:
        made, read = {"a.weight", "a.bias", "b.weight", "b.bias"}, {"c.weight", "d.weight"}
        assert owners(graph)["a"] == (8, None, made, read)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shared neuron", "number of time steps is unclear.*lif 6 times, last 3 times"),
        ("restarted", "put back to its beginning within one pass"),
        ("zeros", "put back to its beginning within one pass"),
        ("sometimes", "b is called 2 times in a pass of 3 steps"),
        ("recurrent", "b is called 2 times in a pass of 3 steps"),
        ("shared activation", "calls relu 2 times, and units are seen at 1"),
        ("two sequences", "put back to its beginning within one pass"),
    ],
)
def test_what_is_unclear_is_refused(kind: str, message: str) -> None:
    model, x, forward = Odd(kind), torch.rand(2, 8), None
    if kind == "two sequences":  # two views in one call of forward=: taken for one sequence, T would be twice too long
        model, x, _ = build("jelly s", torch.float32)
        forward = lambda model, x: jelly_loop(model.net, x) + jelly_loop(model.net, x)  # noqa: E731
    with pytest.raises(DPAPError, match=message):
        find_groups(model, x, forward=forward)


def test_neurons_are_recognised() -> None:
    sj, snn = foreign.spikingjelly(), foreign.snntorch()
    mine = type("Mine", (sj.neuron.LIFNode,), {})  # a user's own, derived
    kinds = {
        sj.neuron.IFNode(): (False, 0, True),
        mine(step_mode="m"): (True, 0, True),
        sj.neuron.PSN(4): (True, 0, True),
        sj.neuron.NonSpikingLIFNode(): (True, 0, False),
        snn.Leaky(0.5): (False, 1, True),
        snn.Alpha(0.9, 0.8): (False, 3, True),
        snn.Synaptic(0.9, 0.8, init_hidden=True): (False, 0, True),
        snn.Synaptic(0.9, 0.8, init_hidden=True, output=True): (False, 2, True),
        snn.Leaky(0.5, graded_spikes_factor=2.0): (False, 1, False),
        LIF(): (True, 0, True),
    }
    for module, expected in kinds.items():
        info = neuron_info(module)
        assert info is not None and (info.multi_step, info.states, info.spikes) == expected, module
    for ordinary in (nn.ReLU(), sj.layer.Conv2d(1, 1, 1), sj.surrogate.Sigmoid()):
        assert neuron_info(ordinary) is None


def test_tensors_of_each_channel() -> None:
    sj, snn = foreign.spikingjelly(), foreign.snntorch()
    beta = torch.rand(8)
    flat, image = ((3, 8), 1), ((3, 8, 5, 8), 1)
    assert channel_tensors(snn.Leaky(beta, threshold=torch.rand(1, 8)), *flat) == [("threshold", 1), ("beta", 0)]
    assert channel_tensors(snn.Leaky(beta), *image) == [], "a vector lies along the last axis"
    assert channel_tensors(snn.Leaky(beta.reshape(8, 1, 1)), *image) == [("beta", 0)]
    assert channel_tensors(snn.Leaky(0.5), *flat) == []
    gated = sj.neuron.GatedLIFNode(T=4, inplane=8)
    assert dict(channel_tensors(gated, *image))["conduct"] == 1
    assert dict(channel_tensors(gated, *image))["tau"] == 0
    assert channel_tensors(sj.neuron.PSN(8), *flat) == [], "it weighs steps"
    assert channel_tensors(nn.ReLU(), *flat) == []


def test_neurons_that_are_refused_or_protected() -> None:
    snn, sj = foreign.snntorch(), foreign.spikingjelly()
    for neuron, message in (
        (snn.RLeaky(0.5, linear_features=8), "Leaky, Lapicque, Synaptic, Alpha are known; RLeaky is not"),
        (snn.SLSTM(8, 8), "Leaky, Lapicque, Synaptic, Alpha are known; SLSTM is not"),
        (sj.neuron.MPBNLIFNode(out_features=8), r"MPBNLIFNode has layers of its own \(.*\) between its units"),
    ):
        with pytest.raises(DPAPError, match=message):
            find_groups(nn.Sequential(nn.Linear(4, 8), neuron), torch.rand(2, 4))
    with pytest.warns(UserWarning, match="Inhibition"):
        model = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.5, inhibition=True, init_hidden=True), nn.Linear(8, 2))
    graph = find_groups(model, torch.rand(2, 4))
    assert graph.groups[0].protected == "only the strongest of its units fires (inhibition=True)"


def test_no_state_leaks() -> None:
    """Finding groups and cutting on trial leave the neurons of the user's model as they were, and copies begin anew."""

    def states(model: nn.Module, name: str) -> list[Any]:
        return [getattr(m, name) for m in model.modules() if neuron_info(m) is not None]

    model, x, _ = build("jelly s", torch.float32)
    foreign.spikingjelly().functional.reset_net(model)
    model.net(x[0]).sum()
    before = states(model, "v")
    assert not before[0].is_leaf, "a plain deep copy of this state fails"
    assert states(independent_copy(model), "v") == [0.0] * 3
    developer(model, x)
    assert all(a is b for a, b in zip(states(model, "v"), before, strict=True))

    model, x, forward = build("snntorch conv", torch.float32)
    answer(model, x, forward)
    before = states(model, "mem")
    find_groups(model, x, forward=forward)
    after = states(model, "mem")
    assert all(a is b for a, b in zip(before, after, strict=True)), "utils.reset reaches every neuron ever made"
    small = independent_copy(model)
    assert all(mem.shape == (0,) for mem in states(small, "mem"))
    enlist(small), enlist(small)
    first = answer(small, x, forward)
    for a, b in zip(first, answer(small, x, forward), strict=True):
        assert torch.equal(a, b), "the state of one pass reached the next"
    assert sum(known is small.lif1 for known in foreign.snntorch().SpikingNeuron.instances) == 1


def observed(model: nn.Module, batches: list[Tensor], forward: Forward = None) -> dict[str, Any]:
    """The sums of one window, by weight: batches in blocks of their own."""
    dev = developer(model, batches[0], forward)
    for x in batches:
        with dev.observing():
            answer(model, x, forward)
    dev.close()
    return sums_of(dev)


def developer(model: nn.Module, x: Tensor, forward: Forward = None, **options: Any) -> DPAP:
    settings = {"total_steps": 1000, "start": 0.0, "stop": 0.5, "development_steps": 10, "observe_every": 1}
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    dev = DPAP(model, x, optimizer=optimizer, forward=forward, **(settings | options))
    model.training = True  # what evaluates is not observed; the norms stay as they are
    return dev


def sums_of(dev: DPAP) -> dict[str, Any]:
    return {weight: {"n": s.samples, **s.sums} for (weight, call), s in dev._engine.window.sums.items() if not call}


def agree(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for weight, sums in expected.items():
        for name, value in sums.items():
            torch.testing.assert_close(found[weight][name], value, rtol=1e-9, atol=1e-9, msg=f"{weight} {name}")


@pytest.mark.parametrize(
    ("name", "at_once", "hidden"),
    [("own step by step", Own, "fc2.weight"), ("jelly s", partial(Jelly, "m"), "net.4.weight")],
)
def test_a_loop_is_observed_as_all_steps_at_once(name: str, at_once: Callable[[], nn.Module], hidden: str) -> None:
    loop, x, _ = build(name)
    whole = at_once().double().eval()
    whole.load_state_dict(loop.state_dict())
    batches = [torch.rand(4, b, *x.shape[2:], dtype=torch.float64) * 2 for b in (5, 3)]
    for x in batches:
        torch.testing.assert_close(loop(x), whole(x), rtol=1e-12, atol=1e-12)
    reset_state(loop)
    expected = observed(whole, batches)
    assert float(expected[hidden]["y"].sum()) > 0 and expected[hidden]["n"] == 8
    agree(observed(loop, batches), expected)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("snntorch mlp", {"fc1": "lif1", "fc2": "lif2", "fc3": "lif3"}),
        ("snntorch conv", {"conv1": "lif1", "conv2": "lif2", "fc": "lif3"}),
    ],
)
def test_observed_against_plain_loops(name: str, layers: dict[str, str]) -> None:
    """Pre and post of every step seen by hooks of the test's own; traces and sums by loops over steps and samples."""
    model, x, forward = build(name)
    seen: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def keep(name: str, given: Tensor, out: Tensor) -> None:
        for side, t in (("in", given), ("out", out)):
            seen[(name, side)].append(t.abs().flatten(2).mean(2) if t.dim() > 2 else t.abs())

    hooked(model, {*layers, *layers.values()}, keep, x, forward)
    found = observed(model, [x], forward)
    for number, (layer, neuron) in enumerate(layers.items()):
        pre, y = seen[(layer, "in")], slow_trace(seen[(neuron, "out")])
        arriving = sum(pre) / len(pre) if number == 0 else slow_trace(pre)
        pairs = torch.zeros(y.shape[1], arriving.shape[1], dtype=torch.float64)
        for sample in range(len(y)):
            pairs += torch.outer(y[sample], arriving[sample])
        sums = found[f"{layer}.weight"]
        assert sums["n"] == len(x)
        torch.testing.assert_close(sums["y"], y.sum(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sums["total_y"], pairs.sum(1), rtol=1e-9, atol=1e-12)
        if "xy" in sums:
            torch.testing.assert_close(sums["xy"], pairs, rtol=1e-9, atol=1e-12)
        assert float(y.sum()) > 0


def slow_trace(steps: list[Tensor]) -> Tensor:
    """Mean over steps of S^t = S^(t-1) / 2 + o^t."""
    running, total = torch.zeros_like(steps[0]), torch.zeros_like(steps[0])
    for step in steps:
        running = running / 2 + step
        total = total + running
    return total / len(steps)


def test_passes_through_a_loop() -> None:
    """Two calls in one block, as of two views, are two passes; another number of steps is refused."""
    model, x, _ = build("snntorch mlp")
    views = [x, torch.rand_like(x)]
    expected = observed(model, views)
    dev = developer(model, x)
    with dev.observing():
        for view in views:
            model(view)
    agree(sums_of(dev), expected)
    assert expected["fc1.weight"]["n"] == 2 * len(x)
    model.num_steps = 10
    with pytest.raises(DPAPError, match="10 time steps arrive; the example input had 5"), dev.observing():
        model(x)


@pytest.mark.parametrize("name", ["snntorch conv", "jelly m", "jelly s"])
def test_synaptic_operations_by_brute_force(name: str) -> None:
    """One by one: every spike that reaches a living synapse; an average of four counts the spikes that made it."""
    model, x, forward = build(name)
    graph = find_groups(model, x, forward=forward)
    alive = random_alive(graph, 0.4)
    masked(model, graph, alive)
    layers = {x.name: x for x in graph.layers if x.spike_divisor is not None}
    assert len(layers) == len(graph.layers) - 1, "only the first layer reads real values"
    total: Counter[str] = Counter()

    def count(name: str, given: Tensor, out: Tensor) -> None:
        layer, module = layers[name], model.get_submodule(name)
        inputs = given.flatten(0, 1) if layer.pre is not None and layer.pre.layout == "T,B" else given
        arriving = inputs * torch.from_numpy(np.array(layer.spike_divisor))
        assert torch.equal(arriving, arriving.round()), "whole spikes"
        owner = alive[layer.in_group[0]][torch.from_numpy(layer.in_unit)]
        rows = alive[layer.out_group][torch.from_numpy(layer.out_units)]
        living = (rows[:, None] & owner[None, :]).double()
        if isinstance(module, nn.Conv2d):
            ones = living[:, :, None, None].expand(*module.weight.shape).contiguous()
            total[name] += int(nn.functional.conv2d(arriving, ones, None, module.stride, module.padding).sum())
        else:
            total[name] += int((arriving @ living.T).sum())

    hooked(model, layers, count, x, forward)
    reset_state(model)
    found = count_synops(model, graph, [x], alive, forward=forward)
    assert found.samples == 8
    assert {n: round(v * 8) for n, v in found.sops_per_layer.items()} == dict(total)
    assert min(total.values()) > 0
