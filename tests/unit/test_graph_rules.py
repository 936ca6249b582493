"""What each operator ties, makes and protects, on the smallest network that shows it; and that a cut proves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dpap import DPAP, DPAPError, find_groups
from dpap.graph.group import Graph, Layer, UnitGroup
from dpap.graph.module_rules import MODULE_RULES, follow_all, require_rule
from dpap.graph.units import Units, classes, components
from dpap.metrics import count_macs, count_parameters
from dpap.neurons import LIF, Repeat, over_time
from dpap.pruning.compact import compacted, trial_cut
from dpap.pruning.slice import Present


class Net(nn.Module):
    """Named layers and a function of them: `Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(2, 3), b=nn.Linear(3, 1))`."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def groups_of(model: nn.Module, *shape: int) -> Graph:
    """Found, and cut on a copy."""
    x = torch.randn(2, *shape)
    graph = find_groups(model, x)
    trial_cut(model, graph, x)
    return graph


def entries(group: UnitGroup, tensor: str, axis: int = 0) -> list[list[int]]:
    (piece,) = [p for p in (*group.producers, *group.consumers) if (p.tensor, p.axis) == (tensor, axis)]
    return piece.entries.tolist()


def protected(graph: Graph) -> dict[str, str | None]:
    return {g.name: g.protected for g in graph.groups if g.protected != "network output"}


