"""Finds what a request may go on with in what it has read and written already.

Knows the tokens of one request. Does not know how many are worth trying (see `drafter`), or whether they were right.

The idea is prompt lookup decoding (Saxena, 2023): answers repeat their prompts and themselves, so the last tokens are
looked for further up, and what followed them there is tried. Places are kept as LZ4 keeps them, one for each hash, and
looked at when they are used, so that memory stays at 16 to 32 bytes a token and 1 MiB at most, and a step's cost does
not grow with them.
"""

from array import array
from collections.abc import Sequence
from typing import Protocol

LENGTH = 3
"""Tokens that must be the same; after fewer of them what follows is hardly ever the same too."""
_MOST_BITS = 18


class Tokens(Protocol):
    """What a request has read and written."""

    @property
    def num_tokens(self) -> int:
        """Tokens known so far."""
        ...

    def token_ids(self, start: int, stop: int) -> Sequence[int]:
        """Tokens from position `start` up to `stop`."""
        ...


class PromptLookup:
    """The places of a request's tokens."""

    def __init__(self, most_tokens: int) -> None:
        """Make room for the places of about so many tokens; of more, later ones take the places of earlier ones."""
        bits = min(most_tokens.bit_length() + 2, _MOST_BITS)  # So that few of them meet.
        self._mask = (1 << bits) - 1
        self._ends = array("i", bytes(array("i").itemsize << bits))
        """Of each hash the position behind the last tokens that have it, or 0."""
        self._num_read = 0

    def read(self, request: Tokens, most: int) -> int:
        """Note the places of up to `most` tokens more, in order; returns of how many."""
        before = self._num_read
        until = min(request.num_tokens - 1, before + most)  # The last ones would find themselves.
        if until <= before:
            return 0
        first = max(before + 1 - LENGTH, 0)
        tokens = request.token_ids(first, until)
        ends, mask = self._ends, self._mask
        shifted = [tokens[start:] for start in range(LENGTH)]
        for end, last in enumerate(zip(*shifted, strict=False), first + LENGTH):
            ends[hash(last) & mask] = end
        self._num_read = until
        return until - before

    def draft(self, request: Tokens, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow the last one known; none where nothing like it was there before.

        None either before all is read but the last one.
        """
        known = request.num_tokens
        if most < 1 or known < LENGTH or self._num_read < known - 1:
            return ()
        last = tuple(request.token_ids(known - LENGTH, known))
        end = self._ends[hash(last) & self._mask]
        if not end or tuple(request.token_ids(end - LENGTH, end)) != last:
            return ()
        # What is known may end on the way: then it has a period, and goes on with it.
        found = request.token_ids(end, min(end + most, known))
        return tuple(found[place % len(found)] for place in range(most))
