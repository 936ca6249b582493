"""Time steps at which neurons are dead: what keeps them silent, and the work that is spared by it.

A dead (neuron, step) pair gets no input current and gives no spike while its membrane leaks. Where all pairs of a layer
are dead at a step, nothing before its neurons need be computed at that step; where nothing living arrives, a layer
answers its bias. Hooks on the layers leave such steps out of what their modules see and put them back behind them, so
any network whose modules see all steps of a pass at once can have them. Norms take their statistics over the living
steps of their neurons, whether steps are left out or not, in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Layout
from dpap.hooks import OwnHook, looks_at_structure
from dpap.neurons import SpikingNeuron
from dpap.neurons.encoding import repeated_from, repeats
from dpap.time.graph import Mode, Pairs, TimeGraph
from dpap.time.plan import BIAS, NOTHING, LivingSteps, Places, make_plan


class Timing:
    """Hooks on a network that keep dead pairs dead and leave out the work that is not needed.

    Args:
        model: The network.
        times: Of that network.
        mode: "leak": a dead pair receives nothing and its membrane leaks; "silence": it integrates and cannot fire, as
            in the paper.
        skip: Leave work out; else it is done and thrown away.
        own: The hooks belong to a `DPAP` and are inert in copies of the model; else they go with the copies.

    Attributes:
        pairs: Neuron -> bool (units, T); all alive at first.
    """

    def __init__(self, model: nn.Module, times: TimeGraph, mode: Mode, *, skip: bool = True, own: bool = False) -> None:
        self.times, self.mode, self.skip = times, mode, skip
        self.pairs: dict[str, Tensor] = {}
        self._given = times.num_steps
        """Steps of the input of the pass at hand."""
        self._batches: dict[str, int] = {}
        self._first = {layer.name for layer in times.layers if layer.first}
        self._layouts: dict[str, Layout] = {layer.name: layer.layout for layer in times.layers}
        self._layouts |= {norm: layout for n in times.neurons for norm, layout in n.norms}
        self._layouts |= {n.name: "T,B" for n in times.neurons}
        kept: Callable[..., Any] = OwnHook if own else _identity
        self._handles: list[Any] = [model.register_forward_pre_hook(kept(self._begin))]
        modules = dict(model.named_modules())
        # Without current a neuron is below its threshold, but for one that was just reset by subtraction: it is told.
        self._told = frozenset(
            n.name
            for n in times.neurons
            if isinstance(modules[n.name], SpikingNeuron) and (mode == "silence" or modules[n.name].v_reset is None)
        )
        for name, (enter, leave) in self._hooked().items():
            module = modules[name]
            # Others look at what enters before it is cut, and at what leaves after it is whole again.
            self._handles.append(module.register_forward_pre_hook(kept(partial(enter, name))))
            self._handles.append(module.register_forward_hook(kept(partial(leave, name)), prepend=True))
        self.update({n.name: torch.ones(n.units, times.num_steps, dtype=torch.bool) for n in times.neurons})
        if not own:
            model.__dict__[_PLACE] = self

    def _hooked(self) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
        found: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        for layer in self.times.layers:
            found[layer.name] = (self._enter, self._leave)
        for neuron in self.times.neurons:
            found |= {norm: (self._enter, self._leave) for norm, _ in neuron.norms}
            found[neuron.name] = (self._enter_neuron, self._leave_neuron)
        return found

    def update(self, pairs: Pairs) -> None:
        """Which pairs live from now on; (units, T) of the widths that the model has now."""
        self.pairs = {name: alive.clone() for name, alive in pairs.items()}
        self._plan = make_plan(self.times, pairs, self.mode, skip=self.skip, told=self._told)

    def close(self) -> None:
        """Remove the hooks; the neurons live at every step again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def window(self) -> tuple[int, int]:
        """Steps of the input, from and to, that are read; the network also takes these alone."""
        return self._plan.window

    @property
    def living(self) -> LivingSteps:
        return LivingSteps(times=self.times, pairs=self.pairs, mode=self.mode)

    # a pass

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._given = self.times.num_steps
        if self.times.timed_input and args and isinstance(args[0], Tensor) and not looks_at_structure():
            first, last = self._plan.window
            if args[0].shape[0] == last - first:
                self._given = last - first
            else:
                self._check_steps(args[0].shape[0], "")

    def _check_steps(self, found: int, where: str) -> None:
        """Which pairs are dead means nothing in a pass of other steps."""
        if found != self.times.num_steps and not all(bool(alive.all()) for alive in self.pairs.values()):
            first, last = self._plan.window
            shorter = f", or steps {first} to {last - 1} of them" if self.times.timed_input else ""
            raise DPAPError(
                f"{found} time steps arrive; the dead steps of this network are among {self.times.num_steps}.",
                where=where,
                fix=f"give it {self.times.num_steps} time steps{shorter}.",
            )

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer or a norm."""
        enter = self._enters(name)
        if enter is None or not args or not isinstance(args[0], Tensor):
            return None
        arrive, x = self._arriving(name), args[0]
        if len(arrive) != len(self._plan.arrive[name]):
            enter = tuple(place - arrive[0] for place in enter)
        folded = self._layouts[name] == "T*B"
        x = torch.unflatten(x, 0, (len(arrive), -1)) if folded else x
        self._batches[name] = x.shape[1]
        x = _arranged(x, enter)
        return (x.flatten(0, 1) if folded else x, *args[1:])

    def _enters(self, name: str) -> Places | None:
        return None if looks_at_structure() else self._plan.enter.get(name)

    def _arriving(self, name: str) -> list[int]:
        """Steps that come to a module in this pass."""
        arrive = self._plan.arrive.get(name)
        if arrive is None:
            arrive = list(range(self.times.num_steps))
        if self._given != self.times.num_steps and name in self._first:
            return list(range(*self._plan.window))
        return arrive

    def _leave(self, name: str, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        enter = self._enters(name)
        if enter is None:
            return None
        folded = self._layouts[name] == "T*B"
        out = torch.unflatten(out, 0, (len(enter), self._batches[name])) if folded else out
        whole = _arranged(out, self._plan.leave[name], getattr(module, "bias", None))
        return whole.flatten(0, 1) if folded else whole

    def _enter_neuron(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if looks_at_structure():
            return None
        gate, enter, x = self._plan.gates.get(name), self._plan.enter.get(name), args[0]
        if len(x) != len(self._arriving(name)):
            self._check_steps(len(x), name)
        source = repeated_from(x)
        if enter is not None:
            x = _arranged(x, enter)
        if gate is not None:
            if isinstance(module, SpikingNeuron) and name in self._told:
                module.may_fire = gate
            if self.mode == "leak":
                return (x * _along_units(gate, x), *args[1:])
        if source is not None and x is not args[0]:
            repeats(x, source)
        return (x, *args[1:])

    def _leave_neuron(self, name: str, module: nn.Module, args: Any, out: Any) -> Any:
        if looks_at_structure():
            return None
        gate, leave = self._plan.gates.get(name), self._plan.leave.get(name)
        if gate is None and leave is None:
            return None
        spikes = out[0] if isinstance(out, tuple) else out
        if isinstance(module, SpikingNeuron) and name in self._told:
            module.may_fire = None
        elif gate is not None:  # no spike anyway for most neurons, but no gradient of one either
            spikes = spikes * _along_units(gate, spikes)
        if leave is not None:
            spikes = _arranged(spikes, leave)
        return (spikes, *out[1:]) if isinstance(out, tuple) else spikes

    def whole(self, name: str, side: str, x: Tensor) -> Tensor:
        """What enters a layer or leaves a neuron, with all steps; for observers."""
        every = list(range(self.times.num_steps))
        there = self._arriving(name) if side == "input" else self._plan.emit.get(name, every)
        if there == every or name not in self._layouts or looks_at_structure():
            return x
        folded = self._layouts[name] == "T*B"
        x = torch.unflatten(x, 0, (len(there), -1)) if folded else x
        x = _arranged(x, tuple(there.index(t) if t in there else NOTHING for t in every))
        return x.flatten(0, 1) if folded else x


_PLACE = "_dpap_timing"


def timing_of(model: nn.Module) -> Timing | None:
    """The dead pairs that belong to a finished network (of `compact`, `masked` or `load`)."""
    found = model.__dict__.get(_PLACE)
    return found if isinstance(found, Timing) else None


def without_timing(model: nn.Module) -> None:
    """Take the dead pairs off a network: its neurons live at every step again."""
    timing = model.__dict__.pop(_PLACE, None)
    if isinstance(timing, Timing):
        timing.close()


def _identity(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _along_units(gate: Float[Tensor, "T units"], x: Float[Tensor, "T B units *N"]) -> Tensor:
    return gate.to(x).view(gate.shape[0], 1, gate.shape[1], *[1] * (x.dim() - 3))


def _arranged(x: Float[Tensor, "steps B C *N"], places: Places, bias: Tensor | None = None) -> Tensor:
    """The steps of `x` at these places, zeros or a bias between them; without a copy where they follow one another."""
    if places == tuple(range(len(x))):
        return x
    pieces = [] if any(place >= 0 for place in places) else [x[:0]]  # the gradient of nothing is zero, not missing
    start = 0
    for _, run in groupby(enumerate(places), lambda item: (item[1] < 0, item[1] - item[0] * (item[1] >= 0))):
        length = len(list(run))
        first = places[start]
        start += length
        if first >= 0:
            pieces.append(x[first : first + length])
            continue
        filling = x.new_zeros(1, *x.shape[1:])
        if first == BIAS and bias is not None:
            filling = filling + bias.to(x).view(-1, *[1] * (x.dim() - 3))
        pieces.append(filling.expand(length, *filling.shape[1:]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
