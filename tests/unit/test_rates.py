"""Who is used: shares by hand, on networks with and without time, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpap.graph.front import find_groups
from dpap.metrics import FiringRate, RateCounter
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
