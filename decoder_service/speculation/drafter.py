"""How many tokens a request tries in a step, by how often it was right.

Knows one request's tries. Does not know what a step has room for (see `drafting`).

The length doubles when all were right, falls to one more than those that were, and halves when none was. One who is
wrong again and again waits, twice as long each time, so that text that repeats nothing costs nearly nothing.
"""

from decoder_service.speculation.prompt_lookup import PromptLookup, Tokens

_FIRST_LENGTH = 4
_MOST_MISSES = 6
"""After so many tries in vain one after another it waits for 2 to that power steps each time, and not longer."""


class Drafter:
    """What one request tries."""

    def __init__(self, *, most: int, most_tokens: int) -> None:
        """Try up to `most` tokens in a step, of a request that has up to `most_tokens` in the end."""
        self._most = most
        self._length = min(_FIRST_LENGTH, most)
        self._num_misses = 0
        self._num_waits = 0
        self._lookup = PromptLookup(most_tokens)

    @property
    def length(self) -> int:
        """Tokens that it would try next, if it finds any."""
        return self._length

    def is_waiting(self) -> bool:
        """Whether it lets this step pass; to be asked once in each."""
        self._num_waits = max(self._num_waits - 1, -1)
        return self._num_waits >= 0

    def draft(self, request: Tokens, most: int) -> tuple[int, ...]:
        """Tokens to try behind the last one known, up to `most`, or none."""
        return self._lookup.draft(request, min(most, self._length))

    def give_up(self) -> None:
        """Try nothing any more."""
        self._most = self._length = 0

    def tried(self, num_tokens: int, num_accepted: int) -> None:
        """Hear how many of the tokens that were tried were right."""
        if num_accepted:
            self._num_misses = 0
            is_all = num_accepted == num_tokens
            self._length = min(2 * self._length if is_all else num_accepted + 1, self._most)
        else:
            self._num_misses = min(self._num_misses + 1, _MOST_MISSES)
            self._num_waits = 1 << self._num_misses
            self._length = max(self._length // 2, 1)
