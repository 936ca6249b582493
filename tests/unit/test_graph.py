"""Groups on the real front end: what shrinks together, what is protected and why, where activity is seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import ConvNet, SpikingNet
from torch import Tensor, nn

from dpap import DPAP, DPAPError, find_groups
from dpap.graph.group import Graph, TensorSlice, UnitGroup
from dpap.graph.op_rules import OP_RULES, op_rule
from dpap.graph.ops.shape import _blocks
from dpap.graph.values import Value
from dpap.metrics import count_macs
from dpap.neurons import LIF, Repeat, over_time


def slices(pieces: tuple[TensorSlice, ...]) -> dict[str, tuple[int, list[int]]]:
    return {p.tensor: (p.axis, list(p.entries.shape)) for p in pieces}


def group(graph: Graph, name: str) -> UnitGroup:
    return next(g for g in graph.groups if g.name == name)


class TestSpikingNet:
    @pytest.fixture
    def graph(self) -> Graph:
        return find_groups(SpikingNet(), torch.rand(3, 1, 8, 8))

    def test_groups(self, graph: Graph) -> None:
        assert [g.name for g in graph.groups] == ["conv1", "conv2", "fc1", "fc2"]
        assert [g.units for g in graph.groups] == [6, 8, 20, 5]
        assert [g.protected for g in graph.groups] == [None, None, None, "network output"]
        conv1 = group(graph, "conv1")
        assert slices(conv1.producers) == {
            "conv1.weight": (0, [6, 1]),
            "conv1.bias": (0, [6, 1]),
            "norm1.weight": (0, [6, 1]),
            "norm1.bias": (0, [6, 1]),
            "norm1.running_mean": (0, [6, 1]),
            "norm1.running_var": (0, [6, 1]),
        }
        assert slices(conv1.consumers) == {"conv2.weight": (1, [6, 1])}

    def test_a_flatten_maps_each_channel_to_its_positions(self, graph: Graph) -> None:
        (read,) = group(graph, "conv2").consumers
        assert read.tensor == "fc1.weight" and read.axis == 1
        np.testing.assert_array_equal(read.entries, np.arange(32).reshape(8, 4))

    def test_statistics_and_time_constants_are_sliced_but_not_masked(self, graph: Graph) -> None:
        unmasked = {p.tensor for p in group(graph, "conv2").producers if not p.masked}
        assert unmasked == {"norm2.running_mean", "norm2.running_var", "lif2.w"}

    def test_sites_and_layouts(self, graph: Graph) -> None:
        seen = {layer.name: (str(layer.pre), str(layer.post)) for layer in graph.layers}
        assert seen == {
            "conv1": ("input of conv1", "output of lif1"),
            "conv2": ("input of conv2", "output of lif2"),
            "fc1": ("input of fc1", "output of lif3"),
            "fc2": ("input of fc2", "output of lif4"),
        }
        pre = [layer.pre for layer in graph.layers]
        assert [(s.layout, s.constant) for s in pre if s] == [
            ("B", True),
            ("T*B", False),
            ("T,B", False),
            ("T,B", False),
        ]
        assert [s.nonnegative for s in pre if s] == [False, True, True, True]

    def test_counts(self, graph: Graph) -> None:
        assert graph.num_steps == 4
        assert [layer.steps for layer in graph.layers] == [1, 4, 4, 4], "a constant image passes the first layer once"
        assert [layer.macs_per_synapse for layer in graph.layers] == [9 * 64, 9 * 16 * 4, 4, 4]
        assert [n.group for n in graph.neurons] == ["conv1", "conv2", "fc1", "fc2"]
        assert [n.positions for n in graph.neurons] == [64, 16, 1, 1]

    def test_what_is_a_spike_is_known_from_the_graph(self, graph: Graph) -> None:
        image, pooled, maxed, spikes = (layer.spike_divisor for layer in graph.layers)
        assert image is None
        assert pooled is not None and pooled.shape == (6, 4, 4) and (pooled == 4).all()
        assert maxed is not None and (maxed == 1).all()
        assert spikes is not None and (spikes == 1).all()

    def test_to_json(self, graph: Graph) -> None:
        for g in graph.groups:
            assert json.loads(json.dumps(g.to_json()))["units"] == g.units


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.a(x))
        return self.head(x.mean((2, 3)))


def test_an_addition_ties_its_operands() -> None:
    graph = find_groups(Residual(), torch.rand(2, 3, 4, 4))
    assert [g.units for g in graph.groups] == [6, 4]
    assert set(slices(graph.groups[0].producers)) == {"stem.weight", "stem.bias", "a.weight", "a.bias"}
    assert set(slices(graph.groups[0].consumers)) == {"a.weight", "head.weight"}


def test_a_reused_module_is_seen_call_by_call() -> None:
    graph = find_groups(Residual(), torch.rand(2, 3, 4, 4))
    assert [str(layer.post) for layer in graph.layers] == ["output of relu", "output of relu, call 1", "output of head"]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(1, 4, 3)
        self.f = nn.Linear(4 * 9, 6)
        self.g = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.c(x)), 2).reshape(len(x), -1)
        return self.g(F.gelu(self.f(x)))


def test_without_an_activation_module_the_first_consumer_is_the_site() -> None:
    graph = find_groups(Functional(), torch.rand(2, 1, 8, 8))
    assert [str(layer.post) for layer in graph.layers] == ["input of f", "input of g", "output of g"]
    row = graph.layers[0].post_row
    assert row is not None
    np.testing.assert_array_equal(row, np.repeat(np.arange(4), 9))


class Protected(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Linear(6, 8)
        self.norm: nn.Module = {"layer": nn.LayerNorm(8), "softmax": nn.Softmax(-1)}.get(kind, nn.Identity())
        self.c = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.relu(self.a(x)))
        if self.kind == "const":
            h = h * torch.linspace(0, 1, 8)
        if self.kind == "sum":
            return self.b(h) + h.sum(-1, keepdim=True)
        if self.kind == "unknown":
            h = torch.cumsum(h, -1)
        return self.b(h)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("layer", "a norm takes statistics over this axis"),
        ("softmax", "a softmax takes statistics over this axis"),
        ("const", "combined with a tensor that carries no units"),
        ("sum", "a reduction over this axis mixes its units"),
    ],
)
def test_protected_with_the_reason(kind: str, reason: str) -> None:
    graph = find_groups(Protected(kind), torch.rand(2, 6))
    assert group(graph, "a").protected == reason


def test_an_operator_without_a_rule() -> None:
    model = Protected("unknown")
    with pytest.raises(DPAPError) as caught:
        find_groups(model, torch.rand(2, 6))
    assert "aten.cumsum.default has no rule" in caught.value.what
    assert "h = torch.cumsum(h, -1)" in caught.value.where
    assert "@dpap.graph.op_rules.op_rule" in caught.value.fix
    graph = find_groups(model, torch.rand(2, 6), unknown="protect")
    assert "aten.cumsum.default" in str(group(graph, "a").protected)
    try:

        @op_rule("aten.cumsum.default")
        def cumsum(walk: Any, node: Any, x: Value, axis: int) -> Value:
            walk.protect(x.units[axis], "summed up one after the other")
            return x

        assert group(find_groups(model, torch.rand(2, 6)), "a").protected == "summed up one after the other"
    finally:
        OP_RULES.pop("aten.cumsum.default", None)
    with pytest.raises(ValueError, match="a rule already"):
        op_rule("aten.relu.default")(lambda *_: None)


def test_frozen_parameters_are_protected() -> None:
    model = ConvNet()
    model.norm2.weight.requires_grad_(False)
    graph = find_groups(model, torch.rand(2, 2, 6, 6))
    assert group(graph, "conv2").protected == "frozen parameter norm2.weight"
    assert group(graph, "conv1").protected is None


def test_ignore_and_only() -> None:
    model, x = ConvNet(), torch.rand(2, 2, 6, 6)
    by_name = find_groups(model, x, ignore="conv*")
    assert [g.protected for g in by_name.groups] == ["ignored", "ignored", None, "network output"]
    by_module = find_groups(model, x, ignore=[model.fc1])
    assert group(by_module, "fc1").protected == "ignored"
    assert by_module.ignored == ("fc1.weight",)
    only = find_groups(model, x, only=["conv2"])
    assert [g.name for g in only.groups if g.protected is None] == ["conv2"]
    with pytest.raises(DPAPError, match="ignore='convolution' matches no module"):
        find_groups(model, x, ignore="convolution")


def test_bad_example_input_and_control_flow() -> None:
    with pytest.raises(DPAPError, match=r"example input \(\(2, 3, 6, 6\)\)"):
        find_groups(ConvNet(), torch.rand(2, 3, 6, 6))

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(DPAPError) as caught:
        find_groups(Branch(), torch.rand(2, 2))
    assert "if x.sum() > 0" in caught.value.where
    with pytest.raises(DPAPError, match="unknown= is 'skip'"):
        find_groups(ConvNet(), torch.rand(2, 2, 6, 6), unknown="skip")  # type: ignore[arg-type]


def test_time_must_come_first() -> None:
    class BatchFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lif = nn.Linear(4, 6), nn.Linear(6, 2), LIF()

        def forward(self, x: Tensor) -> Tensor:
            x = self.lif(self.a(x))
            return self.b(x.transpose(0, 1)).mean(1)

    with pytest.raises(DPAPError, match="Time lies on axis 1"):
        find_groups(BatchFirst(), torch.rand(3, 2, 4))


class PerStep(nn.Module):
    """A loop over time inside the model: takes the steps apart, runs layers at each, and puts them together."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.repeat, self.first, self.lif = Repeat(3), nn.Linear(5, 8), LIF()
        self.second, self.act, self.head = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.repeat(self.first(x)))
        steps = list(x.unbind(0)) if self.kind != "select" else [x[t] for t in range(3)]
        if self.kind == "spikes":
            return self.head(self.act(over_time(self.second, torch.stack(steps)))).mean(0)
        made, state = [], torch.zeros(())
        for step in steps:
            state = 0.5 * state + self.act(self.second(step))
            made.append(state)
        if self.kind == "backwards":
            made.reverse()
        return over_time(self.head, torch.stack(made)).mean(0)


