"""The one exception of the library. It says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DPAPError:
    """The error for a name that is not in a registry, with the nearest names.

    >>> print(unknown_name("rule", "dpep", ["dpap", "paper"]))
    There is no rule named 'dpep'.
    What to do: did you mean 'dpap'? Known: dpap, paper.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = "did you mean " + " or ".join(repr(n) for n in near) + "? " if near else ""
    return DPAPError(f"There is no {kind} named {name!r}.", fix=f"{hint}Known: {', '.join(known)}.")
