"""Spiking networks of other libraries: SpikingJelly in both step modes, snnTorch in the user's loop; own neurons step
by step. Groups, what is observed, counts, and that masked = compacted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
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
from dpap.graph.steps import Steps
from dpap.metrics import count_macs, count_neuron_updates, count_synops
from dpap.neurons import LIF, PLIF
from dpap.pruning.compact import compacted
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Present

pytestmark = pytest.mark.slow

Forward = Callable[[nn.Module, Any], Any]


# networks -------------------------------------------------------------------------------------------------------------


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


def jelly_net(step_mode: str) -> nn.Module:
    """SpikingJelly's layers and neurons: convolution, norm, pools, a flatten."""
    sj = foreign.spikingjelly()
    net = nn.Sequential(
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
    sj.functional.set_step_mode(net, step_mode)
    net[5].w = nn.Parameter(torch.linspace(-1, 1, 8).reshape(8, 1, 1))  # one time constant per channel
    return net


class Jelly(nn.Module):
    """Events (T, B, 2, 8, 8), all steps at once or in a loop of the user."""

    def __init__(self, step_mode: str) -> None:
        super().__init__()
        self.step_mode, self.net = step_mode, jelly_net(step_mode)

    def forward(self, x: Tensor) -> Tensor:
        foreign.spikingjelly().functional.reset_net(self.net)
        if self.step_mode == "m":
            return self.net(x).mean(0)
        return sum(self.net(x[t]) for t in range(len(x))) / len(x)


def fires(x: Tensor) -> Tensor:
    """A spike with a gradient, in the precision of the potential; snnTorch's own answer float32."""
    soft = torch.sigmoid(4 * x)
    return (x > 0).to(x) + (soft - soft.detach())


class TorchMlp(nn.Module):
    """The fully-connected network of snnTorch's tutorials, with learned decay and threshold of each neuron."""

    def __init__(self, num_steps: int = 5, hidden: int = 12) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(6, hidden)
        self.lif1 = snn.Leaky(
            beta=torch.rand(hidden),
            learn_beta=True,
            threshold=0.2 + 0.3 * torch.rand(hidden),
            learn_threshold=True,
            spike_grad=fires,
        )
        self.fc2 = nn.Linear(hidden, 10)
        self.lif2 = snn.Synaptic(alpha=0.6, beta=torch.rand(10), threshold=0.4, spike_grad=fires)
        self.fc3 = nn.Linear(10, 4)
        self.lif3 = snn.Leaky(beta=0.8, threshold=0.3, spike_grad=fires)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.lif2.init_synaptic()
        mem3 = self.lif3.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


class TorchConv(nn.Module):
    """The convolutional network of snnTorch's tutorials: the state lies in the neurons, the loop outside."""

    def __init__(self) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.lif1 = snn.Leaky(beta=torch.rand(6, 1, 1), threshold=0.2, spike_grad=fires, init_hidden=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 2)
        self.lif2 = snn.Lapicque(beta=0.7, threshold=0.2, spike_grad=fires, init_hidden=True)
        self.fc = nn.Linear(8 * 4, 3)
        self.lif3 = snn.Leaky(beta=0.9, threshold=0.3, spike_grad=fires, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.lif1(self.conv1(x)))
        spikes, mem = self.lif3(self.fc(self.lif2(self.conv2(x)).flatten(1)))
        return spikes, mem


def torch_conv_forward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    foreign.snntorch().utils.reset(model)
    spk_rec, mem_rec = [], []
    for _ in range(4):
        spk, mem = model(x)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def sew(step_mode: str, blocks: int = 2) -> nn.Module:
    sj = foreign.spikingjelly()
    made = sj.model.sew_resnet
    net = made.SEWResNet(made.BasicBlock, [blocks] * 4, num_classes=10, cnf="ADD", spiking_neuron=sj.neuron.IFNode)
    sj.functional.set_step_mode(net, step_mode)
    return net


def vgg(widths: tuple[int, ...] = (32, 48, 64, 64, 64, 64, 64, 64), hidden: int = 160) -> nn.Module:
    """spiking_vgg11_bn, narrow: its classes take the widths of the convolutions but not those behind them."""
    sj = foreign.spikingjelly()
    made = sj.model.spiking_vgg
    channels = iter(widths)
    layers = [v if v == "M" else next(channels) for v in made.cfgs["A"]]

    class Narrow(sj.layer.Linear):  # type: ignore[name-defined, misc]
        def __init__(self, i: int, o: int) -> None:
            super().__init__(widths[-1] * 49 if i > 4096 else hidden, hidden if o == 4096 else o)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sj.layer, "Linear", Narrow)
        lif = {"spiking_neuron": sj.neuron.LIFNode, "v_threshold": 0.3}
        net = made.SpikingVGG(layers, batch_norm=True, num_classes=10, **lif)
    sj.functional.set_step_mode(net, "m")
    return net


