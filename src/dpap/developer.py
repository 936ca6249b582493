"""`DPAP`, the object that a training loop holds: its arguments, and what a loop calls.

What happens at a step is in `development/`: `Engine` holds the collaborators and carries a development step out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpap.development.engine import Engine
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport
from dpap.errors import DPAPError
from dpap.graph.adapters import enlist
from dpap.graph.export import Forward
from dpap.graph.selection import Pattern
from dpap.graph.walk import Unknown
from dpap.method.regrowth import Regrow
from dpap.method.rules import Prune, Rule, Synapses
from dpap.method.scores import Score
from dpap.pruning.compact import compacted, restored
from dpap.pruning.shrink import Shrink
from dpap.time.graph import Mode


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
            both; for a target of macs, parameters or latency alone, which only whole units bring down: units; for one
            of connectivity, effective_macs or sops where all layers lose connections: those alone, and a unit goes
            with its last one.
        synapses: Which layers lose single connections: "linear" ones (the default) or "all", convolutions too: there
            the kernel between an input and an output channel is one connection. Depthwise convolutions and the layer
            that reads the network's input keep theirs.
        regrow: Let pruned connections grow again while pruning goes on, in exchange for the weakest of their layer:
            "hebb" (those whose two ends are active together), "gradient" (those whose weight the loss would move most)
            or "random"; None (the default): what is pruned stays so. Units never come back.
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
        self._engine = engine = Engine(
            model,
            example_input,
            optimizer=optimizer,
            total_steps=total_steps,
            rule=rule,
            target=target,
            prune=prune,
            synapses=synapses,
            regrow=regrow,
            score=score,
            start=start,
            stop=stop,
            memory=memory,
            development_steps=development_steps,
            observe_every=observe_every,
            seed=seed,
            ignore=ignore,
            only=only,
            ema=ema,
            shrink=shrink,
            forward=forward,
            unknown=unknown,
            time=time,
            spiking_input=spiking_input,
            replay=replay,
        )
        self.model, self.graph, self.rule, self.seed = model, engine.graph, engine.rule, seed
        self.schedule, self.optimizers = engine.schedule, engine.optimizers
        self.target, self.replay, self.warned = engine.target, engine.replay, engine.warned

    @property
    def alive(self) -> dict[str, Tensor]:
        return self._engine.survivors.alive

    @property
    def survival(self) -> dict[str, Tensor]:
        return self._engine.survivors.survival

    @property
    def synapse_masks(self) -> dict[str, Tensor]:
        return self._engine.survivors.synapse_masks

    @property
    def synapse_survival(self) -> dict[str, Tensor]:
        return self._engine.survivors.synapse_survival

    @property
    def pairs(self) -> dict[str, Tensor]:
        return self._engine.pairs

    @property
    def shrink(self) -> Shrink:
        return self._engine.shrink

    @property
    def steps_taken(self) -> int:
        """Calls of `step()` so far."""
        return self._engine.steps_taken

    @property
    def total_steps(self) -> int:
        """Calls of `step()` in the whole run."""
        return self.schedule.total_steps

    # in the training loop -----------------------------------------------------------------------------------------

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Observe the forward passes inside: the first block of each window, then every k-th; the others only count."""
        with self._engine.observing():
            yield

    def step(self) -> DevelopmentReport | None:
        """To be called `total_steps` times in a run, after `optimizer.step()`; develops every so often.

        Returns:
            What a development step found and did; None between development steps.

        Raises:
            DPAPError: The run is over, a site was not observed, sums are not finite, or a layer would be emptied.
        """
        return self._engine.step()

    def preview(self) -> DevelopmentReport:
        """What a development step would do now, at the level of now and with what this window saw; changes nothing.

        In several processes all of them call it together.
        """
        if not self._engine.window.passes or not self._engine.watching:
            raise DPAPError(
                "Nothing has been observed in this window yet.", fix="call preview() after a pass inside observing()."
            )
        return self._engine.decide().report

    # results ------------------------------------------------------------------------------------------------------

    def connectivity(self) -> float:
        """Living synapses / synapses of the dense network, over all convolution and linear weights."""
        return self._engine.survivors.account().connectivity() / self._engine.decider.dense["connectivity"]

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
        self._engine.masks.apply()
        self._engine.warn_of_shortfalls("compact()")
        small = compacted(self.model, self._engine.shrinker.present, self.alive)
        if self._engine.temporal is not None:
            self._engine.temporal.attach(small, self.alive, self.alive, skip=True)
        enlist(small)
        return small

    def masked(self) -> nn.Module:
        """An independent plain module at the widths of the dense network, the dead as zeros.

        It is what `graph`, `alive` and `synapse_masks` describe, also after the model itself became smaller; the
        metrics take it together with them.
        """
        self._engine.masks.apply()
        dense = restored(self.model, self._engine.shrinker.present)
        if self._engine.temporal is not None:
            everybody = {name: torch.ones_like(alive) for name, alive in self.alive.items()}
            self._engine.temporal.attach(dense, self.alive, everybody, skip=False)
        enlist(dense)
        return dense

    def close(self) -> None:
        """Remove every hook. The zeros stay; nothing guards them any more. Dead time steps stay dead."""
        self._engine.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs: tensors, numbers, texts and None in nested dicts.

        In several processes each has its own; right after a development step they are alike.
        """
        return self._engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Model and optimizer load their own state apart: afterwards, since a dense
        model is cut to the widths of the state here.

        Raises:
            DPAPError: The state is damaged, of a run with other settings or of another network, or of a wider one than
                the model is by now; nothing is changed then.
        """
        self._engine.load_state_dict(state)

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
        for layer in self._engine.plan.synaptic:
            mask = self._engine.survivors.living_synapses(layer)
            lines.append(f"  synapses of {layer.weight}: {int(mask.sum())} of {mask.numel()} alive")
        if self._engine.temporal is not None:
            pairs, steps = self._engine.temporal.shares(self.alive)
            lines.append(f"  time: {pairs:.1%} of the pairs of living units and {steps:.1%} of the layer steps alive")
        if self.graph.ignored:
            lines.append(f"  ignored: {', '.join(self.graph.ignored)}")
        return "\n".join(lines)
