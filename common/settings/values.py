"""How one value of a setting is read, checked and described.

Knows types and bounds. Does not know where a value comes from; whoever asks says what to call it.
"""

import dataclasses
import math
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Final

Given = str | bool | int | float | list[Any] | None
"""A value as it was given: a text, or what a file makes of one."""

_TRUTH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a setting may be, and what it is for."""

    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None
    unset: str
    """What is taken where it is None; "" where that goes without saying."""


class SettingError(ValueError):
    """A setting is missing or wrong; the message names it as it was given, value and limit."""


def read_value(label: str, given: Given, *, bounds: Bounds, hint: Any) -> object:  # noqa: ANN401 - a type
    """The value of a setting of type `hint`. Raises SettingError."""
    kind = kind_of(hint)
    try:
        value = _convert(given, kind, is_optional=kind is not hint)
    except (ValueError, OverflowError):
        raise _wrong(label, repr(given), kind, bounds) from None
    if bounds.choices is not None and value not in bounds.choices:
        raise _wrong(label, repr(given), kind, bounds)
    if isinstance(value, int | float) and not _within(value, bounds):
        raise _wrong(label, str(given), kind, bounds)
    return value


def describe(kind: Any, bounds: Bounds) -> str:  # noqa: ANN401 - a type
    """What a value of this kind must be, in words."""
    choices = choices_of(kind, bounds)
    if choices:
        return "one of " + ", ".join(choices)
    words = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
    if typing.get_origin(kind) is tuple:
        words = "texts"
    if bounds.minimum is not None and bounds.maximum is not None:
        return f"{words} from {bounds.minimum} to {bounds.maximum}"
    if bounds.minimum is not None:
        return f"{words} of at least {bounds.minimum}"
    if bounds.maximum is not None:
        return f"{words} of at most {bounds.maximum}"
    return words


def choices_of(kind: Any, bounds: Bounds) -> tuple[str, ...]:  # noqa: ANN401 - a type
    """The values that there are; empty where there are too many to name."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return bounds.choices or ()


def kind_of(hint: Any) -> Any:  # noqa: ANN401 - a type
    """The type without "or None"."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in hint.__args__ if kind is not types.NoneType)
    return hint


def plain(value: object) -> Given:
    """A value as a file would give it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return typing.cast(Given, value)


def typed(value: object) -> str:
    """A value as it is typed behind its flag."""
    given = plain(value)
    if isinstance(given, bool):
        return str(given).lower()
    return ",".join(map(str, given)) if isinstance(given, list) else str(given)


def _convert(given: Given, kind: Any, *, is_optional: bool) -> object:  # noqa: ANN401 - a type
    if given is None:
        if is_optional:
            return None
        raise ValueError(given)
    if isinstance(given, bool) or kind is bool:
        return _truth(given, kind)
    if typing.get_origin(kind) is tuple:
        parts = given if isinstance(given, list) else _text(given).split(",")
        return tuple(text for part in parts if (text := _text(part).strip()))
    if isinstance(given, list) or (kind is int and isinstance(given, float)):
        raise ValueError(given)
    return kind(given if kind in (int, float) else _text(given))


def _text(given: object) -> str:
    # A number with a point is not the text that was written: 1.10 comes as 1.1.
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ValueError(given)
    return str(given)


def _truth(given: Given, kind: Any) -> bool:  # noqa: ANN401 - a type
    if kind is not bool:
        raise ValueError(given)
    if isinstance(given, bool):
        return given
    if str(given).lower() not in _TRUTH:
        raise ValueError(given)
    return _TRUTH[str(given).lower()]


def _within(value: float, bounds: Bounds) -> bool:
    low = -math.inf if bounds.minimum is None else bounds.minimum
    high = math.inf if bounds.maximum is None else bounds.maximum
    # A whole number may be larger than any that can be asked whether it is finite.
    return (isinstance(value, int) or math.isfinite(value)) and low <= value <= high


def _wrong(label: str, shown: str, kind: Any, bounds: Bounds) -> SettingError:  # noqa: ANN401 - a type
    return SettingError(f"{label} must be {describe(kind, bounds)}, got {shown}")
