"""Networks by name. They are plain PyTorch and know nothing of pruning.

`build` remembers on the model how it was made, so that a saved network can be rebuilt without a recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn

from dpap.errors import unknown_name
from dpap.models.convnet import ConvNet
from dpap.models.parts import NEURONS, POOLS, READOUTS, SPIKING, SURROGATES, Readout
from dpap.models.recurrent import RecurrentNet
from dpap.models.resnet import ResNet, SEWResNet, resnet18, resnet50, sew_resnet18
from dpap.models.vit import ViT, vit

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "convnet": ConvNet,
        "recurrent": RecurrentNet,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "sew-resnet18": sew_resnet18,
        "vit": vit,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFrom:
    """How to make the dense model again: `build(name, **arguments)`."""

    name: str
    arguments: dict[str, Any]
    """Plain values only, so that they go to JSON."""


def build(name: str, **arguments: Any) -> nn.Module:
    """The model of that name; `built_from(model)` tells later how it was made."""
    arguments = {key: _tuples(value) for key, value in arguments.items()}  # JSON gives lists
    model = _made_by(name)(**arguments)
    model._dpap_built_from = BuiltFrom(name=name, arguments=arguments)  # type: ignore[assignment]
    return model


@cache
def settings_of(name: str) -> tuple[str, ...]:
    """What can be set of the model of that name, beside the shape and the classes of the data."""
    return tuple(key for key in inspect.signature(_made_by(name)).parameters if key not in ("shape", "classes"))


def _made_by(name: str) -> Callable[..., nn.Module]:
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def built_from(model: nn.Module) -> BuiltFrom | None:
    """How `build` made this model or the one it was copied from; None for a model of another origin."""
    made = getattr(model, "_dpap_built_from", None)
    return made if isinstance(made, BuiltFrom) else None


__all__ = [
    "MODELS",
    "NEURONS",
    "POOLS",
    "READOUTS",
    "SPIKING",
    "SURROGATES",
    "BuiltFrom",
    "ConvNet",
    "Readout",
    "RecurrentNet",
    "ResNet",
    "SEWResNet",
    "ViT",
    "build",
    "built_from",
    "resnet18",
    "resnet50",
    "settings_of",
    "sew_resnet18",
    "vit",
]
