"""Counts of a masked network, of its compacted copy and of the account that chooses victims are the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpap import DPAP, find_groups
from dpap.metrics import (
    connectivity,
    count_macs,
    count_neuron_updates,
    count_synapses,
    measure,
    stored_synapses,
)
from dpap.models import ConvNet
from dpap.pruning.account import Account

CLASSES, STEPS, TOTAL = 5, 3, 60


@dataclass
class Pruned:
    """A network after development."""

    model: nn.Module
    dev: DPAP
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="module", params=["spiking, average", "spiking, maximum", "events", "relu"])
def pruned(request: pytest.FixtureRequest) -> Pruned:
    torch.manual_seed(0)
    kind = request.param
    model = ConvNet(
        shape=(2, 8, 8),
        classes=CLASSES,
        blocks=((6,), (8,)),
        hidden=(24,),
        neuron="relu" if kind == "relu" else "plif",
        pool="max" if "maximum" in kind else "avg",
        num_steps=1 if kind == "relu" else STEPS,
        readout="current" if kind == "relu" else "spikes",
    )
    shape = (STEPS, 32, 2, 8, 8) if kind == "events" else (32, 2, 8, 8)
    images, labels = torch.rand(shape), torch.randint(CLASSES, (32,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    dev = DPAP(
        model,
        images[:, :2] if kind == "events" else images[:2],
        optimizer=optimizer,
        total_steps=TOTAL,
        target={"macs": 0.5, "connectivity": 0.2},
    )
    for _ in range(TOTAL):
        with dev.observing():
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    assert any(not alive.all() for alive in dev.alive.values()), "no unit died: nothing would be compared"
    assert any(not mask.all() for mask in dev.synapse_masks.values())
    model.double()
    return Pruned(dev.masked().eval(), dev, images.double(), labels)


def test_masked_and_compacted_counts_are_equal(pruned: Pruned) -> None:
    dev, model = pruned.dev, pruned.model
    small = dev.compact()
    graph = find_groups(small, pruned.images)
    masks = stored_synapses(small, graph)
    batches = [(pruned.images, pruned.labels)]
    ours = measure(model, dev.graph, batches, dev.alive, dev.synapse_masks)
    theirs = measure(small, graph, batches, synapses=masks)
    assert sum(p.numel() for p in small.parameters()) == ours.parameters == theirs.parameters
    assert ours.parameters < sum(p.numel() for p in model.parameters())
    assert theirs.macs_per_sample == ours.macs_per_sample < count_macs(dev.graph)
    assert theirs.macs_real_per_sample == ours.macs_real_per_sample
    assert theirs.neuron_updates_per_sample == ours.neuron_updates_per_sample
    assert count_synapses(graph, synapses=masks) == count_synapses(dev.graph, dev.alive, dev.synapse_masks)
    assert theirs.synops.sops_per_layer == pytest.approx(dict(ours.synops.sops_per_layer), rel=1e-12)
    assert theirs.synops.effective_acs_per_sample == pytest.approx(ours.synops.effective_acs_per_sample, rel=1e-12)
    assert theirs.synops.effective_macs_per_sample == pytest.approx(ours.synops.effective_macs_per_sample, rel=1e-12)
    assert theirs.energy.compute_pj == pytest.approx(ours.energy.compute_pj, rel=1e-12)
    assert theirs.accuracy == ours.accuracy
    if dev.graph.neurons:
        assert ours.synops.sops_per_sample > 0
        assert count_neuron_updates(dev.graph, dev.alive) < count_neuron_updates(dev.graph)


def test_the_account_of_victims_counts_the_same(pruned: Pruned) -> None:
    dev = pruned.dev
    account = Account.of(
        dev.graph,
        {name: alive.numpy() for name, alive in dev.alive.items()},
        {name: mask.numpy() for name, mask in dev.synapse_masks.items()},
    )
    assert account.count("connectivity") == count_synapses(dev.graph, dev.alive, dev.synapse_masks)
    assert account.count("macs") == count_macs(dev.graph, dev.alive)
    assert dev.connectivity() == connectivity(dev.graph, dev.alive, dev.synapse_masks)


def test_targets_are_met_in_these_counts(pruned: Pruned) -> None:
    dev = pruned.dev
    assert count_macs(dev.graph, dev.alive) / count_macs(dev.graph) <= 0.5 + 1e-9
    assert connectivity(dev.graph, dev.alive, dev.synapse_masks) == pytest.approx(0.2, abs=0.01)
