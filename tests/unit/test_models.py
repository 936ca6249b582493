"""The networks of the package: shapes, names, time, and how they are made again."""

from __future__ import annotations

import copy
from typing import Any

import foreign
import pytest
import torch
from nets import randomised
from torch import Tensor, nn

from dpap import DPAP, find_groups
from dpap.errors import DPAPError
from dpap.models import (
    MODELS,
    NEURONS,
    SPIKING,
    ConvNet,
    ResNet,
    SEWResNet,
    ViT,
    build,
    built_from,
    resnet18,
    resnet50,
    settings_of,
    sew_resnet18,
    vit,
)
from dpap.models.vit import Attention
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


@pytest.mark.parametrize("readout", ["current", "spikes", "membrane"])
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
    "cifar10-resnet18": ((3, 32, 32), 11_164_352),
    "cifar10-resnet50": ((3, 32, 32), 23_467_712),
    "cifar10-sew-resnet18": ((3, 32, 32), 11_164_352),
    "cifar10-vit": ((3, 32, 32), 48 * 192 + 6 * 12 * 192**2 + 1_920),
    "cifar10-released": ((3, 32, 32), 21_356_928),
}


@pytest.mark.parametrize("name", WEIGHTS_OF_RECIPES)
def test_a_recipe_makes_the_network_it_names(name: str) -> None:
    shape, weights = WEIGHTS_OF_RECIPES[name]
    model = recipe(name).model
    with torch.device("meta"):
        made = build(model.name, shape=shape, classes=10, **model.arguments())
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


def test_what_can_be_set_of_a_model() -> None:
    assert settings_of("resnet18") == settings_of("resnet50") == settings_of("vit") == ("width",)
    assert {"blocks", "hidden", "width", "neuron", "readout"} <= set(settings_of("convnet"))
    assert {"neuron", "num_steps", "width"} <= set(settings_of("sew-resnet18"))
    assert not {"shape", "classes", "readout"} & set(settings_of("sew-resnet18"))
    with pytest.raises(DPAPError, match="did you mean 'vit'"):
        settings_of("vitt")


def test_a_factor_on_the_widths_of_a_convnet() -> None:
    model = ConvNet(**SMALL, width=0.5)
    assert [model.conv1.out_channels, model.conv2.out_channels, model.conv3.out_channels] == [2, 2, 3]  # of 3, 4, 6
    assert (model.fc1.in_features, model.fc1.out_features, model.classifier.out_features) == (12, 4, 5)
    assert ConvNet(**SMALL, width=0.01).conv1.out_channels == 1


# residual networks and the transformer --------------------------------------------------------------------------------

NAMED = [name for name in MODELS if "hidden" not in settings_of(name)]
BY_SIZE = [pytest.param(name, marks=pytest.mark.slow) if name != "vit" else name for name in NAMED]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def busy(model: nn.Module) -> nn.Module:
    """Norms of random statistics and such biases that neurons behind them fire: silence would prove nothing."""
    for module in randomised(model).modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0, 1)
    return model


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("resnet18", (3, 224, 224), 1000, 11_689_512),  # published
        ("resnet50", (3, 224, 224), 1000, 25_557_032),  # published
        ("sew-resnet18", (3, 224, 224), 1000, 11_689_512),
        # A 7 x 7 stem becomes 3 x 3, and the classifier has 10 rows of 512 or 2048 weights and a bias.
        ("resnet18", (3, 32, 32), 10, 11_689_512 - 64 * 3 * (49 - 9) - 990 * 513),
        ("resnet50", (3, 32, 32), 10, 25_557_032 - 64 * 3 * (49 - 9) - 990 * 2049),
        ("sew-resnet18", (3, 32, 32), 10, 11_173_962),
        # patches, places, 6 blocks of two norms, qkv, projection and MLP, a norm, the classifier
        (
            "vit",
            (3, 32, 32),
            10,
            (48 * 192 + 192)
            + 64 * 192
            + 6 * (4 * 192 + (192 * 576 + 576) + (192 * 192 + 192) + (192 * 768 + 768) + (768 * 192 + 192))
            + 2 * 192
            + (192 * 10 + 10),
        ),
    ],
)
def test_named_networks_have_their_number_of_parameters(
    name: str, shape: tuple[int, int, int], classes: int, count: int
) -> None:
    with torch.device("meta"):
        assert parameters(build(name, shape=shape, classes=classes)) == count


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64)])
def test_named_networks_answer_one_row_each_and_learn_with_every_parameter(
    name: str, shape: tuple[int, int, int]
) -> None:
    model = build(name, shape=shape, classes=5, width=1 / 16)
    out = model(torch.rand(4, *shape))
    assert out.shape == (4, 5)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    made = built_from(model)
    assert made is not None
    again = build(made.name, **made.arguments)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_the_width_of_named_networks() -> None:
    with torch.device("meta"):
        half = resnet18(shape=(3, 32, 32), classes=10, width=0.5)
        assert (half.conv1.out_channels, half.layer4[1].conv2.out_channels, half.fc.in_features) == (32, 256, 256)
        half = resnet50(shape=(3, 32, 32), classes=10, width=0.5)
        assert (half.layer4[2].conv2.out_channels, half.layer4[2].conv3.out_channels) == (256, 1024)
        half = vit(shape=(3, 32, 32), classes=10, width=0.5)
        assert (half.blocks[0].attn.num_heads, half.blocks[0].attn.head_dim, half.head.in_features) == (3, 32, 96)


