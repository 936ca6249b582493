"""Dead time steps: the rule against a slow account of it; masked = skipped = cut; what is counted is what is done."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MethodType
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from nets import FramesNet, SewNet, SkippedNet, SpikingNet, TimeFirstNet, TimeNorm, randomised
from oracles import time as oracle
from oracles.chain import FloatArray
from oracles.dpap import clock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import dpap
from dpap import DPAP, find_groups
from dpap.graph.group import Graph
from dpap.method.plasticity import time_importance
from dpap.method.rules import dpap as dpap_rule
from dpap.method.survival import relative
from dpap.metrics import measure
from dpap.metrics.connectivity import stored_synapses
from dpap.models import build
from dpap.neurons import IF, LIF, PLIF, SpikingNeuron
from dpap.pruning.compact import proven_steps
from dpap.time.graph import Mode, TimeGraph, time_graph
from dpap.time.timing import Timing, timing_of

T = 6
MODES: tuple[Mode, ...] = ("leak", "silence")


def paper_net() -> nn.Module:
    """2Conv2FC; it takes images and frames."""
    widths = {"classes": 4, "blocks": ((5,), (6,)), "hidden": (9,)}
    return build("convnet", shape=(2, 6, 6), v_threshold=0.4, num_steps=T, **widths)


# Network -> how it is made, one input, and the norms whose statistics belong to each neuron.
FRAMES = (T, 3, 2, 6, 6)
# Network -> how it is made, one input, and the norm of each neuron whose statistics are those of its living steps.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str | None]]] = {
    # The first norm of images sees what is the same at all steps.
    "paper, images": (paper_net, (3, 2, 6, 6), {"neuron1": None, "neuron2": "norm2", "neuron3": "norm3"}),
    "paper, frames": (paper_net, FRAMES, {"neuron1": "norm1", "neuron2": "norm2", "neuron3": "norm3"}),
    "per channel": (partial(SpikingNet, T), (3, 1, 8, 8), {"lif1": None, "lif2": "norm2", "lif3": None}),
    "T*B": (FramesNet, FRAMES, {"neuron1": "norm1", "neuron2": "norm2", "neuron3": None}),
    "T,B": (TimeFirstNet, FRAMES, {"neuron1": "norm1", "neuron2": "norm2", "neuron3": None}),
    "residual": (SewNet, FRAMES, {"neuron1": "norm1", "neuron2": "norm2", "neuron3": None}),
    "skip connection": (SkippedNet, FRAMES, {"neuron1": "norm1", "neuron2": None, "neuron3": None}),
}


@cache
def examined(name: str, mode: Mode) -> tuple[Graph, TimeGraph]:
    """What is known of a network, found once."""
    make, shape, _ = NETS[name]
    model, x = randomised(make()).double(), torch.rand(shape, dtype=torch.float64)
    graph = find_groups(model, x)
    return graph, proven_steps(model, time_graph(model, graph, mode), x, None)


def busy(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64, with currents that make everybody fire now and then, and norms away from where they begin."""
    model = randomised(model).double()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.mul_(2.0 / module.weight.flatten(1).norm(dim=1).mean())
    with torch.no_grad():
        model.train()(x)
    return model


