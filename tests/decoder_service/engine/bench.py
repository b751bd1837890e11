"""Generations over an engine's host and a feature store whose model and encoder are fakes."""

import asyncio
import threading
import time
import zlib
from collections.abc import Sequence

from common.image.preprocessing import PatchGrid
from decoder_service.cache.block_hash import block_hash
from decoder_service.cache.block_manager import BlockId
from decoder_service.cache.feature_store import FeatureStore
from decoder_service.engine.engine import Engine
from decoder_service.engine.generation import Gaps, Generation, Pace
from decoder_service.engine.host import EngineHost
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, NoToken, ScheduledBatch, StepResult
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.encoder_fakes import ROW, FakeEncoder, image


class StepwiseRunner:
    """Gives tokens that depend on all tokens before; waits for the test before each step if told to."""

    def __init__(self) -> None:
        self.may_step = threading.Event()
        self.may_step.set()
        self.seconds = 0.0
        """Time that a step takes at least."""
        self.fatal: BaseException | None = None
        self.not_finite: set[str] = set()

    def execute(self, batch: ScheduledBatch) -> StepResult:
        assert self.may_step.wait(timeout=20)
        time.sleep(self.seconds)
        if self.fatal is not None:
            raise self.fatal
        return StepResult(
            token_ids=[
                NoToken.NOT_FINITE
                if each.request_id in self.not_finite
                else next_token(each.token_ids(0, each.num_tokens))
                for each in batch.sampled
            ]
        )

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        pass

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        pass


def next_token(token_ids: Sequence[int]) -> int:
    return zlib.crc32(bytes(token_ids)) % 200


class Bench:
    """An engine's host and a feature store over fakes."""

    def __init__(self, *, num_blocks: int = 16, caching: bool = True) -> None:
        self.runner = StepwiseRunner()
        self.encoder = FakeEncoder()
        config = SchedulerConfig(max_num_batched_tokens=8, max_num_requests=4, max_model_len=64)
        engine = Engine(
            config=config,
            num_blocks=num_blocks,
            block_size=4,
            runner=self.runner,
            hash_block=block_hash if caching else None,
        )
        self.deaths = 0
        self.host = EngineHost(engine, on_fatal=self._died)
        self.store = FeatureStore(self.encoder, budget_bytes=4 * ROW, caching=caching)
        self._arrivals = 0

    def generation(
        self,
        name: str,
        *,
        pictures: str = "",
        max_tokens: int = 5,
        length: int = 3,
        max_unread_tokens: int = 1000,
        interval: int = 1,
        n: int = 1,
        gaps: Gaps | None = None,
    ) -> Generation:
        """A request for some text and then one-patch pictures, each a letter."""
        token_ids = [len(name) + 1] * length
        spans = []
        for _ in pictures:
            spans.append(PlaceholderRange(len(token_ids), 2, PatchGrid(1, 1)))
            token_ids += [10, 13]
        request = Request(
            request_id=name,
            prompt_token_ids=(*token_ids, 4),
            placeholders=tuple(spans),
            image_identities=tuple(letter.encode() for letter in pictures),
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, n=n),
            arrival=self._arrivals,
        )
        self._arrivals += 1
        images = [image(letter) for letter in pictures]
        pace = Pace(interval=interval, max_unread_tokens=max_unread_tokens)
        return Generation(self.host, self.store, request, images=images, salt=b"", pace=pace, gaps=gaps)

    async def finish_encoding(self, *names: str) -> None:
        """Wait until these pictures are being encoded, and let them be done."""
        for name in names:
            async with asyncio.timeout(10):
                while name not in self.encoder.running:
                    await asyncio.sleep(0.001)
            await self.encoder.finish(name)

    def _died(self) -> None:
        self.deaths += 1


def expected(prompt: Sequence[int], count: int) -> list[int]:
    known = list(prompt)
    for _ in range(count):
        known.append(next_token(known))
    return known[len(prompt) :]
