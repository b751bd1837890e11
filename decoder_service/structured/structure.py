"""The language that a completion is kept inside, and where a completion is in it.

Knows what a caller can ask for, and what sampling needs of whoever follows a completion. Does not know messages (see
`structure_parser`), grammars or vocabularies (see `grammar_matcher`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile
from typing import Protocol


class StructureKind(Enum):
    """In which way a language is given."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Structure:
    """A language; equal ones are the same."""

    kind: StructureKind
    source: str
    """The schema as JSON, the regular expression, the grammar, or the texts as a JSON list; empty for any object."""

    @property
    def field(self) -> str:
        """The field of the request that says it."""
        return f"structured.{self.kind.value}"


class TooComplexError(Exception):
    """A language takes more work than is allowed."""


class Matcher(Protocol):
    """Follows one completion through its language, token by token."""

    def fork(self) -> "Matcher":
        """Another completion that is at the same place."""
        ...

    @property
    def has_failed(self) -> bool:
        """Whether going on would take more work than one step may cost; the matcher is of no use then."""
        ...

    def mask(self, address: int, num_bytes: int) -> None:
        """Write which tokens may come next, a bit for each from the lowest bit of the first byte on.

        The model's end tokens may come where the completion is complete. Nothing may come once it has failed.
        """
        ...

    def take(self, token_id: int) -> bool:
        """Go on behind a token; false where the language does not go on with it."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that write what must come next; none where it may be several things, or to find it is too much work.

        Other tokens may write the same.
        """
        ...


def within(matcher: Matcher, token_ids: Sequence[int]) -> tuple[int, ...]:
    """The first of these tokens that the language goes on with; the matcher stays where it is."""
    ahead = matcher.fork()
    return tuple(takewhile(ahead.take, token_ids))