def jelly_reset(model: nn.Module, x: Tensor) -> Any:
    foreign.spikingjelly().functional.reset_net(model)
    return model(x)


def jelly_loop(model: nn.Module, x: Tensor) -> Any:
    foreign.spikingjelly().functional.reset_net(model)
    return sum(model(x[t]) for t in range(len(x))) / len(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Forward | None]] = {
    "own step by step": (OwnLoop, (4, 8, 6), None),
    "jelly m": (lambda: Jelly("m"), (4, 8, 2, 8, 8), None),
    "jelly s": (lambda: Jelly("s"), (4, 8, 2, 8, 8), None),
    "snntorch mlp": (TorchMlp, (16, 6), None),
    "snntorch conv": (TorchConv, (8, 1, 8, 8), torch_conv_forward),
    "vgg11": (vgg, (2, 2, 3, 64, 64), jelly_reset),
    "sew m": (lambda: sew("m"), (2, 2, 3, 64, 64), jelly_reset),
    "sew s": (lambda: sew("s"), (2, 2, 3, 64, 64), jelly_loop),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Forward | None]:
    """A network whose neurons are busy, with everything away from where it begins, and a batch."""
    make, shape, forward = NETWORKS[name]
    model, x = make().to(dtype), torch.rand(shape, dtype=dtype) * 2
    enliven(model, x, forward)
    return model, x, forward


@torch.no_grad()
def enliven(model: nn.Module, x: Tensor, forward: Forward | None) -> None:
    """Currents of size one behind every layer, and everything randomised: silence proves nothing."""
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            size = m.weight.flatten(1).norm(dim=1)
            m.weight.mul_(2.5 / size[size > 0].mean())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:  # statistics of the batch, which what is drawn next moves
        m.momentum = 1.0
    (forward or _plain)(model.train(), x)
    statistics = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    randomised(model)
    for m, (mean, var) in zip(norms, statistics, strict=True):
        m.running_mean.mul_(var.sqrt()).add_(mean)
        m.running_var.mul_(var).add_(1e-6)
    reset_state(model.eval())


def _plain(model: nn.Module, x: Any) -> Any:
    return model(x)


# masked = compacted ---------------------------------------------------------------------------------------------------


def spikes(model: nn.Module, x: Tensor, forward: Forward | None) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """What every neuron emits in each call, and the outputs."""
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, out: seen[name].append(out[0] if isinstance(out, tuple) else out)

    hooks = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if neuron_info(m) is not None]
    with torch.no_grad():
        out = (forward or _plain)(model, x)
    for hook in hooks:
        hook.remove()
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


