"""Refusals of single fields of a request.

Knows messages and the reasons for which their fields are refused. Does not know which fields there are.
"""

from collections.abc import Callable, Set, Sized
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from common.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have; NaN is in no range."""

    text: str
    holds: Callable[[float], bool]

    @classmethod
    def between(cls, low: float, high: float) -> "Range":
        """From `low` to `high`, both of them included."""
        return cls(f"{low} to {high}", lambda value: low <= value <= high)

    def check(self, got: float, *, name: str, field: str) -> None:
        """Raise InvalidArgumentError (VALUE_OUT_OF_RANGE) for a number outside; `name` is for the message."""
        if not self.holds(got):
            raise InvalidArgumentError(
                "VALUE_OUT_OF_RANGE",
                f"{name} is {got}; it must be {self.text}",
                field=field,
                metadata={"allowed": self.text, "got": got},
            )


def present_fields(message: Message, supported: Set[str], *, prefix: str) -> dict[str, Any]:
    """The fields that are set, by name; raises InvalidArgumentError for any that is not supported."""
    present = {descriptor.name: value for descriptor, value in message.ListFields()}
    for name in present:
        if name not in supported:
            raise unsupported(prefix + name)
    return present


def check_count(things: Sized, limit: int, field: str, unit: str) -> None:
    """Raise InvalidArgumentError (TOO_MANY_VALUES) for more than `limit` things."""
    got = len(things)
    if got > limit:
        raise InvalidArgumentError(
            "TOO_MANY_VALUES",
            f"there are {got} {unit}; at most {limit} are accepted",
            field=field,
            metadata={"limit": limit, "got": got, "unit": unit},
        )


def missing(field: str) -> InvalidArgumentError:
    """The refusal of a request that lacks a field."""
    return InvalidArgumentError("MISSING_FIELD", "this field must be set", field=field)


def empty(field: str) -> InvalidArgumentError:
    """The refusal of a text without characters."""
    return InvalidArgumentError("MISSING_FIELD", "this text must not be empty", field=field)


def unsupported(field: str) -> InvalidArgumentError:
    """The refusal of a field that is not built yet."""
    return InvalidArgumentError("UNSUPPORTED_FIELD", "this field is not supported yet", field=field)
