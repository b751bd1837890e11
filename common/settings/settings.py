"""Turns frozen dataclasses into flags, environment variables and keys of a file, and back: one schema for all.

A field made with `setting` may be set by users; a field that is itself such a dataclass is a section; any other
field is none of the user's business and keeps its default. Knows what settings there are and how to complain: one
line and exit status 2. Does not know what a setting means, how a value is read (see `values`), or what
wins where several sources give it (see `sources`).
"""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from common.settings.values import Bounds, Given, SettingError, choices_of, describe, kind_of, read_value, typed

Config = TypeVar("Config")
"""A frozen dataclass."""

_KEY: Final = "setting"
_PROGRAM: Final = "program"


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line and takes no abbreviations."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, **options)
        # With what it has parsed, for whoever complains of that later; a subcommand's takes the place of its parent's.
        self._program = self.prog.removeprefix("python -m ")
        self.set_defaults(**{_PROGRAM: self._program})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        exit_with(self._program, message)


def add_command(commands: "argparse._SubParsersAction[Parser]", name: str, words: str, **options: Any) -> Parser:  # noqa: ANN401
    """A parser of a command among others, which says the same of it in the list and in its own help."""
    return commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.", **options)


def setting(
    default: object = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    unset: str = "",
) -> Any:  # noqa: ANN401 - takes the type of the field, as dataclasses.field does
    """A field of a config that users may set; without a default they must.

    Its type is one of int, float, str, bool, Path, an Enum of texts, `tuple[str, ...]` (written with commas),
    or one of these or None. Bounds are inclusive. `unset` says in words what is taken in place of None.
    """
    bounds = Bounds(help=help, minimum=minimum, maximum=maximum, choices=choices, unset=unset)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={_KEY: bounds})
    return dataclasses.field(default=default, metadata={_KEY: bounds})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a config, wherever in it."""

    section: str
    """Name of the field that holds its dataclass; "" for the config itself."""
    section_help: str
    name: str
    """Of its field."""
    bounds: Bounds
    hint: Any
    default: Any
    """MISSING where there is none."""

    @property
    def flag(self) -> str:
        """How it is given on a command line."""
        return flag(self.name)


def settings_of(config_class: type[Any]) -> Iterator[Setting]:
    """All settings of a config: its own first, then those of each section.

    What several sections have by one name is one setting, listed with the first and given to all.
    """
    seen = set()
    for each in _settings_in(config_class, ""):
        if each.name not in seen:
            seen.add(each.name)
            yield each


def _settings_in(config_class: type[Any], section: str) -> Iterator[Setting]:
    sections = []
    words = (config_class.__doc__ or "").splitlines()[0]
    for field, hint in _fields(config_class):
        bounds: Bounds | None = field.metadata.get(_KEY)
        if bounds is not None:
            yield Setting(
                section=section, section_help=words, name=field.name, bounds=bounds, hint=hint, default=field.default
            )
        elif dataclasses.is_dataclass(hint):
            sections.append((field.name, typing.cast(type[Any], hint)))
    for name, section_class in sections:
        yield from _settings_in(section_class, name)


def add_arguments(parser: argparse.ArgumentParser, config_class: type[Any]) -> None:
    """Add a flag for every setting of a config, grouped by section. Values stay texts until they are read."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in settings_of(config_class):
        if each.section not in groups:
            title = each.section.replace("_", " ") or "settings"
            groups[each.section] = parser.add_argument_group(title, each.section_help if each.section else None)
        options: dict[str, Any] = {"default": None, "help": _help(each)}
        if each.hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind_of(each.hint) is bool:
            # Neither of the two is what happens where it is unset, so both can be said; the flag alone says yes.
            options.update(nargs="?", const="true", metavar="true|false")
        else:
            options["metavar"] = _metavar(each.hint)
        if typing.get_origin(kind_of(each.hint)) is tuple:
            options["action"] = _Joined
        groups[each.section].add_argument(each.flag, dest=each.name, **options)


def from_arguments(config_class: type[Config], namespace: argparse.Namespace) -> Config:
    """Make the config from parsed flags alone, or print one line and exit with status 2."""
    given = {name: value for name, value in vars(namespace).items() if value is not None}
    try:
        return read(config_class, given)
    except SettingError as error:
        exit_with(program_of(namespace), str(error))


def read(config_class: type[Config], given: Mapping[str, Given], *, labels: Mapping[str, str] | None = None) -> Config:
    """Make the config from what was given, by field name; fields not given keep their defaults.

    `labels` are what messages call them, where it is not the flag. Raises SettingError, also for what the config
    itself refuses with a ValueError.
    """
    values: dict[str, object] = {}
    for field, hint in _fields(config_class):
        bounds: Bounds | None = field.metadata.get(_KEY)
        if bounds is None:
            if dataclasses.is_dataclass(hint):
                values[field.name] = read(typing.cast(type[Any], hint), given, labels=labels)
        elif field.name in given:
            label = (labels or {}).get(field.name, flag(field.name))
            values[field.name] = read_value(label, given[field.name], bounds=bounds, hint=hint)
        elif field.default is dataclasses.MISSING:
            raise SettingError(f"{flag(field.name)} must be given")
    try:
        return config_class(**values)
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(str(error)) from error


def flag(name: str) -> str:
    """The flag of a field's name."""
    return "--" + name.replace("_", "-")


def program_of(namespace: argparse.Namespace) -> str:
    """What the command calls itself whose `Parser` parsed this."""
    return str(getattr(namespace, _PROGRAM))


def exit_with(program: str, message: str) -> NoReturn:
    """Say one line on standard error, `PROGRAM: MESSAGE`, and exit with status 2."""
    sys.stderr.write(f"{program}: {message}".replace("\n", " ") + "\n")
    raise SystemExit(2)


class _Joined(argparse.Action):
    """What a list's flag is given, with commas between where it is given again: nothing is dropped in silence."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, _flag: object = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def _help(each: Setting) -> str:
    text, bounds, kind = each.bounds.help, each.bounds, kind_of(each.hint)
    if kind is not bool and (bounds.minimum, bounds.maximum, choices_of(kind, bounds)) != (None, None, ()):
        text += f"; {describe(kind, bounds)}"
    if each.default is dataclasses.MISSING:
        text += " (required)"
    elif each.default is None and bounds.unset:
        text += f" (default: {bounds.unset})"
    elif each.default not in (None, (), ""):
        text += f" (default: {typed(each.default)})"
    return text.replace("%", "%%")


def _metavar(hint: Any) -> str:  # noqa: ANN401 - a type
    kind = kind_of(hint)
    if typing.get_origin(kind) is tuple:
        return "TEXT,..."
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _fields(config_class: type[Any]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield field, hints[field.name]