def masked_and_small(model: nn.Module, graph: Graph, alive: dict[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    small = compacted(model, Present.whole(model, graph), alive)
    return masked(independent_copy(model), graph, alive), small


@torch.no_grad()
def masked(model: nn.Module, graph: Graph, alive: dict[str, Tensor]) -> nn.Module:
    parameters = dict(model.named_parameters())
    for name, dead in dead_masks(parameters, Present.whole(model, graph), alive, {}).items():
        parameters[name].masked_fill_(dead, 0)
    return model


def check_equal(name: str, share: float) -> None:
    model, x, forward = build(name)
    graph = find_groups(model, x, forward=forward)
    assert any(g.protected is None for g in graph.groups)
    alive = random_alive(graph, share)
    enliven(masked(model, graph, alive), x, forward)  # few living inputs are weak inputs
    large, small = masked_and_small(model, graph, alive)
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


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_equals_compacted(name: str) -> None:
    check_equal(name, 0.5 if name.startswith("snn") else 0.3)


# groups ---------------------------------------------------------------------------------------------------------------


def owners(graph: Graph) -> dict[str, tuple[int, str | None, set[str], set[str]]]:
    return {
        g.name: (g.units, g.protected, {p.tensor for p in g.producers}, {p.tensor for p in g.consumers})
        for g in graph.groups
    }


def norm(name: str) -> set[str]:
    return {f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}


def test_groups_of_snntorch() -> None:
    """Decays and thresholds of each neuron go with their unit; states tie nothing else."""
    graph = find_groups(TorchMlp(), torch.rand(3, 6))
    assert owners(graph) == {
        "fc1": (12, None, {"fc1.weight", "fc1.bias", "lif1.beta", "lif1.threshold"}, {"fc2.weight"}),
        "fc2": (10, None, {"fc2.weight", "fc2.bias", "lif2.beta"}, {"fc3.weight"}),
        "fc3": (4, "network output", {"fc3.weight", "fc3.bias"}, set()),
    }
    unmasked = {p.tensor for g in graph.groups for p in g.producers if not p.masked}
    assert unmasked == {"lif1.beta", "lif1.threshold", "lif2.beta"}
    model, x, forward = build("snntorch conv")
    outside = find_groups(model, x, forward=forward)
    assert owners(outside) == {
        "conv1": (6, None, {"conv1.weight", "conv1.bias", "lif1.beta"}, {"conv2.weight"}),
        "conv2": (8, None, {"conv2.weight", "conv2.bias"}, {"fc.weight"}),
        "fc": (3, "network output", {"fc.weight", "fc.bias"}, set()),
    }
    assert outside.num_steps == 4


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_groups_of_spikingjelly(step_mode: str) -> None:
    graph = find_groups(Jelly(step_mode), torch.rand(4, 2, 2, 8, 8))
    assert owners(graph) == {
        "net.0": (6, None, {"net.0.weight"} | norm("net.1"), {"net.4.weight"}),
        "net.4": (8, None, {"net.4.weight", "net.4.bias", "net.5.w"}, {"net.8.weight"}),
        "net.8": (10, None, {"net.8.weight", "net.8.bias"}, {"net.10.weight"}),
        "net.10": (3, "network output", {"net.10.weight", "net.10.bias"}, set()),
    }
    layout = {"s": "call per step", "m": "T,B"}[step_mode]
    assert [(s.layout, s.constant) for x in graph.layers for s in (x.pre, x.post) if s] == [(layout, False)] * 8
    assert [str(x.post) for x in graph.layers] == [
        "output of net.2",
        "output of net.5",
        "output of net.9",
        "output of net.10",
    ]


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_groups_of_sew_resnet18(step_mode: str) -> None:
    """In every stage the stream, tied by the additions, and the inner channels of each block."""
    model = sew(step_mode)
    graph = find_groups(model, torch.rand(2, 1, 3, 64, 64), forward=jelly_loop if step_mode == "s" else jelly_reset)
    inner = {f"layer{stage}.{block}.conv1": 32 * 2**stage for stage in range(1, 5) for block in range(2)}
    streams = {"conv1": 64} | {f"layer{stage}.0.conv2": 32 * 2**stage for stage in range(2, 5)}
    assert {g.name: g.units for g in graph.groups} == inner | streams | {"fc": 10}
    assert [g.name for g in graph.groups if g.protected] == ["fc"]
    weights = {t for t in owners(graph)["layer2.0.conv2"][2] if "bn" not in t}
    assert weights == {"layer2.0.conv2.weight", "layer2.1.conv2.weight", "layer2.0.downsample.0.weight"} | norm(
        "layer2.0.downsample.1"
    )
    assert graph.num_steps == 2
    divisors = {float(np.unique(x.spike_divisor)[0]) for x in graph.layers if x.spike_divisor is not None}
    assert divisors == {1.0, 4.0}, "sums of spikes count as spikes; the last pool averages 2 x 2"


def test_a_loop_makes_no_more_groups_and_no_more_layers() -> None:
    few, many = (find_groups(TorchMlp(num_steps=t), torch.rand(3, 6)) for t in (2, 7))
    assert [g.to_json() for g in few.groups] == [g.to_json() for g in many.groups]
    assert len(few.layers) == len(many.layers) == 3
    assert (few.num_steps, many.num_steps) == (2, 7)
    assert [x.steps for x in many.layers] == [7, 7, 7], "a layer inside the loop runs at every step"
    assert count_macs(few) * 7 == count_macs(many) * 2
    assert count_neuron_updates(many) == 7 * (12 + 10 + 4)


def test_at_once_the_graph_does_not_depend_on_the_number_of_steps() -> None:
    sizes = {len(export(model, torch.rand(t, 2, 6)).graph.nodes) for t in (2, 9) for model in [Own()]}
    assert len(sizes) == 1


def test_containers_of_spikingjelly() -> None:
    """Parts that run step by step between parts that run at once."""
    sj = foreign.spikingjelly()

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = sj.layer.MultiStepContainer(sj.layer.Linear(6, 8), sj.neuron.IFNode(v_threshold=0.3))
            outer = sj.layer.SeqToANNContainer(nn.Linear(8, 10))
            last = sj.layer.StepModeContainer(True, "m", sj.layer.Linear(10, 7), sj.neuron.LIFNode(v_threshold=0.1))
            self.net = nn.Sequential(inner, outer, sj.neuron.LIFNode(step_mode="m", v_threshold=0.1), last)
            self.head = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            sj.functional.reset_net(self)
            return self.head(self.net(x)).mean(0)

    model = Mixed().double()
    x = torch.rand(5, 4, 6, dtype=torch.float64)
    graph = find_groups(model, x)
    assert [(g.units, g.protected) for g in graph.groups] == [(8, None), (10, None), (7, None), (3, "network output")]
    assert [(x.steps, x.pre.layout, x.post.layout) for x in graph.layers if x.pre and x.post] == [
        (5, "call per step", "call per step"),
        (5, "T*B", "T,B"),
        (5, "call per step", "call per step"),
        (5, "T,B", "T,B"),
    ]
    assert all(x.spike_divisor is not None for x in graph.layers[1:]), "a spike stays a spike"
    assert all(sums["n"] == 4 for sums in observed(model, [x]).values())


def test_a_layer_that_folds_time_is_seen_as_its_module_is_called() -> None:
    """SpikingJelly's layers take (T, B, ...) and fold it inside: hooks see the unfolded tensor on both sides."""
    sj = foreign.spikingjelly()
    model = nn.Sequential(sj.layer.Conv2d(1, 4, 3), sj.neuron.IFNode(v_threshold=0.1), sj.layer.Conv2d(4, 3, 1))
    sj.functional.set_step_mode(model, "m")
    x = torch.rand(2, 5, 1, 6, 6, dtype=torch.float64)
    graph = find_groups(model.double(), x)
    last = graph.layers[-1]
    assert last.pre is not None
    assert last.post is not None
    assert [(s.module, s.layout, s.axis) for s in (last.pre, last.post)] == [("2", "T,B", 2), ("2", "T,B", 2)]
    foreign.spikingjelly().functional.reset_net(model)
    assert observed(model, [x])["0.weight"]["n"] == 5


def test_a_loop_that_was_not_handed_over_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    model, x, forward = build("snntorch conv", torch.float32)
    assert find_groups(model, x).num_steps == 1
    assert "lif1 runs one step per call and is called once in a pass, so T = 1" in caplog.text
    caplog.clear()
    find_groups(model, x, forward=forward)
    assert not [record for record in caplog.records if record.name.startswith("dpap")]


def test_a_constant_input_before_the_loop_passes_once() -> None:
    class Once(TorchMlp):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            current, mem, out = self.fc1(x), self.lif1.reset_mem(), []
            for _ in range(4):
                spk, mem = self.lif1(current, mem)
                out.append(spk)
            spk = torch.stack(out)
            return self.fc3(self.fc2(spk)).mean(0), mem

    model = Once()
    graph = find_groups(model, torch.rand(3, 6))
    assert [(x.name, x.steps) for x in graph.layers] == [("fc1", 1), ("fc2", 4), ("fc3", 4)]
    assert [x.pre.layout for x in graph.layers if x.pre] == ["B", "T,B", "T,B"]
    assert graph.layers[0].post is not None and graph.layers[0].post.layout == "call per step"
    assert count_macs(graph) == 6 * 12 + 4 * (12 * 10 + 10 * 4)


def test_the_other_form_counts_the_same() -> None:
    x = torch.rand(4, 3, 6)
    whole, loop = find_groups(Own(), x), find_groups(OwnLoop(), x)
    assert [g.name for g in whole.groups] == [g.name for g in loop.groups]
    for a, b in zip(whole.groups, loop.groups, strict=True):
        assert [p.to_json() for p in a.producers + a.consumers] == [p.to_json() for p in b.producers + b.consumers]
    assert count_macs(whole) == count_macs(loop) == 4 * (72 + 120 + 40)
    assert count_neuron_updates(whole) == count_neuron_updates(loop) == 4 * 22
    events = torch.rand(4, 2, 2, 8, 8)
    jelly = [find_groups(Jelly(mode), events) for mode in "ms"]
    assert count_macs(jelly[0]) == count_macs(jelly[1])
    assert count_neuron_updates(jelly[0]) == count_neuron_updates(jelly[1]) == 4 * (6 * 64 + 8 * 16 + 10)


# what is a step -------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Loops in which it is not clear what a step is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.lif = snn.Leaky(beta=0.5)
        self.last = snn.Leaky(beta=0.5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        mem, last = self.lif.reset_mem(), self.last.reset_mem()
        out = []
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


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shared neuron", "number of time steps is unclear.*lif 6 times, last 3 times"),
        ("restarted", "put back to its beginning within one pass"),
        ("zeros", "put back to its beginning within one pass"),
        ("sometimes", "b is called 2 times in a pass of 3 steps"),
        ("recurrent", "b is called 2 times in a pass of 3 steps"),
        ("shared activation", "calls relu 2 times, and units are seen at 1"),
    ],
)
def test_what_is_unclear_is_refused(kind: str, message: str) -> None:
    with pytest.raises(DPAPError, match=message):
        find_groups(Odd(kind), torch.rand(2, 6))


def test_two_sequences_in_one_pass_are_refused() -> None:
    """Two views in one call of forward=: were they taken for one sequence, T would be twice too long."""
    net, x = jelly_net("s"), torch.rand(4, 2, 2, 8, 8)

    def reset_behind(model: nn.Module, x: Tensor) -> Any:
        out = sum(model(step) for step in x)
        foreign.spikingjelly().functional.reset_net(model)
        return out

    assert find_groups(net, x, forward=reset_behind).num_steps == 4
    with pytest.raises(DPAPError, match="put back to its beginning within one pass"):
        find_groups(net, x, forward=lambda model, x: jelly_loop(model, x) + jelly_loop(model, x))


def test_a_shared_layer_in_a_loop_is_two_layers_of_three_steps() -> None:
    graph = find_groups(Odd("shared layer"), torch.rand(2, 6))
    assert [(x.name, x.call, x.steps) for x in graph.layers] == [("a", 0, 3), ("b", 0, 3), ("b", 1, 3), ("c", 0, 3)]
    assert [(str(x.pre), x.pre.layout) for x in graph.layers if x.pre][1:3] == [
        ("input of b", "call per step"),
        ("input of b, call 1", "call per step"),
    ]


def test_a_shared_module_called_as_often_as_there_are_steps_is_not_the_steps() -> None:
    """T = 2 and two calls: of the whole sequence, and of a constant image."""
    sj = foreign.spikingjelly()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lif = nn.Linear(6, 6), nn.Linear(6, 2), sj.neuron.IFNode(step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            current = self.a(self.a(x))
            spikes = self.lif(torch.stack([current, current]))
            return self.b(self.b(self.a(self.a(spikes))) @ torch.ones(2, 6)).mean(0)

    model = Twice()
    graph = find_groups(model, torch.rand(3, 6), unknown="protect")
    assert [(x.name, x.call, x.steps) for x in graph.layers] == [
        ("a", 0, 1),
        ("a", 1, 1),
        ("a", 2, 2),
        ("a", 3, 2),
        ("b", 0, 2),
        ("b", 1, 2),
    ]


def test_recurrent_connections_of_the_user() -> None:
    """What a layer reads is of the step before; it still runs once per step."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.back, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.lif = foreign.snntorch().Leaky(beta=0.5)

        def forward(self, x: Tensor) -> Tensor:
            mem, spikes, out = self.lif.reset_mem(), None, []
            for step in x:
                current = self.a(step)
                before = torch.zeros_like(current) if spikes is None else spikes
                spikes, mem = self.lif(current + self.back(before), mem)
                out.append(self.c(spikes))
            return torch.stack(out).mean(0)

    model = Recurrent()
    graph = find_groups(model, torch.rand(4, 3, 6))
    assert [(x.name, x.steps) for x in graph.layers] == [("a", 4), ("back", 4), ("c", 4)]
    made = {"a.weight", "a.bias", "back.weight", "back.bias"}
    assert owners(graph)["a"] == (8, None, made, {"back.weight", "c.weight"})
    DPAP(model, torch.rand(4, 3, 6), optimizer=torch.optim.SGD(model.parameters(), 0.1), total_steps=20)


def test_a_state_ties_what_feeds_it() -> None:
    """The first step and the second are driven by layers of their own."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
            self.c, self.d = nn.Linear(8, 2), nn.Linear(8, 2)
            self.lif = foreign.snntorch().Leaky(beta=0.5)

        def forward(self, x: Tensor) -> Tensor:
            first, mem = self.lif(self.a(x), self.lif.reset_mem())
            second, mem = self.lif(self.b(x), mem)
            return self.c(first) + self.d(second)

    graph = find_groups(Two(), torch.rand(3, 6))
    assert owners(graph)["a"] == (8, None, {"a.weight", "a.bias", "b.weight", "b.bias"}, {"c.weight", "d.weight"})
    assert [(x.name, x.steps) for x in graph.layers] == [("a", 1), ("b", 1), ("c", 1), ("d", 1)]


def test_steps_by_hand() -> None:
    """A node goes with the step that it feeds, else with the step that it is made of."""
    g = torch.fx.Graph()
    x = g.placeholder("x")
    first = [g.call_function(torch.relu, (x,)) for _ in range(2)]
    neuron = [g.call_function(torch.sigmoid, (node,)) for node in first]
    once = g.call_function(torch.relu, (x,))
    last = [g.call_function(torch.add, (node, once)) for node in neuron]
    g.output(tuple(last))
    steps = Steps.of(g.nodes, 2, dict(zip(neuron, range(2), strict=True)), (), {"f": first, "l": last, "o": [once]})
    assert [steps.per_step(m) for m in ("f", "l", "o", "unknown")] == [1, 1, 0, 0]
    split = [g.call_function(torch.neg, (node,)) for node in first]
    picked = Steps.of(g.nodes, 2, dict(zip(split, range(2), strict=True)), split, {"f": first, "s": split})
    assert picked.per_step("f") == 0, "what one step is picked out of holds all steps"
    both = Steps(2, steps.needs, steps.needed, {"m": [*first, once]})
    with pytest.raises(DPAPError, match="m is called 3 times in a pass of 2 steps"):
        both.per_step("m")


# neurons --------------------------------------------------------------------------------------------------------------


def test_neurons_are_recognised() -> None:
    sj, snn = foreign.spikingjelly(), foreign.snntorch()

    class Mine(sj.neuron.LIFNode):  # type: ignore[name-defined, misc]
        """A user's own, derived."""

    modes = {
        sj.neuron.IFNode(): (False, 0, True),
        Mine(step_mode="m"): (True, 0, True),
        sj.neuron.PSN(4): (True, 0, True),
        sj.neuron.NonSpikingLIFNode(): (True, 0, False),
        snn.Leaky(0.5): (False, 1, True),
        snn.Alpha(0.9, 0.8): (False, 3, True),
        snn.Synaptic(0.9, 0.8, init_hidden=True): (False, 0, True),
        snn.Synaptic(0.9, 0.8, init_hidden=True, output=True): (False, 2, True),
        snn.Leaky(0.5, graded_spikes_factor=2.0): (False, 1, False),
        LIF(): (True, 0, True),
    }
    for module, expected in modes.items():
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
    model, x, _ = build("jelly s", torch.float32)
    foreign.spikingjelly().functional.reset_net(model)
    model.net(x[0]).sum()
    neurons = [m for m in model.modules() if neuron_info(m) is not None]
    before = [m.v for m in neurons]
    assert not before[0].is_leaf, "a plain deep copy of this state fails"
    copied = independent_copy(model)
    assert [m.v for m in copied.modules() if neuron_info(m) is not None] == [0.0] * 3
    DPAP(model, x, optimizer=torch.optim.SGD(model.parameters(), 0.1), total_steps=20)
    assert all(m.v is v for m, v in zip(neurons, before, strict=True))

    torch_model, x, forward = build("snntorch conv", torch.float32)
    assert forward is not None
    forward(torch_model, x)
    before = [m.mem for m in torch_model.modules() if neuron_info(m) is not None]
    find_groups(torch_model, x, forward=forward)
    after = [m.mem for m in torch_model.modules() if neuron_info(m) is not None]
    assert all(a is b for a, b in zip(before, after, strict=True)), "utils.reset reaches every neuron ever made"
    assert all(m.shape == (0,) for m in (c.mem for c in independent_copy(torch_model).modules() if neuron_info(c)))


def test_a_reset_of_all_neurons_reaches_those_of_a_copy() -> None:
    model, x, forward = build("snntorch conv", torch.float32)
    assert forward is not None
    small = independent_copy(model)
    enlist(small), enlist(small)
    first = forward(small, x)
    for a, b in zip(first, forward(small, x), strict=True):
        assert torch.equal(a, b), "the state of one pass reached the next"
    instances = foreign.snntorch().SpikingNeuron.instances
    assert sum(known is small.lif1 for known in instances) == 1


# what is observed -----------------------------------------------------------------------------------------------------


def observed(model: nn.Module, batches: list[Tensor], forward: Forward | None = None) -> dict[str, dict[str, Any]]:
    """The sums of one window, by weight."""
    dev = DPAP(
        model,
        batches[0],
        optimizer=torch.optim.SGD(model.parameters(), 0.0),
        total_steps=1000,
        start=0.0,
        stop=0.5,
        development_steps=10,
        observe_every=1,
        forward=forward,
    )
    model.training = True  # what evaluates is not observed; the norms stay as they are
    for x in batches:
        with dev.observing():
            (forward or _plain)(model, x)
    dev.close()
    return {weight: {"n": s.samples, **s.sums} for (weight, call), s in dev._engine.window.sums.items() if not call}


def agree(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert found.keys() == expected.keys()
    for weight, sums in expected.items():
        for name, value in sums.items():
            torch.testing.assert_close(found[weight][name], value, rtol=1e-9, atol=1e-9, msg=f"{weight} {name}")


def test_own_neurons_step_by_step_are_observed_as_at_once() -> None:
    loop, _, _ = build("own step by step")
    whole = Own().double()
    whole.load_state_dict(loop.state_dict())
    batches = [torch.rand(4, b, 6, dtype=torch.float64) * 2 for b in (5, 3)]
    for x in batches:
        torch.testing.assert_close(loop(x), whole(x), rtol=1e-12, atol=1e-12)
    expected = observed(whole, batches)
    assert float(expected["fc2.weight"]["y"].sum()) > 0
    agree(observed(loop, batches), expected)


def test_spikingjelly_in_a_loop_is_observed_as_at_once() -> None:
    loop, _, _ = build("jelly s")
    whole = Jelly("m").double()
    whole.load_state_dict(loop.state_dict())
    batches = [torch.rand(4, b, 2, 8, 8, dtype=torch.float64) * 2 for b in (5, 3)]
    expected = observed(whole.eval(), batches)
    assert float(expected["net.4.weight"]["y"].sum()) > 0
    agree(observed(loop, batches), expected)


@pytest.mark.parametrize("name", ["snntorch mlp", "snntorch conv", "jelly s"])
def test_observed_against_plain_loops(name: str) -> None:
    """Pre and post of every step seen by hooks of the test's own; traces and sums by loops over steps and samples."""
    model, x, forward = build(name)
    layers = {
        "snntorch mlp": {"fc1": "lif1", "fc2": "lif2", "fc3": "lif3"},
        "snntorch conv": {"conv1": "lif1", "conv2": "lif2", "fc": "lif3"},
        "jelly s": {"net.0": "net.2", "net.4": "net.5", "net.8": "net.9", "net.10": "net.10"},
    }[name]
    seen: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Any) -> None:
            seen[(name, "in")].append(args[0].detach().clone())
            seen[(name, "out")].append((out[0] if isinstance(out, tuple) else out).detach().clone())

        return hook

    hooks = [model.get_submodule(m).register_forward_hook(keep(m)) for m in {*layers, *layers.values()}]
    (forward or _plain)(model, x)
    for hook in hooks:
        hook.remove()
    found = observed(model, [x], forward)
    for number, (layer, neuron) in enumerate(layers.items()):
        pre = [t.abs().flatten(2).mean(2) if t.dim() > 2 else t.abs() for t in seen[(layer, "in")]]
        post = [t.abs().flatten(2).mean(2) if t.dim() > 2 else t.abs() for t in seen[(neuron, "out")]]
        y = slow_trace(post)
        arriving = sum(pre) / len(pre) if number == 0 else slow_trace(pre)
        pairs = torch.zeros(y.shape[1], arriving.shape[1], dtype=torch.float64)
        for sample in range(len(y)):
            pairs += torch.outer(y[sample], arriving[sample])
        sums = found[f"{layer}.weight"]
        assert sums["n"] == len(x if forward or name == "snntorch mlp" else x[0])
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


def test_two_calls_of_the_model_are_two_passes() -> None:
    """Two views of a batch in one block, a loop over time in each."""
    model, x, _ = build("snntorch mlp")
    views = [x, torch.rand_like(x)]
    dev = DPAP(
        model,
        x,
        optimizer=torch.optim.SGD(model.parameters(), 0.0),
        total_steps=1000,
        start=0.0,
        observe_every=1,
        development_steps=10,
    )
    model.training = True
    with dev.observing():
        for view in views:
            model(view)
    both = {weight: {"n": s.samples, **s.sums} for (weight, _), s in dev._engine.window.sums.items()}
    dev.close()
    agree(both, observed(model, views))
    assert both["fc1.weight"]["n"] == 2 * len(x)


def test_another_number_of_steps_is_refused() -> None:
    model, x, _ = build("snntorch mlp")
    dev = DPAP(
        model,
        x,
        optimizer=torch.optim.SGD(model.parameters(), 0.0),
        total_steps=100,
        start=0.0,
        observe_every=1,
        development_steps=10,
    )
    model.num_steps = 10
    with pytest.raises(DPAPError, match="10 time steps arrive; the example input had 5"), dev.observing():
        model(x)


# counts ---------------------------------------------------------------------------------------------------------------


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

    def count(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            layer = layers[name]
            inputs = args[0].flatten(0, 1) if layer.pre is not None and layer.pre.layout == "T,B" else args[0]
            arriving = inputs.detach() * torch.from_numpy(np.array(layer.spike_divisor))
            assert torch.equal(arriving, arriving.round()), "whole spikes"
            owner = alive[layer.in_group[0]][torch.from_numpy(layer.in_unit)]
            rows = alive[layer.out_group][torch.from_numpy(layer.out_units)]
            living = (rows[:, None] & owner[None, :]).double()
            if isinstance(module, nn.Conv2d):
                ones = living[:, :, None, None].expand(*module.weight.shape).contiguous()
                total[name] += int(nn.functional.conv2d(arriving, ones, None, module.stride, module.padding).sum())
            else:
                total[name] += int((arriving @ living.T).sum())

        return hook

    hooks = [model.get_submodule(n).register_forward_hook(count(n)) for n in layers]
    with torch.no_grad():
        (forward or _plain)(model, x)
    for hook in hooks:
        hook.remove()
    reset_state(model)
    found = count_synops(model, graph, [x], alive, forward=forward)
    samples = x.shape[0] if forward else x.shape[1]
    assert found.samples == samples
    assert {n: round(v * samples) for n, v in found.sops_per_layer.items()} == dict(total)
    assert min(total.values()) > 0


# a whole run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jelly m", "jelly s", "snntorch mlp", "snntorch conv", "vgg11", "sew m"])
def test_a_short_run_prunes_and_compacts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "sew m":
        monkeypatch.setitem(NETWORKS, name, (lambda: sew("m", blocks=1), (2, 2, 3, 32, 32), jelly_reset))
    model, x, forward = build(name, torch.float32)
    call = forward or _plain
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    dev = DPAP(
        model,
        x,
        optimizer=optimizer,
        total_steps=20,
        start=0.1,
        stop=0.9,
        development_steps=5,
        target={"connectivity": 0.6},
        forward=forward,
    )
    dense = sum(p.numel() for p in model.parameters())
    model.train()
    for _ in range(20):
        with dev.observing():
            out = call(model, x)
            loss = (out[0] if isinstance(out, tuple) else out).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    assert 0.3 < dev.connectivity() <= 0.6
    assert any(not bool(a.all()) for a in dev.alive.values()), "units died"
    small = dev.compact()
    assert sum(p.numel() for p in small.parameters()) < dense
    model.double().eval(), small.double().eval()
    reset_state(model)
    with torch.no_grad():
        expected = _leaves(call(model, x.double()))
        for _ in range(2):  # the second pass begins anew as well
            for a, b in zip(expected, _leaves(call(small, x.double())), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(a.abs().max()))


def _leaves(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)
