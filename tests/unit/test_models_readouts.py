"""What the class is read from: numbers by hand, dead time steps, and networks that are made anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import randomised
from torch import Tensor, nn
from torch.nn import functional as F

import dpap
from dpap import DPAP, find_groups
from dpap.config import ModelConfig
from dpap.errors import DPAPError
from dpap.metrics import accuracy, anytime, count_macs, count_neuron_updates
from dpap.models import READOUTS, ConvNet, build, built_from
from dpap.pruning.compact import proven_steps
from dpap.time.graph import Mode, time_graph
from dpap.time.timing import Timing, timing_of

T = 6
NET: dict[str, Any] = {
    "shape": (2, 6, 6), "classes": 4, "blocks": ((5,), (6,)), "hidden": (9,), "v_threshold": 0.4, "num_steps": T
}  # fmt: skip
ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "current": lambda steps: steps.sum(0) / len(steps),
    "spikes": lambda steps: steps.sum(0) / len(steps),
    "membrane": lambda steps: steps.sum(0) / len(steps),
    "last": lambda steps: steps[len(steps) - 1],
    "max": lambda steps: steps.sort(0).values[len(steps) - 1],
}


def one_pixel_after_the_other(readout: str, currents: list[float]) -> tuple[nn.Module, Tensor]:
    """A classifier alone, and frames of which it makes these currents."""
    number = len(currents)
    model = ConvNet(shape=(1, 1, number), classes=1, blocks=(), hidden=(), readout=readout, tau=2.0)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([currents]))
        model.classifier.bias.zero_()
    return model, torch.eye(number).reshape(number, 1, 1, 1, number)


def busy(readout: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """In float64, with currents that make everybody fire now and then, one behind the classifier too, and frames."""
    torch.manual_seed(seed)
    model = randomised(build("convnet", **NET, readout=readout)).double()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.mul_(2.0 / module.weight.flatten(1).norm(dim=1).mean())
    model.classifier.weight.data.mul_(3)
    x = torch.rand(T, 3, 2, 6, 6, dtype=torch.float64) * 2
    with torch.no_grad():
        model.train()(x)
    return model, x


def test_every_readout_is_checked_here() -> None:
    assert ANSWERS.keys() == READOUTS.keys()


@pytest.mark.parametrize(("readout", "answer"), [("membrane", 2.4375), ("last", 2.25), ("max", 4.5)])
def test_by_hand(readout: str, answer: float) -> None:
    """tau = 2, currents 4, 0, 8, 0: potentials 2, 1, 4.5, 2.25."""
    model, frames = one_pixel_after_the_other(readout, [4.0, 0.0, 8.0, 0.0])
    steps = model(frames, every_step=True)
    assert steps.flatten().tolist() == [2.0, 1.0, 4.5, 2.25]
    assert model(frames).tolist() == [[answer]]
    assert model.answer(steps[:1]).item() == 2.0


def test_each_sample_and_class_has_its_own_maximum() -> None:
    steps = torch.tensor([[[3.0, -2.0], [0.0, 5.0]], [[-1.0, -1.0], [4.0, 6.0]]])
    assert READOUTS["max"].answer(steps).tolist() == [[3.0, -1.0], [4.0, 6.0]]
    assert READOUTS["last"].answer(steps).tolist() == [[-1.0, -1.0], [4.0, 6.0]]


@pytest.mark.parametrize("readout", READOUTS)
def test_the_answer_is_made_of_the_readout_at_every_step(readout: str) -> None:
    """Of frames and of pictures, whatever T."""
    model, frames = busy(readout)
    model.eval()
    for x in (frames, frames[0], frames[:4]):
        steps = model(x, every_step=True)
        assert steps.shape == (4 if len(x) == 4 else T, 3, 4)
        assert steps.std(0).max() > 1e-3, "the steps are the same: nothing is proven"
        torch.testing.assert_close(model(x), ANSWERS[readout](steps))


def test_the_last_potential_learns_from_the_first_step() -> None:
    model, frames = one_pixel_after_the_other("last", [4.0, 0.0, 8.0])
    model(frames).sum().backward()
    assert model.classifier.weight.grad.tolist() == [[0.125, 0.25, 0.5]]


def test_the_highest_potential_learns_from_what_came_before_it() -> None:
    model, frames = one_pixel_after_the_other("max", [4.0, 8.0, 0.0])
    model(frames).sum().backward()
    assert model.classifier.weight.grad.tolist() == [[0.25, 0.5, 0.0]]


def test_an_unknown_readout() -> None:
    with pytest.raises(DPAPError, match="no readout named 'lst'") as caught:
        ConvNet(**NET, readout="lst")
    assert "'last'" in caught.value.fix


@pytest.mark.parametrize("readout", ["last", "max"])
def test_a_network_without_time_has_no_step_to_read(readout: str) -> None:
    with pytest.raises(DPAPError, match=rf"model\.readout = '{readout}'") as caught:
        ModelConfig(neuron="relu", num_steps=1, readout=readout)
    assert "no time" in caught.value.fix
    assert ModelConfig(readout=readout).arguments()["readout"] == readout


@pytest.mark.parametrize("readout", ["last", "max"])
def test_votes_are_counted_at_each_step(readout: str) -> None:
    torch.manual_seed(0)
    model = ConvNet(**NET, votes=3, readout=readout)
    potentials: list[Tensor] = []
    model.membrane.register_forward_hook(lambda module, args, out: potentials.append(out))
    out = model(torch.rand(2, 2, 6, 6))
    torch.testing.assert_close(out, ANSWERS[readout](potentials[0].unflatten(2, (4, 3)).mean(3)))


@pytest.mark.parametrize("readout", ["last", "max"])
def test_pruning_sees_what_it_sees_of_a_membrane(readout: str) -> None:
    """The classifier stays, the others may die, and every count is the same."""
    x = torch.rand(T, 2, 2, 6, 6)
    found, known = (find_groups(ConvNet(**NET, readout=name), x) for name in (readout, "membrane"))
    assert [(g.name, g.units, g.protected) for g in found.groups] == [
        (g.name, g.units, g.protected) for g in known.groups
    ]
    assert [g.name for g in found.groups if g.protected] == ["classifier"]
    assert found.num_steps == T
    assert count_macs(found) == count_macs(known)
    assert count_neuron_updates(found) == count_neuron_updates(known)


# dead time steps


def integrated(currents: Tensor, tau: float) -> Tensor:
    """Potentials of a leaky integrator, in a loop."""
    potentials, v = [], torch.zeros_like(currents[0])
    for current in currents:
        v = v + (current - v) / tau
        potentials.append(v)
    return torch.stack(potentials)


@pytest.mark.parametrize("mode", ["leak", "silence"])
@pytest.mark.parametrize("readout", ["membrane", "last", "max"])
def test_masked_is_skipped_is_cut_and_all_steps_are_read(readout: str, mode: Mode) -> None:
    """The first and the last step are dead in every layer, so that they leave the loop and the frames; the integrator
    goes on there: the classifier's bias charges it."""
    model, x = busy(readout)
    model.eval()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, -3.0, 2.0, -1.0]))
    times = proven_steps(model, time_graph(model, find_groups(model, x), mode), x, None)
    pairs = {}
    for number, n in enumerate(times.neurons):
        alive = torch.rand(n.units, T) > 0.25
        alive[:, [0, T - 1, 2 + number % 2]] = False
        alive[:, 1] = True
        pairs[n.name] = alive
    answers, spikes = {}, {}
    for form in ("masked", "skipped"):
        network = copy.deepcopy(model)
        timing = Timing(network, times, mode, skip=form == "skipped")
        timing.update(pairs)
        network.neuron3.register_forward_hook(lambda module, args, out, form=form: spikes.update({form: out}))
        answers[form] = network(x)
        if form == "skipped" and mode == "leak":
            first, last = timing.window
            assert (first, last) == (1, T - 1)
            answers["cut"] = network(x[first:last])
    fired = spikes["masked"]
    assert not bool(fired[[0, T - 1]].any()) and bool(fired.any())
    potentials = integrated(F.linear(fired, model.classifier.weight, model.classifier.bias), 2.0)
    expected = ANSWERS[readout](potentials)
    for form, found in answers.items():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=form)
    assert answers.keys() == {"masked", "skipped"} | ({"cut"} if mode == "leak" else set())
    assert bool((expected - ANSWERS[readout](potentials[:-1])).abs().max() > 1e-3), "the last step is read"
    if readout != "max":  # a maximum may well lie elsewhere
        late = integrated(F.linear(fired, model.classifier.weight, model.classifier.bias)[1:], 2.0)
        assert bool((expected - ANSWERS[readout](late)).abs().max() > 1e-3), "the first step is read"


