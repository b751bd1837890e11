"""Turns planned requests into prompts for a running decoder service.

Knows the service's own word on how a picture is laid out: `Tokenize` is asked once for each size. Does not know when
requests are sent.
"""

from benchmarks.load.workload import ImageSize, RequestPlan
from common.client.client import AsyncDiptychClient
from common.client.messages import token_ids, user_message
from diptych.v1 import generation_pb2 as pb


class PromptMaker:
    """Prompts as token ids, pictures first."""

    def __init__(self, client: AsyncDiptychClient, info: pb.GetModelInfoResponse) -> None:
        self._client = client
        self._layouts: dict[ImageSize, list[int]] = {}
        special = {info.image_token_id, *info.end_token_ids}
        first = _FIRST_PLAIN_TOKEN if info.vocabulary_size > 2 * _FIRST_PLAIN_TOKEN else 3
        self.text_token_ids = [token for token in range(first, info.vocabulary_size) if token not in special]
        """Tokens that stand for text and for nothing else."""

    async def prompt(self, plan: RequestPlan) -> pb.TokenIds:
        """The prompt of a planned request."""
        ids = [_BOS]
        for file, size in zip(plan.images, plan.image_sizes, strict=True):
            ids += await self._layout(file, size)
        return token_ids([*ids, *plan.text_token_ids], plan.images)

    async def _layout(self, file: bytes, size: ImageSize) -> list[int]:
        if size not in self._layouts:
            answer = await self._client.tokenize([user_message("?", [file])])
            span = answer.placeholders[0]
            self._layouts[size] = list(answer.token_ids[span.offset : span.offset + span.length])
        return self._layouts[size]


_BOS = 1
_FIRST_PLAIN_TOKEN = 100
"""Tokenizers keep their control tokens at the start."""
