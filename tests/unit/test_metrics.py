"""Counts against brute force: plain loops over every output position, kernel position and input channel."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.graph.group import Graph
from dpap.metrics import (
    EnergyCost,
    SynopCounter,
    accuracy,
    connectivity,
    correct,
    count_macs,
    count_neuron_updates,
    count_parameters,
    count_synapses,
    count_synops,
    difference,
    estimate_energy,
    mcnemar,
    measure,
    sparsity_paper,
    stored_synapses,
    summary,
    t_quantile,
    unit_density,
)
from dpap.metrics.energy import paper_proxy_pj
from dpap.neurons import IF, PLIF, Repeat, over_time

STEPS, BATCH, SIZE = 3, 2, 7


class Net(nn.Module):
    """conv1 - neuron - pool1 - conv2 - neuron - pool2 - flatten - fc - neuron - classifier, on a constant image."""

    def __init__(self, pool1: nn.Module, pool2: nn.Module, conv2: nn.Conv2d | None = None, early: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(5)
        self.repeat, self.early = Repeat(STEPS), early
        self.neuron1 = PLIF(channels=5)
        self.pool1 = pool1
        self.conv2 = conv2 if conv2 is not None else nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.neuron2 = IF()
        self.pool2 = pool2
        size = pool2(self.conv2(pool1(torch.zeros(1, 5, SIZE, SIZE)))).shape[-1]
        self.fc = nn.Linear(6 * size * size, 9)
        self.neuron3 = IF()
        self.classifier = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.early:  # the image is repeated in front of the first layer, which then runs T times
            x = over_time(self.norm1, over_time(self.conv1, self.repeat(x)))
        else:
            x = self.repeat(self.norm1(self.conv1(x)))
        x = over_time(self.pool1, self.neuron1(x))
        x = over_time(self.pool2, self.neuron2(over_time(self.conv2, x)))
        x = over_time(nn.Flatten(), x)
        x = self.neuron3(over_time(self.fc, x))
        return over_time(self.classifier, x).mean(0)


@dataclass
class Case:
    """A network, half dead, with the images to count on."""

    net: Net
    graph: Graph
    images: Tensor
    alive: dict[str, Tensor]
    synapses: dict[str, Tensor]


POOLS: dict[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.AvgPool2d(2),
    "average, padded": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "average, padding not counted": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "average, ceil": lambda: nn.AvgPool2d(2, stride=2, ceil_mode=True),
    "average, ceil, padded": lambda: nn.AvgPool2d(3, stride=3, padding=1, ceil_mode=True),
    "average, ceil, padding not counted": lambda: nn.AvgPool2d(
        3, stride=3, padding=1, ceil_mode=True, count_include_pad=False
    ),
    "average, overlapping": lambda: nn.AvgPool2d(3, stride=1),
    "maximum": lambda: nn.MaxPool2d(2),
    "maximum, padded": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "none": nn.Identity,
}
CASES = [
    *((first, "maximum") for first in POOLS),
    *(("none", second) for second in POOLS if second != "maximum"),
]


def make_case(pool1: str = "average", pool2: str = "maximum", seed: int = 0, **options: object) -> Case:
    torch.manual_seed(seed)
    net = Net(POOLS[pool1](), POOLS[pool2](), **options).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # enough drive that every neuron layer fires
        for parameter in net.parameters():
            parameter.uniform_(-0.3, 0.9)
        net.norm1.bias.uniform_(0.3, 1.5)
    images = torch.rand(BATCH, 2, SIZE, SIZE)
    graph = find_groups(net, images)
    alive = {"conv1": some(5), "conv2": some(6), "fc": some(9)}
    synapses = {"fc.weight": torch.rand(9, net.fc.in_features) < 0.6, "classifier.weight": torch.rand(4, 9) < 0.7}
    return Case(net, graph, images, alive, synapses)


def some(units: int) -> Tensor:
    """About two thirds alive, never all and never none."""
    alive = torch.rand(units) < 0.67
    alive[0], alive[-1] = True, False
    return alive


# brute force ----------------------------------------------------------------------------------------------------------


def living_pairs(case: Case) -> dict[str, Tensor]:
    """(O, I) of each layer, from the chain itself: a flattened channel owns a run of features."""
    a = case.alive
    width = case.net.fc.in_features // 6
    feeds = {
        "conv1": torch.ones(2, dtype=torch.bool),
        "conv2": a["conv1"],
        "fc": a["conv2"].repeat_interleave(width),
        "classifier": a["fc"],
    }
    rows = {**a, "classifier": torch.ones(4, dtype=torch.bool)}
    return {
        name: rows[name][:, None] & feed[None] & case.synapses.get(f"{name}.weight", torch.tensor(True))
        for name, feed in feeds.items()
    }


def windows(pool: nn.Module, height: int, shape: tuple[int, int]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(output row, column, input positions inside the image) of a pool."""
    if isinstance(pool, nn.Identity):
        for y, x in itertools.product(range(height), repeat=2):
            yield y, x, [(y, x)]
        return
    kernel, stride, padding = int(pool.kernel_size), int(pool.stride), int(pool.padding)  # type: ignore[arg-type]
    for y, x in itertools.product(range(shape[0]), range(shape[1])):
        inside = [
            (y * stride - padding + ky, x * stride - padding + kx)
            for ky, kx in itertools.product(range(kernel), repeat=2)
            if 0 <= y * stride - padding + ky < height and 0 <= x * stride - padding + kx < height
        ]
        yield y, x, inside