def image_head(m: Any, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Many small networks side by side, so that one export shows what many operators do."""

    def __init__(self, functions: dict[str, Callable[[Tensor], Tensor]], first: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.functions = functions
        self.a = nn.ModuleDict({name: first() for name in functions})
        self.b = nn.ModuleDict({name: nn.LazyLinear(2) for name in functions})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.b[name](function(self.a[name](x))) for name, function in self.functions.items())


def branches(functions: dict[str, Callable[[Tensor], Tensor]], first: Callable[[], nn.Module], *shape: int) -> Graph:
    """Found, and cut on a copy: group "a.NAME" is what NAME reads."""
    model, x = Branches(functions, first), torch.randn(2, *shape)
    model(x)  # the readers take the widths that they meet
    graph = find_groups(model, x)
    trial_cut(model, graph, x)
    return graph


def layer_of(graph: Graph, name: str) -> Layer:
    return next(layer for layer in graph.layers if layer.name == name)


# grouped and transposed convolutions --------------------------------------------------------------------------------


def grouped(groups: int, rows: int, *, transposed: bool = False) -> Net:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return Net(
        lambda m, x: image_head(m, F.relu(m.b(F.relu(m.a(x))))),
        a=nn.Conv2d(3, 8, 3),
        b=kind(8, rows, 3, groups=groups),
        head=nn.Linear(rows, 2),
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_a_depthwise_convolution_belongs_to_the_units_that_it_reads(transposed: bool) -> None:
    graph = groups_of(grouped(8, 16, transposed=transposed), 3, 8, 8)
    (unit, _) = graph.groups
    assert unit.name == "a" and unit.units == 8 and unit.protected is None
    pairs = [[2 * u, 2 * u + 1] for u in range(8)]
    assert entries(unit, "b.weight") == ([[u] for u in range(8)] if transposed else pairs)
    assert entries(unit, "b.bias") == entries(unit, "head.weight", 1) == pairs
    layer = graph.layers[1]
    assert (layer.groups, layer.in_features, layer.transposed) == (8, 1, transposed)
    assert layer.pre is not None and layer.post is None, "seen for counting, never scored"


@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_convolution_loses_whole_groups(transposed: bool) -> None:
    graph = groups_of(grouped(4, 12, transposed=transposed), 3, 8, 8)
    (unit, _) = graph.groups
    assert unit.units == 4
    assert entries(unit, "a.weight") == [[2 * u, 2 * u + 1] for u in range(4)]
    assert entries(unit, "head.weight", 1) == [[3 * u, 3 * u + 1, 3 * u + 2] for u in range(4)]


def test_a_grouped_convolution_of_the_input_stays() -> None:
    model = Net(lambda m, x: image_head(m, m.a(x)), a=nn.Conv2d(4, 8, 3, groups=4), head=nn.Linear(8, 2))
    assert protected(groups_of(model, 4, 6, 6)) == {"a": "a grouped convolution reads what is no unit"}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_transposed_convolution(dims: int) -> None:
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    model = Net(
        lambda m, x: m.head(F.relu(m.c(F.relu(m.b(F.relu(m.a(x)))))).flatten(2).mean(2)),
        a=conv(2, 5, 2, stride=2),
        b=conv(5, 4, 3, padding=1, output_padding=1, stride=2),
        c=conv(4, 4, 3, padding=2, dilation=2, stride=2),
        head=nn.Linear(4, 2),
    )
    space = (5, 4, 3)[:dims]
    graph = groups_of(model, 2, *space)
    assert {g.name: g.units for g in graph.groups if g.protected is None} == {"a": 5, "b": 4, "c": 4}
    assert (
        entries(graph.group("a"), "a.weight", 1) == entries(graph.group("a"), "b.weight", 0) == [[u] for u in range(5)]
    )
    first, second, third = graph.layers[:3]
    inside = int(np.prod(space))
    assert first.macs_per_synapse == inside * 2**dims, "each input position meets the whole kernel"
    assert second.macs_per_synapse == inside * 2**dims * 3**dims
    assert first.fanout.shape == space and (first.fanout == 2**dims).all()
    assert second.fanout.sum() == np.prod([3 * 2 * s - 1 for s in space]), (
        "the padding cuts off one tap of the first place"
    )
    assert third.fanout.sum() == np.prod([3 * 4 * s - 2 for s in space]), "2 apart: one of the first, one of the last"


def test_a_convolution_with_named_padding_and_dilation() -> None:
    for dims, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1):
        model = Net(
            lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).flatten(2).mean(2)),
            a=kind(2, 5, 3, padding="same"),
            b=kind(5, 4, 3, dilation=2, padding=1),
            head=nn.Linear(4, 2),
        )
        graph = groups_of(model, 2, *[6] * dims)
        assert {g.name: g.units for g in graph.groups if g.protected is None} == {"a": 5, "b": 4}
        # along each axis: 6 places read by 3 taps but at the borders; 4 places read by taps 2 apart
        assert graph.layers[0].fanout.sum() == 16**dims and graph.layers[0].macs_per_synapse == 18**dims
        assert graph.layers[1].fanout.sum() == 10**dims and graph.layers[1].macs_per_synapse == 12**dims


def test_a_convolution_of_one_sample_is_refused() -> None:
    model = Net(lambda m, x: m.head(m.a(x[0]).mean((1, 2))), a=nn.Conv2d(8, 5, 3), head=nn.Linear(5, 2))
    with pytest.raises(DPAPError, match=r"shape \(8, 8, 8\), which has no axis for samples"):
        find_groups(model, torch.randn(2, 8, 8, 8))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_units_on_an_axis_that_a_layer_does_not_read(kind: str) -> None:
    model = Net(
        lambda m, x: m.head(m.b(m.a(x).transpose(1, 2) if kind == "linear" else m.a(x)).mean(2 - (kind != "linear"))),
        a=nn.Linear(3, 6),
        b=nn.Linear(4, 5) if kind == "linear" else nn.Conv1d(4, 5, 1),
        head=nn.Linear(6, 2),
    )
    graph = groups_of(model, 4, 3)
    assert protected(graph)["a"] == "lies on an axis that the next layer does not read"
    if kind == "linear":
        assert entries(graph.group("a"), "head.weight", 1) == [[u] for u in range(6)], "they go through"


# signs and spikes -----------------------------------------------------------------------------------------------------

Two = Callable[[Tensor, Tensor, Tensor], Tensor]
ONES, PAIR = np.ones(6), np.repeat([1.0, 0.5], 6)


def both(s: Tensor) -> Tensor:
    """Counts of spikes on two scales: divisors 1 and 0.5."""
    return torch.cat([s, 2 * s], -1)


FLAGS: dict[str, tuple[Two, Any, bool]] = {
    # spikes s and z, a signed current r -> what makes spikes of the result, whether it is never negative
    "relu": (lambda s, z, r: F.relu(s), ONES, True),
    "sigmoid": (lambda s, z, r: torch.sigmoid(r), None, True),
    "squashed": (lambda s, z, r: torch.sigmoid(s), None, True),
    "gelu": (lambda s, z, r: F.gelu(s), None, False),
    "clone": (lambda s, z, r: s.clone(), ONES, True),
    "clone_signed": (lambda s, z, r: r.clone(), None, False),
    "doubled": (lambda s, z, r: 2 * s, ONES / 2, True),
    "halved": (lambda s, z, r: s / 2, ONES * 2, True),
    "negated": (lambda s, z, r: s * -2, None, False),
    "shifted": (lambda s, z, r: s + 1.0, None, True),
    "lowered": (lambda s, z, r: s + -1.0, None, False),
    "sum": (lambda s, z, r: s + z, ONES, True),
    "sum_signed": (lambda s, z, r: s + r, None, False),
    "sum_uneven": (lambda s, z, r: s + 2 * z, None, True),
    "sum_alpha": (lambda s, z, r: torch.add(s, z, alpha=-1), None, False),
    "difference": (lambda s, z, r: s - z, None, False),
    "product": (lambda s, z, r: s * z, None, True),
    "floored": (lambda s, z, r: torch.div(s, 2, rounding_mode="floor"), None, False),
    "chosen": (lambda s, z, r: torch.where(z > 0, s, r), None, False),
    "joined": (lambda s, z, r: both(s), PAIR, True),
    "joined_signed": (lambda s, z, r: torch.cat([s, r], -1), None, False),
    "transposed": (lambda s, z, r: both(s).unflatten(-1, (2, 6)).mT.flatten(-2), np.tile([1.0, 0.5], 6), True),
    "flipped": (lambda s, z, r: s.flip(-1), ONES, True),
    "flipped_pair": (lambda s, z, r: both(s).flip(-1), None, True),
    "piece": (lambda s, z, r: both(s).chunk(2, -1)[1], ONES / 2, True),
    "selected": (lambda s, z, r: torch.stack([s, 4 * s], -1)[..., 1], ONES / 4, True),
    "stacked": (lambda s, z, r: torch.stack([s, 2 * s], 2).flatten(2), PAIR, True),
    "stacked_signed": (lambda s, z, r: torch.stack([s, r], 2).flatten(2), None, False),
    "expanded": (lambda s, z, r: s.unsqueeze(2).expand(-1, -1, 2, -1).flatten(2), np.ones(12), True),
    "interleaved": (lambda s, z, r: s.repeat_interleave(2, -1), np.ones(12), True),
    "shuffled": (lambda s, z, r: F.pad(s, (1, 1)), None, False),
    "mean": (lambda s, z, r: s.unflatten(-1, (2, 3)).mean(-2), np.full(3, 2.0), True),
    "mean_pair": (lambda s, z, r: both(s).unflatten(-1, (2, 6)).mean(-2), None, True),
    "total": (lambda s, z, r: s.unflatten(-1, (2, 3)).sum(-2), np.ones(3), True),
    "largest": (lambda s, z, r: s.unflatten(-1, (2, 3)).amax(-2), np.ones(3), True),
    "smallest": (lambda s, z, r: s.unflatten(-1, (2, 3)).amin(-2), None, True),
    "norm": (lambda s, z, r: r.unflatten(-1, (2, 3)).norm(dim=-2), None, True),
    "softmax": (lambda s, z, r: r.softmax(-1), None, True),
    "log_softmax": (lambda s, z, r: r.log_softmax(-1), None, False),
    "ranked": (lambda s, z, r: s.topk(3).values, None, True),
    "contracted": (lambda s, z, r: torch.einsum("tbi,tbi->tbi", s, z), None, True),
    "contracted_signed": (lambda s, z, r: torch.einsum("tbi,tbi->tbi", s, r), None, False),
}


class Spikes(nn.Module):
    """A reader behind each of FLAGS."""

    def __init__(self) -> None:
        super().__init__()
        self.s, self.z, self.r = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 6)
        self.repeat, self.lif, self.other = Repeat(3), LIF(), LIF()
        self.read = nn.ModuleDict({name: nn.LazyLinear(2) for name in FLAGS})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s, z = self.lif(self.repeat(self.s(x))), self.other(self.repeat(self.z(x)))
        return tuple(self.read[name](function(s, z, self.r(s))) for name, (function, _, _) in FLAGS.items())


def test_where_a_spike_stays_a_spike_and_what_is_never_negative() -> None:
    model, x = Spikes(), torch.randn(2, 4)
    model(x)
    graph = find_groups(model, x)
    for name, (_, divisor, nonnegative) in FLAGS.items():
        layer = layer_of(graph, f"read.{name}")
        assert layer.pre is not None and (layer.pre.nonnegative, layer.pre.layout) == (nonnegative, "T,B"), name
        assert (layer.spike_divisor is None) == (divisor is None), name
        if divisor is not None:
            np.testing.assert_array_equal(layer.spike_divisor, divisor, name)


MAPS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    # images of 7 x 7 spikes -> whether the result still counts them
    "average": (nn.AvgPool2d(2), True),
    "average_padded": (nn.AvgPool2d(3, stride=2, padding=1), True),
    "average_ceil": (nn.AvgPool2d(2, ceil_mode=True), True),
    "average_inside": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), True),
    "average_by": (nn.AvgPool2d(2, divisor_override=3), True),
    "adaptive": (nn.AdaptiveAvgPool2d(3), True),
    "largest": (nn.MaxPool2d(3, 2), True),
    "twice": (lambda x: F.avg_pool2d(F.avg_pool2d(x, 2), 3), True),
    "uneven": (lambda x: F.avg_pool2d(F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 2), False),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), True),
    "exact": (lambda x: F.interpolate(x, size=(9, 9), mode="nearest-exact"), True),
    "smooth": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), False),
    "cubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), False),
    "shuffled": (nn.ChannelShuffle(2), True),
}


class Maps(nn.Module):
    """A convolution behind each of MAPS."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.repeat, self.lif = nn.Conv2d(1, 4, 1), Repeat(2), LIF()
        self.read = nn.ModuleDict({name: nn.Conv2d(4, 2, 1) for name in MAPS})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.lif(self.repeat(self.first(x)))
        return tuple(over_time(nn.Sequential(Function(f), self.read[n]), x) for n, (f, _) in MAPS.items())


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_pools_of_spikes_count_each_of_them_once() -> None:
    graph = find_groups(Maps(), torch.randn(2, 1, 7, 7))
    single = torch.eye(49).reshape(49, 1, 7, 7).expand(49, 4, 7, 7)
    for name, (function, counts) in MAPS.items():
        layer = layer_of(graph, f"read.{name}")
        assert layer.pre is not None and layer.pre.nonnegative == (name != "cubic"), name
        assert (layer.spike_divisor is not None) == counts, name
        if layer.spike_divisor is not None:
            found = function(single).numpy() * layer.spike_divisor
            np.testing.assert_allclose(found[found != 0], 1, rtol=1e-6, err_msg=name)


def test_a_single_step_keeps_its_axis() -> None:
    model = Net(
        lambda m, x: over_time(m.b, m.lif(over_time(m.a, m.repeat(x)))),
        repeat=Repeat(1),
        a=nn.Linear(3, 5),
        lif=LIF(),
        b=nn.Linear(5, 2),
    )
    graph = groups_of(model, 3)
    post = layer_of(graph, "a").post
    assert post is not None and post.layout == "T,B" and count_macs(graph) == 3 * 5 + 5 * 2


def test_time_that_is_cut_is_refused() -> None:
    model = Net(
        lambda m, x: m.b(m.lif(m.repeat(m.a(x)))[1:]), repeat=Repeat(3), a=nn.Linear(3, 5), lif=LIF(), b=nn.Linear(5, 2)
    )
    with pytest.raises(DPAPError, match="mixes time and batch"):
        find_groups(model, torch.randn(2, 3))


# norms and scales -----------------------------------------------------------------------------------------------------


def normed(norm: nn.Module, channels: int = 12) -> Net:
    return Net(
        lambda m, x: image_head(m, F.relu(m.norm(m.a(x)))),
        a=nn.Conv2d(3, channels, 3),
        norm=norm,
        head=nn.Linear(channels, 2),
    )


def test_a_group_norm_loses_whole_norm_groups() -> None:
    model = normed(nn.GroupNorm(4, 12))
    graph = groups_of(model, 3, 6, 6)
    (unit, _) = graph.groups
    assert unit.units == 4 and entries(unit, "norm.weight") == [[3 * u, 3 * u + 1, 3 * u + 2] for u in range(4)]
    small = compacted(model, Present.whole(model, graph), {unit.name: torch.tensor([True, False, True, True])})
    assert isinstance(small, Net)
    assert (small.norm.num_groups, small.norm.num_channels, small.a.out_channels) == (3, 9, 9)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(1, 12), "a norm takes statistics over this axis"),
        (nn.GroupNorm(3, 12, affine=False), "no record of its groups"),
        (nn.LocalResponseNorm(3), "a pool mixes neighbouring units"),
        (nn.Softmax(1), "a softmax takes statistics over this axis"),
        (nn.Softmax2d(), "a softmax takes statistics over this axis"),
    ],
)
def test_statistics_over_units_protect_them(norm: nn.Module, reason: str) -> None:
    assert reason in str(protected(groups_of(normed(norm), 3, 6, 6))["a"])


