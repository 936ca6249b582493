"""One rule per ATen operator: which axes it ties, produces and consumes.

A rule takes the walk, the node and the node's arguments (tensors as `Value`, the rest as they are) and returns the
value of the output. To teach the library a new operator:

    @op_rule("aten.my_op.default")
    def _(walk, node, x, *rest):
        return elementwise(x)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from dpap.errors import DPAPError, refusing
from dpap.graph.export import model_line
from dpap.graph.values import Value, plain
from dpap.graph.walk import Walk

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
OP_RULES: dict[str, Rule] = {}


def op_rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    """Register the rule of one or more operators, by the name that the exported graph prints; no name has two."""

    def register(rule: AnyRule) -> AnyRule:
        for name in names:
            if name in OP_RULES:
                raise ValueError(f"{name} has a rule already")
            OP_RULES[name] = rule
        return rule

    return register


def apply_rule(walk: Walk, node: Any, values: dict[Any, Any]) -> Any:
    """The value of one node of the graph."""

    def known(argument: Any) -> Any:
        return values[argument] if isinstance(argument, torch.fx.Node) else argument

    args = torch.fx.node.map_aggregate(node.args, known)
    kwargs = torch.fx.node.map_aggregate(node.kwargs, known)
    rule = OP_RULES.get(str(node.target))
    if rule is not None:
        with refusing(
            f"The rule of the operator {node.target} does not take this use of it",
            where=model_line(node.stack_trace),
            fix="write this line otherwise, and please report it: the rule should take all that PyTorch does.",
        ):
            return rule(walk, node, *args, **kwargs)
    return _without_rule(walk, node, torch.utils._pytree.tree_leaves((args, kwargs)))


def _without_rule(walk: Walk, node: Any, leaves: Sequence[Any]) -> Any:
    tracked = [v for v in leaves if isinstance(v, Value) and (v.tracked or v.parameter)]
    if tracked and walk.unknown == "refuse":
        raise DPAPError(
            f"The operator {node.target} has no rule, so what it ties together is unknown.",
            where=model_line(node.stack_trace),
            fix=f'write one with @dpap.graph.op_rules.op_rule("{node.target}"), or pass unknown="protect" to keep '
            "every unit that touches it.",
        )
    for value in tracked:
        walk.protect_value(value, f"touched by {node.target}, which has no rule")
    return torch.utils._pytree.tree_map(lambda t: plain(t.shape) if isinstance(t, Tensor) else t, node.meta.get("val"))


def out_shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def elementwise(x: Value, *, nonnegative: bool = False, spikes: bool = False) -> Value:
    """The same units in the same places. `spikes`: the operator leaves a spike a spike."""
    return dataclasses.replace(
        x,
        units=list(x.units),
        marks=list(x.marks),
        divisor=x.divisor if spikes else None,
        nonnegative=nonnegative,
        parameter=None,
        entered=None,
    )