def spikes_behind(spikes: np.ndarray, pool: nn.Module, shape: tuple[int, int]) -> np.ndarray:
    """Spikes that made each pooled value of one sample at one step: their sum, or one if any, for a maximum."""
    out = np.zeros((spikes.shape[0], *shape), dtype=int)
    for channel in range(spikes.shape[0]):
        for y, x, inside in windows(pool, spikes.shape[1], shape):
            count = sum(int(spikes[channel, j, i]) for j, i in inside)
            out[channel, y, x] = min(count, 1) if isinstance(pool, nn.MaxPool2d) else count
    return out


def conv_reads(conv: nn.Conv2d, height: int, shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Every input position that is read, once for each (output position, kernel position), padding left out."""
    (k, _), (s, _), (p, _), (d, _) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    for oy, ox in itertools.product(range(shape[0]), range(shape[1])):
        for ky, kx in itertools.product(range(k), repeat=2):
            y, x = oy * s - int(p) + ky * d, ox * s - int(p) + kx * d
            if 0 <= y < height and 0 <= x < height:
                yield y, x


def conv_operations(inputs: np.ndarray, conv: nn.Conv2d, shape: tuple[int, int], living: Tensor) -> int:
    """What arrives at living synapses of a convolution: one sample, one step."""
    total = 0
    for y, x in conv_reads(conv, inputs.shape[1], shape):
        for i in range(inputs.shape[0]):
            for o in range(living.shape[0]):
                if living[o, i]:
                    total += int(inputs[i, y, x])
    return total


def linear_operations(inputs: np.ndarray, living: Tensor) -> int:
    return sum(int(inputs[i]) for o, i in itertools.product(*map(range, living.shape)) if living[o, i])


def activity(case: Case) -> dict[str, np.ndarray]:
    """Outputs of some modules, as arrays with the steps in front where there are any."""
    seen: dict[str, np.ndarray] = {}
    handles = []
    for name, module in case.net.named_modules():
        if name in ("neuron1", "pool1", "neuron2", "pool2", "neuron3", "conv1", "conv2"):
            handles.append(
                module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach().numpy()))
            )
    with torch.no_grad():
        case.net(case.images)
    for handle in handles:
        handle.remove()
    return {k: v.reshape(STEPS, BATCH, *v.shape[1:]) if "pool" in k or k == "conv2" else v for k, v in seen.items()}


def brute_force(case: Case) -> dict[str, float]:
    """SOPs of each layer and NeuroBench's two numbers, per sample."""
    seen, living, net = activity(case), living_pairs(case), case.net
    sops = {"conv2": 0, "fc": 0, "classifier": 0}
    acs = macs = 0
    for t, b in itertools.product(range(STEPS), range(BATCH)):
        first = spikes_behind(seen["neuron1"][t, b], net.pool1, seen["pool1"].shape[-2:])
        second = spikes_behind(seen["neuron2"][t, b], net.pool2, seen["pool2"].shape[-2:])
        shape = seen["conv2"].shape[-2:]
        sops["conv2"] += conv_operations(first, net.conv2, shape, living["conv2"])
        sops["fc"] += linear_operations(second.reshape(-1), living["fc"])
        sops["classifier"] += linear_operations(seen["neuron3"][t, b], living["classifier"])
        effective = {
            net.pool1: conv_operations(first > 0, net.conv2, shape, living["conv2"]),
            net.pool2: linear_operations(second.reshape(-1) > 0, living["fc"]),
        }
        for pool, count in effective.items():
            if isinstance(pool, nn.AvgPool2d):
                macs += count
            else:
                acs += count
        acs += linear_operations(seen["neuron3"][t, b], living["classifier"])
    runs = STEPS if net.early else 1
    for image in case.images.numpy():
        macs += runs * conv_operations(image != 0, net.conv1, seen["conv1"].shape[-2:], living["conv1"])
    return {**{k: v / BATCH for k, v in sops.items()}, "acs": acs / BATCH, "macs": macs / BATCH}


# synaptic operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool1", "pool2"), CASES)
def test_synops_equal_brute_force(pool1: str, pool2: str) -> None:
    case = make_case(pool1, pool2)
    expected = brute_force(case)
    count = count_synops(case.net, case.graph, [case.images], case.alive, case.synapses)
    assert min(expected.values()) > 0, "a layer that sees no spike proves nothing"
    assert {k: count.sops_per_layer[k] for k in ("conv2", "fc", "classifier")} == pytest.approx(
        {k: expected[k] for k in ("conv2", "fc", "classifier")}, rel=1e-6
    )
    assert count.sops_per_sample == pytest.approx(sum(count.sops_per_layer.values()))
    assert count.effective_acs_per_sample == pytest.approx(expected["acs"])
    assert count.effective_macs_per_sample == pytest.approx(expected["macs"])
    assert count.samples == BATCH


CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "valid": lambda: nn.Conv2d(5, 6, 3),
    "wide padding": lambda: nn.Conv2d(5, 6, 3, padding=2),
    "dilated": lambda: nn.Conv2d(5, 6, 2, dilation=2, padding=1),
    "strided, with a rest": lambda: nn.Conv2d(5, 6, 2, stride=2),
    "pointwise": lambda: nn.Conv2d(5, 6, 1),
}