@pytest.mark.parametrize(
    ("norm", "masked"),
    [
        (nn.BatchNorm2d(12), {"norm.weight": True, "norm.bias": True, "norm.running_mean": False}),
        (nn.InstanceNorm2d(12, affine=True), {"norm.weight": True, "norm.bias": True}),
        (nn.InstanceNorm2d(12, track_running_stats=True), {"norm.running_mean": False, "norm.running_var": False}),
        (nn.PReLU(12), {"norm.weight": False}),
        (nn.PReLU(), {}),
    ],
)
def test_what_each_channel_has_goes_with_it(norm: nn.Module, masked: dict[str, bool]) -> None:
    (unit, _) = groups_of(normed(norm), 3, 6, 6).groups
    found = {p.tensor: p.masked for p in unit.producers}
    assert found.items() >= masked.items() and unit.protected is None
    assert masked or "norm.weight" not in found, "one slope for all"


def test_rms_norm_protects_its_axis() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2))
    assert protected(groups_of(model, 4)) == {"0": "a norm takes statistics over this axis"}


def test_a_scale_is_cut_in_any_shape() -> None:
    model = Net(
        lambda m, x: image_head(m, (F.relu(m.a(x)) * m.gamma + m.shift.reshape(1, -1, 1, 1)) / m.divisor),
        a=nn.Conv2d(3, 5, 3),
        gamma=nn.Parameter(torch.randn(5, 1, 1)),
        shift=nn.Parameter(torch.randn(5)),
        divisor=nn.Parameter(torch.rand(1, 5, 1, 1) + 1),
        head=nn.Linear(5, 2),
    )
    (unit, _) = groups_of(model, 3, 6, 6).groups
    pieces = {p.tensor: (p.axis, p.masked) for p in unit.producers}
    assert unit.protected is None
    assert pieces["gamma"] == (0, True) and pieces["shift"] == (0, False)
    assert pieces["divisor"] == (1, False), "zero in a divisor would make infinity of a dead unit"


def test_a_constant_for_each_channel_is_a_buffer_that_is_cut() -> None:
    model = Net(lambda m, x: m.head(m.a(x) * m.constant), a=nn.Linear(3, 5), head=nn.Linear(5, 2))
    model.register_buffer("constant", torch.randn(5))
    (unit, _) = groups_of(model, 3).groups
    (piece,) = [p for p in unit.producers if p.tensor == "constant"]
    assert not piece.masked and piece.parameters == 0 and unit.protected is None


def test_a_norm_over_space_leaves_channels_alone() -> None:
    assert protected(groups_of(normed(nn.LayerNorm([4, 4])), 3, 6, 6)) == {"a": None}


def test_a_norm_over_tokens_and_units() -> None:
    model = Net(
        lambda m, x: m.head(m.norm(m.a(x)).mean(1)), a=nn.Linear(3, 6), norm=nn.LayerNorm((4, 6)), head=nn.Linear(6, 2)
    )
    graph = groups_of(model, 4, 3)
    assert protected(graph) == {"a": "a norm takes statistics over this axis"}
    assert entries(graph.group("a"), "norm.weight", 1) == [[u] for u in range(6)]


def test_a_scale_that_a_layer_norm_shares_stays_with_it() -> None:
    model = Net(
        lambda m, x: m.head(m.norm(m.a(x)) + torch.tanh(m.out(m.b(x) * m.norm.weight))),
        a=nn.Linear(3, 6),
        norm=nn.LayerNorm(6),
        b=nn.Linear(3, 6),
        out=nn.Linear(6, 6),
        head=nn.Linear(6, 2),
    )
    assert set(protected(groups_of(model, 3)).values()) == {"a norm takes statistics over this axis"}


