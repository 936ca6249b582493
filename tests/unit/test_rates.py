"""Who is used: shares by hand, on networks with and without time, whatever the batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dpap.graph.find import find_groups
from dpap.graph.group import Site
from dpap.metrics import FiringRate, RateCounter
from dpap.metrics.rates import active_shares
from dpap.models import ConvNet
from dpap.neurons import IF, Repeat


def relu_net() -> nn.Sequential:
    """Units answer relu(a), relu(b) and relu(-a - b) to an input (a, b)."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    return model


INPUTS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


Rates = dict[str, tuple[int, int, float]]


def rates(model: nn.Module, *batches: Tensor, alive: dict[str, Tensor] | None = None) -> Rates:
    """Units, silent ones and the rate of each group."""
    graph = find_groups(model, batches[0][:2] if len(batches[0]) > 1 else batches[0].expand(2, -1))
    with RateCounter(model, graph) as counter, torch.no_grad():
        for batch in batches:
            model(batch)
    return plain(counter.count(alive or {}))


def plain(found: dict[str, FiringRate]) -> Rates:
    return {name: (rate.units, rate.silent, round(rate.rate, 12)) for name, rate in found.items()}


def test_shares_by_hand() -> None:
    found = rates(relu_net(), INPUTS)
    # Unit 0 is above zero for three of four samples, unit 1 for one, unit 2 for none: (3 + 1 + 0) / 4 / 3.
    assert found == {"0": (3, 1, round(1 / 3, 12))}


def test_a_small_last_batch_counts_by_its_samples() -> None:
    assert rates(relu_net(), INPUTS[:3], INPUTS[3:]) == rates(relu_net(), INPUTS)


def test_the_dead_do_not_count() -> None:
    found = rates(relu_net(), INPUTS, alive={"0": torch.tensor([True, False, True])})
    assert found == {"0": (2, 1, 3 / 8)}
    found = rates(relu_net(), INPUTS, alive={"0": torch.tensor([False, False, False])})
    assert found == {"0": (0, 0, 0.0)}


def test_masked_equals_compacted() -> None:
    masked, small = relu_net(), nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        masked[0].weight[1] = 0
        small[0].weight.copy_(masked[0].weight[[0, 2]])
    alive = {"0": torch.tensor([True, False, True])}
    assert rates(masked, INPUTS, alive=alive) == rates(small, INPUTS)


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.repeat, self.conv, self.neuron, self.head = (
            Repeat(4),
            nn.Conv2d(1, 2, 1, bias=False),
            IF(),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neuron(self.repeat(self.conv(x))).flatten(2)).mean(0)


def test_spikes_per_neuron_and_step() -> None:
    """Currents 0.5 and 1 into a neuron that adds up: a spike at every second step, and at every step."""
    model = Spiking()
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    x = torch.tensor([[0.5, 1.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)
    graph = find_groups(model, x)
    with RateCounter(model, graph) as counter, torch.no_grad():
        model(x)
    # Channel 0: (0.5 + 1 + 0 + 1) / 4 over samples and positions; channel 1 gets negative current.
    assert plain(counter.count()) == {"conv": (2, 1, 2.5 / 4 / 2)}


class Reused(nn.Module):
    """One activation module behind three layers; the first and the third are tied by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()  # its first call is on the input: no units there
        self.a, self.b, self.c, self.head = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.relu(self.a(self.relu(x)))
        second = self.relu(self.b(first))
        return self.head(self.relu(self.c(second) + first))


def test_a_module_that_is_called_for_several_layers() -> None:
    model = Reused()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.a.bias.copy_(torch.tensor([1.0, 1.0, -1.0]))  # units 0 and 1 are on at the first call
        model.c.bias.copy_(torch.tensor([-5.0, 0.0, -5.0]))  # unit 1 alone at the third
        model.b.bias.copy_(torch.tensor([1.0, -1.0]))
    found = rates(model, torch.rand(3, 2), torch.rand(2, 2))
    assert found["b"] == (2, 1, 0.5)
    assert found["a"] == (3, 1, 3 / 6)


@pytest.mark.parametrize("readout", ["current", "spikes", "membrane"])
def test_only_neurons_appear(readout: str) -> None:
    """The current of a classifier is no rate; the spikes of a neuron behind it are one."""
    model = ConvNet(shape=(1, 4, 4), classes=3, blocks=((2,),), hidden=(5,), num_steps=2, readout=readout)
    found = rates(model, torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4))
    assert found.keys() == {"conv1", "fc1"} | ({"classifier"} if readout == "spikes" else set())


def test_the_hooks_are_gone_afterwards() -> None:
    model = relu_net()
    rates(model, INPUTS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_step_by_hand() -> None:
    """The neuron of `test_spikes_per_neuron_and_step`: current 0.5 fires at steps 2 and 4, current 1 at all."""
    model = Spiking()
    with torch.no_grad():
        model.conv.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    x = torch.tensor([[0.5, 1.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)
    with RateCounter(model, find_groups(model, x)) as counter, torch.no_grad():
        model(x[:1])
        model(x[1:])
    (found,) = counter.per_step().values()
    assert found.tolist() == [[0.5, 0.75, 0.5, 0.75], [0.0] * 4]


def test_the_steps_of_a_loop_are_the_calls() -> None:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.head = nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.head(self.act(self.first(step))) for step in x]).mean(0)

    model = Looped()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(2))
    x = torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[-1.0, -1.0], [1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    (site,) = {s.module: s for s in find_groups(model, x).group("first").sites}.values()
    graph = find_groups(model, x)
    looped = replace(graph.group("first"), sites=(replace(site, call=0, layout="call per step"),))  # as of a neuron
    with RateCounter(model, replace(graph, groups=(looped,), num_steps=3)) as counter, torch.no_grad():
        model(x)
        model(x)
    assert counter.per_step()["act"].tolist() == [[1.0, 0.5, 0.0], [0.5, 0.0, 0.0]]
    assert plain(counter.count()) == {"first": (2, 0, round(2 / 6, 12))}


@pytest.mark.parametrize("layout", ["T,B", "T*B"])
def test_shares_of_each_step_in_any_layout(layout: str) -> None:
    """Three steps, two samples, one unit at two positions: unit 0 fires at step 1 of sample 0, at one position."""
    x = torch.zeros(3, 2, 1, 2)
    x[1, 0, 0, 0] = 1
    folded = layout == "T*B"
    site = Site(module="", call=0, side="output", layout="T*B" if folded else "T,B", axis=1 if folded else 2)
    shares, samples = active_shares(x.flatten(0, 1) if folded else x, site, 3)
    assert (shares.tolist(), samples) == ([[0.0], [0.25], [0.0]], 2)
