"""How each server wants to be asked for the same work: greedy tokens, so many of them, streamed, and then counted.

Knows bodies of requests and how texts spell token ids. Does not know processes or streams. Text alone goes as token
ids where a server takes them. Pictures go through the chat, where a server's template adds two tokens at most.
"""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.workload import RequestPlan
from benchmarks.served.sender import Ask, Question

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
_BOS = 1
_WORD = re.compile(rb" [a-z]{2,}")


def token_ids(model: Path) -> Ask:
    """Text alone, as vLLM and MAX take it."""

    def ask(plan: RequestPlan) -> Question:
        return Question(path=_COMPLETIONS, body=_wanted(model, plan) | {"prompt": [_BOS, *plan.text_token_ids]})

    return ask


def spelled_text(model: Path) -> Ask:
    """Text alone, as `transformers serve` takes it, for a tokenizer that spells ids."""

    def ask(plan: RequestPlan) -> Question:
        return Question(
            path=_COMPLETIONS, body=_configured(model, plan) | {"prompt": f"<s> {spell(plan.text_token_ids)}"}
        )

    return ask


def chat_of_words(model: Path) -> Ask:
    """Pictures and words of the tokenizer beside the model, a token each, as vLLM takes them.

    Most tokens of random weights are none of that tokenizer's and have no text, so that their ids are asked for.
    """
    words = tokenizer_words(model / "tekken.json")

    def ask(plan: RequestPlan) -> Question:
        text = "".join(words[token % len(words)] for token in plan.text_token_ids)
        return Question(path=_CHAT, body=_wanted(model, plan) | _messages(plan, text) | {"return_token_ids": True})

    return ask


def spelled_chat(model: Path) -> Ask:
    """Pictures and text as `transformers serve` takes them, for a tokenizer that spells ids."""

    def ask(plan: RequestPlan) -> Question:
        return Question(path=_CHAT, body=_configured(model, plan) | _messages(plan, spell(plan.text_token_ids)))

    return ask


def spell(token_ids: Sequence[int]) -> str:
    """Text of which `checkpoints.spelling_tokenizer` makes these tokens."""
    return " ".join(f"t{token}" for token in token_ids)


def tokenizer_words(path: Path) -> list[str]:
    """Words of a tekken tokenizer that are one token each, with the blank before them."""
    vocabulary = json.loads(path.read_text())["vocab"]
    found = (base64.b64decode(entry["token_bytes"]) for entry in vocabulary)
    return [word.decode() for word in found if _WORD.fullmatch(word)]


def _wanted(model: Path, plan: RequestPlan) -> dict[str, object]:
    return {
        "model": str(model),
        "max_tokens": plan.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _configured(model: Path, plan: RequestPlan) -> dict[str, object]:
    """`transformers serve` refuses most of what others take, and counts tokens unasked."""
    count = plan.output_tokens
    config = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
    return {"model": str(model), "stream": True, "generation_config": json.dumps(config)}


def _messages(plan: RequestPlan, text: str) -> dict[str, object]:
    urls = [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in plan.images]
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]}