@pytest.mark.parametrize("readout", ["last", "max"])
def test_developed_compacted_saved_and_loaded(readout: str, tmp_path: Path) -> None:
    model, x = busy(readout)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    dev = DPAP(
        model, x, optimizer=optimizer, total_steps=10, start=0.2, stop=0.7, memory=0.05, observe_every=1,
        time="leak", target={"pairs": 0.5, "connectivity": 0.6},
    )  # fmt: skip
    for _ in range(10):
        optimizer.zero_grad()
        with dev.observing():
            loss = F.cross_entropy(model(x), torch.tensor([0, 1, 2]))
        loss.backward()
        optimizer.step()
        dev.step()
    expected = model.eval()(x)
    small = dev.compact().eval()
    timing = timing_of(small)
    assert timing is not None and not all(bool(alive.all()) for alive in timing.pairs.values())
    assert any(not bool(alive.all()) for alive in dev.alive.values())
    dpap.save(small, tmp_path, alive=dev.alive)
    loaded = dpap.load(tmp_path).double().eval()
    made = built_from(loaded)
    assert made is not None and made.arguments["readout"] == readout
    for network in (small, dev.masked().eval(), loaded):
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-9)


# accuracy against steps


@pytest.mark.parametrize("readout", READOUTS)
def test_the_curve_is_of_the_networks_own_readout(readout: str) -> None:
    """Against answers that are made of the readout here; the last one is the accuracy of the network."""
    model, _ = busy(readout)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(T, 80, 2, 6, 6, generator=generator, dtype=torch.float64) * 2
    with torch.no_grad():
        steps = model(x, every_step=True)
    labels = steps[T // 2].argmax(1)
    found = anytime(model, [(x, labels)])
    expected = [(ANSWERS[readout](steps[: t + 1]).argmax(1) == labels).double().mean().item() for t in range(T)]
    assert found == pytest.approx(expected)
    assert found[-1] == accuracy(model, [(x, labels)])
    if readout in ("last", "max"):
        assert found != pytest.approx(anytime(model, [(x, labels)], answer=ANSWERS["membrane"])), "no mean was taken"
