"""Libraries that keep a completion inside a JSON schema, behind one interface.

Knows how each is called. Does not know schemas or clocks. A library is imported when it is asked for.
"""

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from decoder_service.prompt.tokenizer import Tokenizer

Schema = dict[str, Any]


class Matcher(Protocol):
    """One completion's state."""

    def mask(self) -> None:
        """Compute which tokens may come next."""

    def take(self, token_id: int) -> bool:
        """Go on behind a token; false where it may not come."""

    def may_end(self) -> bool:
        """Whether the document is complete."""


class LLGuidance:
    """The decoder's library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        library = import_module("llguidance")
        pieces = [piece or b"" for piece in tokenizer.texts.pieces]
        special = [i for i, piece in enumerate(tokenizer.texts.pieces) if piece is None]

        class Source:
            eos_token_id = tokenizer.eos_id
            bos_token_id = tokenizer.bos_id
            tokens = tuple(piece if piece else b"\xff<%d>" % i for i, piece in enumerate(pieces))
            special_token_ids = special

            def __call__(self, text: bytes) -> list[int]:
                return tokenizer.encode_text(text.decode())

        self._library = library
        self._tokenizer = library.LLTokenizer(library.TokenizerWrapper(Source()), n_vocab=len(pieces))
        self._row = np.zeros((1, -(-len(pieces) // 32)), dtype=np.int32)

    def compile(self, schema: Schema) -> "_LLMatcher":
        """Compile a schema. Raises ValueError."""
        grammar = self._library.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": r"[ \n\t]*"}
        )
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return _LLMatcher(matcher, self._row)


class _LLMatcher:
    def __init__(self, matcher: Any, row: Any) -> None:  # noqa: ANN401
        self._matcher, self._row = matcher, row

    def mask(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._row.ctypes.data, self._row.nbytes)

    def take(self, token_id: int) -> bool:
        return bool(self._matcher.consume_token(token_id))

    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())

    def start(self) -> "_LLMatcher":
        return _LLMatcher(self._matcher.deep_copy(), self._row)


class XGrammar:
    """The other one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        library = import_module("xgrammar")
        pieces = [piece or b"" for piece in tokenizer.texts.pieces]
        info = library.TokenizerInfo(pieces, vocab_type=library.VocabType.RAW, stop_token_ids=[tokenizer.eos_id])
        self._library = library
        self._compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._row = library.allocate_token_bitmask(1, len(pieces))

    def compile(self, schema: Schema) -> "_XMatcher":
        """Compile a schema. Raises RuntimeError."""
        compiled = self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=True, strict_mode=False)
        return _XMatcher(self._library, compiled, self._row)


class _XMatcher:
    def __init__(self, library: Any, compiled: Any, row: Any) -> None:  # noqa: ANN401
        self._library, self._compiled, self._row = library, compiled, row
        self._matcher = library.GrammarMatcher(compiled)

    def mask(self) -> None:
        self._matcher.fill_next_token_bitmask(self._row)

    def take(self, token_id: int) -> bool:
        return bool(self._matcher.accept_token(token_id))

    def may_end(self) -> bool:
        return bool(self._matcher.is_completed())

    def start(self) -> "_XMatcher":
        return _XMatcher(self._library, self._compiled, self._row)


LIBRARIES: dict[str, Callable[[Tokenizer], Any]] = {"llguidance": LLGuidance, "xgrammar": XGrammar}
