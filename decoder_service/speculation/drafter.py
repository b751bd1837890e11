"""How many tokens a request tries in a step, by how often it was right.

Knows one request's tries. Does not know what a step has room for (see `drafting`).

With a likelihood p that a token which is tried behind right ones is right too, the i-th is kept with p^i. It is worth
trying while that is more than its price: the part of a next token's time that computing it takes.
"""

import math

from decoder_service.speculation.prompt_lookup import PromptLookup

FIRST_LIKELIHOOD = 0.7
"""Before anything was tried."""
_MOST_LIKELIHOOD = 0.99
_WEIGHT = 1 / 8
"""Of one token that was tried, right or wrong, in the likelihood."""
_RECOVERY = 1 / 512
"""What the likelihood gains in a step that tries nothing as it is not worth it: text may begin to repeat itself."""


class Drafter:
    """What one request tries."""

    def __init__(self, *, most: int, most_tokens: int) -> None:
        """Try up to `most` tokens in a step, of a request that has up to `most_tokens` in the end."""
        self.most = most
        """Tokens that it tries in a step at most; 0 once it has given up."""
        self.likelihood = FIRST_LIKELIHOOD
        """That a token which is tried is right."""
        self.lookup = PromptLookup(most_tokens)
        """Where the tokens come from."""

    def length(self, price: float) -> int:
        """Tokens worth trying at a price from above 0 on, each in parts of a next token's time."""
        if self.likelihood <= price:
            return 0
        return min(int(math.log(price) / math.log(self.likelihood)), self.most)

    def give_up(self) -> None:
        """Try nothing any more."""
        self.most = 0

    def passed(self) -> None:
        """Hear that nothing was worth trying in a step."""
        self.likelihood = min(self.likelihood + _RECOVERY, max(self.likelihood, FIRST_LIKELIHOOD))

    def tried(self, num_tokens: int, num_accepted: int) -> None:
        """Hear how many of the tokens that were tried were right; behind the first wrong one none is."""
        kept = (1 - _WEIGHT) ** num_accepted
        self.likelihood = min(1 - (1 - self.likelihood) * kept, _MOST_LIKELIHOOD)
        if num_accepted < num_tokens:
            self.likelihood *= 1 - _WEIGHT
