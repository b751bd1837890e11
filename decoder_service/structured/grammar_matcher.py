"""Follows completions through grammars, with llguidance.

Knows the library, and what the tokens of a vocabulary write. Does not know requests, tensors, or who asks for which
language (see `compiler`). This and `probe` are the files that need the extra `structured`.
"""

import ctypes
import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.structured.probe import LIMITS, probe
from decoder_service.structured.structure import Structure, StructureKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # It is there for type checkers alone.

JSON_OPTIONS: "JsonCompileOptions" = {"lenient": False, "whitespace_pattern": r"[ \n]{0,40}"}
"""What is not understood of a schema is refused. White space has an end, or a model could write it for ever."""

_DEAD_END: Final = "NoExtensionBias"
"""How the library's words begin where a language has no text that goes on from a place, or none at all."""


def grammar_of(structure: Structure) -> str:
    """A language as the library reads it. Raises ValueError."""
    match structure.kind:
        case StructureKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(_schema(structure.source), overrides=JSON_OPTIONS)
        case StructureKind.JSON_OBJECT:
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
        case StructureKind.REGEX:
            return LLMatcher.grammar_from_regex(structure.source)
        case StructureKind.GRAMMAR:
            return LLMatcher.grammar_from_lark(structure.source)
        case StructureKind.CHOICE:
            texts = [json.dumps(text) for text in json.loads(structure.source)]
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))


def _schema(source: str) -> str:
    """A schema as an object; the two that are none allow everything and nothing. Raises ValueError for the latter."""
    whole = source.strip(" \t\r\n")
    if whole == "false":
        raise ValueError("the schema is false, which allows nothing")
    return "{}" if whole == "true" else source


def _in_own_words(structure: Structure, reason: str) -> str:
    """What is wrong with a language, without the grammar around it that its caller did not write."""
    if structure.kind is StructureKind.GRAMMAR:
        return reason
    return re.sub(r"^(at )?\d+\(\d+\): ", "", re.split(r"\n *\d+ \| ", reason, maxsplit=1)[0])


class GrammarVocabulary:
    """A vocabulary, prepared for the library; takes seconds for a large one."""

    def __init__(self, tokenizer: Tokenizer, *, vocabulary_size: int, end_token_ids: Collection[int]) -> None:
        """Take what the tokens write, how many ids the model has, and which of them end a completion."""
        pieces = [tokenizer.token_bytes(token_id) for token_id in range(vocabulary_size)]
        source = _Source(pieces, end_token_ids, tokenizer)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(source), n_vocab=vocabulary_size, eos_token=sorted(end_token_ids)
        )

    async def try_out(self, structure: Structure, *, seconds: float) -> str | None:
        """Why a language does not compile, or None. Raises ValueError, and what `probe` raises."""
        reason = await probe(grammar_of(structure), seconds=seconds)
        return None if reason is None else _in_own_words(structure, reason)

    def compile(self, structure: Structure) -> "GrammarMatcher":
        """Where a completion begins; takes milliseconds, and not the interpreter's lock. Raises ValueError."""
        matcher = LLMatcher(self._tokenizer, grammar_of(structure), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(_in_own_words(structure, matcher.get_error()))
        return GrammarMatcher(matcher)


class GrammarMatcher:
    """A `Matcher`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def fork(self) -> "GrammarMatcher":
        """Another completion that is at the same place."""
        return GrammarMatcher(self._matcher.deep_copy())

    @property
    def has_failed(self) -> bool:
        """Whether it gave up. That no text goes on from here is no failure, though the library calls it an error."""
        return self._matcher.is_error() and not self._matcher.get_error().startswith(_DEAD_END)

    def mask(self, address: int, num_bytes: int) -> None:
        """Write which tokens may come next, see `Matcher`."""
        self._matcher.unsafe_compute_mask_ptr(address, num_bytes)
        if self._matcher.is_error():
            ctypes.memset(address, 0, num_bytes)

    def take(self, token_id: int) -> bool:
        """Go on behind a token; false where the language does not go on with it."""
        return self._matcher.consume_token(token_id)

    def forced(self) -> Sequence[int]:
        """Tokens that write what must come next, see `Matcher`."""
        return self._matcher.compute_ff_tokens()


class _Source:
    """A tokenizer as the library wants it."""

    def __init__(self, pieces: Sequence[bytes], end_token_ids: Collection[int], tokenizer: Tokenizer) -> None:
        # Whatever writes nothing must have a name all the same, of bytes that no text has.
        self.tokens = [piece or b"\xff<|%d|>" % token_id for token_id, piece in enumerate(pieces)]
        self.special_token_ids = [token_id for token_id, piece in enumerate(pieces) if not piece]
        self.eos_token_id = min(end_token_ids)
        self.bos_token_id = tokenizer.bos_id
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_text(text.decode())