@pytest.mark.parametrize("kind", ["unbind", "select", "spikes"])
def test_steps_that_are_taken_apart_and_put_together(kind: str) -> None:
    model = PerStep(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    graph = DPAP(model, torch.rand(2, 5), optimizer=optimizer, total_steps=100).graph  # cuts each group on a copy
    assert [(g.name, g.units, g.protected) for g in graph.groups] == [
        ("first", 8, None),
        ("second", 6, None),
        ("head", 4, "network output"),
    ]
    assert slices(group(graph, "second").consumers) == {"head.weight": (1, [6, 1])}
    head = graph.layers[-1]
    assert head.steps == 3, "behind the loop there is time again"
    assert head.pre is not None and head.pre.layout in ("T,B", "T*B") and not head.pre.constant
    assert count_macs(graph) == 5 * 8 + 3 * 8 * 6 + 3 * 6 * 4
    second = next(layer for layer in graph.layers if layer.name == "second")
    assert second.spike_divisor is not None and (second.spike_divisor == 1).all(), "a spike stays a spike"


def test_steps_in_another_order_have_no_time() -> None:
    graph = find_groups(PerStep("backwards"), torch.rand(2, 5))
    assert graph.layers[-1].steps == 1


def test_units_that_are_taken_apart_are_protected() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.stack(torch.relu(self.a(x)).unbind(1), 1))

    graph = find_groups(Apart(), torch.rand(2, 5))
    assert group(graph, "a").protected == "single units are selected by number"


