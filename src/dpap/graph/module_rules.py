"""Which attributes of a module follow when its tensors are cut.

A rule reads the new shapes from the module's own tensors. To teach the library a module of your own:

    @module_rule(MyLayer)
    def _(module):
        module.width = module.weight.shape[0]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dpap.errors import DPAPError
from dpap.neurons import PLIF

ModuleRule = Callable[[Any], None]
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}


def module_rule(*classes: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Register the rule of one or more module classes (and of what derives from them); duplicates are refused."""

    def register(rule: ModuleRule) -> ModuleRule:
        for cls in classes:
            if cls in MODULE_RULES:
                raise ValueError(f"{cls.__name__} has a rule already")
            MODULE_RULES[cls] = rule
        return rule

    return register


def require_rule(module: nn.Module, name: str) -> ModuleRule:
    """The rule of a module's class or of the nearest class it derives from.

    Raises:
        DPAPError: There is none.
    """
    for cls in type(module).__mro__:
        if cls in MODULE_RULES:
            return MODULE_RULES[cls]
    raise DPAPError(
        f"{type(module).__name__} has no rule that says which attributes follow when its tensors are cut.",
        where=name,
        fix=f"write one with @dpap.graph.module_rules.module_rule({type(module).__name__}), or pass ignore={name!r}.",
    )


def follow(module: nn.Module, name: str) -> None:
    """Make the attributes of a module agree with its tensors."""
    require_rule(module, name)(module)


@module_rule(nn.Linear)
def _linear(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


@module_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(module: nn.Conv2d) -> None:
    module.out_channels = module.weight.shape[0]
    module.in_channels = module.weight.shape[1] * module.groups


@module_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _norm(module: nn.BatchNorm2d) -> None:
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            module.num_features = tensor.shape[0]


@module_rule(nn.PReLU)
def _prelu(module: nn.PReLU) -> None:
    module.num_parameters = module.weight.shape[0]


@module_rule(PLIF)
def _plif(module: PLIF) -> None:
    """Its time constants are its only record of the number of channels."""
