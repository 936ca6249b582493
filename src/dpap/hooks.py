"""Hooks that stay with the model they were put on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_STRUCTURE: ContextVar[bool] = ContextVar("structure", default=False)


@contextmanager
def structure_alone() -> Iterator[None]:
    """Inside, a network with dead time steps runs as if it had none: what matters is what it is made of."""
    token = _STRUCTURE.set(True)
    try:
        yield
    finally:
        _STRUCTURE.reset(token)


def looks_at_structure() -> bool:
    """Whether `structure_alone` is entered."""
    return _STRUCTURE.get()


class OwnHook:
    """A hook that is inert in every copy: a deep copy or a pickle must not act on the original's masks and sums."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.function is None else self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnHook:
        return OwnHook()

    def __reduce__(self) -> tuple[type[OwnHook], tuple[()]]:
        return OwnHook, ()
