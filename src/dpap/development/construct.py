"""What `DPAP` asks for while it is made: a target and a replay that can be met, time steps to prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dpap.development.plan import Plan
from dpap.development.replay import Deaths
from dpap.development.survivors import Survivors
from dpap.development.temporal import Temporal
from dpap.errors import DPAPError
from dpap.graph.export import Forward
from dpap.method.rules import Rule
from dpap.pruning.account import Account
from dpap.pruning.compact import proven_steps
from dpap.pruning.targets import check_target
from dpap.time.graph import Mode, time_graph


def check_takes_target(rule: Rule, target: Mapping[str, float]) -> None:
    """Refuse a target for a rule that has none.

    Raises:
        DPAPError: The rule is `paper` or `released`.
    """
    if target and not rule.windowed:
        raise DPAPError(f"Rule {rule.name!r} knows no target.", fix='use rule="dpap".')


def checked_target(target: Mapping[str, float], rule: Rule, account: Account) -> dict[str, float]:
    """The target of units and synapses, if the rule and the network can meet it."""
    check_takes_target(rule, target)
    if rule.windowed and not rule.adjustable and set(target) != {"connectivity"}:
        raise DPAPError(
            f"Rule {rule.name!r} prunes down to a connectivity, and to nothing else.",
            fix='name it: target={"connectivity": 0.1}.',
        )
    return check_target(target, account, set(rule.kinds))


def checked_replay(
    replay: Deaths | None, survivors: Survivors, target: Mapping[str, float], *, timed: bool
) -> Deaths | None:
    """The record of another run, if this one can repeat it.

    Raises:
        DPAPError: It is of another network or schedule, or something else says how much is pruned as well.
    """
    if replay is None:
        return None
    plan = survivors.plan
    if not plan.rule.windowed:
        raise DPAPError(f"Rule {plan.rule.name!r} knows no replay.", fix='use rule="dpap".')
    if plan.rule.regrow is not None:
        raise DPAPError("A replay holds what was pruned, not what grew again.", fix="leave regrow= out.")
    if target:
        raise DPAPError("A replay and a target both say how much is pruned.", fix="leave target= out.")
    if timed:
        raise DPAPError("A replay holds units and synapses, no time steps.", fix="leave time= out.")
    dense = {g.name: g.units for g in plan.graph.groups}
    mortal = {g.name: g.units for g in plan.groups} | {n: m.numel() for n, m in survivors.synapse_masks.items()}
    replay.check(plan.schedule, plan.rule.name, dense, mortal)
    return replay


def temporal_of(
    plan: Plan,
    mode: Mode | None,
    target: Mapping[str, float],
    copies: Sequence[nn.Module],
    example: Any,
    forward: Forward | None,
    *,
    skip: bool,
) -> Temporal | None:
    """What prunes time steps; None where they are not pruned. `skip`: whether work at dead steps is left out.

    Raises:
        DPAPError: The network has no time steps that can be pruned.
    """
    if mode is None:
        return None
    check_takes_target(plan.rule, target)
    times = time_graph(plan.model, plan.graph, mode)
    return Temporal(
        plan.model,
        copies,
        plan.graph,
        proven_steps(plan.model, times, example, forward),
        mode=mode,
        rule=plan.rule,
        skip=skip,
        target=target,
        dtype=plan.dtype,
        seed=plan.seed,
    )
