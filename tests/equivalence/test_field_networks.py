"""Networks as their authors write them, in the examples and tutorials of SpikingJelly and snnTorch and beside these: a
short run prunes each, and the network without what was pruned answers as the masked one does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import foreign
import pytest
import torch
from torch import Tensor, nn

from dpap import DPAP, DPAPError, find_groups
from dpap.graph.op_rules import OP_RULES
from dpap.models import ConvNet
from dpap.pruning.draws import same_draws

pytestmark = pytest.mark.slow

Forward = Callable[[nn.Module, Any], Any]


class Repeated(nn.Module):
    """SpikingJelly's CSNN: an image (B, C, H, W) becomes T steps inside `forward`."""

    def __init__(self, steps: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        sj = foreign.spikingjelly()
        self.steps = steps
        self.conv_fc = nn.Sequential(
            sj.layer.Conv2d(1, 6, 3, padding=1, bias=False),
            sj.layer.BatchNorm2d(6),
            sj.neuron.IFNode(),
            sj.layer.MaxPool2d(2, 2),
            sj.layer.Conv2d(6, 7, 3, padding=1, bias=False),
            sj.layer.BatchNorm2d(7),
            sj.neuron.IFNode(),
            sj.layer.MaxPool2d(2, 2),
            sj.layer.Flatten(),
            sj.layer.Linear(7 * 9, 20, bias=False),
            sj.neuron.IFNode(),
            sj.layer.Linear(20, 5, bias=False),
            sj.neuron.IFNode(),
        )
        sj.functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        foreign.spikingjelly().functional.reset_net(self)
        return self.conv_fc(self.steps(x)).mean(0)


class Poisson(nn.Module):
    """SpikingJelly's fully connected example, its encoder inside: a random number for every pixel and step."""

    def __init__(self) -> None:
        super().__init__()
        sj = foreign.spikingjelly()
        self.encoder = foreign.spikingjelly_encoding().PoissonEncoder()
        self.net = nn.Sequential(
            sj.layer.Flatten(),
            sj.layer.Linear(64, 24, bias=False),
            sj.neuron.LIFNode(tau=2.0),
            sj.layer.Linear(24, 5, bias=False),
            sj.neuron.LIFNode(tau=2.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        foreign.spikingjelly().functional.reset_net(self)
        return sum(self.net(self.encoder(x)) for _ in range(5)) / 5


class Rate(nn.Module):
    """snnTorch's encoder and neurons, as in its tutorials."""

    def __init__(self) -> None:
        super().__init__()
        snn = foreign.snntorch()
        self.fc1, self.lif1 = nn.Linear(64, 24), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(24, 5), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        spikes = foreign.snntorch_spikegen().rate(x.flatten(1), num_steps=5)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        potentials = []
        for step in spikes:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            potentials.append(mem2)
        return torch.stack(potentials).mean(0)


class Noisy(nn.Module):
    """Noise on hidden activity, dropout that never stops, stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x + 0.1 * torch.randn_like(x)
        x = x + nn.functional.dropout(self.b(x).relu(), 0.2, training=True)
        return self.c(x) * torch.bernoulli(torch.full((len(x), 1), 0.8))


class PartialResidual(nn.Module):
    """As in ReXNet: the shortcut reaches the first channels alone, so units of one layer are built unequally."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.hidden = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(10, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.conv(x)
        y = torch.cat([y[:, :6] + x, y[:, 6:]], 1)
        return self.head(self.hidden(y).relu().mean((2, 3)))


def spikformer() -> nn.Module:
    return Reset(foreign.spikingjelly_model("spikformer").Spikformer(
        T=2, img_size_h=16, img_size_w=16, patch_size=16, embed_dims=32, num_heads=4, depths=1, num_classes=5
    ))  # fmt: skip


def spike_driven() -> nn.Module:
    return Reset(foreign.spikingjelly_model("spike_driven_transformer").SpikeDrivenTransformer(
        T=2, embed_dims=32, num_heads=4, depths=1, num_classes=5
    ))  # fmt: skip


def jelly_model(file: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    """One of SpikingJelly's own networks, all steps at once."""

    def build() -> nn.Module:
        sj = foreign.spikingjelly()
        net = getattr(foreign.spikingjelly_model(file), name)(spiking_neuron=sj.neuron.IFNode, **options)
        sj.functional.set_step_mode(net, "m")
        return Reset(net)

    return build


class Reset(nn.Module):
    """New images, new state; images (B, C, H, W) become two steps where the network does not make them itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        foreign.spikingjelly().functional.reset_net(self.net)
        made_inside = hasattr(self.net, "T")
        return self.net(x if made_inside else x.unsqueeze(0).repeat(2, 1, 1, 1, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "expand": (lambda: Repeated(lambda x: x.unsqueeze(0).expand(3, -1, -1, -1, -1)), (1, 12, 12)),
    "repeat": (lambda: Repeated(lambda x: x.unsqueeze(0).repeat(3, 1, 1, 1, 1)), (1, 12, 12)),
    "stack": (lambda: Repeated(lambda x: torch.stack([x] * 3)), (1, 12, 12)),
    "poisson": (Poisson, (1, 8, 8)),
    "rate": (Rate, (1, 8, 8)),
    "noise": (Noisy, (20,)),
    "partial-residual": (PartialResidual, (3, 8, 8)),
    "spikformer": (spikformer, (3, 16, 16)),
    "parametric-lif-cifar10": (jelly_model("parametric_lif_net", "CIFAR10Net", channels=4), (3, 32, 32)),
    "spiking-resnet18": (jelly_model("spiking_resnet", "spiking_resnet18", num_classes=5), (3, 32, 32)),
    "ms-resnet18": (jelly_model("ms_resnet", "ms_resnet18", num_classes=5), (3, 32, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_run_ends_with_the_same_answers_in_fewer_parameters(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = 12
    dev = DPAP(
        model, torch.rand(2, *shape), optimizer=optimizer, total_steps=steps, target={"macs": 0.7},
        start=0.1, stop=0.8, development_steps=steps, observe_every=1, memory=0.05,
    )  # fmt: skip
    for _ in range(steps):
        with dev.observing():
            out = model(torch.rand(3, *shape))
            loss = out.pow(2).mean() + out.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    small, masked = dev.compact().eval(), dev.masked().eval()
    x = torch.rand(5, *shape)
    with torch.no_grad(), same_draws():
        torch.testing.assert_close(small(x), masked(x), rtol=1e-5, atol=1e-6)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (small, masked)]
    assert sizes[0] < sizes[1]


def test_widths_tied_by_the_shapes_of_user_code_are_refused_before_training() -> None:
    """This attention folds its queries into as many channels as its input has: half of both would fit by chance."""
    model = spike_driven()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    example = torch.rand(2, 3, 32, 32)
    with pytest.raises(DPAPError, match=r"ignore='net.patch_embed.final_stage.0'") as caught:
        DPAP(model, example, optimizer=optimizer, total_steps=10)
    assert "reshape(T, N, C, H, W)" in caught.value.where
    residual = ["net.patch_embed.final_stage.0", "net.blocks.0.attn.*", "net.blocks.0.mlp.fc2"]
    dev = DPAP(model, example, optimizer=optimizer, total_steps=10, ignore=residual)
    assert dev.graph.group("net.blocks.0.mlp.fc1").protected is None


def test_the_input_says_which_of_its_axes_are_samples() -> None:
    image = find_groups(NETWORKS["expand"][0](), torch.rand(2, 1, 12, 12))
    frames = find_groups(Repeated(lambda x: x), torch.rand(3, 2, 1, 12, 12))
    assert (image.batch_axis, frames.batch_axis) == (0, 1)
    assert image.num_steps == frames.num_steps == 3


def test_draws_are_the_same_at_any_width_and_the_generator_goes_on() -> None:
    state = torch.random.get_rng_state()
    with same_draws():
        wide, narrow = torch.randn_like(torch.zeros(4, 6)), torch.randn_like(torch.zeros(4, 3))
        kept = torch.bernoulli(torch.tensor([0.2, 0.9]))
    assert torch.equal(wide[:, :3], narrow) and kept.tolist() == [0.0, 1.0]
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_a_rule_does_not_expect_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setitem(OP_RULES, "aten.relu.default", broken)
    with pytest.raises(DPAPError, match=r"aten.relu.default does not take this.*IndexError") as caught:
        find_groups(PartialResidual(), torch.rand(2, 3, 8, 8))
    assert "self.stem(x).relu()" in caught.value.where


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    net = PartialResidual()
    net.lock = threading.Lock()
    with pytest.raises(DPAPError, match=r"This PartialResidual cannot be copied .*lock"):
        find_groups(net, torch.rand(2, 3, 8, 8))


def test_a_network_that_does_not_run_in_evaluation_mode_is_refused() -> None:
    class TwoOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().view(4, 8))

    net = TwoOnly()
    with pytest.raises(DPAPError, match="does not run in evaluation mode on two samples"):
        DPAP(net, torch.rand(4, 4), optimizer=torch.optim.SGD(net.parameters(), 0.1), total_steps=10)


def test_a_spiking_network_is_exported_for_any_size_of_batch() -> None:
    net = ConvNet(shape=(1, 6, 6), classes=4, blocks=((3, 5),), hidden=(8,), neuron="plif", num_steps=3).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.rand(2, 1, 6, 6),), dynamic_shapes=({0: batch},))
    for size in (1, 3, 64):
        x = torch.rand(size, 1, 6, 6)
        torch.testing.assert_close(program.module()(x), net(x))
