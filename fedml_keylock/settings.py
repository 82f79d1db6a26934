"""Checks settings with pydantic, and refuses wrong ones in one line that a user can act on.

`Settings` is a section of a job's YAML; `checked` makes a dataclass for settings in calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .errors import ConfigError

__all__ = [
    "Count",
    "Natural",
    "NotNegative",
    "Positive",
    "Settings",
    "Share",
    "checked",
    "whole_number",
]

Class = TypeVar("Class", bound=type[Any])


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


_FINITE = Field(allow_inf_nan=False)

Natural = Annotated[int, BeforeValidator(_no_flag), Field(ge=0)]
"""A whole number from 0 on."""
Count = Annotated[int, BeforeValidator(_no_flag), Field(ge=1)]
"""A whole number from 1 on."""
NotNegative = Annotated[float, BeforeValidator(_no_flag), _FINITE, Field(ge=0)]
"""A finite number from 0 on."""
Positive = Annotated[float, BeforeValidator(_no_flag), _FINITE, Field(gt=0)]
"""A finite number above 0."""
Share = Annotated[float, BeforeValidator(_no_flag), Field(ge=0, lt=1)]
"""A number from 0 on and below 1."""


def whole_number(name: str, value: Any, *, least: int = 0) -> int:
    """A field that FedML counts by, in a job's YAML.

    Raises:
        ConfigError: it is no whole number, or a smaller one.

    Example:
        >>> whole_number("epochs", "20", least=1)
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: epochs: '20' is not allowed: use a whole number from 1 on

    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise ConfigError(f"{name}: {value!r} is not allowed: use a whole number from {least} on")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(cls: Class) -> Class:
    """Make a frozen dataclass whose fields are checked against their types and bounds.

    A number may be given as text, because YAML reads 1e-3 as text. For a field that is left out of
    the repr, which may be private, an error names only the type.

    Example:
        >>> @checked
        ... class Lamp:
        ...     watts: Count = 5
        >>> Lamp(watts="much")
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: watts: 'much' is not allowed: Input should be a valid ...
        >>> Lamp(wats=7)
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: wats: no such field, perhaps watts; allowed: watts

    """
    config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    made: Any = dataclass(frozen=True, config=config)(cls)
    init = made.__init__

    @wraps(init)
    def refuse_in_one_line(self: Any, *args: Any, **fields: Any) -> None:
        try:
            init(self, *args, **fields)
        except ValidationError as error:
            hidden = [field.name for field in dataclasses.fields(made) if not field.repr]
            names = [field.name for field in dataclasses.fields(made)]
            raise ConfigError(_one_line(error, names, hidden=hidden)) from None

    made.__init__ = refuse_in_one_line
    return made  # type: ignore[no-any-return]


def _one_line(
    error: ValidationError, names: Iterable[str], *, section: str = "", hidden: Iterable[str] = ()
) -> str:
    """The error as a user can act on it: the first wrong field, its value, what is allowed."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if not first["loc"]:  # fields contradict each other: the message names one
        return f"{section}{first['msg'].removeprefix('Value error, ')}"
    known, at = list(names), first["loc"][0]
    # an argument without a name is reported by its position
    field = known[at] if isinstance(at, int) and at < len(known) else str(at)
    if first["type"] in _NO_FIELD:
        near = "".join(f", perhaps {name}" for name in get_close_matches(field, known, 1))
        return f"{section}{field}: no such field{near}; allowed: {', '.join(known)}"
    if first["type"] in ("missing", "missing_argument") and len(first["loc"]) == 1:
        return f"{section}{field}: needed"
    # a union reports a problem for each of its members
    allowed = [_SAID.get(e["type"], e["msg"]) for e in errors if e["loc"][:1] == (at,)]
    what = "; or ".join(dict.fromkeys(m.removeprefix("Value error, ") for m in allowed))
    given = f"a {type(first['input']).__name__}" if field in hidden else repr(first["input"])
    return f"{section}{field}: {' '.join(given.split())[:200]} is not allowed: {what}"


_SAID = {
    "path_type": "Input should be a path, in quotes where YAML would not take it for text",
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "missing": "more are needed",
}
"""Clearer texts for some of pydantic's messages."""
_NO_FIELD = (
    "extra_forbidden",
    "invalid_key",
    "unexpected_keyword_argument",
    "unexpected_positional_argument",
)


class Settings(BaseModel):
    """A section in which every field has a default, and other fields are refused.

    Example:
        >>> class Lamp(Settings):
        ...     section: ClassVar[str] = "lamp"
        ...     watts: int = 5
        >>> Lamp.from_mapping({"wats": 7})
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: lamp.wats: no such field, perhaps watts; allowed: watts

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str]

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any] | None) -> Self:
        """Read the section; None stands for an empty one.

        Raises:
            ConfigError: naming the field, the value and what is allowed.

        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(f"{cls.section}: must be a mapping of fields, not {settings!r}")
        return cls(**{str(field): value for field, value in (settings or {}).items()})

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            section = f"{self.section}."
            raise ConfigError(_one_line(error, type(self).model_fields, section=section)) from None
