"""Which modules are spiking neurons, how they are called, and what the graph needs to know of them.

A foreign neuron is recognised by the library that its class comes from (duck typing); nothing that is not installed is
ever imported. What none of the adapters knows is an ordinary module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpap.errors import refusing
from dpap.neurons import PLIF, SpikingNeuron, StepByStep


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronInfo:
    """How a spiking neuron module is called and what it answers."""

    multi_step: bool = True
    """It takes and returns (T, B, C, ...); else (B, C, ...), once per step."""
    states: int = 0
    """How many tensors of state a call answers behind its spikes."""
    restarts: tuple[str, ...] = ()
    """Methods that put its state back to the beginning."""
    step_method: bool = False
    """It has `step(x, state) -> (spikes, state)` beside its forward."""
    spikes: bool = True
    """It answers zeros and ones; else real values."""
    channels: tuple[tuple[str, int], ...] = ()
    """Tensors with one entry per channel on the given axis; they are cut with their unit."""
    broadcast: tuple[str, ...] = ()
    """Tensors that are broadcast against one step, (B, C, ...): per channel if they are as long as the channels."""
    coupled: str | None = None
    """Why its units cannot be removed one by one."""
    refused: str | None = None
    """Why a network with such a neuron cannot be understood at all."""


Adapter = Callable[[nn.Module], NeuronInfo | None]


def _own(module: nn.Module) -> NeuronInfo | None:
    if isinstance(module, StepByStep):
        return NeuronInfo(multi_step=False, states=1, channels=_time_constants(module.neuron, "neuron."))
    if isinstance(module, SpikingNeuron):
        return NeuronInfo(step_method=True, channels=_time_constants(module))
    return None


def _time_constants(neuron: nn.Module, prefix: str = "") -> tuple[tuple[str, int], ...]:
    return ((f"{prefix}w", 0),) if isinstance(neuron, PLIF) and neuron.w.dim() else ()


# fmt: off
SPIKINGJELLY_SPIKES = frozenset((
    "BaseNode", "SimpleBaseNode", "IFNode", "SimpleIFNode", "LIFNode", "SimpleLIFNode", "ParametricLIFNode", "QIFNode",
    "EIFNode", "AdaptBaseNode", "IzhikevichNode", "GatedLIFNode", "KLIFNode", "ComplementaryLIFNode", "CUBALIFNode",
    "PSN", "MaskedPSN", "SlidingPSN",
))
# fmt: on
"""Neurons of SpikingJelly that answer zeros and ones; the others answer potentials, counts or signed values."""


def _spikingjelly(module: nn.Module) -> NeuronInfo | None:
    cls = _library_class(module, "spikingjelly.")
    if cls is None or ".neuron" not in cls.__module__:
        return None
    own = _tensors(module)
    inner = [name for name, tensor in module.named_parameters() if "." in name and tensor.numel() > 1]
    channels: tuple[tuple[str, int], ...] = ()
    if cls.__name__ == "GatedLIFNode":  # (C,), or (T, C)
        channels = tuple((name, tensor.dim() - 1) for name, tensor in own.items() if name != "conduct" and tensor.dim())
        channels += (("conduct", 1),) if own["conduct"].dim() == 2 else ()
    return NeuronInfo(
        multi_step=getattr(module, "step_mode", "m") == "m",
        restarts=("reset",),
        spikes=cls.__name__ in SPIKINGJELLY_SPIKES,
        channels=channels,
        # A PSN weighs steps, not channels.
        broadcast=() if cls.__name__ in ("GatedLIFNode", "PSN", "MaskedPSN", "SlidingPSN") else tuple(own),
        refused=f"{cls.__name__} has layers of its own ({inner[0]}) between its units" if inner else None,
    )


SNNTORCH_STATES = {"Leaky": 1, "Lapicque": 1, "Synaptic": 2, "Alpha": 3}
"""Neurons of snnTorch -> tensors of state."""


def _snntorch(module: nn.Module) -> NeuronInfo | None:
    cls = _library_class(module, "snntorch.")
    if cls is None or "._neurons" not in cls.__module__:
        return None
    if cls.__name__ not in SNNTORCH_STATES:
        known = ", ".join(SNNTORCH_STATES)
        return NeuronInfo(refused=f"of snnTorch's neurons, {known} are known; {cls.__name__} is not")
    factor = getattr(module, "graded_spikes_factor", 1.0)
    graded = isinstance(factor, nn.Parameter) or bool((torch.as_tensor(factor) != 1).any())
    return NeuronInfo(
        multi_step=False,
        states=SNNTORCH_STATES[cls.__name__] if module.output or not module.init_hidden else 0,
        restarts=("reset_mem", *(n for n in vars(cls) if n.startswith("init_"))),
        spikes=not graded,
        broadcast=tuple(_tensors(module)),
        coupled="only the strongest of its units fires (inhibition=True)" if module.inhibition else None,
    )


def _library_class(module: nn.Module, package: str) -> type | None:
    """The nearest class of a module, or of what it derives from, that comes from a package."""
    return next((cls for cls in type(module).__mro__ if cls.__module__.startswith(package)), None)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A neuron's own parameters and saved buffers; what it does not save is state."""
    found = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {name: tensor for name, tensor in found.items() if name not in module._non_persistent_buffers_set}


