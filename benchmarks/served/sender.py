"""Sends one request to an OpenAI-compatible server and records its stream.

Knows what a stream of completions says, of a chat or not. Does not know how a server wants to be asked: `ask` does.
A chunk is an event that brings text or token ids; tokens are those that the server counts in its last message, and a
request that ends without that count, or with other than the tokens that were asked for, has failed.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.generator import observe
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import RequestPlan
from benchmarks.served.event_stream import StreamError, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is posted for a request."""

    path: str
    body: Mapping[str, object]


Ask = Callable[[RequestPlan], Question]


@dataclass(slots=True)
class _Usage:
    counts: Mapping[str, int] = field(default_factory=dict)


class OpenAiSender:
    """Sends planned requests, each over a connection of its own."""

    def __init__(self, port: int, ask: Ask) -> None:
        self._port = port
        self._ask = ask

    async def send(self, plan: RequestPlan) -> RequestRecord:
        """Send a request now and wait for its end."""
        question = self._ask(plan)
        body = json.dumps(question.body).encode()
        usage = _Usage()

        async def chunks() -> AsyncIterator[int]:
            answer = events(self._port, question.path, body)
            async with aclosing(answer):
                async for event in answer:
                    if event.get("error"):
                        raise StreamError(f"the server's error: {str(event['error'])[:200]}")
                    usage.counts = event.get("usage") or usage.counts
                    yield num_tokens(event)
            if (count := usage.counts.get("completion_tokens")) != plan.output_tokens:
                raise StreamError(f"{count} tokens in place of {plan.output_tokens}")

        record = await observe(RequestRecord(sent_at=time.monotonic(), num_images=len(plan.images)), chunks())
        record.prompt_tokens = usage.counts.get("prompt_tokens", 0)
        record.output_tokens = usage.counts.get("completion_tokens", record.output_tokens)
        return record


def num_tokens(event: Mapping[str, Any]) -> int:
    """Tokens that an event is known to bring: those whose ids it has, or at least one where it has text."""
    choices = event.get("choices")
    if not choices:
        return 0
    choice = choices[0]
    if choice.get("token_ids"):
        return len(choice["token_ids"])
    return 1 if choice.get("text") or (choice.get("delta") or {}).get("content") else 0
