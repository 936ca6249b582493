"""What a user may hand to `DPAP` by mistake, each with the right reason; and what a finished run fell short of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpap.errors import DPAPError
from dpap.hooks import OwnHook
from dpap.method.regrowth import Regrow
from dpap.method.rules import KINDS, Rule, Synapses
from dpap.pruning.choose import CONNECTIONS

BY_UNITS = frozenset({"macs", "parameters", "latency"})
"""Targets that dead connections do not bring nearer."""


def optimizers_of(optimizer: Any) -> list[Optimizer]:
    """The optimizers as a list.

    Raises:
        DPAPError: One of them is none.
    """
    found = [optimizer] if isinstance(optimizer, Optimizer) or not isinstance(optimizer, Iterable) else list(optimizer)
    for one in found:
        if not isinstance(one, Optimizer):
            raise DPAPError(
                f"optimizer={'None' if one is None else type(one).__name__} is no torch.optim.Optimizer.",
                fix="pass the optimizer that was made from model.parameters(), or a list of them: DPAP zeroes and cuts "
                "its state together with the weights.",
            )
    if not found:
        raise DPAPError("optimizer= is an empty list.", fix="pass the optimizer that moves the model's parameters.")
    return found


def check_example(example: Any) -> None:
    """Refuse an example input that shows nothing.

    Raises:
        DPAPError: It holds no sample, or NaN or infinity.
    """
    for leaf in torch.utils._pytree.tree_leaves(example):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.numel() == 0:
            raise DPAPError(
                f"The example input of shape {tuple(leaf.shape)} holds no sample.",
                fix="pass one batch, of two samples or more, of the shape that the model is trained on.",
            )
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise DPAPError(
                f"The example input of shape {tuple(leaf.shape)} holds NaN or infinity.",
                fix="pass one batch of clean data: what is cut is tried on it.",
            )


def claim(model: nn.Module) -> None:
    """One DPAP a model; one that has not begun makes room.

    Raises:
        DPAPError: Another one has begun.
    """
    hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, OwnHook)]
    owners = (getattr(getattr(hook.function, "__self__", None), "owner", None) for hook in hooks)
    first = next((owner for owner in owners if owner is not None), None)
    if first is None:
        return
    if first.steps_taken:
        raise DPAPError(
            f"Another DPAP prunes this {type(model).__name__}; two would undo each other's masks.",
            fix="call close() of the first one (the zeros stay), or go on with it; copy.deepcopy(model) is free of it.",
        )
    first.close()


def check_processes(count: int, rule: Rule, shrink: str) -> None:
    """Refuse what several processes cannot do alike.

    Raises:
        DPAPError: Networks that shrink, or a rule whose threshold slides batch by batch.
    """
    if count == 1:
        return
    if not rule.windowed:
        raise DPAPError(
            f"Rule {rule.name!r} slides its threshold batch by batch, which {count} processes cannot do together.",
            fix='use rule="dpap", or one process.',
        )
    if shrink != "never":
        raise DPAPError(
            f"shrink={shrink!r} in {count} processes: the wrapper around the model keeps its widths.",
            fix='pass shrink="never": pruned units stay as zeros, alike in all processes, until compact().',
        )


def named_target(target: Any) -> dict[str, Any]:
    """The target as a dict.

    Raises:
        DPAPError: It names no metric.
    """
    if target is None:
        return {}
    if not isinstance(target, Mapping):
        raise DPAPError(
            f"target={target!r} does not say of what.",
            fix=f'name the metric and the share that stays, such as target={{"macs": {target!r}}} or '
            f'{{"connectivity": {target!r}}}.',
        )
    return dict(target)


def restricted(rule: Rule, prune: str | None, target: Iterable[str], synapses: str | None, regrow: str | None) -> Rule:
    """The rule with what may be pruned.

    Args:
        rule: Of the development.
        prune: "units", "synapses" or "both"; None: as the target asks: units alone where only they bring it down,
            connections alone where all layers lose them.
        target: Its metrics.
        synapses: Of which layers: "linear" or "all"; None: as the rule says.
        regrow: Which pruned synapses grow again: "hebb", "gradient" or "random"; None: as the rule says.

    Raises:
        DPAPError: No such choice, or one that the rule or the target rules out.
    """
    if synapses is not None:
        if synapses not in get_args(Synapses):
            raise DPAPError(
                f"synapses={synapses!r}.", fix='choose "linear" (linear layers) or "all" (convolutions too).'
            )
        _check_adjustable(rule, "synapses")
        rule = dataclasses.replace(rule, synapses=cast(Synapses, synapses))
    if regrow is not None:
        if regrow not in get_args(Regrow):
            raise DPAPError(f"regrow={regrow!r}.", fix='choose "hebb", "gradient" or "random", or leave it out.')
        if not rule.windowed:
            raise DPAPError(f"Rule {rule.name!r} has no window in which synapses grow again.", fix='use rule="dpap".')
        _check_adjustable(rule, "regrow")
        rule = dataclasses.replace(rule, regrow=cast(Regrow, regrow))
    metrics = set(target)
    if prune is None:
        by_units, by_connections = bool(metrics & BY_UNITS), not metrics.isdisjoint(CONNECTIONS)
        if by_units and not by_connections and "unit" in rule.kinds:
            return dataclasses.replace(rule, kinds=rule.kinds & {"unit"})
        if rule.synapses == "all" and by_connections and not by_units and "synapse" in rule.kinds:
            return dataclasses.replace(rule, kinds=rule.kinds & {"synapse"})
        return rule
    if prune not in KINDS:
        raise DPAPError(f"prune={prune!r}.", fix='choose "units", "synapses" or "both".')
    _check_adjustable(rule, "prune")
    if prune == "synapses" and metrics & BY_UNITS:
        raise DPAPError(
            f'prune="synapses" does not bring {", ".join(sorted(metrics & BY_UNITS))} down: only whole units do.',
            fix='pass prune="units" or "both", or name a target of connectivity.',
        )
    return dataclasses.replace(rule, kinds=KINDS[prune])


def _check_adjustable(rule: Rule, argument: str) -> None:
    if not rule.adjustable:
        raise DPAPError(f"Rule {rule.name!r} is compared as it is and takes no {argument}=.", fix='use rule="dpap".')


def shortfalls(
    steps: int, total: int, stop: float, asked: Mapping[str, float], there: Mapping[str, float], weights: Sequence[str]
) -> list[str]:
    """What a result falls short of, in words.

    Args:
        steps: Calls of `dev.step()` so far.
        total: Of the whole run.
        stop: Share of the run at which the last things are pruned.
        asked: Metric -> share that was to stay.
        there: Metric -> share that is there; a metric that is not measured here is left out.
        weights: Names of parameters that hold NaN or infinity.
    """
    found = []
    missed = [f"{metric} {there[metric]:.4f} (asked for: {share:.4f})" for metric, share in asked.items()
              if metric in there and there[metric] > share * (1 + 1e-9)]  # fmt: skip
    if steps < stop * total:
        found.append(
            f"pruning is not over: dev.step() was called {steps} of {total} times, and the last step that prunes is at "
            f"{stop:.0%} of the run" + (f". There is {', '.join(missed)}" if missed else "")
        )
    elif missed:
        found.append(f"the target was missed: there is {', '.join(missed)}")
    if weights:
        shown = ", ".join(weights[:3]) + (" ..." if len(weights) > 3 else "")
        found.append(f"{len(weights)} parameters hold NaN or infinity: {shown}")
    return found


def settings_differ(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """The first setting in which a saved state is of another run, in words; None: they agree."""
    for key, value in own.items():
        if key in saved and saved[key] != value:
            return f"{key} {saved[key]!r}; this one has {value!r}"
    return None
