"""Connections of convolutions: the kernel between an input and an output channel is one synapse."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_runs import batch, developer, train
from torch import Tensor, nn
from torch.nn import functional as F

from dpap import DPAP, DPAPError
from dpap.method.scores import SCORES
from dpap.metrics import connectivity, count_macs, count_synapses, count_synops, stored_synapses
from dpap.pruning.choose import Candidates

KINDS = ("spiking", "ordinary")


def kernels(dev: DPAP, model: nn.Module, weight: str) -> Tensor:
    """(O, I): whether any entry of a kernel is not zero."""
    layer = next(layer for layer in dev.graph.layers if layer.weight == weight)
    w = dict(model.named_parameters())[weight].detach()
    w = w.transpose(0, 1) if layer.transposed else w
    return (w.flatten(2) != 0).any(2) if w.dim() > 2 else w != 0


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_zero_and_counted_and_the_target_is_met(kind: str) -> None:
    dev = developer(kind)
    chosen = set(dev.synapse_masks)
    convolutions = {layer.weight for layer in dev.graph.layers if layer.kind == "conv" and layer.in_features > 1}
    first = dev.graph.layers[0].weight
    assert chosen & convolutions == convolutions - {first}, "the first and the depthwise keep theirs"
    train(dev)
    masked = dev.masked()
    assert dev.connectivity() == pytest.approx(0.3, abs=0.02)
    assert connectivity(dev.graph, dev.alive, dev.synapse_masks) == dev.connectivity()
    assert any(not bool(dev.synapse_masks[name].all()) for name in convolutions & chosen)
    total = 0
    for layer in dev.graph.layers:
        there = kernels(dev, masked, layer.weight)
        mask = dev.synapse_masks.get(layer.weight)
        assert mask is None or not bool((there & ~mask).any()), f"a dead kernel of {layer.weight} is not zero"
        total += int(there.sum()) * layer.kernel
    assert total == count_synapses(dev.graph, dev.alive, dev.synapse_masks)
    assert stored_synapses(masked, dev.graph).keys() >= {n for n, m in dev.synapse_masks.items() if not bool(m.all())}


@pytest.mark.parametrize("metric", ["effective_macs", "sops"])
def test_what_connections_bring_down_is_met_by_them(metric: str) -> None:
    dev = developer("spiking", target={metric: 0.3})
    train(dev)
    left = count_macs(dev.graph, dev.alive, synapses=dev.synapse_masks) / count_macs(dev.graph)
    if metric == "effective_macs":
        assert left == pytest.approx(0.3, abs=0.03)
    account = dev._engine.survivors.account()
    assert account.effective_macs() == count_macs(dev.graph, dev.alive, synapses=dev.synapse_masks)
    assert count_macs(dev.graph, dev.alive) / count_macs(dev.graph) > 1.2 * left, "units alone met the target"
    kernels_left = dev.synapse_masks["conv2.weight"].double().mean()
    assert kernels_left < 0.7


def test_layers_with_few_inputs_keep_more_of_them() -> None:
    """Rule.crowding: pruned in the order of F / sqrt(N), where convolutions lose synapses."""
    few, many = torch.tensor([[1.0, 1.0, 1.0, 0.4]]), torch.tensor([[1.0, 1.5, 3.0, 0.9] + 12 * [1.0]])
    parts = [(n, f, f, torch.ones_like(f, dtype=torch.bool)) for n, f in enumerate((few, many))]
    crowded, even = (Candidates.of(parts, 0.7, 0.0, crowding=c) for c in (0.5, 0.0))
    order = list(crowded.in_order())
    assert order[:2] == [(0, 3), (1, 3)] and order[-4:] == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert list(even.in_order())[-5:-2] != order[-4:-1], "by F alone they are among the many"
    assert crowded.fallen.tolist() == even.fallen.tolist(), "what falls below the level is the same"


@pytest.mark.parametrize("kind", KINDS)
def test_masked_equals_compacted_and_shrunk(kind: str) -> None:
    never, always = developer(kind, shrink="never"), developer(kind, shrink="always")
    for one, other in zip(train(never), train(always), strict=True):
        assert one.died_units == other.died_units and one.died_synapses == other.died_synapses
    for name, mask in never.synapse_masks.items():
        assert torch.equal(mask, always.synapse_masks[name])
    x = batch(99)[0]
    answers = [m.eval()(x) for m in (never.model, never.compact(), always.model, always.compact(), always.masked())]
    for answer in answers[1:]:
        assert (answer - answers[0]).abs().max() < 1e-9


def test_a_resumed_run_ends_the_same() -> None:
    whole = developer("spiking")
    train(whole)
    dev = developer("spiking")
    train(dev, 25)
    state, weights = copy.deepcopy(dev.state_dict()), copy.deepcopy(dev.model.state_dict())
    moments = copy.deepcopy(dev.optimizers[0].state_dict())
    later = developer("spiking")
    later.load_state_dict(state)
    later.model.load_state_dict(weights)
    later.optimizers[0].load_state_dict(moments)
    train(later, 35, first=25)
    assert all(torch.equal(later.synapse_masks[n], m) for n, m in whole.synapse_masks.items())
    assert all(torch.equal(a, b) for a, b in zip(later.model.parameters(), whole.model.parameters(), strict=True))


def test_synaptic_operations_by_brute_force() -> None:
    """A kernel that is dead carries no spike: counts with the mask are those of a network whose kernel is zero."""
    dev = developer("spiking", shrink="never")
    train(dev)
    masked, x = dev.masked(), batch(5)[0]
    with_masks = count_synops(masked, dev.graph, [x], dev.alive, dev.synapse_masks)
    layer = next(layer for layer in dev.graph.layers if layer.name == "conv2")
    seen: list[Tensor] = []
    handle = masked.get_submodule("conv2").register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        masked.eval()(x)
    handle.remove()
    spikes = seen[0]
    living = dev.synapse_masks[layer.weight] & kernels(dev, masked, layer.weight)
    ones = living[:, :, None, None].double().expand(*living.shape, 3, 3)
    arrived = F.conv2d(spikes.flatten(0, -4) if spikes.dim() > 4 else spikes, ones, padding=1)
    assert with_masks.sops_per_layer["conv2"] == pytest.approx(float(arrived.sum()) / len(x))


@pytest.mark.slow
@pytest.mark.parametrize("score", sorted(SCORES.keys() - {"stdp"}))
def test_every_score_prunes_kernels(score: str) -> None:
    dev = developer("spiking", score=score, target={"connectivity": 0.4})
    train(dev)
    assert dev.connectivity() == pytest.approx(0.4, abs=0.03)


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(DPAPError, match="synapses='some'"):
        developer("ordinary", synapses="some")
    for rule in ("paper", "released"):
        with pytest.raises(DPAPError, match="takes no synapses="):
            developer("spiking", rule=rule, target=None)
    assert set(developer("ordinary", synapses=None).synapse_masks) == {"16.weight"}, "by default linear layers alone"
