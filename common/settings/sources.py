"""Where settings come from, and which source wins: flags over the environment over a file over defaults.

Knows command lines, variables named DIPTYCH_NAME, and YAML files with a key for every section. Whatever it finds
there and does not know is an error, since a misspelt setting is one that is silently not made. Does not know what
a setting means.
"""

import argparse
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from common.settings.settings import Setting, add_arguments, exit_with, program_of, read, settings_of
from common.settings.values import Given, SettingError

Config = TypeVar("Config")
"""A frozen dataclass."""

_PREFIX: Final = "DIPTYCH_"
_CONFIG: Final = "config"
_OTHERS: Final = frozenset({_CONFIG, "token", "native_cache"})
"""Variables that are for the commands or the kernels, not for a config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[Config]):
    """A config, and where each setting of it comes from."""

    config: Config
    origins: Mapping[str, str]
    """Flag, variable or file, by the name of the setting; whatever is not in it has its default."""


def add_config_arguments(parser: argparse.ArgumentParser, config_class: type[Any]) -> None:
    """Add a flag for every setting of a config, and `--config` for a file of them."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help=f"YAML file of settings, by section; flags and variables {_PREFIX}NAME go before it",
    )
    add_arguments(parser, config_class)


def from_sources(config_class: type[Config], namespace: argparse.Namespace, *, advice: str = "") -> Config:
    """Make the config from flags, environment and file, or print one line and exit with status 2.

    `advice` says where variables belong that are not for this command.
    """
    try:
        return load(config_class, namespace, environment=os.environ, advice=advice).config
    except SettingError as error:
        exit_with(program_of(namespace), str(error))


def load(
    config_class: type[Config], namespace: argparse.Namespace, *, environment: Mapping[str, str], advice: str = ""
) -> Loaded[Config]:
    """Make the config from parsed flags, the environment and the file that one of them names. Raises SettingError."""
    schema = {each.name: each for each in settings_of(config_class)}
    given: dict[str, Given] = {}
    labels: dict[str, str] = {}
    origins: dict[str, str] = {}
    path = getattr(namespace, _CONFIG, None) or environment.get(_variable(_CONFIG))
    sources = (
        _from_file(Path(path), schema) if path else (),
        _from_environment(environment, schema, advice),
        _from_flags(namespace, schema),
    )
    for source in sources:
        for name, value, label, origin in source:
            given[name], labels[name], origins[name] = value, label, origin
    return Loaded(config=read(config_class, given, labels=labels), origins=origins)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a config would be read from, for a process that has another one."""
    kept = {_variable(name) for name in _OTHERS - {_CONFIG}}
    return {name: value for name, value in environment.items() if not name.startswith(_PREFIX) or name in kept}


_Found = tuple[str, Given, str, str]
"""Name of a setting, its value, what to call it in a message, and where it stands."""


def _from_flags(namespace: argparse.Namespace, schema: Mapping[str, Setting]) -> Iterator[_Found]:
    for name, value in vars(namespace).items():
        if name in schema and value is not None:
            yield name, value, schema[name].flag, schema[name].flag


def _from_environment(environment: Mapping[str, str], schema: Mapping[str, Setting], advice: str) -> Iterator[_Found]:
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX).lower()
        if not variable.startswith(_PREFIX) or name in _OTHERS:
            continue
        if name not in schema or variable != variable.upper():
            meant = _meant(name, schema, _variable) or (advice and f"; {advice}")
            raise SettingError(f"{variable} is no setting of this command{meant}")
        yield name, environment[variable], variable, variable


def _from_file(path: Path, schema: Mapping[str, Setting]) -> Iterator[_Found]:
    sections = {each.section for each in schema.values() if each.section}
    for key, value in _read_yaml(path).items():
        if key in sections:
            if not isinstance(value, dict):
                raise SettingError(f"{path}: {key} is a section; its settings stand below it")
            for name, below in value.items():
                yield _found(path, key, name, below, schema)
        elif isinstance(key, str) and schema.get(key) and not schema[key].section:
            yield _found(path, "", key, value, schema)
        else:
            if isinstance(key, str) and key in schema:
                raise SettingError(f"{path}: {key} belongs in the section {schema[key].section}")
            own = (each.name for each in schema.values() if not each.section)
            raise SettingError(f"{path}: {key!r} is no section or setting{_meant(key, [*sections, *own])}")


def _found(path: Path, section: str, name: object, value: object, schema: Mapping[str, Setting]) -> _Found:
    place = f"{section}.{name}" if section else str(name)
    each = schema.get(name) if isinstance(name, str) else None
    if each is None or each.section != section:
        if each is not None:
            right = f"in the section {each.section}" if each.section else "outside of all sections"
            raise SettingError(f"{path}: {name} belongs {right}, not in {section}")
        known = (each.name for each in schema.values() if each.section == section)
        raise SettingError(f"{path}: {place} is no setting{_meant(name, known)}")
    if isinstance(value, dict) or not isinstance(value, str | bool | int | float | list | None):
        raise SettingError(f"{path}: {place} must be a single value or a list")
    return each.name, value, f"{path}: {place}", str(path)


def _read_yaml(path: Path) -> dict[Any, Any]:
    # Imported late: most are started with flags, and nothing else here needs it.
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_unique(path, node)
        content = yaml.safe_load(text)
    except SettingError:
        raise
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise SettingError(f"{path}: is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise SettingError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"{path}: must be a mapping of sections")
    return content


def _check_unique(path: Path, node: Any) -> None:  # noqa: ANN401 - yaml has no types of its own
    """Raise SettingError for a key that stands twice in one mapping: of two, YAML would drop the first."""
    if node is None or not hasattr(node, "value") or isinstance(node.value, str):
        return
    children = node.value
    if children and isinstance(children[0], tuple):
        seen: set[object] = set()
        for key, _ in children:
            if key.value in seen:
                raise SettingError(f"{path}:{key.start_mark.line + 1}: {key.value} stands there twice")
            seen.add(key.value)
        children = [value for _, value in children]
    for child in children:
        _check_unique(path, child)


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _meant(name: object, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {shown(close[0])}?" if close else ""
