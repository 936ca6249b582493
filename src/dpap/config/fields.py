"""Types of the settings of a config, and what turns a value that does not fit into an error in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field as DataclassField
from dataclasses import fields
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from dpap.errors import DPAPError, unknown_name

T = TypeVar("T")

# The text in each type is what an error says is allowed.
Whole = Annotated[int, Field(ge=0), "a whole number, at least 0"]
Count = Annotated[int, Field(ge=1), "a whole number, at least 1"]
Share = Annotated[float, Field(ge=0, le=1), "a number from 0 to 1"]
ShareLeft = Annotated[float, Field(gt=0, le=1), "a number above 0, at most 1"]
BelowOne = Annotated[float, Field(ge=0, lt=1), "a number from 0 to below 1"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), "a number above 0"]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), "a number, at least 0"]
OrNone = Annotated[T | None, BeforeValidator(lambda value: None if value == "none" else value)]
"""A setting that may be absent; in a file, absent is the word "none"."""
Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), "a list of widths, such as [128]"]


class OneOf:
    """Metadata of a text that must be a name of a registry."""

    def __init__(self, kind: str, known: Iterable[str]) -> None:
        self.kind, self.known = kind, tuple(known)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)  # type: ignore[arg-type]

    def _check(self, value: str) -> str:
        if value not in self.known:
            raise ValueError(value)
        return value


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(DataclassField,))
def section(cls: type[T]) -> type[T]:
    """A part of a config: a frozen, keyword-only dataclass that checks the type and value of every field when made.

    What does not fit is a DPAPError that names the setting, the value and what is allowed.
    """
    made = dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    validated = made.__init__

    def __init__(self: Any, **values: Any) -> None:
        try:
            validated(self, **values)
        except ValidationError as error:
            raise _refused(made, values, error) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


class Section:
    """What all parts of a config can do."""

    section: ClassVar[str] = ""

    @classmethod
    def key(cls, name: str) -> str:
        """The path of a setting, such as "optimizer.lr"."""
        return f"{cls.section}.{name}" if cls.section else name

    def applies(self, name: str) -> bool:
        """Whether the setting of that name means something beside the others; if not, it is not written down."""
        return True


def plain(value: Any) -> Any:
    """A setting as a file has it: tuples as lists, None as the word "none"."""
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return "none" if value is None else value


def shown(value: object) -> str:
    """A setting as an error says it."""
    return "none" if value is None else repr(plain(value))


def bad_value(key: str, value: object, allowed: str) -> DPAPError:
    return DPAPError(f"{key} = {shown(value)} is not allowed.", where=f"setting {key}", fix=f"give {key} {allowed}")


def unknown_setting(key: str, known: Iterable[str]) -> DPAPError:
    return _at(key, unknown_name("setting", key, known))


def _at(key: str, error: DPAPError) -> DPAPError:
    return DPAPError(error.what, where=f"setting {key}", fix=error.fix)


def from_table(cls: type[Any]) -> BeforeValidator:
    """Metadata of a section in a section: a table of a file becomes one."""
    return BeforeValidator(lambda value: cls(**value) if isinstance(value, Mapping) else value)


def _refused(cls: Any, values: Mapping[str, Any], error: ValidationError) -> DPAPError:
    """The first problem of a validation, in words."""
    name = str(error.errors()[0]["loc"][0])
    key = cls.key(name)
    siblings = [item.name for item in fields(cls)]
    if name not in siblings:
        return unknown_setting(key, [cls.key(other) for other in siblings])
    hint, value = get_type_hints(cls, include_extras=True)[name], values[name]
    one = next((item for item in _metadata(hint) if isinstance(item, OneOf)), None)
    if one is not None and isinstance(value, str):
        return _at(key, unknown_name(one.kind, value, one.known))
    return bad_value(key, value, _allowed(hint))


def _metadata(hint: Any) -> list[Any]:
    """Of a type and the types in it, outermost first."""
    if get_origin(hint) is Annotated:
        inner, *data = get_args(hint)
        return [*data, *_metadata(inner)]
    return [item for arg in get_args(hint) for item in _metadata(arg)]


def _allowed(hint: Any) -> str:
    """What a setting may be, in words: the text among the metadata of its type."""
    if any(isinstance(kind, type) and issubclass(kind, Section) for kind in _plain_types(hint)):
        return "a section of settings"
    words = next((item for item in _metadata(hint) if isinstance(item, str)), None)
    absent = type(None) in _plain_types(hint)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    words = words or next(plain[kind] for kind in plain if kind in _plain_types(hint))
    return f"{words}, or none" if absent else words


def _plain_types(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _plain_types(get_args(hint)[0])
    inner = get_args(hint)
    return [kind for arg in inner for kind in _plain_types(arg)] if inner else [hint]


__all__ = [
    "BelowOne",
    "Count",
    "NotNegative",
    "OneOf",
    "OrNone",
    "Positive",
    "Section",
    "Share",
    "ShareLeft",
    "Whole",
    "Widths",
    "bad_value",
    "from_table",
    "plain",
    "section",
    "shown",
    "unknown_setting",
]
