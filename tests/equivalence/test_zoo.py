"""Groups, masks and cuts on networks of many builds: what may go is what was worked out by hand; masked = compacted in
outputs, gradients and counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import cache

import foreign
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, lively, randomised

from dpap import find_groups
from dpap.graph.group import Graph
from dpap.metrics import count_macs, count_parameters, count_synapses
from dpap.pruning.account import Account
from dpap.pruning.compact import compacted, trial_cut
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Alive, Present

SHARES = (0.3, 0.5, 0.8, 0.95)
LARGE = {"resnet50", "vgg16_bn", "densenet121"}
QUICK = ("inception", "u-net", "speech", "shuffle", "gated", "tied", "grouped", "transformer")
NETWORKS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO]


@cache
def known(name: str) -> tuple[nn.Module, Graph]:
    """A network of the zoo, in evaluation mode, and its graph."""
    torch.manual_seed(0)
    model = randomised(ZOO[name].build()).eval()
    return model, find_groups(model, inputs(name, 2))


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    known.cache_clear()


def inputs(name: str, samples: int, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (samples, *ZOO[name].shape)
    return torch.randint(0, 11, shape) if name == "rearranged" else torch.randn(shape, dtype=dtype)


def random_masks(graph: Graph, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Leave out that share of each prunable group, but one unit at least goes and one at least stays."""
    generator = torch.Generator().manual_seed(seed)
    alive = {}
    for group in graph.groups:
        if group.protected is None and group.units > 1:
            dead = min(max(1, round(share * group.units)), group.units - 1)
            alive[group.name] = torch.ones(group.units, dtype=torch.bool)
            alive[group.name][torch.randperm(group.units, generator=generator)[:dead]] = False
    return alive


def pair(model: nn.Module, graph: Graph, alive: Alive) -> tuple[nn.Module, nn.Module]:
    """The masked network and its compacted twin."""
    present = Present.whole(model, graph)
    masked, small = copy.deepcopy(model), compacted(model, present, alive)
    parameters = dict(masked.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, dead in dead_masks(parameters, present, alive, {}).items():
            parameters[name].masked_fill_(dead, 0)
    return masked, small


@pytest.mark.parametrize("name", NETWORKS)
def test_what_may_go_is_what_was_worked_out_by_hand(name: str) -> None:
    model, graph = known(name)
    assert {g.name: g.units for g in graph.groups if g.protected is None} == ZOO[name].prunable
    trial_cut(model, graph, inputs(name, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_equals_compacted(name: str) -> None:
    model, graph = known(name)
    alive = random_masks(graph, SHARES[list(ZOO).index(name) % len(SHARES)])
    assert set(alive) == set(ZOO[name].prunable)
    masked, _ = pair(copy.deepcopy(model).double(), graph, alive)
    lively(masked, inputs(name, 8, torch.float64))
    # Rounding adds up over many layers: each of the two is as far from the answer in float64 as from the other.
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 5e-5 if name in LARGE else 1e-5)):
        masked, small = pair(masked.to(dtype), graph, alive)
        x = inputs(name, 8, dtype)
        with torch.no_grad():
            a, b = masked(x), small(x)
        assert (a - b).abs().max() <= tolerance * a.abs().max()
        assert a.std(0).mean() > 1e-3 * a.abs().mean(), "the output hardly depends on the input: nothing is proven"
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [network for network in NETWORKS if network.values[0] not in LARGE])
def test_one_step_of_training_is_the_same(name: str) -> None:
    """Batch statistics and gradients of all living entries."""
    model, graph = known(name)
    alive = random_masks(graph, 0.5, seed=1)
    masked, small = pair(copy.deepcopy(model).double(), graph, alive)
    x = inputs(name, 4, torch.float64)
    for module in (masked, small):
        module.train()
        module(x).square().mean().backward()
    left = Present.whole(model, graph).holding({**{g.name: torch.ones(g.units).bool() for g in graph.groups}, **alive})
    largest = max(float(p.grad.abs().max()) for p in small.parameters() if p.grad is not None)
    compared = 0
    for (path, a), b in zip(masked.named_parameters(), small.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            difference = (left.cut(path, a.grad) - b.grad).abs().max()
            assert difference <= 1e-9 * max(largest, float(b.grad.abs().max())), path
            compared += int(b.grad.abs().max() > 0)
    assert compared > len(alive)


@pytest.mark.parametrize("name", [network for network in NETWORKS if network.values[0] not in LARGE])
def test_counts_are_those_of_the_compacted_network(name: str) -> None:
    model, graph = known(name)
    alive = random_masks(graph, 0.5)
    _, small = pair(model, graph, alive)
    everybody = {g.name: torch.ones(g.units, dtype=torch.bool) for g in graph.groups}
    dense = Account.of(graph, {n: a.numpy() for n, a in everybody.items()}, {}, floors=False)
    account = Account.of(graph, {n: a.numpy() for n, a in {**everybody, **alive}.items()}, {}, floors=False)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (model, small)]
    assert count_parameters(model, graph, alive) == sizes[1] < sizes[0]
    assert dense.parameters() - account.parameters() == sizes[0] - sizes[1]

    weights = {layer.weight for layer in graph.layers}
    named = dict(small.named_parameters())
    assert count_synapses(graph, alive) == account.connectivity() == sum(named[w].numel() for w in weights)
    if name != "encoder":  # its attention is no module whose calls could be counted here
        assert count_macs(graph, alive) == account.macs() == counted_macs(small, inputs(name, 1))
        assert count_macs(graph) == dense.macs() == counted_macs(model, inputs(name, 1))


