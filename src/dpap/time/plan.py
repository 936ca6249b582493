"""Which layer computes at which steps, once it is known which pairs live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from dpap.graph.group import Layer
from dpap.time.graph import Mode, Pairs, TimeGraph

Places = tuple[int, ...]
"""Where each step of a tensor comes from: a step of another one, or one of the two below."""


NOTHING, BIAS = -1, -2
"""Zeros, and what a layer answers to zeros."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What every module sees and answers at which steps."""

    arrive: dict[str, list[int]]
    """Steps that come to a module."""
    enter: dict[str, Places]
    """Of these, the ones that it sees, in order; a module that is left alone is not in it."""
    leave: dict[str, Places]
    """What comes out of it, step by step, from what it answered; likewise."""
    emit: dict[str, list[int]]
    """Steps that leave a neuron."""
    gates: dict[str, Tensor]
    """Neuron -> (steps that it sees, units) of zeros and ones, where a multiplication is needed."""
    window: tuple[int, int]
    """Steps of the input that are read."""


def make_plan(times: TimeGraph, pairs: Pairs, mode: Mode, *, skip: bool, told: frozenset[str]) -> Plan:
    """`told`: neurons that run over all steps, because they are told when they may fire."""
    every = list(range(times.num_steps))
    living = {n.name: [t for t in every if bool(pairs[n.name][:, t].any())] for n in times.neurons}
    flows = times.flows and skip and mode == "leak"
    emit = {name: steps if flows else every for name, steps in living.items()}
    serves = {name: n.name for n in times.neurons for name in n.layers} if mode == "leak" else {}
    plan = Plan({}, {}, {}, emit, {}, (0, times.num_steps))

    def place(name: str, arrive: list[int], see: list[int], leave: Places) -> None:
        enter = tuple(arrive.index(t) if t in arrive else NOTHING for t in see)
        plan.arrive[name] = arrive
        if enter != tuple(range(len(arrive))) or leave != tuple(range(len(see))):
            plan.enter[name], plan.leave[name] = enter, leave

    read: set[int] = set()
    for layer in times.layers if skip else ():
        wanted = living[serves[layer.name]] if layer.name in serves else every
        arriving = set().union(*(living[n] for n in layer.feeding)) if layer.feeding else set(every)
        see = [t for t in wanted if t in arriving]
        answer = wanted if flows else every
        leave = tuple(see.index(t) if t in see else BIAS if t in wanted else NOTHING for t in answer)
        place(layer.name, emit[layer.feeding[0]] if layer.feeding else every, see, leave)
        if layer.first:
            read.update(see)
    for n in times.neurons:
        mine, flowing = living[n.name], flows and bool(n.layers)
        for norm, _ in () if flowing or mode == "silence" else n.norms:
            place(norm, every, mine, tuple(mine.index(t) if t in mine else NOTHING for t in every))
        see = every[mine[0] : mine[-1] + 1] if skip and n.name not in told else every
        leave = tuple(t - see[0] if t in see else NOTHING for t in emit[n.name])
        place(n.name, mine if flowing else every, see, leave)
        gate = pairs[n.name].T[see].float()
        seen = torch.tensor([t in mine for t in see]) if flowing else torch.ones(len(see), dtype=torch.bool)
        if not bool(gate[seen].all()) or (n.name in told and not bool(gate.all())):
            plan.gates[n.name] = gate
    if skip and times.timed_input:
        return replace(plan, window=(min(read), max(read) + 1))
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingSteps:
    """Which units live when, for counting what is done."""

    times: TimeGraph
    pairs: Pairs
    mode: Mode

    def runs(self, layer: str) -> int:
        """Steps at which a layer has something to compute; T for one that no pairs are known of."""
        plan = make_plan(self.times, self.pairs, self.mode, skip=True, told=frozenset())
        seen = plan.enter.get(layer, plan.arrive.get(layer, range(self.times.num_steps)))
        return len(seen)

    def receives(self, layer: Layer) -> Bool[Tensor, "O T"] | None:
        """At which steps each output of a layer receives anything; None: at all."""
        if self.mode == "leak" and layer.post is not None:
            for n in self.times.neurons:
                if n.name == layer.post.module and layer.name in n.layers:
                    return self.pairs[n.name][torch.from_numpy(layer.out_units)]
        return None

    def updates(self, neuron: str) -> Bool[Tensor, "units T"] | None:
        """At which steps the membrane of each unit is charged; None: at all."""
        return self.pairs.get(neuron) if self.mode == "leak" else None

    def dead_share(self, alive: Mapping[str, Tensor]) -> float:
        """rho_t: dead pairs / pairs of the living hidden neurons."""
        dead = there = 0
        for n in self.times.neurons:
            mine = self.pairs[n.name]
            mine = mine[alive[n.group].cpu()] if n.group in alive else mine
            dead += int((~mine).sum()) * n.positions
            there += mine.numel() * n.positions
        return dead / there
