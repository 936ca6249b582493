"""The checker that the import hook of `conftest.py` puts on every function of dpap while the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# is_pep484_tower: an int is a float, as PEP 484 and every type checker have it.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check types and shapes at every call; not of a method that returns `Self`, which only its class could tell."""
    try:
        return _beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