@pytest.mark.parametrize("conv", CONVS)
def test_synops_of_other_convolutions_equal_brute_force(conv: str) -> None:
    case = make_case("none", "none", conv2=CONVS[conv]())
    expected = brute_force(case)
    count = count_synops(case.net, case.graph, [case.images], case.alive, case.synapses)
    assert expected["conv2"] > 0
    assert count.sops_per_layer["conv2"] == expected["conv2"]
    assert count.sops_per_layer["fc"] == expected["fc"]


def test_the_pool_cases_differ() -> None:
    """Guards the parametrisation: the pools make different counts, so a formula that ignored one would be caught."""
    counts = {brute_force(make_case(first, "maximum"))["conv2"] for first in POOLS}
    assert len(counts) == len(POOLS) - 2  # two differ only in whether padding counts: other values, the same spikes


def test_an_image_that_is_repeated_at_the_input_is_counted_at_every_step() -> None:
    case = make_case("average", early=True)
    expected = brute_force(case)
    count = count_synops(case.net, case.graph, [case.images], case.alive, case.synapses)
    assert count.samples == BATCH
    assert count.sops_per_sample == pytest.approx(expected["conv2"] + expected["fc"] + expected["classifier"])
    assert count.effective_macs_per_sample == pytest.approx(expected["macs"])


