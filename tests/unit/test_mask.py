"""Masks neither leak nor revive: what a dead unit emits reaches nobody, however the weights are moved afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from nets import ConvNet, SpikingNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpap import DPAP, DPAPError, Stats

DEAD = {"conv1": [1, 5], "conv2": [0, 2, 7], "fc1": [3, 4, 9]}
ACTIVATION = {"conv1": "act1", "conv2": "act2", "fc1": "act3"}
DEATH_STEP, AFTER = 10, 50


def doomed(stats: Stats) -> Tensor:
    """Score 0 for the units in DEAD; all else equal."""
    if stats.kind == "synapse":
        return torch.ones(stats.weight.shape[:2])
    score = torch.ones(len(stats.weight))
    score[DEAD.get(stats.layer, [])] = 0
    return score


def batches(seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(6, 2, 6, 6, generator=generator)
        yield x, torch.randint(0, 4, (6,), generator=generator)


def make(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> DPAP:
    settings: dict[str, Any] = {
        "total_steps": 2 * DEATH_STEP,
        "development_steps": 20,
        "start": 0.0,
        "stop": 0.5,
        "memory": 0.05,
        "score": doomed,
        "shrink": "never",  # the dead are looked at in their places
    }
    return DPAP(model, torch.randn(2, 2, 6, 6), optimizer=optimizer, **(settings | options))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "sgd weight decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.005, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dev: DPAP,
    *,
    steps: int,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    data = batches()
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y = next(data)
            with dev.observing(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after_step()
        if dev.steps_taken < dev.total_steps:
            dev.step()


def outputs(model: nn.Module, *, noise: bool, autocast: bool = False) -> list[Tensor]:
    """What the network answers in evaluation and training; with `noise`, dead units emit noise at their sites."""
    handles = []
    if noise:
        generator = torch.Generator().manual_seed(9)
        for name, units in DEAD.items():

            def replace(module: nn.Module, args: Any, out: Tensor, units: list[int] = units) -> Tensor:
                out = out.clone()
                out[:, units] = (torch.randn(out[:, units].shape, generator=generator) * 10).to(out.dtype)
                return out

            handles.append(model.get_submodule(ACTIVATION[name]).register_forward_hook(replace))
    x, _ = next(batches(seed=7))
    answers = []
    state = copy.deepcopy(model.state_dict())
    for training in (False, True):
        model.train(training)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            answers.append(model(x).clone())
    model.load_state_dict(state)  # the running statistics moved
    for handle in handles:
        handle.remove()
    return answers


def assert_dead_for_good(model: nn.Module, dev: DPAP, *, autocast: bool = False) -> None:
    for name, units in DEAD.items():
        assert (~dev.alive[name]).nonzero().reshape(-1).tolist() == units
    quiet, noisy = outputs(model, noise=False, autocast=autocast), outputs(model, noise=True, autocast=autocast)
    for a, b in zip(quiet, noisy, strict=True):
        assert torch.equal(a, b)
        assert a.std() > 0


SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 4},
    "clipping": {"clip": 0.1},
    "bf16 autocast": {"autocast": True},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_the_dead_emit_reaches_nobody(kind: str, situation: str) -> None:
    model = ConvNet()
    optimizer = OPTIMIZERS[kind](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP, **SITUATIONS[situation])
    weights = [p.detach().clone() for p in model.parameters() if p.dim() > 1]  # a bias before a norm hardly moves
    train(model, optimizer, dev, steps=AFTER, **SITUATIONS[situation])
    assert all(
        not torch.equal(a, b) for a, b in zip(weights, (p for p in model.parameters() if p.dim() > 1), strict=True)
    ), "stopped"
    assert_dead_for_good(model, dev, autocast=situation == "bf16 autocast")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_norm_shift_and_biases_do_not_leak(affine: bool, bias: bool) -> None:
    model = ConvNet(affine=affine, bias=bias)
    optimizer = OPTIMIZERS["sgd weight decay"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP + AFTER)
    for name, own in (("conv1", "norm1"), ("conv2", "norm2")):
        for parameter in (*model.get_submodule(name).parameters(), *model.get_submodule(own).parameters()):
            assert (parameter[DEAD[name]] == 0).all()
    assert_dead_for_good(model, dev)


def test_zero_in_storage_at_every_moment() -> None:
    """After each optimizer step, before the next forward pass: who saves the state then finds zeros."""
    model = ConvNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)

    def check() -> None:
        assert (model.conv1.weight[DEAD["conv1"]] == 0).all()
        assert (model.conv2.weight[:, DEAD["conv1"]] == 0).all()
        columns = [9 * u + k for u in DEAD["conv2"] for k in range(9)]
        assert (model.fc1.weight[:, columns] == 0).all()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (optimizer.state[model.conv2.weight][moment][:, DEAD["conv1"]] == 0).all()

    train(model, optimizer, dev, steps=5, after_step=check)


def test_gradients_and_moments_at_death() -> None:
    """A momentum from before death must not move a dead weight, nor a gradient that was there already."""
    model = ConvNet()
    optimizer = OPTIMIZERS["sgd momentum"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    assert (optimizer.state[model.conv1.weight]["momentum_buffer"][DEAD["conv1"]] == 0).all()
    assert (optimizer.state[model.conv1.weight]["momentum_buffer"] != 0).any()
    assert model.conv1.weight.grad is not None
    assert (model.conv1.weight.grad[DEAD["conv1"]] == 0).all()
    x, y = next(batches())
    optimizer.zero_grad()
    with torch.no_grad():
        model.conv1.weight.data[DEAD["conv1"]] = 3.0  # somebody writes behind our back; the pass that follows mends it
    nn.functional.cross_entropy(model(x), y).backward()
    assert (model.conv2.weight.grad[:, DEAD["conv1"]] == 0).all()


def test_an_infinite_gradient_of_a_dead_weight_is_zero() -> None:
    """A product with the mask would make it NaN."""
    model = ConvNet()
    optimizer = OPTIMIZERS["sgd momentum"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    optimizer.zero_grad()
    (model.conv1.weight * torch.full_like(model.conv1.weight, torch.inf)).sum().backward()
    assert (model.conv1.weight.grad[DEAD["conv1"]] == 0).all()
    assert model.conv1.weight.grad[0].isinf().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_type(dtype: torch.dtype) -> None:
    model = ConvNet()
    optimizer = OPTIMIZERS["sgd momentum"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    model.to(dtype)
    with torch.no_grad():
        model.conv1.weight.fill_(torch.nan)
    model(torch.randn(2, 2, 6, 6, dtype=dtype))
    dead = torch.zeros(8, dtype=torch.bool)
    dead[DEAD["conv1"]] = True
    assert (model.conv1.weight[dead] == 0).all()
    assert model.conv1.weight[~dead].isnan().all()


@pytest.mark.parametrize("wrapped", [True, False])
def test_ema(wrapped: bool) -> None:
    model = ConvNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) if wrapped else copy.deepcopy(model)

    def follow() -> None:
        if isinstance(ema, AveragedModel):
            ema.update_parameters(model)
        else:
            for own, new in zip(ema.parameters(), model.parameters(), strict=True):
                own.data.lerp_(new.data, 0.1)

    dev = make(model, optimizer, ema=ema)
    train(model, optimizer, dev, steps=DEATH_STEP + AFTER, after_step=follow)
    assert_dead_for_good(model, dev)
    assert_dead_for_good(ema.module if wrapped else ema, dev)


def test_ema_swap() -> None:
    """Weights of an unmasked average written into the model are masked before the next forward pass."""
    model = ConvNet()
    average = copy.deepcopy(model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    for own, old in zip(model.parameters(), average.parameters(), strict=True):
        own.data.copy_(old.data)
    assert_dead_for_good(model, dev)


def test_load_state_dict() -> None:
    model = ConvNet()
    dense = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    model.load_state_dict(dense)
    assert (model.conv1.weight[DEAD["conv1"]] == 0).all()
    train(model, optimizer, dev, steps=AFTER)
    assert_dead_for_good(model, dev)


def test_a_copy_does_not_act_on_the_original() -> None:
    model = ConvNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    dev = make(model, optimizer)
    train(model, optimizer, dev, steps=DEATH_STEP)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_dead_for_good(twin, dev)
        with torch.no_grad():
            twin.conv1.weight.fill_(1.0)
        twin(torch.randn(2, 2, 6, 6))
        assert (twin.conv1.weight == 1).all(), "the copy is masked by the original"
        twin.zero_grad()
        twin.conv1.weight.sum().backward()
        assert (twin.conv1.weight.grad == 1).all(), "the original's mask zeroes the copy's gradient"
    window = dict(dev._engine.window.sums)
    with dev.observing():
        copy.deepcopy(model)(torch.randn(2, 2, 6, 6))
    assert all(s.samples == window[k].samples for k, s in dev._engine.window.sums.items())


def test_the_model_is_not_disturbed() -> None:
    model = SpikingNet()
    before = {
        "parameters": {n: id(p) for n, p in model.named_parameters()},
        "keys": list(model.state_dict()),
        "classes": [type(m) for m in model.modules()],
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "training": model.training,
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dev = DPAP(model, torch.rand(2, 1, 8, 8), optimizer=optimizer, total_steps=10, start=0.2)
    for stage in ("made", "closed"):
        assert before["parameters"] == {n: id(p) for n, p in model.named_parameters()}, stage
        assert before["keys"] == list(model.state_dict())
        assert before["classes"] == [type(m) for m in model.modules()]
        assert before["training"] == model.training
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in before["values"].items())
        dev.close()
    hooks = [h for m in model.modules() for n, h in vars(m).items() if n.endswith("hooks") and h]
    assert not hooks
    assert not any(p._backward_hooks for p in model.parameters())


def test_an_ema_of_another_model_is_refused() -> None:
    model = ConvNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with pytest.raises(DPAPError, match=r"no parameter conv1\.weight"):
        make(model, optimizer, ema=SpikingNet())
