"""Scores that look at what stands around a unit: the norm behind it, the weights that read it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpap import DPAP, DPAPError, Stats
from dpap.method.scores import TIME_SCORES, get_score, needs, norm_scale, outgoing, per_kind

INPUTS = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 0.0], [0.0, 2.0]])


def net(norm: bool = True) -> nn.Sequential:
    """Units answer a, b, a + b (where there is no norm) to inputs (a, b)."""
    middle: list[nn.Module] = [nn.BatchNorm1d(3)] if norm else []
    model = nn.Sequential(nn.Linear(2, 3, bias=False), *middle, nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model[-3].weight.copy_(torch.tensor([[0.5, -1.0, 2.0], [0.25, 3.0, 0.0]]))
    return model


def make(model: nn.Module, **options: Any) -> DPAP:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    settings: dict[str, Any] = {"total_steps": 20, "observe_every": 1, "memory": 0.1, "start": 0.0}
    return DPAP(model, INPUTS[:2], optimizer=optimizer, **(settings | options))


def run(dev: DPAP, steps: int) -> None:
    for _ in range(steps):
        with dev.observing():
            loss = dev.model(INPUTS).square().mean()
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        dev.step()


def kept(stats: Stats) -> Stats:
    """A copy: the sums themselves go on to the next window."""
    values = {item.name: getattr(stats, item.name) for item in dataclasses.fields(stats)}
    return Stats(**{name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()})


def seen_by_a_score(model: nn.Module, layer: str, kind: str = "unit") -> Stats:
    """What a user's score is given for a layer at the first development step."""
    found: list[Stats] = []

    def score(stats: Stats) -> Tensor:
        if (stats.layer, stats.kind) == (layer, kind):
            found.append(kept(stats))
        return torch.ones(stats.weight.shape[:1] if stats.kind == "unit" else stats.weight.shape[:2])

    run(make(model, score=score), 4)
    return found[0]


def test_outgoing_by_hand() -> None:
    """The weights that read the units sum to 0.75, 4 and 2; the units answer 0.75, 1 and 1.75 on average."""
    stats = seen_by_a_score(net(norm=False), "0")
    assert stats.outgoing is not None
    assert stats.outgoing.tolist() == [0.75, 4.0, 2.0]
    torch.testing.assert_close(stats.y / stats.samples, torch.tensor([0.75, 1.0, 1.75]).to(stats.y))
    torch.testing.assert_close(outgoing(stats), torch.tensor([0.5625, 4.0, 3.5]).to(stats.y))
    assert stats.norm_scale is None


def test_outgoing_of_a_channel_sums_all_that_reads_it() -> None:
    """A channel of a 2 x 2 map: four columns of the linear layer behind the flatten, and a kernel of the other."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.next = nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)
            self.fc, self.head = nn.Linear(12, 2), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.conv(x))
            return self.fc(x.flatten(1)) + self.head(self.next(x).flatten(1))

    model, found = Forked(), []
    with torch.no_grad():
        model.fc.weight.copy_(torch.arange(24.0).reshape(2, 12) - 10)
        model.next.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 0.0]]).reshape(2, 3, 1, 1))

    def score(stats: Stats) -> Tensor:
        if (stats.layer, stats.kind) == ("conv", "unit"):
            found.append(stats.outgoing)
        return torch.ones(stats.weight.shape[:1] if stats.kind == "unit" else stats.weight.shape[:2])

    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    images = torch.rand(2, 1, 2, 2)
    dev = DPAP(model, images, optimizer=optimizer, total_steps=20, observe_every=1, memory=0.1, start=0.0, score=score)
    for _ in range(4):
        with dev.observing():
            model(images)
        dev.step()
    columns = model.fc.weight.detach().abs().sum(0).reshape(3, 4).sum(1)
    torch.testing.assert_close(found[0].float(), columns + torch.tensor([1.0, 7.0, 3.0]))


def test_norm_scale_by_hand() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    stats = seen_by_a_score(model, "0")
    assert norm_scale(stats).tolist() == [0.5, 2.0, 0.0]


def test_of_a_synapse_they_are_the_usual_ones() -> None:
    stats = seen_by_a_score(net(norm=False), "2", "synapse")
    torch.testing.assert_close(norm_scale(stats), stats.weight.abs())
    torch.testing.assert_close(outgoing(stats), get_score("weighted-input")(stats))


def test_norm_scale_without_a_norm_is_refused() -> None:
    with pytest.raises(DPAPError, match="reads the scale of a norm behind the layer, and there is none") as caught:
        run(make(net(norm=False), score="norm-scale"), 8)
    assert "0" in caught.value.where


def test_norm_scale_of_a_norm_without_scales_is_refused() -> None:
    model = net()
    model[1] = nn.BatchNorm1d(3, affine=False)
    with pytest.raises(DPAPError, match="there is none"):
        run(make(model, score="norm-scale"), 8)


@pytest.mark.parametrize(("score", "first"), [("outgoing", 0), ("norm-scale", 2)])
def test_the_worst_unit_dies_first(score: str, first: int) -> None:
    model = net(norm=score == "norm-scale")
    if score == "norm-scale":
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.01]))
    unit = per_kind(unit=score, synapse="magnitude") if score == "outgoing" else only_first_layer
    dev = make(model, score=unit, target={"macs": 0.75})
    run(dev, 20)
    assert not dev.alive["0"][first]
    assert dev.alive["0"].sum() == 2


def only_first_layer(stats: Stats) -> Tensor:
    """The network has one norm: the layers behind the first count alike."""
    if stats.kind == "unit" and stats.layer == "0":
        return norm_scale(stats)
    return torch.ones(stats.weight.shape[:1] if stats.kind == "unit" else stats.weight.shape[:2])


def test_random_time_is_drawn_once_and_for_each_neuron_and_seed() -> None:
    found = torch.ones(40, 5)
    drawn = TIME_SCORES["random"](found, 0, "neuron1")
    assert torch.equal(drawn, TIME_SCORES["random"](3 * found, 0, "neuron1"))
    assert ((drawn > 0) & (drawn < 1)).all()
    for other in (TIME_SCORES["random"](found, 1, "neuron1"), TIME_SCORES["random"](found, 0, "neuron2")):
        assert not torch.allclose(drawn.mean(0), other.mean(0), rtol=0.05)  # steps of the layer differ, not pairs alone
    assert torch.equal(TIME_SCORES["importance"](found, 0, "neuron1"), found)


def test_scores_say_what_they_read() -> None:
    assert needs(norm_scale) == {"norm_scale"}
    assert needs(outgoing) == {"outgoing"}
    assert needs(get_score("magnitude")) == frozenset()
    assert needs(per_kind(unit="outgoing", synapse="bcm")) == {"outgoing", "pairs"}
    assert needs(lambda stats: stats.weight) == {"pairs", "norm_scale", "outgoing"}
