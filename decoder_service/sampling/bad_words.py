"""From words that must not be written to the tokens that write them.

Knows that tokens differ with the space before a word. Does not know logits (see `logits_processors`).
"""

from collections.abc import Callable, Sequence

from common.errors import InvalidArgumentError


def bad_token_sequences(words: Sequence[str], encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """What `encode` makes of each word, inside a text and after a space, without repetition.

    A word given with spaces before it is banned after a space and without one, too. Raises InvalidArgumentError
    (TEXT_NOT_ENCODABLE) where `encode` raises ValueError.
    """
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        try:
            found.update((tuple(encode(spelling)), None) for spelling in _spellings(word))
        except ValueError:
            raise InvalidArgumentError(
                "TEXT_NOT_ENCODABLE",
                "the tokenizer cannot split this text",
                field=f"sampling.bad_words[{index}]",
            ) from None
    return tuple(token_ids for token_ids in found if token_ids)


def _spellings(word: str) -> tuple[str, ...]:
    bare = word.lstrip(" ")
    return (word, bare, f" {bare}") if bare else (word,)