def test_the_stem_follows_the_size_of_the_images() -> None:
    for make in (resnet18, sew_resnet18):
        for side, kernel, map_side in ((32, 3, 32), (63, 3, 63), (64, 7, 16), (224, 7, 56)):
            with torch.device("meta"):
                model = make(shape=(3, side, side), classes=10, width=1 / 16)
                seen: list[Tensor] = []
                model.layer1.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                model(torch.rand(2, 3, side, side))
            assert model.conv1.kernel_size == (kernel, kernel)
            assert seen[0].shape[-2:] == (map_side, map_side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_equals_that_of_timm_with_the_same_weights(name: str) -> None:
    theirs = foreign.timm().create_model(name, num_classes=7).double().eval()
    ours = build(name, shape=(3, 64, 64), classes=7).double().eval()
    randomised(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-9, atol=0)
    assert expected.std(0).max() > 1e-3 * expected.abs().max()


def test_a_vit_equals_that_of_timm_with_the_same_weights() -> None:
    foreign.timm()
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=32,
        patch_size=4,
        num_classes=7,
        embed_dim=48,
        depth=6,
        num_heads=3,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        norm_layer=nn.LayerNorm,
    )
    theirs = randomised(theirs.double().eval())
    ours = vit(shape=(3, 32, 32), classes=7, width=0.25).double().eval()
    ours.load_state_dict({n.replace("patch_embed.proj", "patch_embed"): p for n, p in theirs.state_dict().items()})
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-12)
    assert ours(images).std(0).max() > 1e-3


def test_attention_equals_that_of_pytorch() -> None:
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    ours = Attention(12, 3).double()
    with torch.no_grad():
        for linear, weight, bias in (
            (ours.qkv, theirs.in_proj_weight, theirs.in_proj_bias),
            (ours.proj, theirs.out_proj.weight, theirs.out_proj.bias),
        ):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias.normal_())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-9, atol=1e-12)


def test_a_sew_resnet_equals_that_of_spikingjelly_with_the_same_weights() -> None:
    library = foreign.spikingjelly()
    theirs = library.model.sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=library.neuron.IFNode, num_classes=7)
    library.functional.set_step_mode(theirs, "m")
    theirs = busy(theirs.double()).eval()
    ours = sew_resnet18(shape=(3, 64, 64), classes=7, neuron="if", num_steps=3).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = 3 * torch.randn(2, 3, 64, 64, dtype=torch.float64)
    spikes: list[Tensor] = []
    ours.layer4[1].register_forward_hook(lambda _, args, out: spikes.append(out))
    with torch.no_grad():
        steps = ours(images, every_step=True)
        torch.testing.assert_close(steps, theirs(images.expand(3, *images.shape)), rtol=1e-9, atol=1e-12)
    assert set(spikes[0].unique().tolist()) >= {0.0, 1.0, 2.0}, "no sum of spikes: nothing is proven"
    torch.testing.assert_close(ours(images), steps.mean(0))


