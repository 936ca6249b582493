"""The networks of the package: shapes, names, time, and how they are made again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dpap.errors import DPAPError
from dpap.models import MODELS, NEURONS, ConvNet, build, built_from
from dpap.neurons import SpikingNeuron

SMALL: dict[str, Any] = {"shape": (2, 8, 8), "classes": 5, "blocks": ((3, 4), (6,)), "hidden": (7,)}


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("norm", [True, False])
def test_images_to_one_row_of_outputs_each(neuron: str, pool: str, norm: bool) -> None:
    model = ConvNet(**SMALL, neuron=neuron, pool=pool, norm=norm)
    out = model(torch.rand(3, 2, 8, 8))
    assert out.shape == (3, 5)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    spiking = sum(isinstance(module, SpikingNeuron) for module in model.modules())
    assert spiking == (0 if neuron == "relu" else 4)


def test_layers_have_the_names_that_are_promised() -> None:
    names = [name for name, _ in ConvNet(**SMALL, dropout=0.5, readout="spikes").named_children()]
    assert names == [
        *("conv1", "norm1", "repeat", "neuron1", "conv2", "norm2", "neuron2", "pool1"),
        *("conv3", "norm3", "neuron3", "pool2", "flatten"),
        *("dropout1", "fc1", "norm4", "neuron4", "classifier", "neuron5"),
    ]


def test_no_bias_before_a_norm_and_one_without() -> None:
    for norm in (True, False):
        model = ConvNet(**SMALL, norm=norm)
        biased = [name for name, module in model.named_children() if getattr(module, "bias", None) is not None]
        assert ("conv1" in biased, "fc1" in biased) == (not norm, not norm)
        assert "classifier" in biased


def test_a_constant_image_equals_the_same_image_at_every_step() -> None:
    model = ConvNet(**SMALL, num_steps=5).double().eval()
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    at_once, every_step = model(images), model(images.expand(5, 3, 2, 8, 8))
    torch.testing.assert_close(at_once, every_step, rtol=0, atol=1e-12)
    assert at_once.std() > 1e-3


def test_a_constant_image_passes_the_first_convolution_once() -> None:
    model, seen = ConvNet(**SMALL, num_steps=5), []
    model.conv1.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    model.conv2.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    model(torch.rand(3, 2, 8, 8))
    assert seen == [(3, 2, 8, 8), (15, 3, 8, 8)]


def test_readouts() -> None:
    images = torch.rand(4, 2, 8, 8)
    spikes = ConvNet(**SMALL, readout="spikes", num_steps=4)(images * 10)
    assert set((spikes * 4).flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    model = ConvNet(**SMALL, num_steps=4).eval()
    steps: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda module, args, out: steps.append(out))
    torch.testing.assert_close(model(images), steps[0].reshape(4, 4, 5).mean(0))


def test_arguments_reach_the_layers() -> None:
    model = ConvNet(**SMALL, neuron="plif", tau=3.0, surrogate="sigmoid", dropout=0.3, num_steps=6)
    assert type(model.neuron1).__name__ == "PLIF"
    assert torch.isclose(1 / torch.sigmoid(model.neuron1.w), torch.tensor(3.0))
    assert "Sigmoid" in repr(model.neuron1)
    assert model.dropout1.p == 0.3
    assert model.repeat.num_steps == 6


def test_too_many_blocks_for_the_image() -> None:
    with pytest.raises(DPAPError, match="4 blocks halve an image of 8 x 8 pixels to nothing"):
        ConvNet(shape=(1, 8, 8), classes=2, blocks=((2,),) * 4, hidden=())


def test_fully_connected_networks() -> None:
    model = ConvNet(shape=(1, 8, 8), classes=3, blocks=(), hidden=(6,))
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert not any(isinstance(module, nn.Conv2d) for module in model.modules())


def test_a_built_model_knows_how_it_was_made_and_so_does_its_copy() -> None:
    assert MODELS
    model = build("convnet", **SMALL)
    made = built_from(copy.deepcopy(model))
    assert made is not None
    assert made.name == "convnet"
    again = build(made.name, **made.arguments)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert built_from(ConvNet(**SMALL)) is None
    assert not any("built" in name for name in model.state_dict())


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(DPAPError, match="did you mean 'convnet'"):
        build("convnets", **SMALL)