def test_linear_layers_on_activity_with_its_time_axis() -> None:
    """Input (T, B, I), never flattened: each layer sees the steps and the samples on axes of their own."""
    net = nn.Sequential(nn.Linear(3, 4), IF(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 0.9)
    x = torch.rand(STEPS, 5, 3)
    graph = find_groups(net, x)
    assert [layer.pre.layout for layer in graph.layers if layer.pre is not None] == ["T,B", "T,B"]
    alive = {"0": torch.tensor([True, False, True, True])}
    spikes = net[1](net[0](x))[..., alive["0"]]
    count = count_synops(net, graph, [x], alive)
    assert 0 < spikes.sum() < spikes.numel()
    assert count.samples == 5
    assert count.sops_per_sample == pytest.approx(2 * float(spikes.detach().sum()) / 5)
    assert count.effective_macs_per_sample == STEPS * 3 * 3


def test_events_that_are_received_are_synaptic_operations() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.neuron, self.fc = nn.Conv2d(1, 3, 3, bias=False), IF(), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return over_time(self.fc, self.neuron(over_time(self.conv, x)).flatten(2)).mean(0)

    model = Frames()
    x = torch.zeros(2, 2, 1, 4, 4)
    x[0, :, 0, 0, 0] = 1  # a corner, read by one of the four positions of the kernel
    x[1, :, 0, 1, 2] = 3  # three events at a pixel that all four read
    graph = find_groups(model, x, spiking_input=True)
    counted = count_synops(model, graph, [x])
    assert counted.sops_per_layer["conv"] == 3 * (1 * 1 + 3 * 4)
    assert count_macs(graph, inputs="real") == 0
    plain = find_groups(model, x)
    assert "conv" not in count_synops(model, plain, [x]).sops_per_layer
    assert count_macs(plain, inputs="real") == 2 * 4 * 3 * 9


def test_how_the_samples_are_batched_does_not_matter() -> None:
    case = make_case("average, padded")
    one = count_synops(case.net, case.graph, [(case.images, torch.zeros(BATCH))], case.alive, case.synapses)
    two = count_synops(case.net, case.graph, case.images.split(1), case.alive, case.synapses)
    assert two.samples == one.samples == BATCH
    assert two.sops_per_sample == pytest.approx(one.sops_per_sample, rel=1e-9)
    assert two.effective_macs_per_sample == pytest.approx(one.effective_macs_per_sample)


def test_the_dead_do_not_count_whatever_they_emit() -> None:
    """Counts of a network whose dead units still fire equal those of the same network with its masks in storage."""
    case = make_case("average", "average")
    before = count_synops(case.net, case.graph, [case.images], case.alive, case.synapses)
    with torch.no_grad():  # only the last layer's dead rows may be silenced without changing anyone's input
        case.net.fc.weight[~case.alive["fc"]] = 0
        case.net.fc.bias[~case.alive["fc"]] = 100.0  # dead units of fc now fire at every step
    after = count_synops(case.net, case.graph, [case.images], case.alive, case.synapses)
    assert after.sops_per_layer == pytest.approx(dict(before.sops_per_layer))


def test_counting_leaves_the_model_as_it_was() -> None:
    case = make_case()
    case.net.train()
    case.net.neuron1.eval()
    hooks = [len(m._forward_pre_hooks) for m in case.net.modules()]
    count_synops(case.net, case.graph, [case.images])
    assert case.net.training
    assert not case.net.neuron1.training
    assert [len(m._forward_pre_hooks) for m in case.net.modules()] == hooks
    assert case.net.norm1.num_batches_tracked == 0


def test_the_counter_serves_any_loop_and_any_mask() -> None:
    case = make_case()
    with SynopCounter(case.net, case.graph) as counter, torch.no_grad():
        for image in case.images:
            case.net(image[None])
    case.net(case.images)  # outside: not counted
    for alive, synapses in (({}, {}), (case.alive, {}), (case.alive, case.synapses)):
        expected = count_synops(case.net, case.graph, [case.images], alive, synapses)
        assert counter.count(alive, synapses).sops_per_layer == pytest.approx(dict(expected.sops_per_layer), rel=1e-9)


def test_a_counter_that_saw_nothing_says_so() -> None:
    case = make_case()
    with pytest.raises(DPAPError, match="No sample was counted"):
        count_synops(case.net, case.graph, [])
    with SynopCounter(case.net, case.graph) as counter, torch.no_grad():
        case.net.conv1(case.images)
    with pytest.raises(DPAPError, match="nothing was seen to enter") as error:
        counter.count()
    assert error.value.where == "conv2"


def test_a_module_that_is_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.repeat, self.shared = nn.Linear(3, 4), Repeat(STEPS), nn.Linear(4, 4)
            self.a, self.b, self.c, self.out = IF(), IF(), IF(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(self.repeat(self.first(x)))
            x = self.b(over_time(self.shared, x))
            x = self.c(over_time(self.shared, x))
            return over_time(self.out, x).mean(0)

    net = Twice().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 0.9)
    x = torch.rand(5, 3)
    graph = find_groups(net, x)
    calls = [layer for layer in graph.layers if layer.name == "shared"]
    assert [layer.call for layer in calls] == [0, 1]
    count = count_synops(net, graph, [x])
    spikes = []
    for module in (net.a, net.b):
        module.register_forward_hook(lambda _, __, out: spikes.append(float(out.detach().sum())))
    net(x)
    assert spikes[0] != spikes[1]
    assert count.sops_per_layer["shared"] == pytest.approx(4 * sum(spikes) / 5)
    assert count_macs(graph) == 3 * 4 + STEPS * (2 * 16 + 8)
    assert count_synapses(graph) == 12 + 16 + 8  # a shared weight is there once
    assert count_parameters(net, graph) == sum(p.numel() for p in net.parameters())


# what is there --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True])
def test_macs_and_updates_equal_brute_force(early: bool) -> None:
    case = make_case("average", early=early)
    seen, net, alive = activity(case), case.net, case.alive
    dense = {
        name: pairs.any(1).sum() * pairs.any(0).sum() for name, pairs in living_pairs(dense_synapses(case)).items()
    }
    runs = STEPS if early else 1
    macs = 0
    for _ in itertools.product(range(seen["conv1"].shape[-2]), range(seen["conv1"].shape[-1]), range(9)):
        macs += runs * int(dense["conv1"])
    real = macs
    for _ in itertools.product(range(STEPS), range(seen["conv2"].shape[-2]), range(seen["conv2"].shape[-1]), range(9)):
        macs += int(dense["conv2"])
    macs += STEPS * int(dense["fc"] + dense["classifier"])
    assert count_macs(case.graph, alive) == macs
    living = {name: int(pairs.sum()) for name, pairs in living_pairs(case).items()}
    fewer = living["conv1"] * real // int(dense["conv1"]) + STEPS * (living["fc"] + living["classifier"])
    fewer += living["conv2"] * (macs - real - STEPS * int(dense["fc"] + dense["classifier"])) // int(dense["conv2"])
    assert count_macs(case.graph, alive, synapses=case.synapses) == fewer < macs
    assert count_macs(case.graph, alive, inputs="real") == real
    neurons = {"neuron1": "conv1", "neuron2": "conv2", "neuron3": "fc"}
    updates = sum(
        seen[neuron][:, 0, alive[group].numpy()].size for neuron, group in neurons.items()
    )  # one sample, all steps
    assert count_neuron_updates(case.graph, alive) == updates
    assert count_neuron_updates(case.graph) == sum(seen[neuron][:, 0].size for neuron in neurons)
    assert net.early is early


def dense_synapses(case: Case) -> Case:
    return dataclasses.replace(case, synapses={})


def test_connectivity_equals_brute_force() -> None:
    case = make_case("average")
    living = {name: int(pairs.sum()) * (9 if "conv" in name else 1) for name, pairs in living_pairs(case).items()}
    total = {name: pairs.numel() * (9 if "conv" in name else 1) for name, pairs in living_pairs(case).items()}
    conv = ("conv1", "conv2")
    assert count_synapses(case.graph) == sum(total.values())
    assert count_synapses(case.graph, case.alive, case.synapses) == sum(living.values())
    assert connectivity(case.graph) == 1.0
    assert connectivity(case.graph, case.alive, case.synapses) == sum(living.values()) / sum(total.values())
    assert connectivity(case.graph, case.alive, case.synapses, "conv") == sum(living[c] for c in conv) / sum(
        total[c] for c in conv
    )


def test_the_papers_sparsity_counts_own_zeros() -> None:
    """Zeros in storage when only rows of the dead, and dead synapses between the living, are set to zero."""
    case = make_case("average")
    pairs, living_rows = living_pairs(case), {**case.alive, "classifier": torch.ones(4, dtype=torch.bool)}
    weights = {name: torch.ones_like(case.net.get_parameter(f"{name}.weight")) for name in pairs}
    for name, weight in weights.items():
        weight[~living_rows[name]] = 0
    feeds = {"fc": case.alive["conv2"].repeat_interleave(case.net.fc.in_features // 6), "classifier": case.alive["fc"]}
    for name, feed in feeds.items():
        weights[name][~case.synapses[f"{name}.weight"] & feed] = 0
    expected = sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())
    assert sparsity_paper(case.graph, case.alive, case.synapses) == pytest.approx(expected, rel=1e-12)
    assert expected < 1 - connectivity(case.graph, case.alive, case.synapses)
    # Masks that are false wherever either end is dead say the same.
    closed = {f"{name}.weight": pairs[name] for name in ("fc", "classifier")}
    assert sparsity_paper(case.graph, case.alive, closed) == pytest.approx(expected, rel=1e-12)


def test_the_papers_mnist_network_has_596535_weights() -> None:
    class Mnist(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(1, 15, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
                nn.Conv2d(15, 40, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
                nn.Flatten(), nn.Linear(1960, 300), nn.ReLU(), nn.Linear(300, 10),
            )  # fmt: skip

    graph = find_groups(Mnist(), torch.rand(2, 1, 28, 28))
    assert count_synapses(graph) == 596_535
    assert count_synapses(graph, kind="conv") == 135 + 5400
    assert count_macs(graph) == 28 * 28 * 135 + 14 * 14 * 5400 + 588_000 + 3000
    assert count_macs(graph, inputs="real") == count_macs(graph)
    assert count_neuron_updates(graph) == 0


def test_parameters_equal_those_of_a_smaller_network() -> None:
    case = make_case("average")
    c1, c2, f = (int(case.alive[g].sum()) for g in ("conv1", "conv2", "fc"))
    width = case.net.fc.in_features // 6
    small = nn.ModuleList(
        [
            nn.Conv2d(2, c1, 3, bias=False),
            nn.BatchNorm2d(c1),
            PLIF(channels=c1),
            nn.Conv2d(c1, c2, 3),
            nn.Linear(c2 * width, f),
            nn.Linear(f, 4),
        ]
    )
    assert count_parameters(case.net, case.graph, case.alive) == sum(p.numel() for p in small.parameters())
    assert count_parameters(case.net, case.graph) == sum(p.numel() for p in case.net.parameters())


def test_stored_synapses_are_the_weights_that_are_not_zero() -> None:
    case = make_case()
    assert stored_synapses(case.net, case.graph) == {}
    with torch.no_grad():
        case.net.fc.weight.mul_(case.synapses["fc.weight"])
        case.net.conv2.weight[0] = 0
    stored = stored_synapses(case.net, case.graph)
    assert list(stored) == ["conv2.weight", "fc.weight"]
    assert not stored["conv2.weight"][0].any() and stored["conv2.weight"][1:].all()
    assert torch.equal(stored["fc.weight"], case.synapses["fc.weight"])


def test_unit_density_is_the_living_share() -> None:
    case = make_case()
    assert unit_density(case.graph, {"fc": case.alive["fc"]}) == {
        "conv1": 1.0,
        "conv2": 1.0,
        "fc": float(case.alive["fc"].sum()) / 9,
        "classifier": 1.0,
    }


def test_a_network_without_convolutions() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x, y = torch.rand(6, 3), torch.zeros(6, dtype=torch.long)
    graph = find_groups(net, x)
    result = measure(net, graph, [(x, y)])
    assert connectivity(graph, kind="conv") == 1.0
    assert result.connectivity_conv is None
    assert result.synops.sops_per_sample == 0
    assert result.synops.sops_per_layer == {}
    assert result.synops.effective_acs_per_sample == 0
    hidden = net[1](net[0](x))
    assert result.synops.effective_macs_per_sample == pytest.approx(15 + 2 * float((hidden != 0).sum()) / 6)
    assert result.energy.compute_pj == pytest.approx(4.6 * 25)
    assert result.energy.dense_ann_pj == pytest.approx(4.6 * 25)
    assert result.accuracy == pytest.approx(float((net(x).argmax(1) == y).double().mean()))


@pytest.mark.parametrize(
    ("alive", "synapses", "message"),
    [
        ({"conv3": torch.ones(5, dtype=torch.bool)}, {}, "no group named 'conv3'"),
        ({"conv1": torch.ones(4, dtype=torch.bool)}, {}, r"shape \(4,\)"),
        ({"conv1": torch.ones(5)}, {}, "float32"),
        ({}, {"fc": torch.ones(9, 1, dtype=torch.bool)}, "no weight named 'fc'"),
        ({}, {"classifier.weight": torch.ones(9, 4, dtype=torch.bool)}, r"shape \(9, 4\)"),
        ({}, {"conv1.weight": torch.ones(5, 2, 3, 3, dtype=torch.bool)}, r"asks for bool \(5, 2\)"),
    ],
)
def test_masks_of_another_network_are_refused(
    alive: dict[str, Tensor], synapses: dict[str, Tensor], message: str
) -> None:
    case = make_case()
    with pytest.raises(DPAPError, match=message):
        measure(case.net, case.graph, [case.images], alive, synapses)


# energy ---------------------------------------------------------------------------------------------------------------


def test_measure_puts_it_all_together() -> None:
    case = make_case("average, padded")
    labels = torch.tensor([0, 3])
    result = measure(case.net, case.graph, [(case.images, labels)], case.alive, case.synapses)
    expected = brute_force(case)
    sops = expected["conv2"] + expected["fc"] + expected["classifier"]
    real = count_macs(case.graph, case.alive, inputs="real")
    updates = count_neuron_updates(case.graph, case.alive)
    assert result.samples == BATCH
    assert result.synops.sops_per_sample == pytest.approx(sops, rel=1e-6)
    assert result.energy.compute_pj == pytest.approx(4.6 * real + 0.9 * sops + 4.6 * updates, rel=1e-6)
    assert result.energy.memory_pj == pytest.approx(5 * (2 * real + 3 * sops + 2 * updates), rel=1e-6)
    dense, dense_real = count_macs(case.graph), count_macs(case.graph, inputs="real")
    assert result.energy.dense_snn_pj == pytest.approx(
        4.6 * dense_real + 0.9 * (dense - dense_real) + 4.6 * count_neuron_updates(case.graph)
    )
    one_step = dense_real + (dense - dense_real) / STEPS
    assert result.energy.dense_ann_pj == pytest.approx(4.6 * one_step)
    share = 1 - sparsity_paper(case.graph, case.alive, case.synapses)
    assert result.energy.paper_proxy_share == share
    assert result.energy.paper_proxy_pj == pytest.approx(share * one_step * 0.9 * STEPS)
    assert result.accuracy == accuracy(case.net, [(case.images, labels)])
    assert result.connectivity == connectivity(case.graph, case.alive, case.synapses)
    assert result.connectivity_conv == connectivity(case.graph, case.alive, case.synapses, "conv")
    assert result.parameters == count_parameters(case.net, case.graph, case.alive)
    assert measure(case.net, case.graph, [case.images]).accuracy is None


def test_energy_estimate_takes_another_cost() -> None:
    case = make_case()
    synops = count_synops(case.net, case.graph, [case.images])
    free = EnergyCost(name="spikes alone", mac_pj=0, ac_pj=1, update_pj=0, word_pj=0)
    assert estimate_energy(case.graph, synops, cost=free).compute_pj == pytest.approx(synops.sops_per_sample)
    with pytest.raises(DPAPError, match="mac_pj is -1"):
        EnergyCost(name="wrong", mac_pj=-1, ac_pj=0, update_pj=0, word_pj=0)


def test_the_papers_proxy_is_the_product_of_its_shares() -> None:
    """N-MNIST, spatio-temporal, of the paper's Table II: 70.63 % and 62.25 % give 11.09 % of the energy."""
    cost = EnergyCost.horowitz_45nm_fp32()
    dense = paper_proxy_pj(cost, macs_one_step=1000, num_steps=20, sparsity=0)
    pruned = paper_proxy_pj(cost, macs_one_step=1000, num_steps=20, sparsity=0.7063, step_sparsity=0.6225)
    assert dense == pytest.approx(1000 * 0.9 * 20)
    assert pruned / dense == pytest.approx(0.1109, abs=5e-5)


# accuracy and statistics ----------------------------------------------------------------------------------------------


def test_accuracy_counts_samples_not_batches() -> None:
    net = nn.Identity()
    outputs = torch.eye(3)[[0, 1, 2, 2, 1]]
    labels = torch.tensor([0, 1, 2, 0, 0])
    batches = [(outputs[:4], labels[:4]), (outputs[4:], labels[4:])]
    assert accuracy(net, batches) == pytest.approx(3 / 5)
    assert correct(net, batches).tolist() == [True, True, True, False, False]
    assert accuracy(net, [(outputs, labels)], forward=lambda model, x: model(x).flip(1)) == pytest.approx(2 / 5)


def test_accuracy_without_labels_or_samples_is_refused() -> None:
    with pytest.raises(DPAPError, match="no labels"):
        accuracy(nn.Identity(), [torch.eye(3)])
    with pytest.raises(DPAPError, match="no batch"):
        accuracy(nn.Identity(), [])


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 1, 1.0), (0, 6, 2 / 64), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (2, 3, 1.0)],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    first = torch.tensor([True] * only_first + [False] * only_second + [True, False])
    second = torch.tensor([False] * only_first + [True] * only_second + [True, False])
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(p)


def test_mcnemar_takes_many_samples() -> None:
    """Against the normal approximation with continuity correction, on 3,000 disagreements."""
    first = torch.zeros(10_000, dtype=torch.bool)
    second = first.clone()
    first[:1440], second[1440:3000] = True, True
    z = (abs(1440 - 1560) - 1) / math.sqrt(3000)
    assert mcnemar(first, second).p_value == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


# Printed tables of Student's t; the last digit is rounded.
T_TABLE = [
    (0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 4, 2.7764), (0.975, 5, 2.5706),
    (0.975, 9, 2.2622), (0.975, 19, 2.0930), (0.975, 30, 2.0423), (0.975, 120, 1.9799),
    (0.95, 1, 6.3138), (0.95, 4, 2.1318), (0.995, 4, 4.6041), (0.995, 10, 3.1693), (0.9, 7, 1.4149),
]  # fmt: skip


@pytest.mark.parametrize(("p", "df", "value"), T_TABLE)
def test_t_quantiles_of_the_table(p: float, df: int, value: float) -> None:
    assert t_quantile(p, df) == pytest.approx(value, abs=5.1e-5)
    assert t_quantile(1 - p, df) == pytest.approx(-value, abs=5.1e-5)


@given(p=st.floats(0.01, 0.99), df=st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_t_quantile_inverts_the_density(p: float, df: int) -> None:
    """The density, integrated numerically up to the quantile, gives p back."""
    t = t_quantile(p, df)
    x = np.linspace(0, t, 20_001)
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    area = float(np.trapezoid(constant * (1 + x * x / df) ** (-(df + 1) / 2), x))
    assert 0.5 + area == pytest.approx(p, abs=1e-6)


def test_t_quantile_refuses_what_has_none() -> None:
    for p, df in ((0.0, 3), (1.0, 3), (0.975, 0)):
        with pytest.raises(DPAPError, match="no t quantile"):
            t_quantile(p, df)


def test_the_interval_of_paired_differences() -> None:
    values, control = [98.0, 97.6, 98.1, 97.9], [98.2, 97.9, 98.1, 98.3]
    result = difference(values, control)
    # differences -0.2, -0.3, 0.0, -0.4: mean -0.225, sd sqrt(0.0875 / 3), t(0.975, 3) = 3.1824
    sd = math.sqrt(0.0875 / 3)
    assert result.mean == pytest.approx(-0.225)
    assert result.sd == pytest.approx(sd)
    assert result.low == pytest.approx(-0.225 - 3.1824463 * sd / 2)
    assert result.high == pytest.approx(-0.225 + 3.1824463 * sd / 2)
    narrow = difference(values, control, level=0.5)
    assert narrow.low is not None
    assert result.low is not None
    assert narrow.low > result.low


def test_a_single_run_has_no_interval() -> None:
    assert dataclasses.asdict(summary([3.0])) == {"n": 1, "mean": 3.0, "sd": None, "low": None, "high": None}


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_a_summary_of_failed_runs_is_refused(values: list[float]) -> None:
    with pytest.raises(DPAPError, match="finite"):
        summary(values)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(DPAPError, match="paired"):
        difference([1.0, 2.0], [1.0])
