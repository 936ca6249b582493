"""The networks of the package: shapes, names, time, and how they are made again."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from dpap.errors import DPAPError
from dpap.models import MODELS, NEURONS, READOUTS, ConvNet, build, built_from
from dpap.neurons import SpikingNeuron
from dpap.neurons.surrogate import Sigmoid
from dpap.recipes import recipe

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


@pytest.mark.parametrize("readout", READOUTS)
def test_the_output_is_the_mean_of_the_readout_at_every_step(readout: str) -> None:
    model = ConvNet(**SMALL, readout=readout, num_steps=4)  # in training mode: norms keep the neurons busy
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    images = torch.rand(3, 2, 8, 8)
    steps = model(images, every_step=True)
    assert steps.shape == (4, 3, 5)
    assert steps.std(0).max() > 1e-3, "the steps are the same: nothing is proven"
    torch.testing.assert_close(model(images), steps.mean(0))
    events = torch.rand(6, 3, 2, 8, 8)
    assert model(events, every_step=True).shape == (6, 3, 5)


def test_a_network_without_time_has_no_steps() -> None:
    model, images = ConvNet(**SMALL, neuron="relu").eval(), torch.rand(3, 2, 8, 8)
    assert torch.equal(model(images, every_step=True), model(images))


def test_the_membrane_readout_by_hand() -> None:
    """tau = 2, currents 4, 0, 8: potentials 2, 1, 4.5, and 2.5 on average."""
    model = ConvNet(shape=(1, 1, 3), classes=1, blocks=(), hidden=(), readout="membrane", tau=2.0)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[4.0, 0.0, 8.0]]))
        model.classifier.bias.zero_()
    events = torch.eye(3).reshape(3, 1, 1, 1, 3)  # (T, B, C, H, W): one pixel after the other
    assert model(events, every_step=True).flatten().tolist() == [2.0, 1.0, 4.5]
    assert model(events).item() == 2.5
    assert not any(isinstance(module, SpikingNeuron) for module in model.modules())


def test_votes_are_means_of_neighbouring_outputs() -> None:
    for neuron in ("lif", "relu"):
        model = ConvNet(**SMALL, neuron=neuron, votes=3).eval()
        assert model.classifier.weight.shape == (15, 7)
        votes: list[torch.Tensor] = []
        model.classifier.register_forward_hook(lambda module, args, out, votes=votes: votes.append(out))
        images = torch.rand(2, 2, 8, 8)
        out = model(images)
        torch.testing.assert_close(out, votes[0].reshape(-1, 2, 5, 3).mean((0, 3)))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_convolution_keeps_the_size_of_the_map(kernel: int) -> None:
    model = ConvNet(**SMALL, kernel=kernel)
    assert model.conv1.kernel_size == (kernel, kernel)
    assert model.conv1(torch.rand(1, 2, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("pooled", "side"), [(None, 2), (2, 2), (1, 4), (0, 8), (5, 2)])
def test_the_first_blocks_are_pooled(pooled: int | None, side: int) -> None:
    model = ConvNet(**SMALL, pooled=pooled)
    assert model.fc1.in_features == 6 * side * side
    assert model(torch.rand(2, 2, 8, 8)).shape == (2, 5)
    assert [name for name, _ in model.named_children() if name.startswith("pool")] == ["pool1", "pool2"][:pooled]


def test_too_many_blocks_fit_when_fewer_are_pooled() -> None:
    ConvNet(shape=(1, 8, 8), classes=2, blocks=((2,),) * 4, hidden=(), pooled=3)


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        pytest.param(596_535, {"shape": (1, 28, 28), "blocks": ((15,), (40,)), "hidden": (300,)}, id="MNIST SNN"),
        pytest.param(776_670, {"shape": (2, 34, 34), "blocks": ((15,), (40,)), "hidden": (300,)}, id="N-MNIST"),
        pytest.param(
            1_255_500,
            {
                "shape": (1, 28, 28),
                "blocks": ((20,), (50,)),
                "hidden": (500,),
                "kernel": 5,
                "pool": "max",
                "neuron": "relu",
            },
            id="MNIST ANN",
        ),
        pytest.param(
            21_356_928,
            {"shape": (3, 32, 32), "blocks": ((128,) * 2, (256,) * 2, (512,) * 2), "pooled": 2, "hidden": (512,)},
            id="CIFAR-10 6Conv2FC",
        ),
        pytest.param(
            2_956_032 + 33_554_432 + 204_800,  # 36.7 M
            {"shape": (3, 32, 32), "blocks": ((256,) * 3, (256,) * 3), "hidden": (2048,), "votes": 10},
            id="CIFAR-10 6 x 256",
        ),
        pytest.param(
            165_746_368,
            {"shape": (3, 32, 32), "blocks": VGG16, "pooled": 2, "hidden": (4096, 4096), "neuron": "relu"},
            id="VGG16 of the paper",
        ),
        pytest.param(
            14_710_464 + 5_120, {"shape": (3, 32, 32), "blocks": VGG16, "hidden": (), "neuron": "relu"}, id="VGG16"
        ),
    ],
)
def test_networks_of_the_papers_have_their_number_of_weights(weights: int, settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = ConvNet(classes=10, **settings)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sum(layer.weight.numel() for layer in layers) == weights


WEIGHTS_OF_RECIPES = {
    "mnist-snn": ((1, 28, 28), 596_535),
    "mnist-ann": ((1, 28, 28), 1_255_500),
    "cifar10-snn": ((3, 32, 32), 21_356_928),
    "cifar10-snn-256": ((3, 32, 32), 36_715_264),
    "cifar10-vgg16": ((3, 32, 32), 14_715_584),
    "cifar10-vgg16-paper": ((3, 32, 32), 165_746_368),
    "cifar10-released": ((3, 32, 32), 21_356_928),
}


@pytest.mark.parametrize("name", WEIGHTS_OF_RECIPES)
def test_a_recipe_makes_the_network_it_names(name: str) -> None:
    shape, weights = WEIGHTS_OF_RECIPES[name]
    model = recipe(name).model
    settings = {item.name: getattr(model, item.name) for item in dataclasses.fields(model)}
    with torch.device("meta"):
        made = build(settings.pop("name"), shape=shape, classes=10, **settings)
    layers = [module for module in made.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sum(layer.weight.numel() for layer in layers) == weights


def test_fully_connected_layers_may_differ() -> None:
    """As in the authors' network: PLIF that learns its slope, then LIF with another threshold and gradient."""
    settings = {"neuron": "plif", "learn_slope": True, "v_threshold": 1.0, "readout": "spikes"}
    fc = {"fc_neuron": "lif", "fc_v_threshold": 0.5, "fc_surrogate": "quadratic_gate", "fc_norm": False}
    model = ConvNet(**SMALL, **settings, **fc)
    neurons = [model.get_submodule(f"neuron{number}") for number in range(1, 6)]
    assert [type(neuron).__name__ for neuron in neurons] == ["PLIF"] * 3 + ["LIF"] * 2
    assert [neuron.v_threshold for neuron in neurons] == [1.0] * 3 + [0.5] * 2
    assert [neuron.alpha is not None for neuron in neurons] == [True] * 3 + [False] * 2
    assert [type(neuron.firing.surrogate).__name__ for neuron in neurons] == ["ArcTan"] * 3 + ["QuadraticGate"] * 2
    assert not hasattr(model, "norm4") and model.fc1.bias is not None
    assert model.norm1 is not None and model.conv1.bias is None
    plain = ConvNet(**SMALL, neuron="lif", v_threshold=0.75, surrogate="sigmoid", readout="spikes")
    assert {plain.get_submodule(f"neuron{number}").v_threshold for number in range(1, 6)} == {0.75}
    assert isinstance(plain.neuron5.firing.surrogate, Sigmoid)
    assert hasattr(plain, "norm4")


@pytest.mark.parametrize("neuron", ["if", "lif", "plif"])
def test_every_neuron_takes_threshold_and_slope(neuron: str) -> None:
    made = ConvNet(**SMALL, neuron=neuron, v_threshold=0.6, learn_slope=True).neuron1
    assert made.v_threshold == 0.6
    assert made.alpha is not None
    assert ConvNet(**SMALL, neuron=neuron).neuron1.alpha is None


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