def frames(shape: Sequence[int], seed: int = 1) -> Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def scattered(times: TimeGraph, seed: int = 0) -> dict[str, Tensor]:
    """Every layer has living and dead steps, and dead pairs beside them; first and last step are dead everywhere."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for number, n in enumerate(times.neurons):
        pairs[n.name] = torch.rand(n.units, T, generator=generator) > 0.25
        pairs[n.name][:, [0, T - 1, 2 + number % 2]] = False
        pairs[n.name][:, 1] = True
    return pairs


def apart(times: TimeGraph) -> dict[str, Tensor]:
    """No two layers behind each other have a common step: nothing ever arrives."""
    pairs = {}
    for number, n in enumerate(times.neurons):
        pairs[n.name] = torch.zeros(n.units, T, dtype=torch.bool)
        pairs[n.name][:, 1 + number % 2 :: 2] = True
    return pairs


def reference(model: nn.Module, norms: Mapping[str, str | None], pairs: Mapping[str, Tensor], mode: Mode) -> nn.Module:
    """A copy whose neurons are loops over steps, one line per moment, and whose norms see living steps alone."""
    model = copy.deepcopy(model)
    for name, alive in pairs.items():
        neuron = model.get_submodule(name)
        neuron.forward = MethodType(partial(_slow, gate=alive.T.double(), mode=mode), neuron)  # type: ignore[method-assign]
        norm = norms[name]
        if norm is not None and mode == "leak":
            module = model.get_submodule(norm)
            living = alive.any(0).nonzero().flatten().tolist()
            module.forward = MethodType(partial(_living, plain=module.forward, living=living), module)  # type: ignore[method-assign]
    return model


def _slow(neuron: SpikingNeuron, x: Tensor, *, gate: Tensor, mode: Mode) -> Tensor:
    rest, rate, spikes = neuron.v_reset or 0.0, neuron.rate(), []
    v, of_unit = torch.full_like(x[0], rest), (-1, *[1] * (x.dim() - 3))
    if isinstance(rate, Tensor) and rate.dim():
        rate = rate.view(of_unit)
    for current, alive in zip(x, gate, strict=True):
        lives = alive.view(of_unit)
        current = current * lives if mode == "leak" else current
        h = v + current if rate is None else v + rate * (current - (v - rest))
        fires = neuron.firing.surrogate.spike(h - neuron.v_threshold, None)
        spikes.append(fires * lives)
        if neuron.v_reset is None:
            v = h - neuron.v_threshold * spikes[-1]
        else:  # with "leak" it is below its threshold anyway: what is fed zeros differs in nothing, gradient included
            reset = fires if mode == "leak" else spikes[-1]
            v = h * (1 - reset) + rest * reset
    return torch.stack(spikes)


def _living(norm: nn.Module, x: Tensor, *, plain: Callable[[Tensor], Tensor], living: list[int]) -> Tensor:
    whole = x if isinstance(norm, TimeNorm) else x.unflatten(0, (T, -1))
    seen = whole[living]
    answer = plain(seen if isinstance(norm, TimeNorm) else seen.flatten(0, 1)).view(seen.shape)
    out = torch.zeros_like(whole).index_copy(0, torch.tensor(living), answer)
    return out.view(x.shape)


def answers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradient of every parameter, and the state afterwards."""
    model.zero_grad()
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    (out * weights).sum().backward()
    found = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **found, **{n: b.clone() for n, b in model.named_buffers()}}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value.numpy(), rtol=1e-9, atol=1e-11, err_msg=f"{what}: {name}")


