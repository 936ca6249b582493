"""`DPAP`, the object that a training loop holds.

It holds who is alive and what they survived on, and decides nothing: every number comes from the pure functions of the
other two files, every victim from the account in `pruning.budget`.
"""

from __future__ import annotations

import logging
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from dpap.development.checks import (
    already_held,
    check_example,
    check_processes,
    holder,
    named_target,
    optimizers_of,
    restricted,
    settings_differ,
    shortfalls,
)
from dpap.development.observe import Observer, Seen
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport, Notes, reported
from dpap.development.temporal import Temporal, TimeDecision, check_mode, time_part
from dpap.development.window import Window
from dpap.errors import DPAPError, refusing
from dpap.graph.adapters import enlist
from dpap.graph.export import Forward
from dpap.graph.find import find_groups
from dpap.graph.group import Layer
from dpap.graph.selection import Pattern
from dpap.graph.walk import Unknown
from dpap.hooks import OwnHook
from dpap.method.plasticity import Kind, Stats
from dpap.method.rules import Prune, Rule, costly_sums, resolve
from dpap.method.schedule import RateWatch, Schedule
from dpap.method.scores import Score, needs
from dpap.method.survival import Clock, grow, survival_step, uninformed
from dpap.processes import agree, world
from dpap.pruning.budget import Account, Candidates, Taker, check_target, choose, missed, scheduled
from dpap.pruning.compact import compacted, proven_steps, restored, trial_cut, two_samples
from dpap.pruning.mask import MaskKeeper, dead_masks
from dpap.pruning.pace import Pace
from dpap.pruning.pairs import TIME_METRICS
from dpap.pruning.shrink import Shrink, Shrinker, check_bare, check_optimizers
from dpap.time.graph import Mode, time_graph
from dpap.time.timing import timing_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Decision:
    """A development step worked out, not yet made."""

    survival: dict[str, Tensor]
    synapse_survival: dict[str, Tensor]
    alive: dict[str, Tensor]
    synapses: dict[str, Tensor]
    exchange: float
    time: TimeDecision | None
    report: DevelopmentReport