def test_a_sew_resnet_knows_time_as_a_convnet_does() -> None:
    model = busy(sew_resnet18(shape=(3, 8, 8), classes=5, width=1 / 8, num_steps=4).double().eval())
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    seen: list[tuple[int, ...]] = []
    for name in ("conv1", "layer1.0.conv1"):
        model.get_submodule(name).register_forward_hook(lambda _, args, out: seen.append(tuple(args[0].shape[:1])))
    steps = model(images, every_step=True)
    assert steps.shape == (4, 3, 5)
    assert seen == [(3,), (12,)], "a constant image passes the first convolution once"
    assert steps.std(0).max() > 1e-3
    torch.testing.assert_close(model(images), steps.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(model(images.expand(4, 3, 3, 8, 8)), model(images), rtol=0, atol=1e-12)
    assert model(images.expand(6, 3, 3, 8, 8), every_step=True).shape == (6, 3, 5)


def test_a_silent_sew_block_is_the_identity() -> None:
    model = sew_resnet18(shape=(3, 8, 8), classes=5, width=1 / 8).eval()
    block = model.layer1[0]
    with torch.no_grad():
        block.bn2.bias.fill_(-100)
    spikes = torch.randint(0, 3, (4, 2, 8, 8, 8)).float()
    assert torch.equal(block(spikes), spikes)


@pytest.mark.parametrize("neuron", SPIKING)
def test_settings_reach_every_neuron_of_a_sew_resnet(neuron: str) -> None:
    settings = {"neuron": neuron, "tau": 3.0, "v_threshold": 0.6, "surrogate": "sigmoid", "learn_slope": True}
    model = sew_resnet18(shape=(3, 8, 8), classes=5, width=1 / 16, detach_reset=True, num_steps=7, **settings)
    neurons = [module for module in model.modules() if isinstance(module, SpikingNeuron)]
    assert len(neurons) == 1 + 2 * 8 + 3
    assert {type(n).__name__.lower() for n in neurons} == {neuron}
    assert {(n.v_threshold, type(n.firing.surrogate), n.firing.detach_reset) for n in neurons} == {(0.6, Sigmoid, True)}
    assert all(n.alpha is not None for n in neurons)
    assert model.repeat.num_steps == 7
    if neuron != "if":
        assert {round(1 / float(torch.as_tensor(n.rate()).detach()), 5) for n in neurons} == {3.0}


def test_a_vit_needs_whole_patches() -> None:
    with pytest.raises(DPAPError, match="30 x 32 pixels is no whole number of patches of 4 x 4"):
        vit(shape=(3, 30, 32), classes=10)
    assert vit(shape=(3, 96, 64), classes=10, width=1 / 16).pos_embed.shape == (1, 24, 12)


PRUNABLE = {
    "resnet18": {f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)}
    | {"conv1", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"},  # what a stage carries from block to block
    "resnet50": {f"layer{s}.{b}.conv{n}" for s, d in enumerate((3, 4, 6, 3), 1) for b in range(d) for n in (1, 2)}
    | {"conv1", "layer1.0.conv3", "layer2.0.conv3", "layer3.0.conv3", "layer4.0.conv3"},
    "vit": {f"blocks.{n}.{part}" for n in range(6) for part in ("attn.qkv", "mlp.fc1")},
}
PRUNABLE["sew-resnet18"] = PRUNABLE["resnet18"]


@pytest.mark.parametrize("name", BY_SIZE)
def test_what_can_be_pruned_of_the_named_networks(name: str) -> None:
    graph = find_groups(build(name, shape=(3, 32, 32), classes=10, width=1 / 16), torch.rand(2, 3, 32, 32))
    assert {group.name for group in graph.groups if group.protected is None} == PRUNABLE[name]
    if name == "vit":
        assert {graph.group(f"blocks.{n}.attn.qkv").units for n in range(6)} == {3}


@pytest.mark.parametrize("name", BY_SIZE)
def test_named_networks_lose_units_and_their_small_copies_answer_the_same(name: str) -> None:
    model = busy(build(name, shape=(3, 16, 16), classes=10, width=1 / 16).double())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8)
    target = {"macs": 0.6}
    dev = DPAP(model, images[:2], optimizer=optimizer, total_steps=20, target=target, observe_every=1, shrink="never")
    for _ in range(20):
        with dev.observing():
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    small = dev.compact()
    assert 0.4 < parameters(small) / parameters(model) < 0.95
    model.eval(), small.eval()
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(small(images), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert expected.std(0).max() > 1e-3 * expected.abs().max()


def test_the_classes_can_be_told_apart() -> None:
    made = {name: type(build(name, shape=(3, 8, 8), classes=5, width=1 / 16)) for name in NAMED}
    assert made == {"resnet18": ResNet, "resnet50": ResNet, "sew-resnet18": SEWResNet, "vit": ViT}
