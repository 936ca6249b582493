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

from dpap import DPAPError, find_groups
from dpap.graph.group import Graph, UnitGroup
from dpap.graph.module_rules import follow_all, require_rule
from dpap.graph.units import components
from dpap.metrics import count_macs
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
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).flatten(2).mean(2)),
        a=conv(2, 5, 2, stride=2),
        b=conv(5, 4, 3, padding=1, output_padding=1, stride=2),
        head=nn.Linear(4, 2),
    )
    space = (5, 4, 3)[:dims]
    graph = groups_of(model, 2, *space)
    assert {g.name: g.units for g in graph.groups if g.protected is None} == {"a": 5, "b": 4}
    assert (
        entries(graph.group("a"), "a.weight", 1) == entries(graph.group("a"), "b.weight", 0) == [[u] for u in range(5)]
    )
    first, second = graph.layers[:2]
    inside = int(np.prod(space))
    assert first.macs_per_synapse == inside * 2**dims, "each input position meets the whole kernel"
    assert second.macs_per_synapse == inside * 2**dims * 3**dims
    assert first.fanout.shape == space and (first.fanout == 2**dims).all()
    assert second.fanout.max() == 3**dims and second.fanout.min() < 3**dims, "what the padding cuts off is not read"


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
        (nn.PReLU(12), {"norm.weight": False}),
    ],
)
def test_what_each_channel_has_goes_with_it(norm: nn.Module, masked: dict[str, bool]) -> None:
    (unit, _) = groups_of(normed(norm), 3, 6, 6).groups
    found = {p.tensor: p.masked for p in unit.producers}
    assert found.items() >= masked.items() and unit.protected is None


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


def test_zeros_for_missing_channels_protect_what_is_added_to_them() -> None:
    """The shortcut without parameters of small ResNets."""
    model = Net(
        lambda m, x: image_head(m, F.relu(m.b(F.relu(m.a(x))) + F.pad(m.a(x), (0, 0, 0, 0, 2, 2)))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 8, 1),
        head=nn.Linear(8, 2),
    )
    assert protected(groups_of(model, 3, 4, 4)) == {"b": "tied to something that is no unit"}, "one group with a"


def test_shuffled_pixels_and_channels() -> None:
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
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    graph = groups_of(model, 4, 8)
    reasons = {g.name: g.protected for g in graph.groups}
    assert reasons.pop("linear1") is None
    assert "nn.MultiheadAttention" in str(reasons["self_attn"]), reasons


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
    with pytest.raises(DPAPError, match="Bilinear has no rule"):
        require_rule(nn.Bilinear(2, 3, 4), "bilinear")


def test_what_lies_around_follows_from_the_inside_out() -> None:
    model = nn.Sequential(Attention(True))
    attention = model[0]
    assert isinstance(attention, Attention)
    attention.qkv.weight = nn.Parameter(torch.zeros(24, 10))
    follow_all(model, {"0.qkv"})
    assert (attention.num_heads, attention.attn_dim, attention.qkv.out_features) == (1, 8, 24)


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
