"""The time steps of a network under development: which live, their survival, which are pruned.

As thin as `developer`: every number comes from `plasticity` and `survival`, every victim from `pruning.pairs`, and
`timing` sees to it that the dead stay dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer, Site
from dpap.method.plasticity import Kind
from dpap.method.rules import Rule, Sums
from dpap.method.survival import Clock, below, grow, scheduled_share, survival_step
from dpap.pruning.pairs import PairAccount, check_time_target, in_order, strike, take
from dpap.pruning.slice import Alive, Present
from dpap.time.graph import Mode, TimeGraph
from dpap.time.timing import Timing

FindSums = Callable[[Layer], Sums]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeDecision:
    """What a development step does to pairs and steps; worked out, not yet made."""

    pairs: dict[str, Tensor]
    survival: dict[str, Tensor]
    step_survival: dict[str, Tensor]
    died_pairs: dict[str, int]
    died_steps: dict[str, list[int]]
    living_pairs: float
    living_steps: float
    capped: list[str]
    skipped: list[str]


class Temporal:
    """Pairs of a unit and a step, and steps of a layer.

    Args:
        model: The network in training.
        copies: EMA copies of it.
        graph: Of the network.
        times: Its hidden neurons.
        mode: What a dead pair does.
        rule: Of the development.
        skip: Whether work at dead steps is left out.
        target: Shares of pairs and steps that stay.
        dtype: Of survival.
        seed: For scores that draw.

    Attributes:
        pairs: Neuron -> bool (units, T); a dead unit takes its pairs along, which is not written here.
        survival: Neuron -> F (units, T).
        step_survival: Neuron -> F (T,).
    """

    def __init__(
        self,
        model: nn.Module,
        copies: Sequence[nn.Module],
        graph: Graph,
        times: TimeGraph,
        *,
        mode: Mode,
        rule: Rule,
        skip: bool,
        target: Mapping[str, float],
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.seed = seed
        check_time_target(target, times.num_steps)
        self.times, self.mode, self.rule, self.target = times, mode, rule, dict(target)
        self._timings = [Timing(module, times, mode, skip=skip, own=True) for module in (model, *copies)]
        self._models = (model, *copies)
        shapes = {n.name: (n.units, times.num_steps) for n in times.neurons}
        self.pairs = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
        self.survival = {name: torch.full(shape, rule.initial, dtype=dtype) for name, shape in shapes.items()}
        self.step_survival = {name: torch.full(shape[1:], rule.initial, dtype=dtype) for name, shape in shapes.items()}
        self._drivers: dict[str, list[Layer]] = {name: [] for name in shapes}
        for layer in graph.layers:
            if layer.post is not None and layer.pre is not None and layer.post.module in shapes:
                self._drivers[layer.post.module].append(layer)

    @property
    def whole(self) -> Callable[[str, str, Tensor], Tensor]:
        """Puts steps that were left out back into what enters or leaves a module of the model."""
        return self._timings[0].whole

    @property
    def layers(self) -> set[tuple[str, int]]:
        """(weight, call) of the layers whose Eq. (8) is to be summed."""
        return {(layer.weight, layer.call) for layers in self._drivers.values() for layer in layers}

    def importance(self, name: str, find: FindSums) -> Tensor:
        """Eq. (8) of a neuron's units, (units, T), a mean over the samples of the window: all that drives it, added."""
        total = torch.zeros_like(self.survival[name])
        for layer in self._drivers[name]:
            sums = find(layer)
            seen = sums.sums["time"].to(total) / sums.samples
            total.index_add_(0, torch.from_numpy(layer.out_units), seen)
        return total

    def decide(self, alive: Alive, find: FindSums, clock: Clock, *, warn: Callable[[str], None]) -> TimeDecision:
        """Grow, survive and take the victims; nothing of the object changes.

        Args:
            alive: Group -> (units,): which units live after this step.
            find: The sums of a layer in this window.
            clock: Where the run stands.
            warn: Told where nothing was fired.
        """
        uses, survivals, step_uses, step_survivals = {}, {}, {}, {}
        for n in self.times.neurons:
            units, name = alive[n.group], n.name
            importance = self.rule.time_score(self.importance(name, find), self.seed, name) * units[:, None]
            living = self.pairs[name] & units[:, None]
            uses[name], survivals[name] = self._survived("pair", importance, living, self.survival[name], clock)
            step_uses[name], step_survivals[name] = self._survived(
                "step", importance.sum(0), living.any(0), self.step_survival[name], clock
            )
            if not bool(importance.any()):
                warn(f"{name}: nothing was fired in this window; all steps count alike")
        account = self._account(alive)
        if not self.rule.windowed:
            strike(account, self._ordered("pair", survivals, uses, account, clock))
        elif clock.q > 0:
            take(
                account,
                self._ordered("step", step_survivals, step_uses, account, clock),
                self._ordered("pair", survivals, uses, account, clock),
                {metric: scheduled_share(clock.q, share) for metric, share in self.target.items()},
                elapsed=clock.elapsed,
                capped=not (clock.q >= 1 and self.target),
            )
        return TimeDecision(
            pairs={n: torch.from_numpy(a) for n, a in zip(account.names, account.alive, strict=True)},
            survival=survivals,
            step_survival=step_survivals,
            died_pairs=dict(account.died_pairs),
            died_steps={name: sorted(steps) for name, steps in account.died_steps.items()},
            living_pairs=account.pairs(),
            living_steps=account.steps(),
            capped=sorted(account.bound),
            skipped=sorted(account.skipped),
        )

    def _survived(
        self, kind: Kind, score: Tensor, alive: Tensor, survival: Tensor, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        if kind not in self.rule.time_kinds:
            return torch.zeros_like(score), survival
        links = self.rule.links("linear", kind, clock)
        use = grow(score, alive, links[:1])
        new = survival_step(survival, grow(use, alive, links[1:]).to(survival), self.rule.gamma(clock))
        return use, torch.where(alive, new, survival)

    def _ordered(
        self, kind: Kind, survival: Mapping[str, Tensor], use: Mapping[str, Tensor], account: PairAccount, clock: Clock
    ) -> list[tuple[float, float, tuple[int, ...], bool]]:
        if kind not in self.rule.time_kinds:
            return []
        level, living = self.rule.level(kind, clock), []
        for alive, units in zip(account.alive, account.units, strict=True):
            mine = alive & units[:, None]
            living.append(mine if kind == "pair" else np.asarray(mine.any(0)))
        fallen = [
            below(survival[name], torch.from_numpy(lives), level, self.rule.tolerance).numpy()
            for name, lives in zip(account.names, living, strict=True)
        ]
        names = account.names
        return in_order([survival[n].numpy() for n in names], [use[n].numpy() for n in names], living, fallen)

    def _account(self, alive: Alive) -> PairAccount:
        neurons = self.times.neurons
        return PairAccount(
            names=[n.name for n in neurons],
            alive=[self.pairs[n.name].numpy().copy() for n in neurons],
            units=[alive[n.group].numpy() for n in neurons],
            positions=[n.positions for n in neurons],
        )

    def shares(self, alive: Alive) -> tuple[float, float]:
        """Living pairs / pairs of the living neurons, and living layer steps / all layer steps."""
        account = self._account(alive)
        return account.pairs(), account.steps()

    def commit(self, decision: TimeDecision) -> None:
        """Make it so; `fit` tells the network."""
        self.pairs, self.survival = decision.pairs, decision.survival
        self.step_survival = decision.step_survival

    def fit(self, alive: Alive, present: Present) -> None:
        """Keep the dead dead in a network of these widths."""
        pairs = self._present(alive, present.units)
        for timing in self._timings:
            timing.update(pairs)

    def receiving(self, alive: Alive) -> dict[Site, Tensor]:
        """Site before a layer -> share of the layer's living units that receive anything at each step, (T,)."""
        shares = {}
        for n in self.times.neurons:
            share = self.pairs[n.name][alive[n.group]].double().mean(0)
            for layer in self._drivers[n.name]:
                if layer.pre is not None and layer.name in n.layers and self.mode == "leak":
                    shares[layer.pre] = share
        return shares

    def _present(self, alive: Alive, units: Alive) -> dict[str, Tensor]:
        """Pairs of the units that are in the tensors. Dead units follow their layer, so that they cost nothing."""
        pairs = {}
        for n in self.times.neurons:
            lives = alive[n.group]
            steps = self.pairs[n.name][lives].any(0)
            pairs[n.name] = torch.where(lives[:, None], self.pairs[n.name], steps)[units[n.group]]
        return pairs

    def attach(self, model: nn.Module, alive: Alive, units: Alive, *, skip: bool) -> None:
        """Give an independent network that holds these units the same dead pairs, for good."""
        pairs = self._present(alive, units)
        neurons = tuple(replace(n, units=len(pairs[n.name])) for n in self.times.neurons)
        Timing(model, replace(self.times, neurons=neurons), self.mode, skip=skip).update(pairs)

    def close(self, alive: Alive, present: Present) -> None:
        """Remove our hooks; what is dead stays dead by hooks of the network itself."""
        for model, timing in zip(self._models, self._timings, strict=True):
            timing.close()
            self.attach(model, alive, present.units, skip=timing.skip)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "pairs": dict(self.pairs),
            "survival": dict(self.survival),
            "step_survival": dict(self.step_survival),
        }

    def check_state(self, state: Mapping[str, Any] | None) -> None:
        """Refuse the state of a run that pruned time otherwise, or not at all."""
        if state is None or state["mode"] != self.mode:
            there = "no time steps" if state is None else f"time steps by {state['mode']!r}"
            raise DPAPError(
                f"The saved state is of a run that pruned {there}; this one prunes them by {self.mode!r}.",
                fix="make DPAP with the same time= as in the saved run.",
            )
        if {k: tuple(v.shape) for k, v in state["pairs"].items()} != {k: tuple(v.shape) for k, v in self.pairs.items()}:
            raise DPAPError("The saved state is of a network with other neurons or another number of time steps.")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for own in ("pairs", "survival", "step_survival"):
            current = getattr(self, own)
            setattr(self, own, {k: state[own][k].clone().to(v.dtype) for k, v in current.items()})


def check_mode(mode: str | None, rule: Rule) -> None:
    """Refuse what is no mode, and a rule that knows no time."""
    if mode is None:
        return
    if mode not in get_args(Mode):
        raise DPAPError(f"time={mode!r}.", fix='choose "leak" or "silence", or leave time= out.')
    if not rule.time_kinds:
        raise DPAPError(
            f"Rule {rule.name!r} prunes no time steps: the authors' script has none.", fix='use rule="dpap" or "paper".'
        )


def time_part(target: Mapping[str, Any] | None, metrics: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A target in two: what the account of units and synapses counts, and what that of pairs and steps does."""
    target = dict(target or {})
    mine = {metric: target.pop(metric) for metric in tuple(metrics) if metric in target}
    return target, mine