ADAPTERS: list[Adapter] = [_own, _spikingjelly, _snntorch]


def neuron_info(module: nn.Module) -> NeuronInfo | None:
    """The description of a spiking neuron; None for any other module."""
    return next((info for adapter in ADAPTERS if (info := adapter(module)) is not None), None)


def channel_tensors(module: nn.Module, step: tuple[int, ...], axis: int) -> list[tuple[str, int]]:
    """(name, axis) of the tensors of a neuron that hold one entry per unit.

    Args:
        step: Shape of what it receives at one step, (B, C, ...).
        axis: Axis of the units in it.
    """
    info = neuron_info(module)
    if info is None:
        return []
    found = list(info.channels)
    for name in info.broadcast:
        shape = getattr(module, name).shape
        own = len(shape) - (len(step) - axis)
        if own >= 0 and shape[own] == step[axis] > 1:
            found.append((name, own))
    return found


def replace_neurons(model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Put a function in the place of every spiking neuron of a copy; it also stands for the state that some answer."""
    for module in model.modules():
        info = neuron_info(module)
        if info is not None:
            stand_in: Any = module
            stand_in.forward = _stand_in(function, info.states)
            if info.step_method:
                stand_in.step = _stand_in(function, 1)


def _stand_in(function: Callable[[Tensor], Tensor], states: int) -> Callable[..., Any]:
    def forward(x: Tensor, *before: Any, **named: Any) -> Any:
        return (function(x), *[x] * states) if states else function(x)

    return forward


# state ----------------------------------------------------------------------------------------------------------------


def reset_state(model: nn.Module) -> None:
    """Put the state that foreign neurons keep between calls back to its beginning; our own keep none."""
    for module in model.modules():
        reset = getattr(type(module), "reset", None)
        if isinstance(getattr(module, "_memories", None), dict) and callable(reset):  # SpikingJelly, layers included
            reset(module)
        elif (cls := _library_class(module, "snntorch.")) is not None and cls.__name__ in SNNTORCH_STATES:
            for name in module._non_persistent_buffers_set:
                state = module._buffers[name]
                if state is not None:
                    module._buffers[name] = state.new_zeros(0)


def independent_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose neurons are at the beginning.

    A plain deep copy fails on the state that a pass with gradients leaves in a neuron.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = vars(module)
        for values in (held, held["_buffers"], held.get("_memories", {})):
            for value in values.values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
    with refusing(
        f"This {type(model).__name__} cannot be copied (copy.deepcopy)",
        fix="keep what cannot be copied, such as an open file or a lock, out of the attributes of the model.",
    ):
        made = copy.deepcopy(model, memo)
    reset_state(made)
    return made


def _registries(model: nn.Module) -> set[type]:
    """Classes that list every neuron ever made, for a reset that reaches them all (snnTorch)."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return {c for c in classes if c.__module__.startswith("snntorch.") and isinstance(vars(c).get("instances"), list)}


@contextmanager
def unlisted(model: nn.Module) -> Iterator[None]:
    """Inside, a reset that a model calls for all neurons ever made reaches none of them: a run of a copy leaves the
    original alone."""
    saved: dict[Any, list[Any]] = {cls: vars(cls)["instances"] for cls in _registries(model)}
    try:
        for cls in saved:
            cls.instances = []
        yield
    finally:
        for cls, instances in saved.items():
            cls.instances = instances


def enlist(model: nn.Module) -> None:
    """Make the library of foreign neurons know those of a copy: a reset for all neurons reaches only the listed."""
    for cls in _registries(model):
        listed: list[nn.Module] = vars(cls)["instances"]
        listed.extend(m for m in model.modules() if isinstance(m, cls) and not any(m is known for known in listed))


ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
)
"""Modules whose output is the activity of a unit in an ordinary network."""