def test_two_parameters_make_one_scale() -> None:
    model = Net(
        lambda m, x: m.head(m.a(x) * (m.gamma + m.delta) * m.wide.mean(0)),
        a=nn.Linear(3, 5),
        gamma=nn.Parameter(torch.randn(5)),
        delta=nn.Parameter(torch.randn(1, 5)),
        wide=nn.Parameter(torch.randn(3, 5)),
        head=nn.Linear(5, 2),
    )
    (unit, _) = groups_of(model, 3).groups
    assert unit.protected is None
    assert entries(unit, "gamma") == entries(unit, "delta", 1) == entries(unit, "wide", 1) == [[u] for u in range(5)]


def test_a_divisor_is_sliced_and_never_zero() -> None:
    model = Net(
        lambda m, x: m.head(torch.addcdiv(m.a(x), m.gamma, m.divisor)),
        a=nn.Linear(3, 5),
        gamma=nn.Parameter(torch.randn(5)),
        divisor=nn.Parameter(torch.rand(5) + 1),
        head=nn.Linear(5, 2),
    )
    (unit, _) = groups_of(model, 3).groups
    assert {p.tensor: p.masked for p in unit.producers}["divisor"] is False and unit.protected is None


def test_modules_with_cut_tensors_are_as_if_built_small() -> None:
    """All that a module says of its sizes, at 3 of 4 units."""
    model = Net(
        lambda m, x: m.head(
            m.last(
                m.third(m.slope(m.up(m.bare(m.inst(m.group(m.norm(m.second(m.first(x)))))).relu()))).flatten(2).mean(2)
            )
        ),
        first=nn.Conv2d(2, 4, 1),
        second=nn.Conv2d(4, 8, 1, groups=4),
        norm=nn.BatchNorm2d(8),
        group=nn.GroupNorm(4, 8),
        inst=nn.InstanceNorm2d(8, affine=True),
        bare=nn.BatchNorm2d(8, affine=False),
        up=nn.ConvTranspose2d(8, 12, 1, groups=4),
        slope=nn.PReLU(12),
        third=nn.ConvTranspose2d(12, 4, 1),
        last=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )
    graph = groups_of(model, 2, 3, 3)
    assert {g.name: g.units for g in graph.groups if g.protected is None} == {"first": 4, "third": 4, "last": 4}
    alive = {name: torch.tensor([True, True, False, True]) for name in ("first", "third", "last")}
    small = compacted(model, Present.whole(model, graph), alive)
    as_built = {
        "first": nn.Conv2d(2, 3, 1),
        "second": nn.Conv2d(3, 6, 1, groups=3),
        "norm": nn.BatchNorm2d(6),
        "group": nn.GroupNorm(3, 6),
        "inst": nn.InstanceNorm2d(6, affine=True),
        "bare": nn.BatchNorm2d(6, affine=False),
        "up": nn.ConvTranspose2d(6, 9, 1, groups=3),
        "slope": nn.PReLU(9),
        "third": nn.ConvTranspose2d(9, 3, 1),
        "last": nn.Linear(3, 3),
        "head": nn.Linear(3, 2),
    }
    for name, module in as_built.items():
        assert small.get_submodule(name).extra_repr() == module.extra_repr(), name


def test_an_embedding_is_cut_along_its_features() -> None:
    model = Net(
        lambda m, x: m.head(torch.tanh(m.words(x) + m.a(m.words(x)))),
        words=nn.Embedding(5, 5),
        a=nn.Linear(5, 5),
        head=nn.Linear(5, 2),
    )
    x = torch.tensor([[0, 3], [4, 1]])
    graph = find_groups(model, x)
    trial_cut(model, graph, x)
    unit = graph.groups[0]
    assert unit.protected is None and entries(unit, "words.weight", 1) == [[u] for u in range(5)]
    small = compacted(model, Present.whole(model, graph), {unit.name: torch.arange(5) < 3})
    assert repr(small.words) == "Embedding(5, 3)"


# one tensor, several uses --------------------------------------------------------------------------------------------


def test_a_module_that_is_called_twice_has_one_set_of_units() -> None:
    model = Net(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.b(F.relu(m.a(x))))))),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 6),
        head=nn.Linear(6, 2),
    )
    graph = groups_of(model, 3)
    (unit, _) = graph.groups
    assert unit.units == 6 and entries(unit, "b.weight", 0) == entries(unit, "b.weight", 1) == [[u] for u in range(6)]


def test_tied_parameters_are_found_by_identity() -> None:
    model = Net(
        lambda m, x: m.head(torch.tanh(m.a(x)) + m.b(x)), a=nn.Linear(3, 6), b=nn.Linear(3, 6), head=nn.Linear(6, 2)
    )
    assert isinstance(model.a, nn.Linear) and isinstance(model.b, nn.Linear)
    model.b.weight = model.a.weight
    graph = groups_of(model, 3)
    assert [layer.weight for layer in graph.layers] == ["a.weight", "a.weight", "head.weight"]
    assert [layer.name for layer in graph.layers] == ["a", "b", "head"], "each is seen where it is called"
    (unit, _) = graph.groups
    assert {p.tensor for p in unit.producers} == {"a.weight", "a.bias", "b.bias"}
    small = compacted(model, Present.whole(model, graph), {unit.name: torch.arange(6) < 4})
    assert isinstance(small, Net) and isinstance(small.a, nn.Linear)
    assert small.b.weight is small.a.weight and small.b.out_features == 4


def test_a_weight_that_reads_units_here_and_the_input_there_keeps_them() -> None:
    model = Net(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))) + F.relu(m.b(x))),
        a=nn.Linear(3, 3),
        b=nn.Linear(3, 6),
        head=nn.Linear(6, 2),
    )
    assert protected(groups_of(model, 3)) == {"a": "b.weight is also used where these are no units", "b": None}


def test_a_computed_weight_protects() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    model = model.append(nn.Linear(6, 2))
    graph = groups_of(model, 3)
    assert {g.name for g in graph.groups if g.protected is None} == {"2"}
    model.insert(2, nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))
    model.insert(0, nn.Linear(3, 3))
    assert protected(groups_of(model, 3)) == {"0": "read by a weight that is computed, not a parameter", "4": None}
    model = Net(
        lambda m, x: m.head(F.relu(m.a(x)) + F.relu(F.linear(x, 2 * m.a.weight))),
        a=nn.Linear(3, 6),
        head=nn.Linear(6, 2),
    )
    assert protected(groups_of(model, 3)) == {"a": "read by a weight that is computed, not a parameter"}


# pieces and joints ----------------------------------------------------------------------------------------------------


def test_concatenated_units_lie_one_after_the_other() -> None:
    model = Net(
        lambda m, x: m.head(F.relu(torch.cat([m.a(x), x, m.b(x)], 1))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 5),
        head=nn.Linear(12, 2),
    )
    graph = groups_of(model, 3)
    assert entries(graph.group("a"), "head.weight", 1) == [[u] for u in range(4)]
    assert entries(graph.group("b"), "head.weight", 1) == [[7 + u] for u in range(5)]
    assert graph.layers[-1].in_owner.tolist() == [0] * 4 + [-1] * 3 + [1] * 5