def test_units_that_are_pooled_are_protected() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.AvgPool1d(2), nn.Linear(3, 2))
    graph = find_groups(model, torch.rand(2, 5))
    assert group(graph, "0").protected == "a pool mixes neighbouring units"
    for kind in ("avg", "max"):
        pool = nn.AvgPool2d(2) if kind == "avg" else nn.MaxPool2d(2)
        model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(12, 2))
        assert group(find_groups(model, torch.rand(2, 1, 4, 4)), "0").protected is None


def test_stacked_branches_share_their_units() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(torch.stack([self.a(x), self.b(x)], -2)).mean(-2))

    model = Branches()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    graph = DPAP(model, torch.rand(2, 5), optimizer=optimizer, total_steps=100).graph
    assert set(slices(group(graph, "a").producers)) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_events_have_time_in_the_input() -> None:
    class Events(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lif = nn.Conv2d(2, 4, 3), nn.Linear(4 * 4, 2), LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.lif(over_time(self.a, x)).flatten(2)).mean(0)

    graph = find_groups(Events(), torch.rand(5, 3, 2, 4, 4))
    assert graph.num_steps == 5
    first = graph.layers[0].pre
    assert first is not None and first.layout == "T*B" and not first.constant


def test_a_dict_input_and_a_loop_outside_the_model() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.relu = nn.ReLU()

        def forward(self, image: Tensor) -> Tensor:
            return self.b(self.relu(self.a(image)))

    graph = find_groups(Inner(), {"image": torch.rand(2, 4)}, forward=lambda model, batch: model(image=batch["image"]))
    assert [layer.weight for layer in graph.layers] == ["a.weight", "b.weight"]
    assert [g.protected for g in graph.groups] == [None, "network output"]


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        ((2, 3, 4), (2, 12), [([0], [0]), ([1, 2], [1])]),
        ((8, 3), (2, 4, 3), [([0], [0, 1]), ([1], [2])]),
        ((2, 3, 1, 1), (2, 3), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        ((2, 6), (3, 4), [([0, 1], [0, 1])]),
        ((4,), (4, 1), [([0], [0]), ([], [1])]),
    ],
)
def test_blocks_of_a_reshape(before: Any, after: Any, blocks: Any) -> None:
    assert _blocks(before, after) == blocks


