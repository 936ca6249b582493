"""The one exception of the library. It says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

MANY = 30
"""Longer lists of known names are not shown beside the nearest ones."""


class DPAPError(Exception):
    """Something a user can put right.

    Attributes:
        what: What is wrong, one sentence.
        where: The parameter, file, module or line it is about; empty when `what` names it.
        fix: What to do; empty when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"Where: {self.where}")
        if self.fix:
            lines.append(f"What to do: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:  # survives a process boundary with its parts
        return (_rebuild, (self.what, self.where, self.fix))


def _rebuild(what: str, where: str, fix: str) -> DPAPError:
    return DPAPError(what, where=where, fix=fix)


@contextmanager
def refusing(what: str, where: str = "", fix: str = "") -> Iterator[None]:
    """Inside, whatever else goes wrong is an error of this library's own: a network that runs, and that we do not
    understand, is refused with the way out."""
    try:
        yield
    except DPAPError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise DPAPError(f"{what}: {type(error).__name__}: {reason}", where=where, fix=fix) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DPAPError:
    """The error for a name that is not in a registry, with the nearest names.

    >>> print(unknown_name("rule", "dpep", ["dpap", "paper"]))
    There is no rule named 'dpep'.
    What to do: did you mean 'dpap'? Known: dpap, paper.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(repr(n) for n in near) + "? " if near else ""
    listed = "" if near and len(known) > MANY else f"Known: {', '.join(known)}."
    return DPAPError(f"There is no {kind} named {name!r}.", fix=(hint + listed).strip())