CUTS: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "chunk": (lambda x: torch.mul(*x.chunk(2, 1)), None),
    "split": (lambda x: torch.mul(*x.split(x.shape[1] // 2, 1)), None),
    "slice": (lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], None),
    "glu": (lambda x: F.glu(x, 1), None),
    "unequal": (lambda x: x.split([6, 2, 4], 1)[0], "single units are selected by number"),
    "one": (lambda x: x[:, :6] * x[:, 6:7], "single units are selected by number"),
    "step": (lambda x: x[:, ::2], "single units are selected by number"),
    "select": (lambda x: x[:, 0:6] * x[:, 11, None], "single units are selected by number"),
    "index": (lambda x: x[:, torch.tensor([0, 2, 4, 6, 8, 10])], "single units are selected by number"),
    "roll": (lambda x: x.roll(1, 1)[:, :6], "moved along its own axis"),
    "flip": (lambda x: x.flip(1)[:, :6], "moved along its own axis"),
    "ranked": (lambda x: x.topk(6, 1).values, "a ranking along this axis compares its units"),
    "normalised": (lambda x: F.normalize(x, dim=1)[:, :6], "a reduction over this axis mixes its units"),
    "padded": (lambda x: (F.pad(x, (2, 2)) + x.repeat(1, 2)[:, :16])[:, :6], "repeated along its own axis"),
}


@pytest.mark.parametrize("kind", CUTS)
def test_pieces_of_units(kind: str) -> None:
    cut, reason = CUTS[kind]
    model = Net(lambda m, x: m.head(cut(m.a(x))), a=nn.Linear(3, 12), head=nn.Linear(6, 2))
    graph = groups_of(model, 3)
    assert protected(graph) == {"a": reason}
    if reason is None:
        assert graph.group("a").units == 6
        assert entries(graph.group("a"), "a.weight") == [[u, u + 6] for u in range(6)]


TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    # on (B, tokens, units): the units stay what they are
    "mean": lambda x: x.mean(1),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "total": lambda x: x.sum(dim=-2),
    "whole": lambda x: x * x.mean((0, 1)) / 3,
    "deviation": lambda x: x.std(1),
    "norm": lambda x: x.norm(dim=1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1),
    "ranked": lambda x: x.topk(2, dim=1).values.mean(1),
    "sorted": lambda x: x.sort(1).values[:, 0],
    "largest": lambda x: x.max(1, keepdim=True).values,
    "place": lambda x: x.max(1).indices.float(),
    "median": lambda x: x.median(1).values,
    "rolled": lambda x: x.roll(1, 1),
    "flipped": lambda x: x.flip(1),
    "padded": lambda x: F.pad(x, (0, 0, 1, 2)).unflatten(1, (7, 1)),
    "wrapped": lambda x: F.pad(x.mT, (1, 1), mode="circular").mT,
    "cropped": lambda x: F.pad(x, (0, 0, -1, 0)),
    "repeated": lambda x: x[:, :1].repeat(1, 3, 1),
    "interleaved": lambda x: x.repeat_interleave(2, 1),
    "moved": lambda x: x.movedim(2, 0).permute(1, 2, 0),
    "expanded": lambda x: x.expand(3, -1, -1, -1).mean(0),
    "pooled": lambda x: F.avg_pool1d(x.mT, 2).mT.unflatten(1, (2, 1)),
    "grown": lambda x: torch.cat([x.new_zeros(0), x], 1),
    "turned": lambda x: x.mean(1).T.clone().T,
    "picked": lambda x: x.transpose(0, 1)[torch.tensor([[0, 2], [3, 3]])].mean((0, 1)),
    "softmax": lambda x: x.softmax(1),
    "layer_norm": lambda x: F.layer_norm(x.mT, (4,)).mT,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "like": lambda x: x + torch.zeros_like(x),
    "joined": lambda x: torch.cat([x, 2 * x], 1),
    "stacked": lambda x: torch.stack([x, 2 * x], -2).mean(-2),
    "stacked_last": lambda x: torch.stack([x, 2 * x], -1)[..., 0],
    "clamped": lambda x: torch.clamp(x, max=x.mean(1, keepdim=True)),
    "split": lambda x: x.split([1, 3], 1)[1],
    "unbound": lambda x: x.unbind(1)[2],
}


def test_what_happens_along_other_axes_leaves_units_alone() -> None:
    graph = branches(TOKENS, lambda: nn.Linear(3, 6), 4, 3)
    for name in TOKENS:
        unit = graph.group(f"a.{name}")
        assert (unit.units, unit.protected) == (6, None), name
        assert entries(unit, f"b.{name}.weight", 1) == [[u] for u in range(6)], name
        if name != "place":  # a number is no activity
            assert str(layer_of(graph, f"a.{name}").post) == f"input of b.{name}", name


