"""The rules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dpap.errors import DPAPError, unknown_name
from dpap.method.baselines import gmp, rigl, set_
from dpap.method.rules import Rule, dpap, paper, released
from dpap.method.scores import Score, get_score

RULES: dict[str, Callable[..., Rule]] = {
    "dpap": dpap, "paper": paper, "released": released, "gmp": gmp, "set": set_, "rigl": rigl
}  # fmt: skip


def resolve(rule: str | Rule, *, score: Score | str | None) -> Rule:
    """The rule that `DPAP(rule=, score=)` names.

    Raises:
        DPAPError: There is no such rule or score, or the rule does not take a score.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        rule = RULES[rule]()
    if score is None:
        return rule
    if not rule.adjustable:
        raise DPAPError(f"Rule {rule.name!r} is compared as it is and takes no score=.", fix='use rule="dpap".')
    return replace(rule, score=get_score(score) if isinstance(score, str) else score)
