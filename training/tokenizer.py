"""Makes the demo's tekken.json: special tokens, bytes, and a few merges learnt from the tasks' texts.

Knows the file format and byte-pair learning. Does not know how text is encoded at run time, which is
mistral-common's affair. Run `python -m training.tokenizer FILE` to write the file.
"""

import argparse
import base64
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

import regex

from training.tasks import LONGEST_EDGE, PATCH, texts

VOCAB_SIZE = 512
SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
NUM_SPECIAL_TOKENS = 32
# Mistral's pattern: words with an optional leading space, digits one by one, punctuation, white space.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GENERAL_ENGLISH = """
The quick brown fox jumps over the lazy dog. You are a helpful assistant. Please answer the question that
was asked about this picture, and say what you can see in it. There is nothing else here but what they have
shown to us; it would be nice to know more about these things. I do not know who made them, or when, or why.
Hello, how are you today? Thank you very much. Yes, no, maybe. One two three four five six seven eight nine
ten. Left and right, above and below, between all of them, before and after, small and large, light and dark.
"""


def tekken_file(seed: int = 0) -> str:
    """The text of the file; the same seed gives the same file."""
    corpus = Counter(piece for text in _corpus(seed) for piece in regex.findall(PATTERN, text))
    tokens = [bytes([value]) for value in range(256)]
    tokens += learn_merges(corpus, VOCAB_SIZE - NUM_SPECIAL_TOKENS - len(tokens))
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": _readable(token)}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": VOCAB_SIZE,
        "default_num_special_tokens": NUM_SPECIAL_TOKENS,
        "version": "v3",
    }
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL_TOKENS)]
    image = {"image_patch_size": PATCH, "max_image_size": LONGEST_EDGE}
    document = {"config": config, "vocab": vocab, "special_tokens": special, "image": image}
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def learn_merges(corpus: Counter[str], count: int) -> list[bytes]:
    """The `count` most useful merges, in the order in which a rank-ordered encoder applies them."""
    words = {piece: [bytes([value]) for value in piece.encode()] for piece in corpus}
    known = {bytes([value]) for value in range(256)}
    merges: list[bytes] = []
    while len(merges) < count:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for piece, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += corpus[piece]
        best = max((pair for pair in pairs if pair[0] + pair[1] not in known), key=lambda pair: (pairs[pair], pair))
        merges.append(best[0] + best[1])
        known.add(merges[-1])
        words = {piece: _merged(parts, best) for piece, parts in words.items()}
    return merges


def _merged(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    out: list[bytes] = []
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            out.append(pair[0] + pair[1])
            index += 2
        else:
            out.append(parts[index])
            index += 1
    return out


def _corpus(seed: int) -> Iterable[str]:
    yield from texts(Random(seed), 3000)  # noqa: S311
    for _ in range(10):
        yield GENERAL_ENGLISH


def _readable(token: bytes) -> str | None:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return None


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args().file
    path.write_text(tekken_file(), encoding="utf-8")


if __name__ == "__main__":
    main()