def counted_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a pass of one sample, as the layers see them."""
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        seen = args[0] if isinstance(module, nn.modules.conv._ConvTransposeNd) else out
        linear = isinstance(module, nn.Linear)
        total += module.weight.numel() * math.prod(seen.shape[1:-1] if linear else seen.shape[2:])

    handles = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", ["speech", "shuffle", "grouped"])
def test_deaths_one_by_one_keep_the_account_exact(name: str) -> None:
    """Grouped layers isolate nobody, and their counts go with their units."""
    from dpap.pruning.account import Victim

    _, graph = known(name)
    everybody = {g.name: torch.ones(g.units, dtype=torch.bool).numpy() for g in graph.groups}
    account = Account.of(graph, everybody, {})
    killed = 0
    for number, group in enumerate(graph.groups):
        for unit in range(0, group.units, 3):
            killed += account.kill(Victim(True, number, unit))
    assert killed > 3
    alive = {g.name: torch.from_numpy(a) for g, a in zip(graph.groups, account.alive, strict=True)}
    fresh = Account.of(graph, {n: a.numpy() for n, a in alive.items()}, {})
    for metric in ("connectivity", "macs", "parameters"):
        assert account.count(metric) == fresh.count(metric)
    for now, anew in zip(account.edges, fresh.edges, strict=True):
        assert (now.row == anew.row).all() and (now.col == anew.col).all() and (now.living == anew.living).all()
    assert account.connectivity() == count_synapses(graph, alive)
    dead = sum(int((~a).sum()) for a in account.alive)
    assert dead == killed + len(account.isolated)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception", "u-net", "resnet18", "mobilenetv2_100"])
def test_torch_pruning_groups_alike(name: str) -> None:
    """An oracle of another make: which layers lose the same output channels."""
    oracle = foreign.torch_pruning()
    model, graph = known(name)
    dependencies = oracle.DependencyGraph().build_dependency(copy.deepcopy(model), inputs(name, 1))
    modules = dict(model.named_modules())
    compared = 0
    for group in graph.groups:
        if group.protected is not None:
            continue
        ours = {p.tensor for p in group.producers if p.tensor.endswith(".weight")}
        path = min(ours, key=lambda name: (modules[name.rpartition(".")[0]].weight.dim() == 1, name))  # no norm
        layer = dependencies.model.get_submodule(path.rpartition(".")[0])
        prune = oracle.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else oracle.prune_linear_out_channels
        found = dependencies.get_pruning_group(layer, prune, idxs=[0])
        theirs = {
            f"{item.dep.target._name}.weight"
            for item in found
            if "out_channels" in item.dep.handler.__name__ and hasattr(item.dep.target.module, "weight")
        }
        assert {t for t in ours if modules[t.rpartition(".")[0]].weight.dim() > 1} == {
            t for t in theirs if modules[t.rpartition(".")[0]].weight.dim() > 1
        }, group.name
        compared += 1
    assert compared == len(ZOO[name].prunable)
