"""What `DPAP` is made of: its collaborators, and what happens at a step of the training loop.

Observed passes become sums of a window (`observe`, `window`), these scores (`scoring`), these a decision (`decide`),
which is carried out here: masks, smaller tensors, dead time steps.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpap.development.backward import BackwardWatch
from dpap.development.checks import (
    check_example,
    check_processes,
    claim,
    named_target,
    optimizers_of,
    restricted,
    shortfalls,
)
from dpap.development.construct import checked_replay, checked_target, temporal_of
from dpap.development.decide import Decider, Decision
from dpap.development.guard import Guard, agree_on
from dpap.development.observe import Observer, Seen
from dpap.development.plan import Plan, check_optimized
from dpap.development.regrow import Regrowth
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport
from dpap.development.saved import check_state, settings_of
from dpap.development.survivors import Survivors
from dpap.development.temporal import Temporal, check_mode, time_part
from dpap.development.window import Window
from dpap.errors import DPAPError, refusing
from dpap.graph.export import Forward
from dpap.graph.find import find_groups
from dpap.graph.selection import Pattern
from dpap.graph.walk import Unknown
from dpap.hooks import OwnHook
from dpap.method.named import resolve
from dpap.method.regrowth import Regrow
from dpap.method.rules import Prune, Rule, Synapses
from dpap.method.schedule import RateWatch, Schedule
from dpap.method.scores import Score
from dpap.processes import agree, world
from dpap.pruning.compact import trial_cut, two_samples
from dpap.pruning.mask import MaskKeeper, dead_masks
from dpap.pruning.pace import Pace
from dpap.pruning.pairs import TIME_METRICS
from dpap.pruning.shrink import Shrink, Shrinker, check_bare, check_optimizers
from dpap.time.graph import Mode
from dpap.time.timing import timing_of

log = logging.getLogger(__name__)


class Engine:
    """The state of one run; the arguments are those of `DPAP`."""

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
        synapses: Synapses | None = None,
        regrow: Regrow | None = None,
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
        claim(model)
        check_example(example_input)
        target = named_target(target)
        self.rule = restricted(resolve(rule, score=score), prune, target, synapses, regrow)
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
        check_processes(world()[1], self.rule, self.shrink)
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
        self.plan = plan = Plan.of(model, self.graph, self.rule, self.schedule, seed=seed, all_spikes="sops" in target)
        check_optimized(plan, self.optimizers)
        trial_cut(model, self.graph, example_input, forward)
        self.survivors = Survivors.first(plan)
        parameters = plan.parameters
        copies = [ema] if isinstance(ema, nn.Module) else list(ema or ())
        account = self.survivors.account()
        self.target = checked_target(target, self.rule, account)
        self.survivors.start_sparse(self.target)
        self.settings = settings_of(self.rule, self.schedule, seed, self.target)
        example = two_samples(self.graph, example_input)
        self.replay = checked_replay(replay, self.survivors, self.target, timed=time is not None)
        dense: dict[str, float] = {
            metric: account.count(metric)
            for metric in ("connectivity", "synaptic", "macs", "effective_macs", "parameters")
        }
        self.shrinker = Shrinker(model, self.graph, self.optimizers, copies, example, forward)
        self.pace = None
        if "latency" in self.target:
            self.pace = Pace(
                model=model,
                example=example_input,
                forward=forward,
                target=self.target["latency"],
                macs=dense["macs"],
            )
            self.pace.check(account, set(self.rule.kinds), self.shrinker.present)
        agree(
            [str(self.settings), str({name: tuple(p.shape) for name, p in parameters.items()})],
            self.plan.device,
            DPAPError(
                "The processes made DPAP with different arguments or of different models.",
                fix="make the same model and the same DPAP in all of them.",
            ),
        )

        # Hooks from here on: whatever is refused was refused above, or takes them off again.
        self.backward = BackwardWatch(
            plan, lambda: self.shrinker.present, lambda: self.watching, lambda *seen: self.window.add_backward(*seen)
        )
        self.masks = MaskKeeper(model, self.optimizers, copies, owner=self)
        try:
            self.temporal = temporal_of(plan, time, time_target, copies, example, forward, skip=self.shrink != "never")
        except DPAPError:
            self.masks.close()
            raise
        if self.rule.sparse_start:
            self.update_masks()
        self.guard = Guard(self.masks)
        self.regrowth = Regrowth.first(plan, self.synapse_masks)
        self.decider = Decider(
            plan=plan,
            survivors=self.survivors,
            target=self.target,
            replay=self.replay,
            shrinker=self.shrinker,
            pace=self.pace,
            temporal=self.temporal,
            regrowth=self.regrowth,
            dense=dense,
        )
        self.load_guard = model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            OwnHook(self.shrinker.refuse_dense)
        )
        self.window = self.seen = Window(
            rule=self.rule,
            num_steps=self.graph.num_steps,
            layers=plan.layers,
            devices={layer.weight: parameters[layer.weight].device for layer in plan.layers},
            dtype=plan.dtype,
            pairs=frozenset(self.synapse_masks),
            timed=frozenset() if self.temporal is None else frozenset(self.temporal.layers),
            arriving=frozenset(x.weight for x in plan.layers if "sops" in self.target and x.spike_divisor is not None),
        )
        self.observer = Observer(
            model,
            self.graph,
            plan.layers,
            self._add,
            lambda reason: self.window.skip(reason),
            mean_positions=self.rule.mean_positions,
            rectify=self.rule.rectify,
            weigh_arrivals="sops" in self.target,
            whole_block=forward is not None,
            **({} if self.temporal is None else {"whole": self.temporal.whole}),
        )
        self.warned: Counter[str] = Counter()
        self.steps_taken = 0
        self.last = 0
        """Step count at the previous development step."""
        self.developments = 0
        self.blocks = 0
        self.passes = 0
        """Blocks of `observing()` in the whole run."""
        self.watching = self.schedule.watches_after(0)
        self.rate = RateWatch(self.schedule, self.optimizers)

    @property
    def alive(self) -> dict[str, Tensor]:
        return self.survivors.alive

    @property
    def synapse_masks(self) -> dict[str, Tensor]:
        return self.survivors.synapse_masks

    @property
    def pairs(self) -> dict[str, Tensor]:
        return {} if self.temporal is None else self.temporal.pairs

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the passes inside: the first block of each window, then every k-th; else costs next to nothing."""
        wanted = self.watching and self.schedule.observes(self.blocks)
        self.blocks += 1
        self.passes += 1
        if wanted:
            self.observer.start()
        complete = False
        try:
            yield
            complete = True
        finally:
            if wanted:
                self.observer.finish(complete=complete)

    def _add(self, seen: Sequence[Seen]) -> None:
        """Account for one pass."""
        for layer, pre, post, arrivals in seen:
            self.window.add(layer, pre, post, arrivals, self.alive)
        self.window.passes += 1

    def step(self) -> DevelopmentReport | None:
        """Count one step, and develop every so often; see `DPAP.step`."""
        total = self.schedule.total_steps
        if self.steps_taken >= total:
            raise DPAPError(
                f"dev.step() was called more than the total_steps={total} times that DPAP was made for.",
                fix="pass the number of calls of dev.step() in the whole run as total_steps.",
            )
        self.steps_taken += 1
        self.rate.after(self.steps_taken)
        report = None
        if self.schedule.develops_at(self.steps_taken):
            self.guard.check_world()
            if self.watching:
                strangers = self.guard.moved_by_others(self.position)
                decision = self.decide()
                agree_on(decision, self.plan.device, self.position)
                report = self.commit(decision)
                self.shrink_if_due()
                self.guard.note(strangers=strangers)
            self.last, self.blocks = self.steps_taken, 0
            self.watching = self.schedule.watches_after(self.steps_taken)
        if self.steps_taken == self.schedule.total_steps:
            self.warn_of_shortfalls("The run is over")
        return report

    def warn_of_shortfalls(self, when: str) -> None:
        asked = {m: share for m, share in self.target.items() if m not in ("sops", "latency")}
        account = self.survivors.account()
        there = {metric: account.count(metric) / self.decider.dense[metric] for metric in asked}
        if self.temporal is not None:
            asked |= self.temporal.target
            there |= dict(zip(("pairs", "steps"), self.temporal.shares(self.alive), strict=True))
        broken = [name for name, p in self.plan.parameters.items() if not bool(p.isfinite().all())]
        stop = self.schedule.stop if self.rule.windowed else 0.0
        for line in shortfalls(self.steps_taken, self.schedule.total_steps, stop, asked, there, broken):
            log.warning("%s: %s.", when, line)

    def decide(self) -> Decision:
        clock = self.schedule.clock(self.steps_taken, last=self.last, developments=self.developments)
        self.seen = self.window.pooled()
        self.seen.check(where=self.position)
        return self.decider.decide(self.seen, clock, step=self.steps_taken, position=self.position)

    @property
    def position(self) -> str:
        return f"step {self.steps_taken} of {self.schedule.total_steps}"

    @torch.no_grad()
    def commit(self, decision: Decision) -> DevelopmentReport:
        lives = self.survivors
        lives.survival, lives.synapse_survival = decision.survival, decision.synapse_survival
        lives.alive, lives.synapse_masks = decision.alive, decision.synapses
        self.decider.exchange = decision.exchange
        report = decision.report
        if self.regrowth is not None:
            self.regrowth.commit(decision.synapses, decision.born, self.steps_taken)
        if self.temporal is not None and decision.time is not None:
            self.temporal.commit(decision.time)
            self.keep_silent(self.temporal)
        if self.rule.permanent:
            if report.deaths:
                self.update_masks()
        else:
            self.strike_weights()
        self.window = self.seen
        self.window.close()
        self.developments += 1
        for warning in report.warnings:
            kind = warning.partition(":")[0]
            self.warned[kind] += 1
            if self.warned[kind] == 1:  # one line for each place, however often it comes back
                log.warning("%s (step %d; counted in dev.warned from now on)", warning, report.step)
        return report

    def update_masks(self) -> None:
        self.masks.update(dead_masks(self.plan.parameters, self.shrinker.present, self.alive, self.synapse_masks))

    def shrink_if_due(self) -> None:
        if self.shrink == "never":
            return
        if self.shrink == "always":
            self.shrink_to(self.alive)
            return
        if self.masks.compiled and self.schedule.watches_after(self.steps_taken):
            return  # every other width is compiled anew: once is enough, after the last development step
        passes_left = self.passes * (self.schedule.total_steps - self.steps_taken) / self.steps_taken
        units = self.shrinker.worth_keeping(self.alive, passes_left)
        if units is None:
            return
        try:
            self.shrink_to(units)
        except DPAPError as error:  # what cannot shrink stays masked: "auto" is a wish, "always" is an order
            self.shrink = "never"
            log.warning("Dead units stay as zeros until compact(). %s", error)

    def shrink_to(self, units: Mapping[str, Tensor]) -> None:
        if self.shrinker.shrink(units):
            self.update_masks()
            self.observer.fit(self.shrinker.present)
            if self.temporal is not None:
                self.keep_silent(self.temporal)

    def keep_silent(self, temporal: Temporal) -> None:
        temporal.fit(self.alive, self.shrinker.present)
        self.observer.receive(temporal.receiving(self.alive))

    def strike_weights(self) -> None:
        """Rule `released`: rows and synapses are multiplied by the mask once; nothing keeps them from growing again."""
        for layer in self.plan.layers:
            weight: Tensor = self.plan.parameters[layer.weight]
            weight = weight.transpose(0, 1) if layer.transposed else weight
            rows = self.alive[layer.out_group][torch.from_numpy(layer.out_units)].to(weight.device)
            weight[~rows] = 0
            if layer.weight in self.synapse_masks:
                weight.masked_fill_(~self.synapse_masks[layer.weight], 0)

    def state_dict(self) -> dict[str, Any]:
        """See `DPAP.state_dict`."""
        return {
            **self.settings,
            "process": self.guard.place[0],
            "processes": self.guard.place[1],
            "steps_taken": self.steps_taken,
            "last": self.last,
            "developments": self.developments,
            "blocks": self.blocks,
            "passes": self.passes,
            "present": dict(self.shrinker.present.units),
            "watching": self.watching,
            "peak_rate": self.rate.peak,
            "previous_rate": self.rate.previous,
            "dense": dict(self.decider.dense),
            "exchange": self.decider.exchange,
            **self.survivors.state_dict(),
            "birthdays": {} if self.regrowth is None else dict(self.regrowth.birthdays),
            "time": None if self.temporal is None else self.temporal.state_dict(),
            **self.window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `DPAP.load_state_dict`; all or nothing."""
        with refusing(
            "The saved state is damaged",
            fix="load one that was saved by state_dict() and not changed since; nothing was changed here.",
        ):
            check_state(state, self.settings, self.guard.place, self.survivors, self.shrinker.present, self.temporal)
            before, weights = self.state_dict(), {name: p.detach().clone() for name, p in self.plan.parameters.items()}
            try:
                self._load(state)
            except Exception:
                self._load(before)
                with torch.no_grad():
                    for name, weight in weights.items():
                        self.plan.parameters[name].copy_(weight)
                raise

    def _load(self, state: Mapping[str, Any]) -> None:
        window = self.window.loaded(state)
        lives = self.survivors.loaded(state)
        self.steps_taken, self.last = int(state["steps_taken"]), int(state["last"])
        self.developments, self.blocks = int(state["developments"]), int(state["blocks"])
        self.passes, self.watching = int(state["passes"]), bool(state["watching"])
        self.rate.peak, self.rate.previous = float(state["peak_rate"]), float(state["previous_rate"])
        self.decider.dense = dict(state["dense"])
        self.decider.exchange = float(state["exchange"])
        self.guard.note(strangers=False)
        self.window = window
        self.survivors.take(lives)
        if self.regrowth is not None:
            self.regrowth.birthdays = {k: v.clone() for k, v in state["birthdays"].items()}
        if self.rule.permanent:
            self.update_masks()
        if self.temporal is not None:
            self.temporal.load_state_dict(state["time"])
            self.keep_silent(self.temporal)
        self.shrink_to(state["present"])

    def close(self) -> None:
        """Remove every hook."""
        self.observer.close()
        self.backward.close()
        self.load_guard.remove()
        self.masks.close()
        if self.temporal is not None:
            self.temporal.close(self.alive, self.shrinker.present)