def check_forms(name: str, model: nn.Module, x: Tensor, pairs: Mapping[str, Tensor], mode: Mode) -> None:
    """The slow network, the masked, the one that skips, and the one that is given living steps alone."""
    _, times = examined(name, mode)
    for training in (False, True):
        model.train(training)
        expected = answers(reference(model, NETS[name][2], pairs, mode), x)
        for form in ("masked", "skipped", "cut"):
            network = copy.deepcopy(model)
            timing = Timing(network, times, mode, skip=form != "masked")
            timing.update(pairs)
            first, last = timing.window if form == "cut" else (0, T)
            if form == "cut" and last - first == T:
                continue
            seen = x[first:last] if (first, last) != (0, T) else x
            same(answers(network, seen), expected, f"{form}, {'training' if training else 'evaluation'}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETS)
def test_masked_is_skipped_is_cut(name: str, mode: Mode) -> None:
    make, shape, norms = NETS[name]
    graph, times = examined(name, mode)
    x = frames(shape)
    model = busy(make(), x)
    assert [n.name for n in times.neurons] == list(norms)
    check_forms(name, model, x, scattered(times), mode)
    assert all(bool(p.grad.any()) for n, p in model.named_parameters() if n.endswith("weight") and p.grad is not None)
    check_forms(name, model, x, apart(times), mode)
    if name == "skip connection" and mode == "leak":
        # The graph alone would leave conv1 out where neuron1 is dead; the proof takes that away.
        assert time_graph(model, graph, mode).neuron("neuron1").layers == ("conv1",)
        assert times.neuron("neuron1").layers == ()
        assert times.neuron("neuron3").layers == ("fc1",), "what is safe is still left out"


KINDS: dict[str, Callable[..., nn.Module]] = {
    "IF": lambda channels, **options: IF(v_threshold=0.8, **options),
    "LIF": lambda channels, **options: LIF(v_threshold=0.4, **options),
    "PLIF": lambda channels, **options: PLIF(v_threshold=0.4, **options),
    "PLIF per channel": lambda channels, **options: PLIF(v_threshold=0.4, channels=channels, **options),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reset", [0.0, -0.3, None], ids=["to 0", "to -0.3", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_neuron(kind: str, reset: float | None, mode: Mode) -> None:
    x = frames(FRAMES)
    model = busy(FramesNet(partial(KINDS[kind], v_reset=reset)), x)
    check_forms("T*B", model, x, scattered(examined("T*B", mode)[1], seed=2), mode)


def _keep_input(found: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor]) -> None:
    found[name] = args[0].detach().clone()


def _keep_output(found: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Tensor) -> None:
    found[name] = out.detach().clone()


@pytest.mark.parametrize("name", ["T*B", "T,B", "paper, images"])
def test_a_module_sees_living_steps_alone(name: str) -> None:
    """Rows that reach each convolution, linear layer and norm; counted behind our hooks."""
    make, shape, norms = NETS[name]
    _, times = examined(name, "leak")
    x = frames(shape)
    model = busy(make(), x)
    pairs = scattered(times)
    timing = Timing(model, times, "leak")
    timing.update(pairs)
    seen: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)):
            module.register_forward_pre_hook(partial(_keep_input, seen, module_name))
    model.train()(x)
    living = {n: [t for t in range(T) if pairs[n][:, t].any()] for n in pairs}
    one, two, three = living.values()
    common = {"conv2": set(one) & set(two), "fc1": set(two) & set(three)}
    steps = {**{layer: len(both) for layer, both in common.items()}, next(reversed(seen)): len(three)}
    steps |= {norm: len(living[n]) for n, norm in norms.items() if norm is not None}
    steps |= {"conv1": len(one)} if len(shape) == 5 else {"conv1": 1, "norm1": 1}
    assert steps == {n: len(v) * (v.shape[1] if name == "T,B" else 1) // 3 for n, v in seen.items()}
    assert all(len(both) < T - 2 for both in common.values()), "there was something to skip"
    counted = {layer.name: timing.living.runs(layer.name) for layer in times.layers}
    assert counted == {layer: steps[layer] for layer in counted}


def developer(name: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0, make: Any = None, **options: Any) -> DPAP:
    """A run on a busy network that was examined before, by `examined`; `make` gives its optimizer."""
    build_it, shape, _ = NETS[name]
    graph, times = examined(name, "leak")
    monkeypatch.setattr("dpap.development.engine.find_groups", lambda *args, **kwargs: graph)
    monkeypatch.setattr("dpap.development.engine.trial_cut", lambda *args, **kwargs: None)
    monkeypatch.setattr("dpap.development.construct.proven_steps", lambda *args, **kwargs: times)
    torch.manual_seed(seed)
    model = busy(build_it(), frames(shape)).train()
    mean = AveragedModel(model, use_buffers=True)
    settings: dict[str, Any] = {
        "total_steps": 40, "start": 0.2, "stop": 0.7, "memory": 0.05, "observe_every": 1, "shrink": "never",
    }  # fmt: skip
    optimizer = (make or partial(torch.optim.SGD, lr=0.05, momentum=0.9))(model.parameters())
    dev = DPAP(model, frames(shape), optimizer=optimizer, time="leak", ema=mean.module, **(settings | options))
    dev.averaged = mean  # type: ignore[attr-defined]
    return dev


def train(dev: DPAP, steps: int, shape: Sequence[int], first: int = 0) -> list[Any]:
    reports = []
    for step in range(first, first + steps):
        x = frames(shape, seed=100 + step)
        batch = shape[1] if len(shape) == 5 else shape[0]
        with dev.observing():
            loss = F.cross_entropy(dev.model(x), torch.arange(step, step + batch) % 4)
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        dev.averaged.update_parameters(dev.model)  # type: ignore[attr-defined]
        reports.append(dev.step())
    return reports


class TestOracle:
    @pytest.mark.parametrize("case", [oracle.hand_worked(), oracle.hand_worked_with_the_dead()], ids=["all", "dead"])
    def test_hand_worked(self, case: oracle.HandWorkedTime) -> None:
        """The slow account and the fast functions against numbers worked on paper."""
        inputs, pairs, alive = case.inputs_alive, case.pairs, np.ones(2, dtype=bool)
        np.testing.assert_allclose(oracle.total_trace(case.batch.pre, inputs), case.total)
        importance = oracle.time_importance([case.batch], inputs, alive, pairs)
        np.testing.assert_allclose(importance, case.importance)
        np.testing.assert_allclose(oracle.pair_use(importance, alive, pairs), case.pair_use)
        np.testing.assert_allclose(oracle.step_use(importance, alive, pairs), case.step_use)
        pre = torch.from_numpy(case.batch.pre * inputs).sum(2)
        fast = time_importance(pre, torch.from_numpy(case.batch.post), 0.5) / 2
        np.testing.assert_allclose(fast.numpy(), case.importance)
        living = torch.from_numpy(pairs)
        np.testing.assert_allclose(relative(fast, living).numpy(), case.pair_use)
        np.testing.assert_allclose(relative(fast.sum(0), living.any(0)).numpy(), case.step_use)

    @pytest.mark.parametrize(
        ("name", "target"),
        [
            ("T*B", {}),
            ("T*B", {"steps": 0.6}),
            ("T*B", {"pairs": 0.4, "steps": 0.7}),
            ("paper, images", {"pairs": 0.5}),
        ],
    )
    def test_same_decisions_at_every_step(
        self, name: str, target: dict[str, float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Importance, survival and deaths of pairs and steps, from activity that hooks of the test recorded."""
        _, shape, _ = NETS[name]
        layers = {"neuron1": "conv1", "neuron2": "conv2", "neuron3": "fc1"}
        dev = developer(name, monkeypatch, rule=dpap_rule(kinds=frozenset({"unit"})), target=target or None)
        temporal, seen = dev._engine.temporal, {}
        for neuron, layer in layers.items():
            dev.model.get_submodule(layer).register_forward_pre_hook(partial(_keep_input, seen, layer), prepend=True)
            dev.model.get_submodule(neuron).register_forward_hook(partial(_keep_output, seen, neuron))
        made = [oracle.TimeLayer(name=n.name, units=n.units, positions=n.positions) for n in temporal.times.neurons]
        network = oracle.TimeNetwork.newborn(made, T)
        ticks = {tick.call: tick for tick in clock(40, start=0.2, stop=0.7, memory=0.05)}
        died: dict[str, int] = defaultdict(int)
        assert len(ticks) > 20
        for call in range(1, 41):
            before = {group: alive.numpy().copy() for group, alive in dev.alive.items()}
            (report,) = train(dev, 1, shape, first=call)
            assert (report is not None) == (call in ticks)
            if report is None:
                continue
            batch = {n: oracle.Seen(pre=_timed(seen[layer]), post=_timed(seen[n])) for n, layer in layers.items()}
            into_last = before["conv2"].repeat(9 if name == "T*B" else 1)
            entries = {"neuron1": np.ones(2, dtype=bool), "neuron2": before["conv1"], "neuron3": into_last}
            after = {n: report.alive[layer].numpy() for n, layer in layers.items()}
            step = oracle.develop(
                network, [batch], entries, ticks[call], alive_after=after, memory=0.05, target=target or None
            )
            for n, alive in after.items():
                np.testing.assert_allclose(temporal.survival[n][alive], step.pair_survival[n][alive], rtol=1e-9)
                np.testing.assert_allclose(temporal.step_survival[n], step.step_survival[n], rtol=1e-9)
                np.testing.assert_array_equal(dev.pairs[n][alive], step.pairs[n][alive], f"{n} at {call}")
                assert report.died_steps.get(n, []) == sorted(t for who, t in step.died_steps if who == n)
                assert report.died_pairs.get(n, 0) == sum(who == n for who, *_ in step.died_pairs)
            assert report.living_pairs == pytest.approx(network.pair_share(), abs=1e-12)
            assert report.living_steps == pytest.approx(network.step_share(), abs=1e-12)
            died["steps"] += len(step.died_steps)
            died["pairs"] += len(step.died_pairs)
        assert died["pairs"] > 5
        assert died["steps"] or (target and "steps" not in target)
        for share, kind in zip(temporal.shares(dev.alive), ("pairs", "steps"), strict=True):
            assert share <= target.get(kind, 1.0)


def _timed(x: Tensor) -> FloatArray:
    """(T, B, N, ...) of what a layer saw or a neuron gave, (T, B, ...), (T * B, ...), or (B, ...) for all steps."""
    whole = x.expand(T, *x.shape) if len(x) == 3 else x if len(x) == T else x.unflatten(0, (T, -1))
    return np.asarray(whole.flatten(3) if whole.dim() > 3 else whole)


@pytest.mark.parametrize(
    ("name", "make"), [("T*B", None), ("paper, images", partial(torch.optim.AdamW, lr=0.003, weight_decay=0.1))]
)
def test_shrinking_changes_no_death_and_no_weight(name: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipping while it trains, and cutting units as well."""
    _, shape, _ = NETS[name]
    target = {"pairs": 0.5, "steps": 0.7, "macs": 0.5}
    runs = []
    for shrink in ("never", "auto", "always"):
        dev = developer(name, monkeypatch, make=make, shrink=shrink, target=target)
        runs.append((dev, [r for r in train(dev, 32, shape) if r is not None]))
    (never, expected), *others = runs
    for what in ("died_steps", "died_pairs", "died_units"):
        assert any(getattr(r, what) for r in expected), what
    x = frames(shape, seed=9)
    for dev, reports in others:
        for one, other in zip(expected, reports, strict=True):
            for what in ("died_units", "isolated_units", "died_synapses", "died_steps", "died_pairs"):
                assert getattr(one, what) == getattr(other, what), (what, one.step)
            for neuron, alive in one.pairs.items():
                assert torch.equal(alive, other.pairs[neuron]), (neuron, one.step)
        weights, its = never.compact().state_dict(), dev.compact().state_dict()
        assert weights.keys() == its.keys()
        for tensor in weights:
            torch.testing.assert_close(its[tensor], weights[tensor], rtol=0, atol=1e-9)
        for mine, other in ((never.model, dev.model), (never.averaged.module, dev.averaged.module)):
            torch.testing.assert_close(mine.eval()(x), other.eval()(x), rtol=0, atol=1e-9)
            mine.train()
    assert others[1][0]._engine.shrinker.shrinks and not never._engine.shrinker.shrinks


class TestResults:
    @pytest.fixture
    def dev(self, monkeypatch: pytest.MonkeyPatch) -> DPAP:
        """After a run in which everything died a little."""
        dev = developer("paper, frames", monkeypatch, target={"pairs": 0.45, "steps": 0.7, "connectivity": 0.6})
        train(dev, 40, FRAMES)
        for alive in dev.pairs.values():  # the last step of everybody goes as well: there is something to cut
            alive[:, T - 1] = False
            alive[:, 1] |= ~alive.any(1)
        dev._engine.keep_silent(dev._engine.temporal)
        dev.model.eval()
        return dev

    def test_masked_is_compact_is_cut(self, dev: DPAP) -> None:
        x = frames(FRAMES, seed=9)
        expected = dev.model(x)
        assert bool(expected.any())
        small = dev.compact()
        timing = timing_of(small)
        assert timing is not None and timing.skip and timing_of(dev.model) is None
        first, last = timing.window
        assert last - first < T
        for found in (small.eval()(x), small(x[first:last]), dev.masked().eval()(x)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        for n in timing.times.neurons:
            assert torch.equal(timing.pairs[n.name], dev.pairs[n.name][dev.alive[n.group]])

    def test_copies(self, dev: DPAP) -> None:
        """A copy of a finished network has its own dead pairs; a copy of one in training is bare."""
        x = frames(FRAMES, seed=9)
        small = dev.compact().eval()
        expected = small(x)
        copied = copy.deepcopy(small)
        timing, its = timing_of(small), timing_of(copied)
        assert timing is not None and its is not None and its is not timing
        assert torch.equal(copied(x), expected)
        its.update({n: torch.ones_like(alive) for n, alive in its.pairs.items()})
        assert not torch.equal(copied(x), expected)
        assert torch.equal(small(x), expected)
        bare = copy.deepcopy(dev.model)
        assert timing_of(bare) is None
        everybody = copy.deepcopy(dev.masked())
        dpap.time.timing.without_timing(everybody)
        torch.testing.assert_close(bare(x), everybody.eval()(x), rtol=0, atol=1e-12)
        assert not torch.allclose(bare(x), dev.model(x))

    def test_saved_and_loaded(self, dev: DPAP, tmp_path: Path) -> None:
        """Into any network of its kind, which forgets the dead pairs that it had."""
        x = frames(FRAMES, seed=9)
        small, dense = dev.compact().eval(), paper_net().double()
        dpap.save(small, tmp_path, alive=dev.alive)
        for given in (None, paper_net().double(), copy.deepcopy(small)):
            loaded = dpap.load(tmp_path, given).eval()
            torch.testing.assert_close(loaded(x), small(x), rtol=0, atol=1e-12)
            timing, mine = timing_of(loaded), timing_of(small)
            assert timing is not None and mine is not None
            assert (timing.mode, timing.times, timing.window) == (mine.mode, mine.times, mine.window)
        dpap.save(dense, tmp_path)
        for given in (paper_net().double(), dev.masked()):
            loaded = dpap.load(tmp_path, given).eval()
            assert timing_of(loaded) is None
            torch.testing.assert_close(loaded(x), dense.eval()(x), rtol=0, atol=1e-12)

    def test_closed(self, dev: DPAP) -> None:
        """The hooks of the run go, the dead stay dead."""
        x = frames(FRAMES, seed=9)
        expected = dev.model(x)
        fired: dict[str, Tensor] = {}
        for n in dev.pairs:
            dev.model.get_submodule(n).register_forward_hook(partial(_keep_output, fired, n))
        dev.close()
        assert torch.equal(dev.model(x), expected)
        assert timing_of(dev.model) is not None
        for n in dev._engine.temporal.times.neurons:
            dead = ~dev.pairs[n.name].T & dev.alive[n.group]
            spikes = fired[n.name].transpose(1, 2).flatten(2)
            assert not bool(spikes[dead].any()) and bool(spikes.any()), n.name
        torch.testing.assert_close(copy.deepcopy(dev.model)(x), expected)

    @pytest.mark.parametrize("steps", [T - 2, T + 1, 2 * T])
    def test_another_number_of_steps(self, dev: DPAP, steps: int) -> None:
        """A network with dead pairs takes its T steps or the window of them; one in which all live takes any."""
        small, x = dev.compact().eval(), frames((steps, 3, 2, 6, 6))
        with pytest.raises(dpap.DPAPError, match=f"{steps} time steps arrive"):
            small(x)
        timing = timing_of(small)
        assert timing is not None
        timing.update({n: torch.ones_like(alive) for n, alive in timing.pairs.items()})
        dpap.time.timing.without_timing(plain := copy.deepcopy(small))
        assert torch.equal(small(x), plain(x))


def test_a_run_goes_on_where_its_state_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"target": {"pairs": 0.5, "macs": 0.6}, "shrink": "always"}
    whole, later = (developer("T*B", monkeypatch, seed=seed, **options) for seed in (0, 1))
    train(whole, 13, FRAMES)
    state = [copy.deepcopy(part.state_dict()) for part in (whole, whole.model, whole.optimizers[0])]
    expected = train(whole, 17, FRAMES, first=13)
    for part, saved in zip((later, later.model, later.optimizers[0]), state, strict=True):
        part.load_state_dict(saved)
    found = train(later, 17, FRAMES, first=13)
    assert any(r.died_pairs for r in expected if r is not None)
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.died_pairs, one.died_steps) == (other.died_pairs, other.died_steps)
            assert all(torch.equal(one.pairs[n], other.pairs[n]) for n in one.pairs)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, later.model.state_dict()[name]), name
    for n in whole.pairs:
        assert torch.equal(whole._engine.temporal.survival[n], later._engine.temporal.survival[n])
        assert torch.equal(whole._engine.temporal.step_survival[n], later._engine.temporal.step_survival[n])


@torch.no_grad()
def slow_counts(dev: DPAP, x: Tensor, shape: Sequence[int]) -> dict[str, float]:
    """SOPs, MACs, neuron updates and rho_t per sample of a 2Conv2FC network, in loops, from what its neurons fire."""
    network = dev.masked().eval()
    fired: dict[str, Tensor] = {}
    for n in ("neuron1", "neuron2", "neuron3"):
        network.get_submodule(n).register_forward_hook(partial(_keep_output, fired, n))
    network(x)
    alive = {g: a.numpy() for g, a in dev.alive.items()}
    groups = {"neuron1": "conv1", "neuron2": "conv2", "neuron3": "fc1"}
    pairs = {n: dev.pairs[n].numpy() & alive[g][:, None] for n, g in groups.items()}
    steps = {n: p.any(axis=0) for n, p in pairs.items()}
    batch = x.shape[1] if x.dim() == 5 else x.shape[0]
    found = dict.fromkeys(("sops", "macs", "macs_real", "updates", "dead", "pairs"), 0.0)
    # Convolution 1: real values, computed once for an image, at the living steps of its neurons for frames.
    size = alive["conv1"].sum() * 2 * 9 * 36
    found["macs_real"] = size * (1 if x.dim() == 4 else steps["neuron1"].sum())
    found["macs"] += found["macs_real"]
    # Convolution 2 reads sums of 2 x 2 spikes; an entry of the 3 x 3 map reaches as many outputs as its kernel lets it.
    reads = np.zeros((3, 3))
    for row, column in np.ndindex(3, 3):
        for dr, dc in np.ndindex(3, 3):
            reads[row, column] += 0 <= row + dr - 1 < 3 and 0 <= column + dc - 1 < 3
    for t, unit in np.ndindex(T, 6):
        if pairs["neuron2"][unit, t]:
            for b, channel, row, column in np.ndindex(batch, 5, 6, 6):
                if alive["conv1"][channel]:
                    found["sops"] += float(fired["neuron1"][t, b, channel, row, column]) * reads[row // 2, column // 2]
    runs = int((steps["neuron1"] & steps["neuron2"]).sum())
    found["macs"] += alive["conv2"].sum() * alive["conv1"].sum() * 9 * 9 * runs
    # Fully connected layers: the last pool makes one value of 2 x 2 spikes and leaves the last row and column out.
    masks = {w: m.numpy() for w, m in dev.synapse_masks.items()}
    for t, unit in np.ndindex(T, 9):
        if pairs["neuron3"][unit, t]:
            for b, channel, row, column in np.ndindex(batch, 6, 2, 2):
                if alive["conv2"][channel] and masks["fc1.weight"][unit, channel]:
                    found["sops"] += float(fired["neuron2"][t, b, channel, row, column])
    found["macs"] += alive["fc1"].sum() * alive["conv2"].sum() * int((steps["neuron2"] & steps["neuron3"]).sum())
    for t, unit, entry in np.ndindex(T, 4, 9):
        if alive["fc1"][entry] and masks["classifier.weight"][unit, entry]:
            found["sops"] += float(fired["neuron3"][t, :, entry].sum())
    found["macs"] += 4 * alive["fc1"].sum() * steps["neuron3"].sum()
    for n, positions in (("neuron1", 36), ("neuron2", 9), ("neuron3", 1)):
        found["updates"] += positions * pairs[n].sum()
        found["pairs"] += positions * T * alive[groups[n]].sum()
    found["dead"] = 1 - found["updates"] / found["pairs"]
    return found | {"sops": found["sops"] / batch}


@pytest.mark.parametrize("name", ["paper, frames", "paper, images"])
def test_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masked and the compacted network count alike, and like a slow count."""
    _, shape, _ = NETS[name]
    dev = developer(name, monkeypatch, target={"pairs": 0.5, "connectivity": 0.6})
    train(dev, 29, shape)
    monkeypatch.undo()
    x = frames(shape, seed=9)
    expected = slow_counts(dev, x, shape)
    small = dev.compact()
    one = measure(dev.masked(), dev.graph, [x], dev.alive, dev.synapse_masks)
    graph = find_groups(small, x)
    other = measure(small, graph, [x], synapses=stored_synapses(small, graph))
    assert 0 < expected["dead"] < 0.6 and expected["sops"] > 0
    for found in (one, other):
        assert found.synops.sops_per_sample == pytest.approx(expected["sops"], rel=1e-9)
        assert found.macs_per_sample == expected["macs"]
        assert found.macs_real_per_sample == expected["macs_real"]
        assert found.neuron_updates_per_sample == expected["updates"]
        assert found.dead_pairs == pytest.approx(expected["dead"], rel=1e-12)
    assert one.energy.paper_proxy_share == pytest.approx((1 - one.sparsity_paper) * (1 - expected["dead"]), rel=1e-12)
    assert one.energy.compute_pj == pytest.approx(other.energy.compute_pj, rel=1e-9)


class Jelly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sj = foreign.spikingjelly()
        self.net = nn.Sequential(
            *(sj.layer.Conv2d(2, 6, 3, padding=1, bias=False), sj.layer.BatchNorm2d(6)),
            *(sj.neuron.LIFNode(v_threshold=0.4), sj.layer.AvgPool2d(2), sj.layer.Conv2d(6, 8, 3, padding=1)),
            *(sj.neuron.IFNode(v_threshold=0.6, v_reset=None), sj.layer.Flatten(), sj.layer.Linear(8 * 9, 4)),
        )
        sj.functional.set_step_mode(self.net, "m")

    def forward(self, x: Tensor) -> Tensor:
        foreign.spikingjelly().functional.reset_net(self.net)
        return self.net(x).mean(0)


@pytest.mark.parametrize("training", [False, True])
def test_spikingjelly_all_steps_at_once(training: bool) -> None:
    """Masked = skipped = cut; forward against a loop over each neuron's steps."""
    x = frames(FRAMES)
    model = busy(Jelly(), x).train(training)
    times = proven_steps(model, time_graph(model, find_groups(model, x), "leak"), x, None)
    assert [n.layers for n in times.neurons] == [("net.0",), ("net.4",)]
    pairs = scattered(times)
    masked, skipped, cut = (copy.deepcopy(model) for _ in range(3))
    for network in (masked, skipped, cut):
        Timing(network, times, "leak", skip=network is not masked).update(pairs)
    fired: dict[str, Tensor] = {}
    masked.net[2].register_forward_pre_hook(partial(_keep_input, fired, "in"), prepend=True)
    masked.net[2].register_forward_hook(partial(_keep_output, fired, "out"))
    expected = answers(masked, x)
    assert bool(expected["gradient of net.0.weight"].any())
    same(answers(skipped, x), expected, "skipped")
    first, last = timing_of(cut).window
    assert last - first < T
    same(answers(cut, x[first:last]), expected, "cut")
    gate = pairs["net.2"].T.double().view(T, 1, 6, 1, 1)
    v = torch.zeros_like(fired["in"][0])
    for t in range(T):
        v = v + (fired["in"][t] * gate[t] - v) / 2
        assert torch.equal(fired["out"][t], (v >= 0.4).double() * gate[t])
        v = v * (v < 0.4)
