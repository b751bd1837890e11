"""How often each token stands in what a completion has read and generated.

Knows tokens and their counts, and follows an output as it grows: a step costs the tokens that are new to it, not the
context. Does not know requests, logits or what the counts are for (see `logits_processors`). All of it follows from the
tokens, so there is nothing that a preemption could lose.
"""

from array import array
from collections import Counter
from collections.abc import Sequence


class DistinctTokens:
    """The tokens of a sequence, each once, in arrays that a tensor can be made of."""

    def __init__(self) -> None:
        self.token_ids = array("q")
        self.counts = array("f")
        """How often each of them stands there."""
        self._places: dict[int, int] = {}

    def add(self, token_ids: Sequence[int]) -> None:
        """Let the sequence go on."""
        for token_id, count in Counter(token_ids).items():
            place = self._places.get(token_id)
            if place is None:
                self._places[token_id] = len(self._places)
                self.token_ids.append(token_id)
                self.counts.append(count)
            else:
                self.counts[place] += count


class TokenCounts:
    """Of one completion, whose prompt never changes and whose output only grows."""

    def __init__(self) -> None:
        self._known: tuple[DistinctTokens, int] | None = None
        self._output: tuple[DistinctTokens, int] | None = None
        """Each with the number of tokens of the output that are in it."""

    def known(self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]) -> DistinctTokens:
        """The tokens of prompt and output."""
        self._known = _follow(self._known, prompt_token_ids, output_token_ids)
        return self._known[0]

    def output(self, output_token_ids: Sequence[int]) -> DistinctTokens:
        """The tokens of the output."""
        self._output = _follow(self._output, (), output_token_ids)
        return self._output[0]


def _follow(
    counted: tuple[DistinctTokens, int] | None, first: Sequence[int], output: Sequence[int]
) -> tuple[DistinctTokens, int]:
    """Count what is new of an output; all of it, behind the first tokens, where it is not the one that was counted."""
    if counted is None or counted[1] > len(output):
        counted = DistinctTokens(), 0
        counted[0].add(first)
    tokens, num_counted = counted
    tokens.add(output[num_counted:])
    return tokens, len(output)
