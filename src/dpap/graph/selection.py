"""Which modules the user left out (`ignore=`) or picked (`only=`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from dpap.errors import DPAPError

Pattern = str | nn.Module


@dataclass(frozen=True, slots=True)
class Selection:
    """Module paths that the user left out or picked, children included."""

    ignored: frozenset[str]
    only: frozenset[str] | None

    @classmethod
    def of(
        cls, model: nn.Module, ignore: Sequence[Pattern] | Pattern, only: Sequence[Pattern] | Pattern | None
    ) -> Selection:
        names = dict(model.named_modules())
        picked = None if only is None else frozenset().union(*(_matches(names, p, "only") for p in _patterns(only)))
        return cls(frozenset().union(*(_matches(names, p, "ignore") for p in _patterns(ignore))), picked)

    def keeps(self, paths: Iterable[str]) -> str | None:
        """Why what these modules make stays; None: it may be pruned."""
        paths = set(paths)
        if paths & self.ignored:
            return "ignored"
        if self.only is not None and not paths & self.only:
            return "not named in only="
        return None


def _patterns(patterns: Sequence[Pattern] | Pattern) -> list[Pattern]:
    return [patterns] if isinstance(patterns, (str, nn.Module)) else list(patterns)


def _matches(names: Mapping[str, nn.Module], pattern: Pattern, argument: str) -> set[str]:
    found = {
        name
        for name, module in names.items()
        if (module is pattern if isinstance(pattern, nn.Module) else fnmatchcase(name, pattern))
    }
    if not found:
        text = f"{pattern!r}" if isinstance(pattern, str) else f"a {type(pattern).__name__}"
        raise DPAPError(
            f"{argument}={text} matches no module of the model.",
            fix="use a name of model.named_modules(), a glob over these names, or one of its modules.",
        )
    return found | {n for n in names if any(n.startswith(f + ".") for f in found if f)}
