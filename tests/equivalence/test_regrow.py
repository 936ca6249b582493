"""Synapses that grow again: exchanges by brute force, and what holds in whole runs."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from kernel_runs import batch, developer, train
from torch import Tensor, nn

from dpap import DPAP, DPAPError
from dpap.development.replay import Deaths
from dpap.method.regrowth import erk_density, exchange, exchange_share, hebbian
from dpap.metrics import count_synapses

WAYS = ("hebb", "gradient", "random")


def by_hand(living: Tensor, ends: Tensor, safe: Tensor, survival: Tensor, promised: Tensor, number: int) -> Tensor:
    """The mask after an exchange, one synapse at a time."""
    outputs, inputs = living.shape
    strongest = {max((j for j in range(inputs)), key=lambda j: (bool(living[i, j]), survival[i, j])) + i * inputs
                 for i in range(outputs)}  # fmt: skip
    strongest |= {max((i for i in range(outputs)), key=lambda i: (bool(living[i, j]), survival[i, j])) * inputs + j
                  for j in range(inputs)}  # fmt: skip
    places = [(i, j) for i in range(outputs) for j in range(inputs)]
    weak = [p for p in places if living[p] and not safe[p] and p[0] * inputs + p[1] not in strongest]
    dead = [p for p in places if ends[p] and not living[p]]
    number = min(number, len(weak), len(dead))
    after = living.clone()
    for place in sorted(weak, key=lambda p: float(survival[p]))[:number]:
        after[place] = False
    for place in sorted(dead, key=lambda p: -float(promised[p]))[:number]:
        after[place] = True
    return after


def test_an_exchange_equals_one_by_one() -> None:
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        ends = torch.rand(5, 7, generator=draw) < 0.9
        living = ends & (torch.rand(5, 7, generator=draw) < 0.6)
        safe = torch.rand(5, 7, generator=draw) < 0.2
        survival, promised = torch.rand(5, 7, generator=draw), torch.rand(5, 7, generator=draw)
        died, born = exchange(living, ends, safe, survival, promised, seed % 9)
        assert not (died & ~living).any() and not (born & (living | ~ends)).any()
        assert torch.equal((living & ~died) | born, by_hand(living, ends, safe, survival, promised, seed % 9))


def test_shares_and_promises() -> None:
    assert [round(exchange_share(q), 4) for q in (0, 0.25, 0.5, 1)] == [0.3, 0.2561, 0.15, 0.0]
    xy, ends = torch.tensor([[1.0, 3.0], [0.0, 8.0]]), torch.tensor([[True, True], [True, False]])
    assert hebbian(xy, ends).tolist() == [[0.25, 0.75], [0.0, 0.0]]
    density = erk_density({"a": (10, 10), "b": (100, 50, 3, 3), "c": (10, 100)}, 0.04)
    sizes = {"a": 100, "b": 45_000, "c": 1_000}
    assert sum(density[n] * sizes[n] for n in sizes) == pytest.approx(0.04 * sum(sizes.values()))
    assert density["a"] == 1.0 and density["c"] / density["b"] == pytest.approx((110 / 1000) / (156 / 45_000))
    assert set(erk_density({"a": (2, 2)}, 1.0).values()) == {1.0}


@pytest.fixture(scope="module", params=WAYS)
def grown(request: pytest.FixtureRequest) -> tuple[str, DPAP, list[dict[str, Tensor]]]:
    """A run, with the masks after each development step."""
    dev = developer("spiking", regrow=request.param, stop=0.8)
    masks = []
    for step in range(60):
        train(dev, 1, first=step)
        masks.append({name: mask.clone() for name, mask in dev.synapse_masks.items()})
    return request.param, dev, masks


def test_what_grew_is_zero_at_birth_and_the_target_is_met(grown: tuple[str, DPAP, list[dict[str, Tensor]]]) -> None:
    _, dev, masks = grown
    revived = [name for one, other in pairwise(masks) for name in one if bool((other[name] & ~one[name]).any())]
    assert revived, "nothing grew again"
    assert all(torch.equal(masks[48][n], masks[-1][n]) for n in masks[-1]), "nothing grows after the window"
    assert dev.connectivity() == pytest.approx(0.3, abs=0.02)
    x = batch(99)[0]
    assert (dev.compact().eval()(x) - dev.model.eval()(x)).abs().max() < 1e-9


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_grows_the_same(way: str) -> None:
    whole = developer("ordinary", regrow=way, shrink="always", stop=0.8)
    before = train(whole)
    assert sum(sum(report.born_synapses.values()) for report in before) > 0
    assert sum(sum(report.wasted_synapses.values()) for report in before) > 0, "some newborn were pruned again"
    dev = developer("ordinary", regrow=way, shrink="always", stop=0.8)
    train(dev, 31)
    state, weights = copy.deepcopy(dev.state_dict()), copy.deepcopy(dev.model.state_dict())
    moments = copy.deepcopy(dev.optimizers[0].state_dict())
    later = developer("ordinary", regrow=way, shrink="always", stop=0.8)
    later.load_state_dict(state)
    later.model.load_state_dict(weights)
    later.optimizers[0].load_state_dict(moments)
    train(later, 29, first=31)
    assert all(torch.equal(later.synapse_masks[n], m) for n, m in whole.synapse_masks.items())
    assert all(torch.equal(a, b) for a, b in zip(later.model.parameters(), whole.model.parameters(), strict=True))


def test_backward_sums_are_those_of_the_unmasked_weight() -> None:
    """sum |dL/dw| over the kernel, dead kernels included, and |sum w dL/dw|, as autograd has them without DPAP."""
    dev = developer("ordinary", regrow="gradient", score="taylor", shrink="never", development_steps=20)
    train(dev, 21)
    plain = copy.deepcopy(dev.model)
    plain.zero_grad()
    x, y = batch(21)
    nn.functional.cross_entropy(plain.train()(x), y).backward()
    with dev.observing():
        loss = nn.functional.cross_entropy(dev.model.train()(x), y)
    dev.optimizers[0].zero_grad()
    loss.backward()
    backward = dev._engine.window.backward
    assert len(backward) == 2 * len(dev.synapse_masks)
    for name, mask in dev.synapse_masks.items():
        weight = dict(plain.named_parameters())[name]
        layer = next(layer for layer in dev.graph.layers if layer.weight == name)
        for kind, values in (("gradient", weight.grad.abs()), ("taylor", weight.grad * weight.detach())):
            values = values.transpose(0, 1) if layer.transposed else values
            values = (values.flatten(2).sum(2) if values.dim() > 2 else values).abs()
            torch.testing.assert_close(backward[f"{kind} {name}"], values)
        assert bool((backward[f"gradient {name}"][~mask] > 0).any()), f"no dead synapse of {name} has a gradient"
        assert not bool(backward[f"taylor {name}"][~mask].any())
    seen = dict(backward)
    dev.close()
    nn.functional.cross_entropy(dev.model(x), y).backward()
    assert all(backward[key] is value for key, value in seen.items()), "hooks are left after close()"


@pytest.mark.parametrize("rule", ["gmp", "set", "rigl"])
def test_rules_of_the_literature_follow_their_description(rule: str) -> None:
    """One development step at a time, from the weights before it: what each paper says, in plain loops."""
    dev = developer("ordinary", rule=rule, synapses=None, start=0.0, stop=0.75, shrink="never", observe_every=1)
    weights = dict(dev.model.named_parameters())
    layers = {layer.weight: layer for layer in dev._engine.plan.synaptic}
    dense = count_synapses(dev.graph)

    def strength(name: str) -> Tensor:
        w = weights[name].detach().transpose(0, 1) if layers[name].transposed else weights[name].detach()
        return w.abs().flatten(2).sum(2) if w.dim() > 2 else w.abs()

    before = {name: mask.clone() for name, mask in dev.synapse_masks.items()}
    if rule != "gmp":
        density = {name: float(mask.double().mean()) for name, mask in before.items()}
        assert dev.connectivity() == pytest.approx(0.3, abs=0.01), "sparse from the start"
        erk = {name: sum(weights[name].shape) / weights[name].numel() for name in before}
        scales = [density[name] / erk[name] for name in before if density[name] < 1]
        assert max(scales) < 1.2 * min(scales)
    changed = 0
    for step in range(45):
        x, y = batch(step)
        with dev.observing():
            loss = nn.functional.cross_entropy(dev.model(x), y)
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        sizes = {name: strength(name).clone() for name in before}
        gradients = {key.split()[1]: g.clone() for key, g in dev._engine.window.backward.items()}
        dev.step()
        q = (step + 1) / 45
        for name, was in before.items():
            now = dev.synapse_masks[name]
            if rule == "gmp":
                assert not (now & ~was).any()
                free = now & (now.sum(1, keepdim=True) > 1) & (now.sum(0, keepdim=True) > 1)  # no last one of a unit
                died = was & ~now & now.any(1, keepdim=True) & now.any(0, keepdim=True)  # nor with a unit
                assert not (died.any() and free.any()) or sizes[name][free].min() >= sizes[name][died].max()
                continue
            number = math.floor(exchange_share(q) * int(was.sum()) + 1e-9) if q < 1 else 0
            promised = gradients.get(name, torch.zeros_like(sizes[name]))
            if rule == "rigl":
                everyone = torch.ones_like(was)
                expected = by_hand(was, everyone, torch.zeros_like(was), sizes[name], promised, number)
                assert torch.equal(now, expected)
            assert int(now.sum()) == int(was.sum())
            changed += int((now & ~was).sum())
        before = {name: mask.clone() for name, mask in dev.synapse_masks.items()}
    if rule == "gmp":  # a floor of one in three inputs shows in the grouped one
        shares = [float(mask.double().mean()) for mask in before.values() if mask.shape[1] > 3]
        assert max(shares) - min(shares) < 0.03
    else:
        assert changed > 0
    assert count_synapses(dev.graph, dev.alive, dev.synapse_masks) / dense == pytest.approx(0.3, abs=0.02)
    train(dev, 15, first=45)
    assert all(torch.equal(mask, before[name]) for name, mask in dev.synapse_masks.items())


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(DPAPError, match="regrow='sometimes'"):
        developer("ordinary", regrow="sometimes")
    with pytest.raises(DPAPError, match="no window"):
        developer("spiking", rule="paper", target=None, regrow="hebb", synapses=None)
    for wrong in ({"regrow": "hebb"}, {"synapses": "all"}, {"score": "hebb"}, {"prune": "units"}):
        with pytest.raises(DPAPError, match="is compared as it is"):
            developer("ordinary", rule="rigl", **({"synapses": None} | wrong))
    with pytest.raises(DPAPError, match="prunes down to a connectivity, and to nothing else"):
        developer("ordinary", rule="set", synapses=None, target=None)
    record = Deaths.of(train(developer("ordinary")))
    with pytest.raises(DPAPError, match="A replay holds what was pruned, not what grew again"):
        developer("ordinary", regrow="hebb", replay=record, target=None)
    with pytest.raises(DPAPError, match="cannot be reached: floors and protected parts keep at least"):
        developer("ordinary", target={"effective_macs": 0.01})
    for dev in (developer("ordinary", regrow="gradient"), developer("ordinary", score="taylor")):
        with pytest.raises(DPAPError, match="There was no backward pass"):
            for step in range(60):
                with dev.observing():
                    dev.model(batch(step)[0])
                dev.step()
