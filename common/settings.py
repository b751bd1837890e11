"""Turns frozen dataclasses into command-line flags and back.

A field made with `setting` is a flag; a field that is itself such a dataclass adds its own flags; any other
field is none of the user's business and keeps its default. Knows types, bounds and how to complain: one line
and exit status 2. Does not know what a setting means. Every source of settings gives texts by field name, so
another source beside flags would go through `read` too.
"""

import argparse
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

Config = TypeVar("Config")
"""A frozen dataclass."""

_KEY: Final = "setting"
_TRUTH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a setting may be, and what it is for."""

    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None


class SettingError(ValueError):
    """A setting is missing or wrong; the message names flag, value and limit."""


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line and takes no abbreviations."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        _exit(f"{self.prog}: {message}")


def setting(
    default: object = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:  # noqa: ANN401 - takes the type of the field, as dataclasses.field does
    """A field of a config that users may set; without a default they must.

    Its type is one of int, float, str, bool, Path, an Enum of texts, `tuple[str, ...]` (written with commas),
    or one of these or None. Bounds are inclusive.
    """
    bounds = Bounds(help=help, minimum=minimum, maximum=maximum, choices=choices)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={_KEY: bounds})
    return dataclasses.field(default=default, metadata={_KEY: bounds})


def add_arguments(parser: argparse.ArgumentParser, config_class: type[Any]) -> None:
    """Add a flag for every setting of a config. Values stay texts until `from_arguments`."""
    for field, hint in _fields(config_class):
        bounds: Bounds | None = field.metadata.get(_KEY)
        if bounds is None:
            if dataclasses.is_dataclass(hint):
                add_arguments(parser, typing.cast(type[Any], hint))
            continue
        options: dict[str, Any] = {"default": None, "help": _help(field, bounds, hint)}
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = _metavar(hint)
        parser.add_argument(_flag(field.name), dest=field.name, **options)


def from_arguments(config_class: type[Config], namespace: argparse.Namespace) -> Config:
    """Make the config from parsed flags, or print one line and exit with status 2."""
    given = {name: value for name, value in vars(namespace).items() if value is not None}
    try:
        return read(config_class, given)
    except SettingError as error:
        _exit(str(error))


def read(config_class: type[Config], given: Mapping[str, Any]) -> Config:
    """Make the config from texts (or truth values) by field name; fields not given keep their defaults.

    Raises SettingError, also for what the config itself refuses with a ValueError.
    """
    values: dict[str, object] = {}
    for field, hint in _fields(config_class):
        bounds: Bounds | None = field.metadata.get(_KEY)
        if bounds is None:
            if dataclasses.is_dataclass(hint):
                values[field.name] = read(typing.cast(type[Any], hint), given)
        elif field.name in given:
            values[field.name] = _value(_flag(field.name), given[field.name], bounds=bounds, hint=hint)
        elif field.default is dataclasses.MISSING:
            raise SettingError(f"{_flag(field.name)} must be given")
    try:
        return config_class(**values)
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(str(error)) from error


def _value(flag: str, text: str | bool, *, bounds: Bounds, hint: Any) -> object:  # noqa: ANN401 - a type
    kind = _kind(hint)
    try:
        value = _convert(text, kind)
    except (ValueError, OverflowError):
        raise SettingError(f"{flag} must be {_describe(kind, bounds)}, got {text!r}") from None
    if bounds.choices is not None and value not in bounds.choices:
        raise SettingError(f"{flag} must be {_describe(kind, bounds)}, got {text!r}")
    if isinstance(value, int | float) and not _within(value, bounds):
        raise SettingError(f"{flag} must be {_describe(kind, bounds)}, got {text}")
    return value


def _convert(text: str | bool, kind: Any) -> object:  # noqa: ANN401 - a type
    if isinstance(text, bool):
        return text
    if kind is bool:
        if text.lower() not in _TRUTH:
            raise ValueError(text)
        return _TRUTH[text.lower()]
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return kind(text)


def _within(value: float, bounds: Bounds) -> bool:
    low = -math.inf if bounds.minimum is None else bounds.minimum
    high = math.inf if bounds.maximum is None else bounds.maximum
    return math.isfinite(value) and low <= value <= high


def _describe(kind: Any, bounds: Bounds) -> str:  # noqa: ANN401 - a type
    choices = _choices(kind, bounds)
    if choices:
        return "one of " + ", ".join(choices)
    words = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
    if bounds.minimum is not None and bounds.maximum is not None:
        return f"{words} from {bounds.minimum} to {bounds.maximum}"
    if bounds.minimum is not None:
        return f"{words} of at least {bounds.minimum}"
    if bounds.maximum is not None:
        return f"{words} of at most {bounds.maximum}"
    return words


def _help(field: dataclasses.Field[Any], bounds: Bounds, hint: Any) -> str:  # noqa: ANN401 - a type
    text = bounds.help
    kind = _kind(hint)
    if kind is not bool and (bounds.minimum, bounds.maximum, _choices(kind, bounds)) != (None, None, ()):
        text += f"; {_describe(kind, bounds)}"
    if field.default is dataclasses.MISSING:
        text += " (required)"
    elif field.default not in (None, ()):
        default = field.default.value if isinstance(field.default, Enum) else field.default
        text += f" (default: {default})"
    return text.replace("%", "%%")


def _choices(kind: Any, bounds: Bounds) -> tuple[str, ...]:  # noqa: ANN401 - a type
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return bounds.choices or ()


def _metavar(hint: Any) -> str:  # noqa: ANN401 - a type
    kind = _kind(hint)
    if typing.get_origin(kind) is tuple:
        return "TEXT,..."
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _kind(hint: Any) -> Any:  # noqa: ANN401 - a type
    """The type without "or None"."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in hint.__args__ if kind is not types.NoneType)
    return hint


def _fields(config_class: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield field, hints[field.name]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _exit(message: str) -> NoReturn:
    sys.stderr.write(message.replace("\n", " ") + "\n")
    raise SystemExit(2)