MIXED: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "wrapped": (lambda x: F.pad(x, (2, 2), mode="circular"), "repeated along its own axis"),
    "reflected": (lambda x: F.pad(x, (2, 2), mode="reflect"), "repeated along its own axis"),
    "replicated": (lambda x: torch.ops.aten.replication_pad1d(x, (1, 1)), "repeated along its own axis"),
    "interleaved": (lambda x: x.repeat_interleave(2), "repeated along its own axis"),
    "cropped": (lambda x: F.pad(x, (-1, -1)), "single units are selected by number"),
    "singles": (lambda x: torch.cat(x.split(1, -1)[1:], -1), "single units are selected by number"),
    "gathered": (lambda x: x.gather(2, torch.zeros(2, 4, 3, dtype=torch.int64)), "single units are selected by number"),
    "pieces": (lambda x: x.split(4, -1)[0], "single units are selected by number"),
    "third": (lambda x: x[..., x.shape[-1] // 3 : x.shape[-1] * 2 // 3], None),
    "chunks": (lambda x: x.chunk(4, -1)[0], None),  # three of two units, which are tied, whatever was asked for
    "shifted_piece": (lambda x: x[..., 1:4], "single units are selected by number"),
    "sorted": (lambda x: x.sort().values, "a ranking along this axis compares its units"),
    "topk": (lambda x: x.topk(2).values, "a ranking along this axis compares its units"),
    "mean": (lambda x: x.mean(-1), "a reduction over this axis mixes its units"),
    "everything": (lambda x: x / x.sum(), "a reduction over this axis mixes its units"),
    "resampled": (lambda x: F.interpolate(x, scale_factor=2), "resampled along this axis"),
    "pooled": (nn.AdaptiveAvgPool1d(3), "a pool mixes neighbouring units"),
    "pixels": (lambda x: F.pixel_shuffle(x.unsqueeze(2), 2), "moved along its own axis"),
    "all_rolled": (lambda x: x.roll(1), "moved along its own axis"),
    "layer_norm": (lambda x: F.layer_norm(x, (4, 6)), "a norm takes statistics over this axis"),
}


def test_what_mixes_units_keeps_them() -> None:
    graph = branches({name: function for name, (function, _) in MIXED.items()}, lambda: nn.Linear(3, 6), 4, 3)
    assert {g.name[2:]: g.protected for g in graph.groups if g.name.startswith("a.")} == {
        name: reason for name, (_, reason) in MIXED.items()
    }


def test_a_single_unit_that_is_squeezed_stays() -> None:
    model = Net(
        lambda m, x: m.head(m.a(x) * m.gate(x).squeeze(1).unsqueeze(1)),
        a=nn.Linear(3, 6),
        gate=nn.Linear(3, 1),
        head=nn.Linear(6, 2),
    )
    assert protected(groups_of(model, 3))["gate"] == "its axis is squeezed away"


def test_a_piece_is_seen_as_the_rows_that_it_is() -> None:
    model = Net(lambda m, x: m.head(m.a(x).chunk(2, 1)[1]), a=nn.Linear(3, 12), head=nn.Linear(6, 2))
    np.testing.assert_array_equal(groups_of(model, 3).layers[0].post_row, np.arange(6, 12))


def test_what_is_joined_along_another_axis_has_the_same_units() -> None:
    for join in (lambda a, b: torch.cat([a, b], 1), lambda a, b: torch.stack([a, b], 1)):
        model = Net(
            lambda m, x, join=join: m.head(join(m.a(x), m.b(x)).flatten(1, -2).mean(1)),
            a=nn.Linear(3, 6),
            b=nn.Linear(3, 6),
            head=nn.Linear(6, 2),
        )
        graph = groups_of(model, 4, 3)
        assert {g.name: g.units for g in graph.groups} == {"a": 6, "head": 2}


def test_a_single_unit_that_is_repeated_stays() -> None:
    for stretch in (lambda gate: gate, lambda gate: gate.expand(-1, 6), lambda gate: gate.repeat(1, 6)):
        model = Net(
            lambda m, x, stretch=stretch: m.head(m.a(x) * stretch(m.gate(x))),
            a=nn.Linear(3, 6),
            gate=nn.Linear(3, 1),
            head=nn.Linear(6, 2),
        )
        assert protected(groups_of(model, 3)) == {"a": None, "gate": "a single unit is repeated"} | (
            {} if stretch(torch.ones(1, 1)).shape == (1, 1) else {"a": "combined with a tensor that carries no units"}
        )


def test_zeros_for_missing_channels_protect_what_is_added_to_them() -> None:
    """The shortcut without parameters of small ResNets."""
    model = Net(
        lambda m, x: image_head(m, F.relu(m.b(F.relu(m.a(x))) + F.pad(m.a(x), (0, 0, 0, 0, 2, 2)))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 8, 1),
        head=nn.Linear(8, 2),
    )
    assert protected(groups_of(model, 3, 4, 4)) == {"b": "tied to something that is no unit"}, "one group with a"


def test_units_between_zeros_and_side_by_side_with_themselves() -> None:
    for spread, places in (
        (lambda x: F.pad(x, (1, 3)), [[u + 1] for u in range(6)]),
        (lambda x: x.repeat_interleave(2, 1), [[2 * u, 2 * u + 1] for u in range(6)]),
    ):
        model = Net(
            lambda m, x, spread=spread: m.head(spread(m.a(x))), a=nn.Linear(3, 6), head=nn.Linear(len(places), 2)
        )
        model.head = nn.Linear(spread(torch.ones(1, 6)).shape[1], 2)
        assert entries(groups_of(model, 3).group("a"), "head.weight", 1) == places


def test_shuffled_pixels_and_channels() -> None:
    model = Net(
        lambda m, x: m.b(F.relu(m.a(F.pixel_unshuffle(x, 2).flatten(1)))), a=nn.Linear(12, 5), b=nn.Linear(5, 2)
    )
    assert protected(groups_of(model, 3, 2, 2)) == {"a": None}
    model = Net(
        lambda m, x: image_head(m, F.pixel_unshuffle(F.pixel_shuffle(m.a(x), 2), 2)),
        a=nn.Conv2d(3, 12, 1),
        head=nn.Linear(12, 2),
    )
    (unit, _) = groups_of(model, 3, 4, 4).groups
    assert unit.units == 3 and entries(unit, "a.weight") == [[4 * u + n for n in range(4)] for u in range(3)]
    model = Net(
        lambda m, x: image_head(m, m.shuffle(m.a(x))),
        a=nn.Conv2d(3, 12, 1),
        shuffle=nn.ChannelShuffle(3),
        head=nn.Linear(12, 2),
    )
    (unit, _) = groups_of(model, 3, 4, 4).groups
    assert unit.units == 4 and entries(unit, "a.weight") == [[u, u + 4, u + 8] for u in range(4)]
    assert entries(unit, "head.weight", 1) == [[3 * u, 3 * u + 1, 3 * u + 2] for u in range(4)]


def test_a_condition_ties_what_it_chooses_from() -> None:
    model = Net(
        lambda m, x: m.head(torch.where(m.a(x) > 0, m.b(x), m.a(x).masked_fill(m.a(x) < -1, 0.0))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    graph = groups_of(model, 3)
    assert {g.name: g.units for g in graph.groups} == {"a": 4, "head": 2}


# splits, heads, products ----------------------------------------------------------------------------------------------


def test_a_reshape_tries_one_axis_after_the_other() -> None:
    """Vectors as maps: height and width are mixed by the next layer, so the units are channels."""
    model = Net(
        lambda m, x: image_head(m, m.b(F.relu(m.a(x)).unflatten(1, (-1, 7, 7)))),
        a=nn.Linear(4, 3 * 49),
        b=nn.Conv2d(3, 5, 3),
        head=nn.Linear(5, 2),
    )
    graph = groups_of(model, 4)
    assert graph.group("a").units == 3
    np.testing.assert_array_equal(entries(graph.group("a"), "a.weight"), np.arange(147).reshape(3, 49))


class Attention(nn.Module):
    """One layer for queries, keys and values; fused or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = 3, 8, 24, fused
        self.embed = nn.Linear(5, 10)
        self.qkv, self.proj, self.head = nn.Linear(10, 72), nn.Linear(24, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.embed(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1) @ v
        return self.head(torch.tanh(self.proj(y.transpose(1, 2).reshape(b, n, self.attn_dim))).mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_the_units_of_attention_are_heads(fused: bool) -> None:
    model = Attention(fused)
    graph = groups_of(model, 4, 5)
    assert {g.name: g.units for g in graph.groups if g.protected is None} == {"embed": 10, "qkv": 3, "proj": 6}
    rows = np.arange(72).reshape(3, 3, 8).transpose(1, 0, 2).reshape(3, 24)
    np.testing.assert_array_equal(entries(graph.group("qkv"), "qkv.weight"), rows)
    np.testing.assert_array_equal(entries(graph.group("qkv"), "proj.weight", 1), np.arange(24).reshape(3, 8))
    layer = next(layer for layer in graph.layers if layer.name == "qkv")
    assert str(layer.post) == "input of proj"
    np.testing.assert_array_equal(layer.post_row, np.arange(48, 72), "a head's activity is that of its values")
    small = compacted(model, Present.whole(model, graph), {"qkv": torch.tensor([True, False, True])})
    assert (small.num_heads, small.head_dim, small.attn_dim) == (2, 8, 16)
    again = find_groups(small, torch.randn(2, 4, 5))
    assert again.group("qkv").units == 2


def test_products_keep_what_is_summed_over() -> None:
    model = Net(
        lambda m, x: m.head(torch.einsum("bnk,bmk->bn", m.a(x), m.b(x))),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(5, 2),
    )
    assert set(protected(groups_of(model, 5, 3)).values()) == {"contracted with another activation"}
    model = Net(
        lambda m, x: m.head(torch.einsum("...k,...k->...k", m.a(x), m.b(x)).mean(1)),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    assert {g.name: g.units for g in groups_of(model, 5, 3).groups} == {"a": 4, "head": 2}


@pytest.mark.parametrize(
    ("left", "right"), [((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)), ((3,), (3, 4))]
)
def test_the_axes_of_a_matrix_product(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """The rows of the left factor and the columns of the right one go on; what is between them is summed over."""
    model = Net(
        lambda m, x: (m.left * x) @ m.right,
        left=nn.Parameter(torch.randn(left)),
        right=nn.Parameter(torch.randn(right)),
    )
    graph = find_groups(model, torch.randn(()))
    assert graph.groups == () and model(torch.ones(())).shape == (*left[:-1], right[-1])


def test_torchs_own_attention_keeps_its_heads() -> None:
    graph = groups_of(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 4, 8)
    assert {g.name: g.protected for g in graph.groups} == {
        "self_attn": "nn.MultiheadAttention works out the size of its heads by itself",
        "self_attn.out_proj": "combined with a tensor that carries no units",
        "linear1": None,
    }


def heads(x: Tensor) -> Tensor:
    """(B, N, H * 4) -> (B, H, N, 4)."""
    return x.unflatten(-1, (-1, 4)).transpose(1, 2)


def attention(
    function: Callable[[Any, Tensor], Tensor], queries: int = 12, keys: int = 12, **parameters: nn.Parameter
) -> Graph:
    """On 7 tokens of 5 features; the function makes (B, H, N, 4)."""
    model = Net(
        lambda m, x: m.head(m.proj(function(m, x).transpose(1, 2).flatten(2)).mean(1)),
        q=nn.Linear(5, queries),
        k=nn.Linear(5, keys),
        v=nn.Linear(5, keys),
        proj=nn.Linear(queries, 6),
        head=nn.Linear(6, 2),
        **parameters,
    )
    return groups_of(model, 7, 5)


def test_a_bias_for_each_head_goes_with_it() -> None:
    """Looked up in a table by relative position, as in Swin; and given as it is."""
    places = (torch.arange(7)[:, None] - torch.arange(7) + 6).abs()

    def looked_up(m: Any, x: Tensor) -> Tensor:
        mask = m.table[places].permute(2, 0, 1)
        return F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), attn_mask=mask)

    graph = attention(looked_up, table=nn.Parameter(torch.randn(13, 3)))
    assert protected(graph) == {"q": None, "proj": None}
    assert entries(graph.group("q"), "table", 1) == [[0], [1], [2]]

    def given(m: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), m.bias)

    graph = attention(given, bias=nn.Parameter(torch.randn(3, 1, 7)))
    assert protected(graph) == {"q": None, "proj": None}
    assert entries(graph.group("q"), "bias") == [[0], [1], [2]]
    assert str(layer_of(graph, "v").post) == "input of proj"


def test_heads_that_share_keys_stay() -> None:
    def shared(m: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(heads(m.q(x)), heads(m.k(x)), heads(m.v(x)), enable_gqa=True)

    kept = protected(attention(shared, queries=24, keys=8))
    assert kept.pop("proj") is None and None not in kept.values(), kept
    assert kept["q"] == "query heads share the heads of keys and values"


def test_keys_and_values_on_fewer_places_keep_them() -> None:
    """What is made along the places of keys and values is summed over."""
    model = Net(
        lambda m, x: m.head(F.scaled_dot_product_attention(x, m.k(x.mT).mT, m.v(x.mT).mT).mean(1)),
        k=nn.Linear(7, 4),
        v=nn.Linear(7, 4),
        head=nn.Linear(5, 2),
    )
    assert protected(groups_of(model, 7, 5)) == dict.fromkeys(["k", "v"], "contracted with another activation")


def test_the_rows_and_the_batch_axes_of_a_matrix_product_carry_units() -> None:
    rows = Net(lambda m, x: m.head((m.a(x).mT @ x).mT), a=nn.Linear(3, 6), head=nn.Linear(6, 2))
    assert protected(groups_of(rows, 5, 3)) == {"a": None}
    model = Net(
        lambda m, x: m.head((m.tokens @ heads(m.a(x)) @ m.features).transpose(1, 2).flatten(2)),
        a=nn.Linear(5, 12),
        tokens=nn.Parameter(torch.randn(3, 7, 7)),
        features=nn.Parameter(torch.randn(3, 4, 1)),
        head=nn.Linear(3, 2),
    )
    unit = groups_of(model, 7, 5).group("a")
    assert (unit.units, unit.protected) == (3, None)
    assert entries(unit, "tokens") == entries(unit, "features") == [[0], [1], [2]]


def test_what_is_added_to_a_product_is_tied_to_it() -> None:
    model = Net(
        lambda m, x: m.head(torch.tanh(torch.baddbmm(m.a(x), x @ x.mT, m.b(x)))),
        a=nn.Linear(3, 6),
        b=nn.Linear(3, 6),
        head=nn.Linear(6, 2),
    )
    graph = groups_of(model, 4, 3)
    assert {g.name: g.units for g in graph.groups} == {"a": 6, "head": 2}
    assert str(layer_of(graph, "b").post) == "input of head"


def test_an_einsum_that_is_hard_to_follow_keeps_all() -> None:
    """A diagonal; and a result that the equation leaves unsaid."""
    for equation, shape in (("bcc->bc", ()), ("bcd,b", (2,))):
        model = Net(
            lambda m, x, equation=equation, shape=shape: m.head(
                torch.einsum(equation, m.a(x).unsqueeze(1) * m.b(x).unsqueeze(2), *[torch.ones(shape)] * len(shape))
            ),
            a=nn.Linear(3, 6),
            b=nn.Linear(3, 6),
            head=nn.Linear(6, 2),
        )
        assert set(protected(groups_of(model, 3)).values()) == {"contracted with another activation"}


def test_a_product_with_a_parameter_makes_its_columns() -> None:
    model = Net(
        lambda m, x: m.head(torch.tanh(m.a(x) + x @ m.w)),
        a=nn.Linear(3, 6),
        w=nn.Parameter(torch.randn(3, 6)),
        head=nn.Linear(6, 2),
    )
    graph = groups_of(model, 3)
    assert protected(graph) == {"a": None}
    assert entries(graph.group("a"), "w", 1) == [[u] for u in range(6)]


def test_an_ellipsis_lies_on_the_last_axes() -> None:
    """One operand has an axis more than the other: that of samples."""
    model = Net(
        lambda m, x: m.head(torch.einsum("...n,...n->...", m.a(x).mT, m.b(x).mean(0).mT)),
        a=nn.Linear(3, 4),
        b=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )
    graph = groups_of(model, 5, 3)
    assert {g.name: g.units for g in graph.groups} == {"a": 4, "head": 2}


def test_zeros_like_units_are_nobodys_activity() -> None:
    model = Net(
        lambda m, x: m.c(torch.zeros_like(h := m.a(x))) + m.b(torch.tanh(h)),
        a=nn.Linear(3, 5),
        b=nn.Linear(5, 2),
        c=nn.Linear(5, 2),
    )
    assert str(layer_of(groups_of(model, 3), "a").post) == "input of b"


@pytest.mark.parametrize("make", [torch.zeros_like, lambda x: x.new_zeros(x.shape), lambda x: torch.zeros(4, 3)])
def test_zeros_are_no_spikes_and_what_is_written_into_them_may_be_anything(make: Callable[[Tensor], Tensor]) -> None:
    def shifted(m: Any, x: Tensor) -> Tensor:
        buffer = make(x)
        buffer[1:] = x[:-1]
        return m.a(buffer)

    for function, spikes in ((lambda m, x: m.a(make(x)), True), (shifted, False)):
        graph = find_groups(Net(function, a=nn.Linear(3, 2)), torch.rand(4, 3))
        assert (layer_of(graph, "a").spike_divisor is not None) == spikes


# the registries ----------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(6))
        for name, size in sizes.items():
            setattr(self, name, size)


def test_a_module_without_a_record_of_its_sizes_needs_no_rule() -> None:
    module = Plain(depth=3)
    require_rule(module, "scale")(module)
    with pytest.raises(DPAPError, match="Plain has no rule"):
        require_rule(Plain(width=6), "scale")
    for unknown in (nn.Bilinear(2, 3, 4), nn.LayerNorm(6)):
        with pytest.raises(DPAPError, match="has no rule"):
            require_rule(unknown, "unknown")
    column = Plain(depth=1)
    column.gamma = nn.Parameter(torch.ones(6, 1))
    require_rule(column, "one is the size of much")(column)


def test_what_lies_around_follows_from_the_inside_out() -> None:
    model = nn.Sequential(Attention(True))
    attention = model[0]
    assert isinstance(attention, Attention)
    attention.qkv.weight = nn.Parameter(torch.zeros(24, 10))
    follow_all(model, {"0.qkv"})
    assert (attention.num_heads, attention.attn_dim, attention.qkv.out_features) == (1, 8, 24)


def test_heads_with_layers_of_their_own_follow_their_queries() -> None:
    model = nn.Module()
    model.num_heads, model.head_dim, model.inner_dim, model.all_head_size = 3, 8, 5, 24
    model.q_proj = nn.Linear(10, 24)
    model.q_proj.weight = nn.Parameter(torch.zeros(16, 10))
    follow_all(model, {"q_proj"})
    assert (model.num_heads, model.all_head_size, model.inner_dim) == (2, 16, 5), "5 is the width of something else"


def test_from_the_inside_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Around(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside, self.out_features = inside, 0

    def rule(module: Any) -> None:
        module.out_features = module.inside.out_features

    monkeypatch.setitem(MODULE_RULES, Around, rule)
    model = Around(Around(Around(nn.Linear(2, 5))))
    follow_all(model, {"inside.inside.inside"})
    assert model.out_features == 5


def test_an_entry_that_is_used_twice_is_what_either_use_makes_of_it() -> None:
    units = Units()
    ids = units.new_units(3)
    units.consume(ids, "weight", 0)
    units.produce(units.new_units(3), "weight", masked=False)
    record = units.records["weight", 0]
    assert record.produces and not record.masked
    assert units.roots().tolist() == [0, 1, 2] * 2


def test_units_that_are_built_unequally_stay() -> None:
    units = Units()
    units.new_units(2)
    units.produce(np.array([0, 0, 1]), "weight")
    assert list(classes(units, [units.records["weight", 0].ids])[2].values()) == [
        "its units own unequal numbers of entries"
    ]
    model = Net(
        lambda m, x: image_head(m, m.c(torch.cat([m.a(x), m.b(x)], 1))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 2, 1),
        c=nn.Conv2d(6, 6, 1, groups=3),
        head=nn.Linear(6, 2),
    )
    assert set(protected(groups_of(model, 3, 4, 4)).values()) == {"its units own unequal numbers of entries"}


def test_two_weights_of_one_module_make_two_groups() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(x, self.w)), self.v)

    graph = find_groups(
        Net(lambda m, x: m.head(F.relu(m.both(x))), both=Both(), head=nn.Linear(4, 2)), torch.randn(2, 3)
    )
    assert [g.name for g in graph.groups] == ["both", "both'", "head"]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=30))
def test_components_are_those_of_a_search(edges: list[tuple[int, int]]) -> None:
    lowest = list(range(16))
    for _ in range(16):
        for a, b in edges:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    assert components(16, pairs[:, 0], pairs[:, 1]).tolist() == lowest


def test_macs_of_grouped_layers() -> None:
    graph = find_groups(grouped(4, 12), torch.randn(1, 3, 8, 8))
    assert count_macs(graph) == 36 * 9 * 3 * 8 + 16 * 9 * 12 * 2 + 12 * 2
    alive = {"a": torch.tensor([True, True, False, True])}
    assert count_macs(graph, alive) == 36 * 9 * 3 * 6 + 16 * 9 * 9 * 2 + 9 * 2
    left = (27 + 1) * 6 + (18 + 1) * 9 + (9 + 1) * 2
    assert count_parameters(grouped(4, 12), graph, alive) == left, "weights and biases of 6, 9 and 2 rows"


def windows(m: Any, x: Tensor) -> Tensor:
    """Shifted windows of 4 x 4 pixels, as in Swin: they lie on the axis of samples while a layer works in them."""
    x = torch.roll(F.relu(m.a(x)).permute(0, 2, 3, 1), (-2, -2), (1, 2))
    b, h, w, c = x.shape
    x = m.b(x.view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c))
    x = x.view(b, h // 4, w // 4, 4, 4, -1).transpose(2, 3).reshape(b, h, w, -1)
    return m.head(F.relu(torch.roll(x, (2, 2), (1, 2))).mean((1, 2)))


FOLDED: dict[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module, tuple[int, ...], int]] = {
    "windows": (windows, nn.Conv2d(3, 6, 1), (3, 8, 8), 64 * 3 * 6 + 64 * 6 * 10 + 10 * 2),
    "tokens": (
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x.flatten(0, 1))))).view(len(x), -1, 10).mean(1)),
        nn.Linear(5, 6),
        (4, 5),
        4 * 5 * 6 + 4 * 6 * 10 + 10 * 2,
    ),
    "sequence first": (
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x.transpose(0, 1))))).mean(0)),
        nn.Linear(5, 6),
        (4, 5),
        4 * 5 * 6 + 4 * 6 * 10 + 10 * 2,
    ),
}


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("samples", [1, 3])
def test_macs_are_those_of_one_sample_wherever_its_parts_lie(kind: str, samples: int) -> None:
    function, first, shape, macs = FOLDED[kind]
    model = Net(function, a=first, b=nn.Linear(6, 10), head=nn.Linear(10, 2))
    x = torch.randn(samples, *shape)
    assert count_macs(find_groups(model, x)) == macs
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dev = DPAP(model, x, optimizer=optimizer, total_steps=20, ignore="b" if kind == "tokens" else ())
    for _ in range(3):
        with dev.observing():
            model(torch.randn(4, *shape)).square().mean().backward()
        optimizer.step()
        dev.step()


def test_macs_of_torchs_own_attention() -> None:
    graph = groups_of(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 4, 8)
    assert count_macs(graph) == 4 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 12), "each token passes each layer"