class TestTrialCut:
    """Hard-coded shapes cannot be seen in a graph; they show when half of the units are cut from a copy."""

    class HardCoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
            self.fc = nn.Linear(4 * 16, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.conv(x)).view(-1, 4 * 16)
            return self.head(self.relu(self.fc(x)))

    def test_a_hard_coded_view_is_refused_by_name_and_line(self) -> None:
        model = self.HardCoded()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(DPAPError) as caught:
            DPAP(model, torch.rand(2, 1, 4, 4), optimizer=optimizer, total_steps=100)
        assert "units of conv cannot be removed" in caught.value.what
        assert "view(-1, 4 * 16)" in caught.value.where
        assert "ignore='conv'" in caught.value.fix
        DPAP(model, torch.rand(2, 1, 4, 4), optimizer=optimizer, total_steps=100, ignore="conv")

    def test_a_wrong_mapping_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a rule ties the wrong entries, the network answers differently and the group is named."""
        import dpap.graph.op_rules as rules

        right = OP_RULES["aten.flatten.using_ints"]

        def wrong(walk: Any, node: Any, x: Value, *rest: Any) -> Value:
            out = right(walk, node, x, *rest)
            assert isinstance(out, Value)
            if out.units[1] is not None:
                out.units[1] = np.roll(out.units[1], 9)
            return out

        monkeypatch.setitem(rules.OP_RULES, "aten.flatten.using_ints", wrong)
        model = ConvNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(DPAPError, match="answers differently"):
            DPAP(model, torch.rand(2, 2, 6, 6), optimizer=optimizer, total_steps=100)

    def test_one_sample_is_enough(self) -> None:
        model = SpikingNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        assert "20 of 20 alive" in repr(DPAP(model, torch.rand(1, 1, 8, 8), optimizer=optimizer, total_steps=100))


def test_print() -> None:
    model = SpikingNet()
    model.norm1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    text = repr(DPAP(model, torch.rand(2, 1, 8, 8), optimizer=optimizer, total_steps=100, ignore="fc2"))
    for part in (
        "conv1: 6 units, protected (frozen parameter norm1.weight)",
        "conv2: 8 units, 8 of 8 alive",
        "read by fc1.weight[1]",
        "seen at output of lif2 (T,B)",
        "fc2: 5 units, protected (network output)",
        "ignored: fc2.weight",
        "synapses of fc1.weight: 640 of 640 alive",
    ):
        assert part in text, text


def test_a_repeated_image_is_time_too() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.repeat, self.a, self.lif, self.b = Repeat(3), nn.Linear(4, 6), LIF(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.lif(over_time(self.a, self.repeat(x)))).mean(0)

    graph = find_groups(Early(), torch.rand(2, 4))
    assert graph.num_steps == 3
    assert [layer.steps for layer in graph.layers] == [3, 3]
