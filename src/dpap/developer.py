"""`DPAP`, the object that a training loop holds: arguments, and what a loop calls.

A development step goes through `development/`: observed passes become sums of a window (`observe`, `window`), these
scores (`scoring`), these a decision (`decide`), which is carried out here.
"""

from __future__ import annotations

import logging
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

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
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport
from dpap.development.saved import check_state, settings_of
from dpap.development.survivors import Survivors
from dpap.development.temporal import Temporal, check_mode, time_part
from dpap.development.window import Window
from dpap.errors import DPAPError, refusing
from dpap.graph.adapters import enlist
from dpap.graph.export import Forward
from dpap.graph.find import find_groups
from dpap.graph.selection import Pattern
from dpap.graph.walk import Unknown
from dpap.hooks import OwnHook
from dpap.method.rules import Prune, Rule, resolve
from dpap.method.schedule import RateWatch, Schedule
from dpap.method.scores import Score
from dpap.processes import agree, world
from dpap.pruning.compact import compacted, restored, trial_cut, two_samples
from dpap.pruning.mask import MaskKeeper, dead_masks
from dpap.pruning.pace import Pace
from dpap.pruning.pairs import TIME_METRICS
from dpap.pruning.shrink import Shrink, Shrinker, check_bare, check_optimizers
from dpap.time.graph import Mode
from dpap.time.timing import timing_of

log = logging.getLogger(__name__)


