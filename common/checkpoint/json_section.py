"""An object of a JSON file, whose fields are taken with their types and bounds checked.

Knows JSON values and how to complain: every error names file, field and value. Does not know what fields mean.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.checkpoint.files import CheckpointError


class Section:
    """One object; every method raises CheckpointError where the field is not what it should be.

    A missing field takes the default, which is an error where there is none. An explicit null is a missing
    field, but for `has` and `optional_whole`, whose callers tell the two apart.
    """

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        """Take the object and what leads to its fields: `config.json: ` or `config.json: text_config.`."""
        self._content = content
        self._place = place

    def has(self, key: str) -> bool:
        """Whether the field is there, null or not."""
        return key in self._content

    def get(self, key: str) -> Any:  # noqa: ANN401 - whatever the file holds
        """The field as it is, None where it is missing."""
        return self._content.get(key)

    def whole(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(key, f"must be a whole number of at least {minimum}, got {_shown(value)}")
        return value

    def optional_whole(self, key: str, default: int | None) -> int | None:
        """A whole number of at least 1, or null; `default` where the field is missing."""
        if not self.has(key):
            return default
        return None if self.get(key) is None else self.whole(key)

    def side(self, key: str, default: int | None = None) -> int:
        """A side of a square: one whole number, or two equal ones as a list or as height and width."""
        value = self._value(key, default)
        sides = list(value.values()) if isinstance(value, dict) and value.keys() == {"height", "width"} else value
        if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1]:
            value = sides[0]
        return self.with_value(key, value).whole(key)

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_positive(value):
            raise self.error(key, f"must be a finite number over 0, got {_shown(value)}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {_shown(value)}")
        return value

    def numbers(self, key: str, default: Sequence[float]) -> tuple[float, float, float]:
        """Three finite numbers, one for each colour."""
        value = self._value(key, list(default))
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_finite, value)):
            raise self.error(key, f"must be three finite numbers, got {_shown(value)}")
        red, green, blue = map(float, value)
        return red, green, blue

    def section(self, key: str, *, required: bool = False) -> "Section":
        """The object in the field; an empty one where it is missing and need not be there."""
        value = self._value(key, None if required else {})
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, got {_shown(value)}")
        return Section(value, f"{self._place}{key}.")

    def with_value(self, key: str, value: object) -> "Section":
        """The same place with another value, for a field that holds several or may be written in several ways."""
        return Section({**self._content, key: value}, self._place)

    def expect(self, key: str, *values: object) -> None:
        """Raise unless the field is missing, or one of these."""
        value = self.get(key)
        if value is not None and value not in values:
            raise self.error(key, f"{_shown(value)} is not supported; expected {' or '.join(map(repr, values))}")

    def refuse(self, *keys: str) -> None:
        """Raise where one of these fields asks for something."""
        for key in keys:
            if self.get(key):
                raise self.error(key, "is not supported")

    def error(self, key: str, message: str) -> CheckpointError:
        """An error that names the place of a field."""
        return CheckpointError(f"{self._place}{key} {message}")

    def _value(self, key: str, default: object) -> Any:  # noqa: ANN401 - whatever the file holds
        value = self._content.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        return value


def file_section(content: Mapping[str, Any], name: str) -> Section:
    """The object that a whole file holds."""
    return Section(content, f"{name}: ")


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def _is_positive(value: float) -> bool:
    return _is_finite(value) and value > 0


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
