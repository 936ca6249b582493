"""Hooks that stay with the model they were put on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
