"""An example input of one sample: time that is folded into the batch, (T * 1, ...), must not pass for (T, B, ...)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import foreign
import pytest
import torch
from nets import FramesNet, SewNet, SpikingNet, TimeFirstNet
from torch import Tensor, nn

from dpap import DPAP, find_groups
from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer
from dpap.models import build
from dpap.neurons import LIF

T = 3
PAPER: dict[str, Any] = {"shape": (2, 6, 6), "classes": 4, "blocks": ((5,), (6,)), "hidden": (9,), "num_steps": T}


class FoldedByHand(nn.Module):
    """As with the layers of an ordinary network between multi-step neurons: (T, B, ...) to (T * B, ...) and back."""

    def __init__(self, neuron: Callable[[], nn.Module] = LIF) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.neuron1 = neuron()
        self.fc1 = nn.Linear(6 * 36, 8)
        self.neuron2 = neuron()
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        spikes = self.neuron1(self.norm(self.conv(x.flatten(0, 1))).unflatten(0, (steps, batch)))
        spikes = self.neuron2(self.fc1(spikes.flatten(0, 1).flatten(1)).unflatten(0, (steps, batch)))
        return self.fc2(spikes.flatten(0, 1)).unflatten(0, (steps, batch)).mean(0)


def spikingjelly_net() -> nn.Module:
    sj = foreign.spikingjelly()
    net = FoldedByHand(lambda: sj.neuron.LIFNode(v_threshold=0.4))
    sj.functional.set_step_mode(net, "m")
    return net


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "folded by hand": (FoldedByHand, (T, 1, 2, 6, 6)),
    "folded by hand, SpikingJelly": (spikingjelly_net, (T, 1, 2, 6, 6)),
    "T*B": (FramesNet, (T, 1, 2, 6, 6)),
    "T,B": (TimeFirstNet, (T, 1, 2, 6, 6)),
    "residual": (SewNet, (T, 1, 2, 6, 6)),
    "images": (SpikingNet, (1, 1, 8, 8)),
    "convnet, images": (lambda: build("convnet", **PAPER), (1, 2, 6, 6)),
    "convnet, frames": (lambda: build("convnet", **PAPER), (T, 1, 2, 6, 6)),
    "convnet, T = 1": (lambda: build("convnet", **PAPER), (1, 1, 2, 6, 6)),
}


def of_layer(layer: Layer) -> tuple[Any, ...]:
    counts = (layer.kernel, layer.positions, layer.steps, layer.macs_per_synapse)
    return layer.name, layer.pre, layer.post, layer.out_group, layer.in_group, *counts


def known(graph: Graph) -> tuple[Any, ...]:
    return graph.num_steps, [of_layer(layer) for layer in graph.layers], graph.neurons


@pytest.mark.parametrize("name", NETS)
def test_one_sample_tells_as_much_as_two(name: str) -> None:
    make, shape = NETS[name]
    model = make()
    two = [2 if axis == (1 if len(shape) == 5 else 0) else size for axis, size in enumerate(shape)]
    assert known(find_groups(model, torch.rand(shape))) == known(find_groups(model, torch.rand(two)))


def test_one_image_of_a_network_with_one_step_is_refused() -> None:
    """One step and one sample are the same shape, whichever comes first."""
    model = build("convnet", **PAPER | {"num_steps": 1})
    with pytest.raises(DPAPError, match="one sample"):
        find_groups(model, torch.rand(1, 2, 6, 6))
    assert find_groups(model, torch.rand(2, 2, 6, 6)).num_steps == 1


@pytest.mark.parametrize("time", [None, "leak"])
def test_a_folded_network_is_developed_from_an_example_of_one_sample(time: Any) -> None:
    torch.manual_seed(0)
    model = FoldedByHand(lambda: LIF(v_threshold=0.3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dev = DPAP(
        model, torch.rand(T, 1, 2, 6, 6), optimizer=optimizer, total_steps=6, start=0.2, stop=0.7, observe_every=1,
        target={"connectivity": 0.5}, time=time,
    )  # fmt: skip
    for _ in range(6):
        optimizer.zero_grad()
        with dev.observing():
            loss = model(torch.rand(T, 5, 2, 6, 6)).square().mean()
        loss.backward()
        optimizer.step()
        dev.step()
    assert any(not bool(alive.all()) for alive in dev.alive.values())
    x = torch.rand(T, 4, 2, 6, 6)
    torch.testing.assert_close(dev.compact().eval()(x), model.eval()(x), rtol=1e-5, atol=1e-6)


def test_one_sample_in_a_dict_is_refused_where_it_hides_the_layout() -> None:
    """How many samples lie in a tree of tensors, and on which axis, is the user's to know."""
    model = FoldedByHand()

    def forward(module: nn.Module, batch: Any) -> Any:
        return module(batch["frames"])

    with pytest.raises(DPAPError, match="one sample") as caught:
        find_groups(model, {"frames": torch.rand(T, 1, 2, 6, 6)}, forward=forward)
    assert caught.value.where == "conv"
    assert caught.value.fix == "give an example of two samples or more."
    expected = known(find_groups(model, torch.rand(T, 2, 2, 6, 6)))
    assert known(find_groups(model, {"frames": torch.rand(T, 2, 2, 6, 6)}, forward=forward)) == expected


def test_one_sample_in_a_dict_is_taken_where_it_hides_nothing() -> None:
    model = TimeFirstNet()

    def forward(module: nn.Module, batch: Any) -> Any:
        return module(batch["frames"])

    found = find_groups(model, {"frames": torch.rand(T, 1, 2, 6, 6)}, forward=forward)
    assert {layer.pre.layout for layer in found.layers[:2] if layer.pre is not None} == {"T,B"}
