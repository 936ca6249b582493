"""Libraries that only the tests use (`make foreign`). Each function skips the test where its library is not installed,
and fails with DPAP_REQUIRE_FOREIGN=1."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import pytest
import torch

_DECLARED: list[torch.library.Library] = []
"""Kept alive: with the object its operators would go."""


def torchvision() -> ModuleType:
    """Its wheel belongs to one build of torch; with another one two operators are missing, which nothing here runs."""
    if not _DECLARED:
        try:
            torch._C._dispatch_find_schema_or_throw("torchvision::nms", "")
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor a, Tensor b, float c) -> Tensor")
            library.define("qnms(Tensor a, Tensor b, float c) -> Tensor")
            _DECLARED.append(library)
    return _imported("torchvision")


def timm() -> ModuleType:
    torchvision()
    return _imported("timm")


def spikingjelly() -> ModuleType:
    torchvision()
    for part in ("layer", "neuron", "functional", "surrogate", "model.sew_resnet", "model.spiking_vgg"):
        _imported(f"spikingjelly.activation_based.{part}")
    return _imported("spikingjelly.activation_based")


def spikingjelly_model(name: str) -> ModuleType:
    spikingjelly()
    return _imported(f"spikingjelly.activation_based.model.{name}")


def spikingjelly_encoding() -> ModuleType:
    spikingjelly()
    return _imported("spikingjelly.activation_based.encoding")


def snntorch_spikegen() -> ModuleType:
    return _imported("snntorch.spikegen")


def snntorch() -> ModuleType:
    for part in ("surrogate", "utils"):
        _imported(f"snntorch.{part}")
    return _imported("snntorch")


def onnx() -> ModuleType:
    _imported("onnxruntime")
    return _imported("onnxscript")


def torch_pruning() -> ModuleType:
    return _imported("torch_pruning")


def _imported(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of when imported is not ours to fix
        if os.environ.get("DPAP_REQUIRE_FOREIGN") == "1":
            return importlib.import_module(name)
        return pytest.importorskip(name, reason="make foreign", exc_type=ImportError)