class DPAP:
    """Lets a network prune itself while it learns.

    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> dev = DPAP(model, torch.randn(4, 8), optimizer=optimizer, total_steps=200)
    >>> for _ in range(200):
    ...     x = torch.randn(32, 8)
    ...     with dev.observing():
    ...         loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     report = dev.step()
    >>> small = dev.compact()

    Args:
        model: Any module that `torch.export` takes, trained in any loop.
        example_input: One batch, of the shape that the model is trained on.
        optimizer: The optimizer (or a list of them) that moves the model's parameters; foreign parameters are fine.
        total_steps: Calls of `step()` in the whole run: iterations, epochs, as you like. The epoch for the rules
            `paper` and `released`.
        rule: "dpap", "paper", "released", or a `dpap.method.rules.Rule`.
        target: Share of the dense network that stays: {"connectivity": 0.05}, or "macs", "parameters", "sops",
            "latency"; connectivity may be named together with macs or latency; where time steps are pruned, also
            "pairs" (of living units and steps) and "steps" (of layers). Without a target, how much dies emerges.
            The latency is that of one forward pass of `example_input` in evaluation mode; it is measured, so that two
            runs of the same seed need not be equal.
        prune: What may be pruned: "units" (channels and neurons), "synapses" (single connections) or "both". By default
            both, but for a target of macs, parameters or latency alone, which only whole units bring down: units.
        score: What a unit or synapse is worth to its siblings: a name of `dpap.method.scores.SCORES`, or a function of
            `dpap.method.plasticity.Stats` that answers (O,) for units and (O, I) for synapses, >= 0.
        start: Share of the run after which deaths begin.
        stop: Share of the run after which they end.
        memory: Share of the run over which survival remembers.
        development_steps: Development steps in a run, about.
        observe_every: Every how many passes activity is observed; the first of each window always is.
        seed: For scores that draw.
        ignore: Modules (or globs over their names) that keep their units and synapses.
        only: If given, all others keep theirs.
        ema: A copy of the model (or several) that follows it, such as an `AveragedModel`; masked along.
        shrink: When dead units leave the tensors of model, `ema=` copies and optimizer state: "auto" when it pays (by
            counts of operations, never by a clock), "always" at every development step in which units died, "never":
            they stay as zeros until `compact()`. Who dies is the same.
        forward: `forward(model, batch)` where the model is not called as `model(batch)`, for dict inputs or a loop over
            time.
        unknown: What to do with an operator that has no rule: "refuse" or "protect" all that touches it.
        time: Prune time steps as well, pairs of a unit and a step and whole steps of a layer: "leak" (a dead pair
            receives nothing, gives nothing, and its membrane leaks; work at the dead steps of a layer is left out) or
            "silence" (it integrates and cannot fire, as in the paper; nothing is spared but what its readers do).
        spiking_input: The model receives counts of spikes, such as frames of events: what the first layer does to them
            are synaptic operations.
        replay: The deaths of another run (`dpap.development.replay.Deaths`): as many die of each group and weight at
            each development step, and the score says who, by its use in that window alone, without memory.

    Attributes:
        graph: Groups, layers and sites (`dpap.graph.group.Graph`).
        alive: Group -> bool (units,).
        synapse_masks: Weight -> bool (O, I), True = alive, where synapses are prunable.
        survival: Group -> F (units,).
        pairs: Neuron -> bool (units, T), True = alive, where time steps are pruned.
        warned: Layer -> development steps in which it carried no information.

    Raises:
        DPAPError: A bad argument, a model that cannot be understood, nothing to prune, or a target out of reach.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        *,
        optimizer: Optimizer | Sequence[Optimizer],
        total_steps: int,
        rule: str | Rule = "dpap",
        target: Mapping[str, float] | None = None,
        prune: Prune | None = None,
        score: Score | str | None = None,
        start: float = 0.10,
        stop: float = 0.50,
        memory: float = 0.03,
        development_steps: int = 100,
        observe_every: int = 4,
        seed: int = 0,
        ignore: Sequence[Pattern] | Pattern = (),
        only: Sequence[Pattern] | Pattern | None = None,
        ema: nn.Module | Sequence[nn.Module] | None = None,
        shrink: Shrink = "auto",
        forward: Forward | None = None,
        unknown: Unknown = "refuse",
        time: Mode | None = None,
        spiking_input: bool = False,
        replay: Deaths | None = None,
    ) -> None:
        if shrink not in ("auto", "never", "always"):
            raise DPAPError(f"shrink={shrink!r}.", fix='choose "auto", "never" or "always".')
        check_bare(model)
        self._claim(model)
        check_example(example_input)
        target = named_target(target)
        self.rule = restricted(resolve(rule, score=score), prune, target)
        check_mode(time, self.rule)
        if timing_of(model) is not None:
            raise DPAPError(
                "This network has dead time steps from an earlier run.",
                fix="prune a network that has all its steps; build it anew, or train it in one run.",
            )
        target, time_target = time_part(target, TIME_METRICS if time else ())
        self.schedule = Schedule(
            total_steps=total_steps,
            start=start,
            stop=stop,
            memory=memory,
            development_steps=development_steps,
            observe_every=observe_every,
            windowed=self.rule.windowed,
        )
        self.model, self.seed = model, seed
        self.optimizers = optimizers_of(optimizer)
        self.shrink: Shrink = shrink if self.rule.permanent else "never"
        self._process, self._processes = world()
        check_processes(self._processes, self.rule, self.shrink)
        if self.shrink != "never":
            check_optimizers(self.optimizers)
        self.graph = find_groups(
            model,
            example_input,
            ignore=ignore,
            only=only,
            unknown=unknown,
            forward=forward,
            spiking_input=spiking_input,
        )
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._groups = tuple(g for g in self.graph.groups if g.protected is None and "unit" in self.rule.kinds)
        self._synaptic = self._prunable_synapses(parameters)
        self._layers = self._observed_layers(all_spikes="sops" in (target or {}))
        self._check_model(parameters)
        trial_cut(model, self.graph, example_input, forward)

        self.alive = {g.name: torch.ones(g.units, dtype=torch.bool) for g in self.graph.groups}
        self.survival = {
            g.name: torch.full((g.units,), self.rule.initial, dtype=_sum_dtype(parameters)) for g in self._groups
        }
        weights = {layer.weight: parameters[layer.weight] for layer in self._synaptic}
        self.synapse_masks = {n: torch.ones(w.shape[:2], dtype=torch.bool, device=w.device) for n, w in weights.items()}
        self.synapse_survival = {
            n: torch.full(w.shape[:2], self.rule.initial, dtype=_sum_dtype(parameters), device=w.device)
            for n, w in weights.items()
        }
        copies = [ema] if isinstance(ema, nn.Module) else list(ema or ())
        account = self._account()
        self.target = self._checked_target(target, account)
        example = two_samples(self.graph, example_input)
        self.replay = self._checked_replay(replay, timed=time is not None)
        self._dense = {metric: account.count(metric) for metric in ("connectivity", "synaptic", "macs", "parameters")}
        self._exchange = 1.0
        """Share of MACs / share of latency, as last measured."""

        self._shrinker = Shrinker(model, self.graph, self.optimizers, copies, example, forward)
        self._pace = None
        if "latency" in self.target:
            self._pace = Pace(
                model=model,
                example=example_input,
                forward=forward,
                target=self.target["latency"],
                macs=self._dense["macs"],
            )
            self._pace.check(account, set(self.rule.kinds), self._shrinker.present)
        self._parameters = parameters
        agree(
            [str(self._settings()), str({name: tuple(p.shape) for name, p in parameters.items()})],
            self._device,
            DPAPError(
                "The processes made DPAP with different arguments or of different models.",
                fix="make the same model and the same DPAP in all of them.",
            ),
        )

        # Hooks from here on: whatever is refused was refused above, or takes them off again.
        self._masks = MaskKeeper(model, self.optimizers, copies, owner=self)
        try:
            self._temporal = self._timed(time, time_target, copies, example, forward, _sum_dtype(parameters))
        except DPAPError:
            self._masks.close()
            raise
        self._load_guard = model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            OwnHook(self._shrinker.refuse_dense)
        )
        self._window = self._seen = Window(
            rule=self.rule,
            num_steps=self.graph.num_steps,
            layers=self._layers,
            devices={layer.weight: parameters[layer.weight].device for layer in self._layers},
            dtype=_sum_dtype(parameters),
            pairs=frozenset(self.synapse_masks),
            timed=frozenset() if self._temporal is None else frozenset(self._temporal.layers),
            arriving=frozenset(x.weight for x in self._layers if "sops" in self.target and x.spike_divisor is not None),
        )
        self._observer = Observer(
            model,
            self.graph,
            self._layers,
            self._add,
            lambda reason: self._window.skip(reason),
            mean_positions=self.rule.mean_positions,
            rectify=self.rule.rectify,
            weigh_arrivals="sops" in self.target,
            whole_block=forward is not None,
            **({} if self._temporal is None else {"whole": self._temporal.whole}),
        )
        self.warned: Counter[str] = Counter()
        self.steps_taken = 0
        self._last = 0
        """Step count at the previous development step."""
        self._developments = 0
        self._blocks = 0
        self._passes = 0
        """Blocks of `observing()` in the whole run."""
        self._moved = (0, self._writes(), False)
        """Steps of the optimizers and writes of the weights at the last development step, and whether the latter were
        not theirs."""
        self._watching = self.schedule.watches_after(0)
        self._rate = RateWatch(self.schedule, self.optimizers)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def _settings(self) -> dict[str, Any]:
        """What a run is, beside its network: a saved state of another one is refused, and so are unlike processes."""
        s, end = self.schedule, Clock(progress=1, elapsed=0, start=0, stop=1, memory=self.schedule.memory, epoch=0)
        return {
            "rule": self.rule.name,
            "total_steps": s.total_steps,
            "start": s.start,
            "stop": s.stop,
            "memory": s.memory,
            "development_steps": s.development_steps,
            "observe_every": s.observe_every,
            "seed": self.seed,
            "prune": " and ".join(sorted(self.rule.kinds)),
            "score": getattr(self.rule.score, "__qualname__", type(self.rule.score).__name__),
            "levels": ", ".join(f"{kind} {self.rule.level(kind, end):g}" for kind in sorted(self.rule.kinds)),
            "target": ", ".join(f"{metric} {share:g}" for metric, share in sorted(self.target.items())) or "none",
        }

    @property
    def pairs(self) -> dict[str, Tensor]:
        return {} if self._temporal is None else self._temporal.pairs

    # construction -------------------------------------------------------------------------------------------------

    @staticmethod
    def _claim(model: nn.Module) -> None:
        """One DPAP a model; one that has not begun makes room."""
        first = holder(model)
        if first is not None:
            if first.steps_taken:
                raise already_held(model)
            first.close()

    def _prunable_synapses(self, parameters: Mapping[str, Tensor]) -> tuple[Layer, ...]:
        if "synapse" not in self.rule.kinds:
            return ()
        protected = {g.name for g in self.graph.groups if g.protected is not None}
        chosen = {
            layer.weight: layer
            for layer in self.graph.layers
            if layer.kind == "linear"
            and layer.pre is not None
            and layer.weight not in self.graph.ignored
            and parameters[layer.weight].requires_grad
            and (self.rule.classifier or layer.out_group not in protected)
        }
        return tuple(chosen.values())

    def _observed_layers(self, all_spikes: bool) -> tuple[Layer, ...]:
        groups, weights = {g.name for g in self._groups}, {layer.weight for layer in self._synaptic}
        return tuple(
            layer
            for layer in self.graph.layers
            if layer.pre is not None
            and (
                layer.out_group in groups or layer.weight in weights or (all_spikes and layer.spike_divisor is not None)
            )
        )

    def _check_model(self, parameters: Mapping[str, Tensor]) -> None:
        if not self._groups and not self._synaptic:
            reasons = (
                "; ".join(f"{g.name}: {g.protected}" for g in self.graph.groups)
                or "no convolution or linear layer found"
            )
            raise DPAPError(f"There is nothing to prune in this {type(self.model).__name__}.", where=reasons)
        moved = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        names = {
            s.tensor for g in self._groups for s in (*g.producers, *g.consumers) if s.masked and s.tensor in parameters
        }
        names |= {layer.weight for layer in self._synaptic}
        missing = sorted(name for name in names if id(parameters[name]) not in moved)
        if missing:
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise DPAPError(
                f"{len(missing)} prunable parameters are in none of the optimizers given: {shown}.",
                fix="pass the optimizer that was made from model.parameters() of this very model (a list if there are "
                "several), or freeze them with requires_grad_(False), which protects them.",
            )
        if self.rule.needs_neurons and not self.graph.neurons:
            raise DPAPError(
                f"Rule {self.rule.name!r} is the authors' script, which has no network without spikes.",
                fix='use rule="paper" or "dpap".',
            )
        if "stdp" in costly_sums(self.rule) and self.graph.num_steps == 1:
            raise DPAPError(
                "Spike-timing plasticity needs more than one time step; this network has T = 1.",
                fix="use another score.",
            )

    def _checked_target(self, target: Mapping[str, float] | None, account: Account) -> dict[str, float]:
        if target and not self.rule.windowed:
            raise DPAPError(f"Rule {self.rule.name!r} knows no target.", fix='use rule="dpap".')
        return check_target(target, account, set(self.rule.kinds))

    def _timed(
        self,
        mode: Mode | None,
        target: Mapping[str, float],
        copies: Sequence[nn.Module],
        example: Any,
        forward: Forward | None,
        dtype: torch.dtype,
    ) -> Temporal | None:
        if mode is None:
            return None
        if target and not self.rule.windowed:
            raise DPAPError(f"Rule {self.rule.name!r} knows no target.", fix='use rule="dpap".')
        times = time_graph(self.model, self.graph, mode)
        return Temporal(
            self.model,
            copies,
            self.graph,
            proven_steps(self.model, times, example, forward),
            mode=mode,
            rule=self.rule,
            skip=self.shrink != "never",
            target=target,
            dtype=dtype,
            seed=self.seed,
        )

    def _checked_replay(self, replay: Deaths | None, *, timed: bool) -> Deaths | None:
        if replay is None:
            return None
        if not self.rule.windowed:
            raise DPAPError(f"Rule {self.rule.name!r} knows no replay.", fix='use rule="dpap".')
        if self.target:
            raise DPAPError("A replay and a target both say how many die.", fix="leave target= out.")
        if timed:
            raise DPAPError("A replay holds deaths of units and synapses, none of time steps.", fix="leave time= out.")
        dense = {g.name: g.units for g in self.graph.groups}
        mortal = {g.name: g.units for g in self._groups} | {n: m.numel() for n, m in self.synapse_masks.items()}
        replay.check(self.schedule, self.rule.name, dense, mortal)
        return replay

    # observing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the passes inside: the first block of each window, then every k-th; else costs next to nothing."""
        wanted = self._watching and self.schedule.observes(self._blocks)
        self._blocks += 1
        self._passes += 1
        if wanted:
            self._observer.start()
        complete = False
        try:
            yield
            complete = True
        finally:
            if wanted:
                self._observer.finish(complete=complete)

    def _add(self, seen: Sequence[Seen]) -> None:
        """Account for one pass."""
        for layer, pre, post, arrivals in seen:
            self._window.add(layer, pre, post, arrivals, self.alive)
        self._window.passes += 1

    # developing ---------------------------------------------------------------------------------------------------

    def step(self) -> DevelopmentReport | None:
        """To be called `total_steps` times in a run, after `optimizer.step()`; develops every so often.

        Returns:
            What a development step found and did; None between development steps.

        Raises:
            DPAPError: The run is over, a site was not observed, sums are not finite, or a layer would be emptied.
        """
        if self.steps_taken >= self.total_steps:
            raise DPAPError(
                f"dev.step() was called more than the total_steps={self.total_steps} times that DPAP was made for.",
                fix="pass the number of calls of dev.step() in the whole run as total_steps.",
            )
        self.steps_taken += 1
        self._rate.after(self.steps_taken)
        report = None
        if self.schedule.develops_at(self.steps_taken):
            self._check_world()
            if self._watching:
                strangers = self._moved_by_others()
                decision = self._decide()
                self._agree_on(decision)
                report = self._commit(decision)
                self._shrink_if_due()
                self._moved = (self._masks.steps, self._writes(), strangers)
            self._last, self._blocks = self.steps_taken, 0
            self._watching = self.schedule.watches_after(self.steps_taken)
        if self.steps_taken == self.total_steps:
            self._warn_of_shortfalls("The run is over")
        return report

    def _check_world(self) -> None:
        if world() != (self._process, self._processes):
            raise DPAPError(
                f"There are {world()[1]} processes; DPAP was made when there were {self._processes}.",
                fix="call torch.distributed.init_process_group before DPAP is made.",
            )

    def _moved_by_others(self) -> bool:
        """Whether weights changed in this window without a step of our optimizers. Another optimizer would move what is
        pruned, and keep state of old widths; one window may be a load.

        Raises:
            DPAPError: So it was in the window before.
        """
        steps, writes, strangers = self._moved
        moved = self._masks.steps == steps and self._writes() != writes
        if moved and strangers:
            raise DPAPError(
                "The weights change, and none of the optimizers given to DPAP makes a step.",
                where=self._position,
                fix="keep the optimizer that DPAP was made with (change its param_groups for another learning rate); "
                "to train on with another one, close() this DPAP and make a new one.",
            )
        return moved

    def _writes(self) -> int:
        """How often parameters were written, as PyTorch counts; zeros that are written again do not count."""
        return sum(p._version for p in self._masks.parameters.values())

    def _agree_on(self, decision: _Decision) -> None:
        time = {} if decision.time is None else decision.time.pairs
        agree(
            [*decision.alive.values(), *decision.synapses.values(), *time.values()],
            self._device,
            DPAPError(
                "The processes would prune differently, so their networks are not the same; nothing was pruned.",
                where=self._position,
                fix="wrap the model in DistributedDataParallel, which starts all processes from the same weights and "
                "keeps them so, and do not change weights in one process alone.",
            ),
        )

    def _warn_of_shortfalls(self, when: str) -> None:
        asked = {m: share for m, share in self.target.items() if m not in ("sops", "latency")}
        account = self._account()
        there = {metric: account.count(metric) / self._dense[metric] for metric in asked}
        if self._temporal is not None:
            asked |= self._temporal.target
            there |= dict(zip(("pairs", "steps"), self._temporal.shares(self.alive), strict=True))
        broken = [name for name, p in self._parameters.items() if not bool(p.isfinite().all())]
        stop = self.schedule.stop if self.rule.windowed else 0.0
        for line in shortfalls(self.steps_taken, self.total_steps, stop, asked, there, broken):
            log.warning("%s: %s.", when, line)

    def preview(self) -> DevelopmentReport:
        """What a development step would do now, at the level of now and with what this window saw; changes nothing.

        In several processes all of them call it together.
        """
        if not self._window.passes or not self._watching:
            raise DPAPError(
                "Nothing has been observed in this window yet.", fix="call preview() after a pass inside observing()."
            )
        return self._decide().report

    @torch.no_grad()
    def _decide(self) -> _Decision:
        """Score, grow, survive, and take the victims on paper; nothing of the object changes."""
        clock = self.schedule.clock(self.steps_taken, last=self._last, developments=self._developments)
        self._seen = self._window.pooled()
        self._seen.check(where=self._position)
        notes = Notes()
        survival, use = dict(self.survival), {}
        synapse_survival, synapse_use = dict(self.synapse_survival), {}
        if clock.epoch >= self.rule.first_epoch:
            for group in self._groups:
                name = group.name
                use[name], growth = self._unit_growth(name, group.units, clock, notes)
                survival[name] = self._survived(survival[name], growth, self.alive[name], clock)
            for layer in self._synaptic:
                name = layer.weight
                synapse_use[name], growth = self._synapse_growth(layer, clock, notes)
                living = self._living_synapses(layer)
                synapse_survival[name] = self._survived(synapse_survival[name], growth, living, clock)
        taker = Taker(
            account=self._account(),
            elapsed=clock.elapsed,
            capped=self.rule.windowed and not (self.replay or (clock.q >= 1 and self.target)),
        )
        account = taker.account
        groups = {g.name: n for n, g in enumerate(self.graph.groups)}
        edges = {e.weight: n for n, e in enumerate(account.edges)}
        ranked, synapse_ranked = (use, synapse_use) if self.replay else (survival, synapse_survival)
        exchange = self._exchange
        if clock.q > 0 or not self.rule.windowed:
            units = Candidates.of(
                [(groups[n], ranked[n], use[n], self.alive[n]) for n in use],
                self.rule.level("unit", clock),
                self.rule.tolerance,
            )
            synapses = Candidates.of(
                [(edges[w], synapse_ranked[w], synapse_use[w], self.synapse_masks[w]) for w in synapse_use],
                self.rule.level("synapse", clock),
                self.rule.tolerance,
                fallen_only=not (self.replay or self.target.keys() & {"connectivity", "sops"}),
            )
            if not self.rule.windowed:
                taker.all_fallen(units, synapses, permanent=self.rule.permanent)
            elif self.replay:
                self.replay.take(taker, units, synapses, self.steps_taken)
            else:
                exchange = self._choose(taker, units, synapses, clock)
        alive, masks = self._outcome(taker)
        timed = None
        if self._temporal is not None:
            timed = self._temporal.decide(alive, self._seen.of, clock, warn=notes.warnings.append)
        report = reported(
            taker,
            notes,
            timed,
            step=self.steps_taken,
            progress=clock.progress,
            dense=self._dense["connectivity"],
            use=use,
            survival=survival,
            alive=alive,
        )
        return _Decision(survival, synapse_survival, alive, masks, exchange, timed, report)

    def _survived(self, survival: Tensor, growth: Tensor, alive: Tensor, clock: Clock) -> Tensor:
        """Survival after this step; the dead of a permanent rule keep what they died with."""
        new = survival_step(survival, growth, self.rule.gamma(clock))
        return torch.where(alive, new, survival) if self.rule.permanent else new

    def _unit_growth(self, name: str, units: int, clock: Clock, notes: Notes) -> tuple[Tensor, Tensor]:
        """u and growth of a group: the mean over the layers that drive it (what shrinks together votes together)."""
        members = [layer for layer in self._layers if layer.out_group == name and layer.post is not None]
        uses, growths = [], []
        for layer in members:
            alive = self.alive[name] if self.rule.permanent else torch.ones(units, dtype=torch.bool)
            score = self._score(layer, "unit", alive[torch.from_numpy(layer.out_units)]).cpu()
            per_unit = torch.zeros(units, dtype=score.dtype).index_add_(0, torch.from_numpy(layer.out_units), score)
            if self.rule.windowed and uninformed(per_unit, alive):
                notes.warnings.append(
                    f"{layer.name}: no unit stands out in this window (all scores are 0); all count alike"
                )
            if self.rule.windowed:
                active = self._seen.of(layer).sums["y"].cpu() > 0
                stuck = int((alive & (per_unit == 0))[torch.from_numpy(layer.out_units)][active].sum())
                if stuck:
                    notes.at_threshold[name] = notes.at_threshold.get(name, 0) + stuck
            links = self.rule.links(layer.kind, "unit", clock)
            use = grow(per_unit, alive, links[:1])
            uses.append(use)
            growths.append(grow(use, alive, links[1:]))
        return torch.stack(uses).mean(0), torch.stack(growths).mean(0).to(self.survival[name])

    def _synapse_growth(self, layer: Layer, clock: Clock, notes: Notes) -> tuple[Tensor, Tensor]:
        """u and growth of a weight's synapses: the mean over the calls of its layer."""
        alive = self._living_synapses(layer)
        uses, growths = [], []
        for call in self._layers:
            if call.weight == layer.weight:
                score = self._score(call, "synapse", alive)
                rows = uninformed(score, alive) if self.rule.windowed else 0
                if rows:
                    notes.warnings.append(
                        f"{layer.name}: {rows} rows of synapses carried no information; all in them count alike"
                    )
                links = self.rule.links(call.kind, "synapse", clock)
                uses.append(grow(score, alive, links[:1]))
                growths.append(grow(uses[-1], alive, links[1:]))
        growth = torch.stack(growths).mean(0).to(self.synapse_survival[layer.weight])
        return torch.stack(uses).mean(0), growth

    def _with_neighbours(self, stats: Stats, layer: Layer) -> Stats:
        """With the weights around the layer's units, where the score asks for them."""
        group, rows = self.graph.group(layer.out_group), torch.from_numpy(layer.out_units)
        asked = needs(self.rule.score)
        if "norm_scale" in asked:
            for part in group.producers:
                owner, _, name = part.tensor.rpartition(".")
                if name == "weight" and isinstance(self.model.get_submodule(owner), _NormBase):
                    stats = replace(stats, norm_scale=self._dense_weight(part.tensor)[rows])
        if "outgoing" in asked:
            total = torch.zeros(group.units, dtype=stats.y.dtype, device=stats.y.device)
            for part in group.consumers:
                per_entry = self._dense_weight(part.tensor).abs().transpose(0, part.axis).flatten(1).sum(1)
                total += per_entry.to(total)[torch.from_numpy(part.entries)].sum(1)
            stats = replace(stats, outgoing=total[rows])
        return stats

    def _dense_weight(self, name: str) -> Tensor:
        """A parameter in the shape of the dense network, with zeros where dead units were cut."""
        return self._shrinker.present.dense(name, self._parameters[name].detach())

    def _living_synapses(self, layer: Layer) -> Tensor:
        """(O, I): who enters the statistics; a permanent rule's masks leave out what dead units make or read."""
        mask = self.synapse_masks[layer.weight]
        return mask if self.rule.permanent else torch.ones_like(mask)

    def _score(self, layer: Layer, kind: Kind, alive: Tensor) -> Tensor:
        sums = self._seen.of(layer)
        weight = self._dense_weight(layer.weight)
        if layer.transposed:
            weight = weight.transpose(0, 1)
        if not all(bool(total.isfinite().all()) for total in sums.sums.values()):
            raise self._not_finite(layer, "activity seen there holds")
        stats = sums.stats(layer.name, kind, self.seed, weight, alive.to(weight.device))
        if kind == "unit":
            stats = self._with_neighbours(stats, layer)
        score: Any = self.rule.score(stats)  # a user's function may answer anything
        shape = weight.shape[:1] if kind == "unit" else weight.shape[:2]
        if not isinstance(score, Tensor) or score.shape != shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise DPAPError(
                f"The score of {layer.name} for kind {kind!r} answered {got}.",
                fix=f"answer a tensor of shape {tuple(shape)}.",
            )
        if not bool(score.isfinite().all()):
            raise self._not_finite(layer, "score is not finite: its weights, or the score function, hold")
        if self.rule.windowed and bool((score < 0).any()):
            raise DPAPError(f"The score of {layer.name} for kind {kind!r} is negative.", fix="a score is >= 0.")
        return score

    def _not_finite(self, layer: Layer, what: str) -> DPAPError:
        return DPAPError(
            f"{layer.name}: the {what} NaN or infinity.",
            where=self._position,
            fix="lower the learning rate or clip gradients, and go on from the last checkpoint.",
        )

    @property
    def _position(self) -> str:
        return f"step {self.steps_taken} of {self.total_steps}"

    def _account(self) -> Account:
        return Account.of(
            self.graph,
            {name: a.numpy() for name, a in self.alive.items()},
            {name: s.cpu().numpy() for name, s in self.synapse_masks.items()},
            floors=self.rule.windowed,
        )

    def _choose(self, taker: Taker, units: Candidates, synapses: Candidates, clock: Clock) -> float:
        """Within floors, caps and the target; what latency costs in MACs from now on."""
        if "sops" in self.target:
            self._open_arrivals(taker.account)
        exchange = self._exchange
        if self._pace is not None:
            exchange = self._pace.pay(taker, units, clock, exchange, self._shrinker.present)
        choose(taker, units, synapses, scheduled(self.target, clock.q), self._dense)
        if clock.q >= 1:
            for metric, share in missed(taker.account, self.target, self._dense).items():
                wanted = self.target[metric]
                log.warning("The target of %.4f %s was missed: %.4f is left.", wanted, metric, share)
        return exchange

    def _open_arrivals(self, account: Account) -> None:
        """Spikes per sample as the window saw them; SOPs are a share of what the last window before any death spent."""
        account.arrivals = [self._seen.arrivals_per_sample(e.weight) for e in account.edges]
        self._dense.setdefault("sops", account.sops())

    def _outcome(self, taker: Taker) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        account = taker.account
        alive = {g.name: torch.from_numpy(a.copy()) for g, a in zip(self.graph.groups, account.alive, strict=True)}
        weights = {e.weight: n for n, e in enumerate(account.edges)}
        synapses = {}
        for name, mask in self.synapse_masks.items():
            if self.rule.permanent:
                synapses[name] = torch.from_numpy(account.edges[weights[name]].living.copy()).to(mask.device)
            else:  # the mask of its own deaths; rows of dead units are struck beside it
                synapses[name] = mask.clone()
                struck = [index for owner, index in taker.synapses if owner == weights[name]]
                synapses[name].view(-1)[struck] = False
        return alive, synapses

    @torch.no_grad()
    def _commit(self, decision: _Decision) -> DevelopmentReport:
        self.survival, self.synapse_survival = decision.survival, decision.synapse_survival
        self.alive, self.synapse_masks = decision.alive, decision.synapses
        self._exchange = decision.exchange
        report = decision.report
        if self._temporal is not None and decision.time is not None:
            self._temporal.commit(decision.time)
            self._keep_silent(self._temporal)
        if self.rule.permanent:
            if report.deaths:
                self._update_masks()
        else:
            self._strike_weights()
        self._window = self._seen
        self._window.close()
        self._developments += 1
        for warning in report.warnings:
            kind = warning.partition(":")[0]
            self.warned[kind] += 1
            if self.warned[kind] == 1:  # one line for each place, however often it comes back
                log.warning("%s (step %d; counted in dev.warned from now on)", warning, report.step)
        return report

    def _update_masks(self) -> None:
        self._masks.update(dead_masks(self._parameters, self._shrinker.present, self.alive, self.synapse_masks))

    def _shrink_if_due(self) -> None:
        if self.shrink == "never":
            return
        if self.shrink == "always":
            self._shrink_to(self.alive)
            return
        if self._masks.compiled and self.schedule.watches_after(self.steps_taken):
            return  # every other width is compiled anew: once is enough, after the last development step
        passes_left = self._passes * (self.total_steps - self.steps_taken) / self.steps_taken
        units = self._shrinker.worth_keeping(self.alive, passes_left)
        if units is None:
            return
        try:
            self._shrink_to(units)
        except DPAPError as error:  # what cannot shrink stays masked: "auto" is a wish, "always" is an order
            self.shrink = "never"
            log.warning("Dead units stay as zeros until compact(). %s", error)

    def _shrink_to(self, units: Mapping[str, Tensor]) -> None:
        if self._shrinker.shrink(units):
            self._update_masks()
            self._observer.fit(self._shrinker.present)
            if self._temporal is not None:
                self._keep_silent(self._temporal)

    def _keep_silent(self, temporal: Temporal) -> None:
        temporal.fit(self.alive, self._shrinker.present)
        self._observer.receive(temporal.receiving(self.alive))

    def _strike_weights(self) -> None:
        """Rule `released`: rows and synapses are multiplied by the mask once; nothing keeps them from growing again."""
        for layer in self._layers:
            weight: Tensor = self._parameters[layer.weight]
            weight = weight.transpose(0, 1) if layer.transposed else weight
            rows = self.alive[layer.out_group][torch.from_numpy(layer.out_units)].to(weight.device)
            weight[~rows] = 0
            if layer.weight in self.synapse_masks:
                weight.masked_fill_(~self.synapse_masks[layer.weight], 0)

    @property
    def total_steps(self) -> int:
        """Calls of `step()` in the whole run."""
        return self.schedule.total_steps

    # results ------------------------------------------------------------------------------------------------------

    def connectivity(self) -> float:
        """Living synapses / synapses of the dense network, over all convolution and linear weights."""
        return self._account().connectivity() / self._dense["connectivity"]

    def compact(self) -> nn.Module:
        """An independent plain module without the dead units; the model and `dev` stay as they are.

        Warns where pruning is not over, the target was missed, or weights hold NaN or infinity.

        Raises:
            DPAPError: Rule `released`, whose masked units are not dead.
        """
        if not self.rule.permanent:
            raise DPAPError(
                f"Rule {self.rule.name!r} does not make a smaller network: its masked units live on between the masks.",
                fix='use rule="dpap" or "paper".',
            )
        self._masks.apply()
        self._warn_of_shortfalls("compact()")
        small = compacted(self.model, self._shrinker.present, self.alive)
        if self._temporal is not None:
            self._temporal.attach(small, self.alive, self.alive, skip=True)
        enlist(small)
        return small

    def masked(self) -> nn.Module:
        """An independent plain module at the widths of the dense network, the dead as zeros.

        It is what `graph`, `alive` and `synapse_masks` describe, also after the model itself became smaller; the
        metrics take it together with them.
        """
        self._masks.apply()
        dense = restored(self.model, self._shrinker.present)
        if self._temporal is not None:
            everybody = {name: torch.ones_like(alive) for name, alive in self.alive.items()}
            self._temporal.attach(dense, self.alive, everybody, skip=False)
        enlist(dense)
        return dense

    def close(self) -> None:
        """Remove every hook. The zeros stay; nothing guards them any more. Dead time steps stay dead."""
        self._observer.close()
        self._load_guard.remove()
        self._masks.close()
        if self._temporal is not None:
            self._temporal.close(self.alive, self._shrinker.present)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: tensors, numbers, texts and None in nested dicts.

        In several processes each has its own; right after a development step they are alike.
        """
        return {
            **self._settings(),
            "process": self._process,
            "processes": self._processes,
            "steps_taken": self.steps_taken,
            "last": self._last,
            "developments": self._developments,
            "blocks": self._blocks,
            "passes": self._passes,
            "present": dict(self._shrinker.present.units),
            "watching": self._watching,
            "peak_rate": self._rate.peak,
            "previous_rate": self._rate.previous,
            "dense": dict(self._dense),
            "exchange": self._exchange,
            "alive": dict(self.alive),
            "survival": dict(self.survival),
            "synapse_masks": dict(self.synapse_masks),
            "synapse_survival": dict(self.synapse_survival),
            "time": None if self._temporal is None else self._temporal.state_dict(),
            **self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Model and optimizer load their own state apart: afterwards, since a dense
        model is cut to the widths of the state here.

        Raises:
            DPAPError: The state is damaged, of a run with other settings or of another network, or of a wider one than
                the model is by now; nothing is changed then.
        """
        with refusing(
            "The saved state is damaged",
            fix="load one that was saved by state_dict() and not changed since; nothing was changed here.",
        ):
            self._check_state(state)
            before, weights = self.state_dict(), {name: p.detach().clone() for name, p in self._parameters.items()}
            try:
                self._load(state)
            except Exception:
                self._load(before)
                with torch.no_grad():
                    for name, weight in weights.items():
                        self._parameters[name].copy_(weight)
                raise

    def _load(self, state: Mapping[str, Any]) -> None:
        window = self._window.loaded(state)
        own = ("alive", "survival", "synapse_masks", "synapse_survival")
        tensors = {
            name: {k: state[name][k].clone().to(v.device, v.dtype) for k, v in getattr(self, name).items()}
            for name in own
        }
        self.steps_taken, self._last = int(state["steps_taken"]), int(state["last"])
        self._developments, self._blocks = int(state["developments"]), int(state["blocks"])
        self._passes, self._watching = int(state["passes"]), bool(state["watching"])
        self._rate.peak, self._rate.previous = float(state["peak_rate"]), float(state["previous_rate"])
        self._dense = dict(state["dense"])
        self._exchange = float(state["exchange"])
        self._moved = (self._masks.steps, self._writes(), False)
        self._window = window
        for name, found in tensors.items():
            setattr(self, name, found)
        if self.rule.permanent:
            self._update_masks()
        if self._temporal is not None:
            self._temporal.load_state_dict(state["time"])
            self._keep_silent(self._temporal)
        self._shrink_to(state["present"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        different = settings_differ(state, self._settings())
        if different is not None:
            raise DPAPError(
                f"The saved state is of a run with {different}.",
                fix="make DPAP with the arguments of the saved run, then load.",
            )
        place = state.get("process", 0), state.get("processes", 1)
        if place != (self._process, self._processes) and any(s["samples"] for s in state["sums"].values()):
            raise DPAPError(
                f"The saved state is of process {place[0]} of {place[1]} in the middle of a window; this is process "
                f"{self._process} of {self._processes}.",
                fix="save and load the state of each process apart, or save right after a development step.",
            )
        for key in ("alive", "survival", "synapse_masks", "synapse_survival"):
            here = {k: tuple(v.shape) for k, v in getattr(self, key).items()}
            saved = {k: tuple(v.shape) for k, v in state[key].items()}
            if here != saved:
                different = sorted(set(here.items()) ^ set(saved.items()))[0][0]
                raise DPAPError(
                    f"The saved state is of another network: {key} of {different} is {saved.get(different)}, "
                    f"here {here.get(different)}.",
                    fix="build the model and DPAP as in the saved run, then load.",
                )
        if self._temporal is not None:
            self._temporal.check_state(state.get("time"))
        elif state.get("time") is not None:
            raise DPAPError(
                "The saved state is of a run that pruned time steps.",
                fix=f"make DPAP with time={state['time']['mode']!r}.",
            )
        for name, there in self._shrinker.present.units.items():
            if bool((state["present"].get(name, there) & ~there).any()):
                raise DPAPError(
                    f"The saved state is of a wider network: {name} has units there that were cut here.",
                    fix="load it into a DPAP of the dense model, as it was made at the start of the run.",
                )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DPAPError(
            "A DPAP cannot be pickled or copied: it holds hooks on a model and its optimizer.",
            fix="save state_dict() with that of the model and the optimizer; for the network alone take compact() or "
            "masked(). The model itself can be copied: a copy is free of DPAP.",
        )

    def __repr__(self) -> str:
        lines = [
            f"DPAP(rule={self.rule.name!r}, step {self.steps_taken} of {self.total_steps}, "
            f"connectivity {self.connectivity():.4f})"
        ]
        for group in self.graph.groups:
            lines.append(textwrap.indent(group.describe(int(self.alive[group.name].sum())), "  "))
        for layer in self._synaptic:
            mask = self._living_synapses(layer)
            lines.append(f"  synapses of {layer.weight}: {int(mask.sum())} of {mask.numel()} alive")
        if self._temporal is not None:
            pairs, steps = self._temporal.shares(self.alive)
            lines.append(f"  time: {pairs:.1%} of the pairs of living units and {steps:.1%} of the layer steps alive")
        if self.graph.ignored:
            lines.append(f"  ignored: {', '.join(self.graph.ignored)}")
        return "\n".join(lines)


def _sum_dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
    """Survival in float32, in float64 when the model is."""
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters.values()) else torch.float32
