"""Targets: which there are, and whether floors and protected parts leave one in reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpap.errors import DPAPError, unknown_name
from dpap.pruning.account import Account

METRICS = ("connectivity", "macs", "effective_macs", "parameters", "sops", "latency")


TOGETHER = (
    *({"macs", "connectivity"}, {"latency", "connectivity"}, {"sops", "connectivity"}),
    *({"macs", "effective_macs"}, {"latency", "effective_macs"}),
)


def check_target(target: Mapping[str, Any] | None, account: Account, kinds: set[str]) -> dict[str, float]:
    """A target that can be met, or the reason why it cannot.

    Raises:
        DPAPError: Unknown or clashing metrics, a share outside (0, 1], or one that floors and protected parts rule out.
    """
    target = dict(target or {})
    for metric, share in target.items():
        if metric not in METRICS:
            raise unknown_name("target", metric, METRICS)
        check_share(metric, share)
    if len(target) > 1 and set(target) not in TOGETHER:
        raise DPAPError(
            f"The targets {' and '.join(sorted(target))} cannot be named together.",
            fix="name one; or macs (or latency) and connectivity, where units pay the first and then synapses the "
            "connectivity.",
        )
    for metric, share in target.items():
        if metric in ("sops", "latency"):
            continue  # depends on firing rates, not known at the start; is measured, by `Pace`
        lowest = _lowest(metric, account, kinds) / account.count(metric)
        if share < lowest:
            raise out_of_reach(metric, share, lowest)
    return target


def check_share(metric: str, share: Any) -> None:
    """Refuse a target that is no number in (0, 1]."""
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise DPAPError(
            f"target={{{metric!r}: {share!r}}} is no share of the dense network.",
            fix="give a number above 0 and at most 1.",
        )


def out_of_reach(metric: str, share: float, lowest: float) -> DPAPError:
    """The error for a target that floors and protected parts rule out."""
    return DPAPError(
        f"The target of {share:.2%} {metric} cannot be reached: floors and protected parts keep at least {lowest:.2%}.",
        fix=f"choose a target of at least {np.ceil(lowest * 1e4) / 1e4:.4f}, or protect less (ignore=, only=, frozen "
        "parameters).",
    )


def fewest(account: Account, kinds: set[str]) -> list[int]:
    """Units of each group that stay whatever happens."""
    return [
        int(a.sum()) if p or "unit" not in kinds else f
        for a, p, f in zip(account.alive, account.protected, account.floors, strict=True)
    ]


def _lowest(metric: str, account: Account, kinds: set[str]) -> float:
    """A bound from below: every group at its floor, every unit that only prunable weights feed at one synapse."""
    left = fewest(account, kinds)
    total = 0.0
    single_pairs = metric in ("connectivity", "effective_macs")
    if single_pairs:
        whole = {edge.out_group for edge in account.edges if edge.groups == 1 and edge.weight not in account.prunable}
        single = {edge.out_group for edge in account.edges if edge.weight in account.prunable}
        for group in single - whole:
            feeding = [e for e in account.edges if e.out_group == group and e.weight in account.prunable]
            total += left[group] * min(e.macs if metric == "effective_macs" else e.kernel for e in feeding)
    for edge in account.edges:
        rows = min(
            len(edge.out_units), left[edge.out_group] * (len(edge.out_units) // len(account.alive[edge.out_group]))
        )
        columns = edge.living.shape[1] if edge.groups > 1 else int((edge.in_groups < 0).sum())
        for group in np.unique(edge.in_groups[edge.in_groups >= 0]) if edge.groups == 1 else ():
            columns += int((edge.in_groups == group).sum()) * left[group] // len(account.alive[group])
        if not single_pairs or edge.weight not in account.prunable:
            total += rows * columns * (edge.macs if metric in ("macs", "effective_macs") else edge.kernel)
    if metric == "parameters":
        total += sum(
            n
            * sum(
                p.entries.shape[1] * p.parameters
                for p in g.producers
                if p.tensor not in {e.weight for e in account.edges}
            )
            for g, n in zip(account.graph.groups, left, strict=True)
        )
    return float(total)
