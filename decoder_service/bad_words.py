"""From words that must not be written to the tokens that write them.

Knows that tokens differ with the space before a word. Does not know logits (see `logits_processors`).
"""

from collections.abc import Callable, Sequence


def bad_token_sequences(words: Sequence[str], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """What `encode` makes of each word, inside a text and after a space, without repetition.

    A word given with spaces before it is banned after a space and without one, too.
    """
    spellings = (spelling for word in words for spelling in _spellings(word))
    return tuple(dict.fromkeys(tuple(token_ids) for text in spellings if (token_ids := encode(text))))


def _spellings(word: str) -> tuple[str, ...]:
    bare = word.lstrip(" ")
    return (word, bare, f" {bare}") if bare else (word,)