class DPAP:
    """Prunes a network while it trains.

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
            "pairs" (of living units and steps) and "steps" (of layers). Without a target, the rule decides.
            The latency is that of one forward pass of `example_input` in evaluation mode; it is measured, so that two
            runs of the same seed need not be equal.
        prune: What may be pruned: "units" (channels and neurons), "synapses" (single connections) or "both". By default
            both, but for a target of macs, parameters or latency alone, which only whole units bring down: units.
        score: How important a unit or synapse is among its siblings: a name of `dpap.method.scores.SCORES`, or a
            function of `dpap.method.plasticity.Stats` that answers (O,) for units and (O, I) for synapses, >= 0.
        start: Share of the run after which pruning begins.
        stop: Share of the run after which it ends.
        memory: Share of the run over which survival remembers.
        development_steps: Development steps in a run, about.
        observe_every: Every how many passes activity is observed; the first of each window always is.
        seed: For scores that draw.
        ignore: Modules (or globs over their names) that keep their units and synapses.
        only: If given, all others keep theirs.
        ema: A copy of the model (or several) that follows it, such as an `AveragedModel`; masked along.
        shrink: When pruned units leave the tensors of model, `ema=` copies and optimizer state: "auto" when that saves
            more than it costs (by counts of operations, never by a clock), "always" at every development step in which
            units were pruned, "never": they stay as zeros until `compact()`. Which units are pruned is the same.
        forward: `forward(model, batch)` where the model is not called as `model(batch)`, for dict inputs or a loop over
            time.
        unknown: What to do with an operator that has no rule: "refuse" or "protect" all that touches it.
        time: Prune time steps as well, pairs of a unit and a step and whole steps of a layer: "leak" (a dead pair
            receives nothing, gives nothing, and its membrane leaks; work at the dead steps of a layer is left out) or
            "silence" (it integrates and cannot fire, as in the paper; nothing is spared but what its readers do).
        spiking_input: The model receives counts of spikes, such as frames of events: what the first layer does to them
            are synaptic operations.
        replay: The record of another run (`dpap.development.replay.Deaths`): as many are pruned of each group and
            weight at each development step, and the score says which, by its use in that window alone, without memory.

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
        claim(model)
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
        self._plan = plan = Plan.of(model, self.graph, self.rule, self.schedule, seed=seed, all_spikes="sops" in target)
        check_optimized(plan, self.optimizers)
        trial_cut(model, self.graph, example_input, forward)
        self._survivors = Survivors.first(plan)
        parameters = plan.parameters
        copies = [ema] if isinstance(ema, nn.Module) else list(ema or ())
        account = self._survivors.account()
        self.target = checked_target(target, self.rule, account)
        self._settings = settings_of(self.rule, self.schedule, seed, self.target)
        example = two_samples(self.graph, example_input)
        self.replay = checked_replay(replay, self._survivors, self.target, timed=time is not None)
        dense: dict[str, float] = {
            metric: account.count(metric) for metric in ("connectivity", "synaptic", "macs", "parameters")
        }
        self._shrinker = Shrinker(model, self.graph, self.optimizers, copies, example, forward)
        self._pace = None
        if "latency" in self.target:
            self._pace = Pace(
                model=model,
                example=example_input,
                forward=forward,
                target=self.target["latency"],
                macs=dense["macs"],
            )
            self._pace.check(account, set(self.rule.kinds), self._shrinker.present)
        agree(
            [str(self._settings), str({name: tuple(p.shape) for name, p in parameters.items()})],
            self._plan.device,
            DPAPError(
                "The processes made DPAP with different arguments or of different models.",
                fix="make the same model and the same DPAP in all of them.",
            ),
        )

        # Hooks from here on: whatever is refused was refused above, or takes them off again.
        self._masks = MaskKeeper(model, self.optimizers, copies, owner=self)
        try:
            self._temporal = temporal_of(plan, time, time_target, copies, example, forward, skip=self.shrink != "never")
        except DPAPError:
            self._masks.close()
            raise
        self._guard = Guard(self._masks)
        self._decider = Decider(
            plan=plan,
            survivors=self._survivors,
            target=self.target,
            replay=self.replay,
            shrinker=self._shrinker,
            pace=self._pace,
            temporal=self._temporal,
            dense=dense,
        )
        self._load_guard = model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            OwnHook(self._shrinker.refuse_dense)
        )
        self._window = self._seen = Window(
            rule=self.rule,
            num_steps=self.graph.num_steps,
            layers=plan.layers,
            devices={layer.weight: parameters[layer.weight].device for layer in plan.layers},
            dtype=plan.dtype,
            pairs=frozenset(self.synapse_masks),
            timed=frozenset() if self._temporal is None else frozenset(self._temporal.layers),
            arriving=frozenset(x.weight for x in plan.layers if "sops" in self.target and x.spike_divisor is not None),
        )
        self._observer = Observer(
            model,
            self.graph,
            plan.layers,
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
        self._watching = self.schedule.watches_after(0)
        self._rate = RateWatch(self.schedule, self.optimizers)

    @property
    def alive(self) -> dict[str, Tensor]:
        return self._survivors.alive

    @property
    def survival(self) -> dict[str, Tensor]:
        return self._survivors.survival

    @property
    def synapse_masks(self) -> dict[str, Tensor]:
        return self._survivors.synapse_masks

    @property
    def synapse_survival(self) -> dict[str, Tensor]:
        return self._survivors.synapse_survival

    @property
    def pairs(self) -> dict[str, Tensor]:
        return {} if self._temporal is None else self._temporal.pairs

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
            self._guard.check_world()
            if self._watching:
                strangers = self._guard.moved_by_others(self._position)
                decision = self._decide()
                agree_on(decision, self._plan.device, self._position)
                report = self._commit(decision)
                self._shrink_if_due()
                self._guard.note(strangers=strangers)
            self._last, self._blocks = self.steps_taken, 0
            self._watching = self.schedule.watches_after(self.steps_taken)
        if self.steps_taken == self.total_steps:
            self._warn_of_shortfalls("The run is over")
        return report

    def _warn_of_shortfalls(self, when: str) -> None:
        asked = {m: share for m, share in self.target.items() if m not in ("sops", "latency")}
        account = self._survivors.account()
        there = {metric: account.count(metric) / self._decider.dense[metric] for metric in asked}
        if self._temporal is not None:
            asked |= self._temporal.target
            there |= dict(zip(("pairs", "steps"), self._temporal.shares(self.alive), strict=True))
        broken = [name for name, p in self._plan.parameters.items() if not bool(p.isfinite().all())]
        stop = self.schedule.stop if self.rule.windowed else 0.0
        for line in shortfalls(self.steps_taken, self.total_steps, stop, asked, there, broken):
            log.warning("%s: %s.", when, line)

    def _decide(self) -> Decision:
        clock = self.schedule.clock(self.steps_taken, last=self._last, developments=self._developments)
        self._seen = self._window.pooled()
        self._seen.check(where=self._position)
        return self._decider.decide(self._seen, clock, step=self.steps_taken, position=self._position)

    def preview(self) -> DevelopmentReport:
        """What a development step would do now, at the level of now and with what this window saw; changes nothing.

        In several processes all of them call it together.
        """
        if not self._window.passes or not self._watching:
            raise DPAPError(
                "Nothing has been observed in this window yet.", fix="call preview() after a pass inside observing()."
            )
        return self._decide().report

    @property
    def _position(self) -> str:
        return f"step {self.steps_taken} of {self.total_steps}"

    @torch.no_grad()
    def _commit(self, decision: Decision) -> DevelopmentReport:
        lives = self._survivors
        lives.survival, lives.synapse_survival = decision.survival, decision.synapse_survival
        lives.alive, lives.synapse_masks = decision.alive, decision.synapses
        self._decider.exchange = decision.exchange
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
        self._masks.update(dead_masks(self._plan.parameters, self._shrinker.present, self.alive, self.synapse_masks))

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
        for layer in self._plan.layers:
            weight: Tensor = self._plan.parameters[layer.weight]
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
        return self._survivors.account().connectivity() / self._decider.dense["connectivity"]

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
            **self._settings,
            "process": self._guard.place[0],
            "processes": self._guard.place[1],
            "steps_taken": self.steps_taken,
            "last": self._last,
            "developments": self._developments,
            "blocks": self._blocks,
            "passes": self._passes,
            "present": dict(self._shrinker.present.units),
            "watching": self._watching,
            "peak_rate": self._rate.peak,
            "previous_rate": self._rate.previous,
            "dense": dict(self._decider.dense),
            "exchange": self._decider.exchange,
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
            check_state(
                state, self._settings, self._guard.place, self._survivors, self._shrinker.present, self._temporal
            )
            before, weights = self.state_dict(), {name: p.detach().clone() for name, p in self._plan.parameters.items()}
            try:
                self._load(state)
            except Exception:
                self._load(before)
                with torch.no_grad():
                    for name, weight in weights.items():
                        self._plan.parameters[name].copy_(weight)
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
        self._decider.dense = dict(state["dense"])
        self._decider.exchange = float(state["exchange"])
        self._guard.note(strangers=False)
        self._window = window
        for name, found in tensors.items():
            setattr(self._survivors, name, found)
        if self.rule.permanent:
            self._update_masks()
        if self._temporal is not None:
            self._temporal.load_state_dict(state["time"])
            self._keep_silent(self._temporal)
        self._shrink_to(state["present"])

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
        for layer in self._plan.synaptic:
            mask = self._survivors.living_synapses(layer)
            lines.append(f"  synapses of {layer.weight}: {int(mask.sum())} of {mask.numel()} alive")
        if self._temporal is not None:
            pairs, steps = self._temporal.shares(self.alive)
            lines.append(f"  time: {pairs:.1%} of the pairs of living units and {steps:.1%} of the layer steps alive")
        if self.graph.ignored:
            lines.append(f"  ignored: {', '.join(self.graph.ignored)}")
        return "\n".join(lines)
