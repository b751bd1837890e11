"""Sends one request to a running decoder service and records its stream.

Knows the client. Does not know loops or figures. A chunk is a message with tokens; output tokens are those that the
service counts in its last message.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from benchmarks.load.generator import observe
from benchmarks.load.prompts import PromptMaker
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import RequestPlan
from common.client.client import AsyncDiptychClient
from diptych.v1 import generation_pb2 as pb

MAX_CALLS: Final = 1000
"""Of a client that measures: a load waits at the server, where the time is taken, and not on this side."""


class Sender:
    """Sends planned requests over one connection."""

    def __init__(self, client: AsyncDiptychClient, prompts: PromptMaker) -> None:
        self._client = client
        self._prompts = prompts

    async def send(self, plan: RequestPlan) -> RequestRecord:
        """Send a request now and wait for its end."""
        prompt = await self._prompts.prompt(plan)
        usage = pb.Usage()

        async def chunks() -> AsyncIterator[int]:
            responses = self._client.generate(prompt, max_tokens=plan.output_tokens, ignore_eos=True)
            async with aclosing(responses):
                async for response in responses:
                    if response.HasField("finish"):
                        usage.CopyFrom(response.finish.usage)
                    yield len(response.delta.token_ids)

        record = await observe(RequestRecord(sent_at=time.monotonic(), num_images=len(plan.images)), chunks())
        record.prompt_tokens = usage.prompt_tokens
        record.output_tokens = usage.completion_tokens or record.output_tokens
        return record
