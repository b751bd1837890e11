"""Requests, pictures and encoders in any order: nothing waits for ever, and nothing is left behind.

Everything between the servicer and the model is the real thing: generations, fetches, the feature store, the
engine with its caches. The encoder and the runner are fakes, and the test says when either goes on.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from common.errors import DiptychError, UnavailableError
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from decoder_service.cache.block_hash import block_hash
from decoder_service.cache.feature_store import FeatureStore, PromptImage
from decoder_service.engine.engine import Engine
from decoder_service.engine.generation import Generation, Pace
from decoder_service.engine.host import EngineHost
from decoder_service.engine.request import Request
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.encoder_fakes import FakeEncoder, settle
from tests.decoder_service.engine_fakes import make_request, make_rows, tokens_alone
from tests.decoder_service.operations import operations
from tests.decoder_service.runner_fakes import FakeRunner

BLOCK_SIZE = 3
LARGEST = 4 * 5
"""Bytes of the features of the largest image."""
NEVER = 1e12
SALTS = (b"", b"other")

pictures = st.lists(
    st.tuples(st.sampled_from("pqr"), st.sampled_from([2, 5, 6]), st.sampled_from([0, 1, 4])), max_size=3
)


class TurnedHost(EngineHost):
    """A host without a thread: the test turns it."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_alive = True

    def turn(self) -> None:
        """Run the commands that wait, and then a step."""
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command(self._engine)
                self._engine.check_integrity()
        if self._engine.has_work:
            now = time.monotonic()
            self._tell(self._listeners.publish, self._engine.step(), now, now)
        self._engine.check_integrity()


class RowsEncoder(FakeEncoder):
    """Makes features that no other image has."""

    async def encode(
        self, image: bytes, *, salt: bytes, spec: FeatureSpec, buffer: memoryview, request_id: str
    ) -> None:
        assert image.endswith(salt)
        await super().encode(image, salt=salt, spec=spec, buffer=buffer, request_id=request_id)
        buffer[:] = make_rows(image, len(buffer))


@dataclass
class Asked:
    """A request, what its caller has heard, and the task that listens."""

    request: Request
    token_ids: list[list[int]]
    """Of each completion."""
    task: asyncio.Task[str]
    ends_early: bool
    """Whether the last completion is ended as by a stop text."""
    reads: asyncio.Event
    """Set while the caller takes what comes."""


class GenerationMachine(RuleBasedStateMachine):
    """Random operations where blocks, places in the batch and feature memory run out all the time."""

    overlap = False
    """Whether steps are planned while the ones before them run."""

    def __init__(self) -> None:
        super().__init__()
        self.asyncio = asyncio.Runner()  # Makes its loop when it is first asked for one.
        self.asked: list[Asked] = []
        self.encoder = RowsEncoder()

    @initialize(
        num_blocks=st.integers(24, 30),
        max_num_requests=st.integers(1, 4),
        spare_tokens=st.integers(0, 12),
        num_spare_blocks=st.integers(0, 3),
        spare_bytes=st.integers(0, 2 * LARGEST),
        prefix_caching=st.booleans(),
        feature_caching=st.booleans(),
        is_eager=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        max_num_requests: int,
        spare_tokens: int,
        num_spare_blocks: int,
        spare_bytes: int,
        prefix_caching: bool,
        feature_caching: bool,
        is_eager: bool,
    ) -> None:
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=BLOCK_SIZE)
        self.runner.is_eager = is_eager
        self.engine = Engine(
            config=SchedulerConfig(
                max_num_batched_tokens=max_num_requests + spare_tokens,
                max_num_requests=max_num_requests,
                max_model_len=1000,
                num_spare_blocks=num_spare_blocks,
            ),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            runner=self.runner,
            launcher=self.runner if self.overlap else None,
            hash_block=block_hash if prefix_caching else None,
        )
        self.host = TurnedHost(self.engine, on_fatal=lambda: None)
        self.budget = 3 * LARGEST + spare_bytes
        self.store = FeatureStore(self.encoder, budget_bytes=self.budget, caching=feature_caching)
        self.loop.call_soon(self.host.start)
        self.settle()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.asyncio.get_loop()

    def settle(self) -> None:
        """Let every task go on as far as it can, and look at the books."""
        self.loop.run_until_complete(settle())
        assert 0 <= self.store.bytes_cached <= self.budget - self.store.bytes_held

    @property
    def live(self) -> list[Asked]:
        return [asked for asked in self.asked if not asked.task.done()]

    @rule(
        length=st.sampled_from([1, 4, 8]),
        text=st.sampled_from(["one", "two"]),
        images=pictures,
        salt=st.sampled_from(SALTS),
        max_tokens=st.integers(1, 9),
        priority=st.sampled_from([0, 0, -1, 1]),
        n=st.sampled_from([1, 1, 2]),
        ends_early=st.booleans(),
    )
    def submit(
        self,
        length: int,
        text: str,
        images: list[tuple[str, int, int]],
        salt: bytes,
        max_tokens: int,
        priority: int,
        n: int,
        ends_early: bool,
    ) -> None:
        request = make_request(
            f"r{len(self.asked)}",
            length,
            *(part for _, image, after in images for part in (image, after)),
            arrival=len(self.asked),
            max_tokens=max_tokens,
            text=text,
            pictures=[f"{name}{length}" for name, length, _ in images],
            cache_salt=salt,
            priority=priority,
            tenant=salt,
            n=min(n, self.engine.capacity.max_num_requests),
        )
        token_ids: list[list[int]] = [[] for _ in range(request.sampling.n)]
        reads = asyncio.Event()
        reads.set()
        task = self.loop.create_task(self._listen(request, salt, token_ids, reads, ends_early=ends_early))
        self.asked.append(Asked(request, token_ids, task, ends_early, reads))
        self.settle()

    async def _listen(
        self, request: Request, salt: bytes, token_ids: list[list[int]], reads: asyncio.Event, *, ends_early: bool
    ) -> str:
        """Run a request to its end, its last completion perhaps only to its second token; what it ended with."""
        last = len(token_ids) - 1
        try:
            generation = Generation(
                self.host, self.store, request, images=_images(request), salt=salt, pace=Pace(max_unread_tokens=1)
            )
            async with generation:
                async for tokens in generation.tokens(deadline=NEVER):
                    for token in tokens:
                        token_ids[token.index].append(token.token_id)
                    if ends_early and len(token_ids[last]) > 1:
                        generation.end(last)
                    await reads.wait()
            for index in range(request.sampling.n):
                times = generation.timings(index)
                assert min(times.queue, times.encode_wait, times.prefill, times.decode) >= 0
            assert 0 <= generation.num_images_not_encoded <= len(request.placeholders)
        except DiptychError as error:
            return error.reason
        return "finished"

    @rule(num_turns=st.integers(1, 4))
    def turn(self, num_turns: int) -> None:
        for _ in range(num_turns):
            self.host.turn()
            self.settle()

    @precondition(lambda self: self.encoder.running)
    @rule(data=st.data())
    def encode(self, data: st.DataObject) -> None:
        self._end_encoding(data.draw(st.sampled_from(sorted(self.encoder.running))))

    @precondition(lambda self: self.encoder.running)
    @rule(data=st.data())
    def fail_to_encode(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.encoder.running)))
        self._end_encoding(name, UnavailableError("VISION_UNAVAILABLE", "gone"))

    def _end_encoding(self, name: str, error: Exception | None = None) -> None:
        self.loop.run_until_complete(self.encoder.finish(name, error))
        self.settle()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_turns=st.integers(0, 1))
    def leave(self, data: st.DataObject, num_turns: int) -> None:
        data.draw(st.sampled_from(self.live)).task.cancel()
        if num_turns:
            self.host.turn()
        self.settle()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def become_not_finite(self, data: st.DataObject) -> None:
        self.runner.not_finite.add(data.draw(st.sampled_from(self.live)).request.request_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.live)).reads.clear()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def read_on(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.live)).reads.set()
        self.settle()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def become_a_culprit(self, data: st.DataObject) -> None:
        self.runner.culprits.add(data.draw(st.sampled_from(self.live)).request.request_id)

    @rule(most_tokens=st.sampled_from([None, None, 1, 5]))
    def change_memory(self, most_tokens: int | None) -> None:
        self.runner.most_tokens = most_tokens

    @rule()
    def raise_in_the_next_step(self) -> None:
        self.runner.error = RuntimeError("planted")

    def teardown(self) -> None:
        with self.asyncio:
            if self.asked:
                self._end()

    def _end(self) -> None:
        for asked in self.asked:
            asked.reads.set()
        for _ in range(100 + 100 * len(self.asked)):
            if not self.live:
                break
            for name in sorted(self.encoder.running):
                self._end_encoding(name)
            self.turn(1)
        assert not self.live, f"still not ended: {self.live}"
        self.turn(1)  # A caller that was cancelled twice has not waited for the engine to forget it.
        self._check_idle()
        for asked in self.asked:
            has_finished = not asked.task.cancelled() and asked.task.result() == "finished"
            for index, token_ids in enumerate(asked.token_ids):
                expected = tokens_alone(asked.request, index)
                if not has_finished or (asked.ends_early and index == len(asked.token_ids) - 1):
                    expected = expected[: len(token_ids)]
                assert token_ids == expected

    def _check_idle(self) -> None:
        stats = self.host.stats
        assert (stats.num_waiting, stats.num_running, self.host.num_requests) == (0, 0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        assert self.store.bytes_held == 0
        assert not self.encoder.running
        assert not asyncio.all_tasks(self.loop)


def _images(request: Request) -> Sequence[PromptImage]:
    return [
        PromptImage(
            data=identity,
            spec=FeatureSpec(image_hash=ImageHash(identity), grid=span.grid, width=1, dtype="float32"),
        )
        for identity, span in zip(request.image_identities, request.placeholders, strict=True)
    ]


class OverlappedGenerationMachine(GenerationMachine):
    """The same while a step runs."""

    overlap = True


TestGeneration = GenerationMachine.TestCase
TestGeneration.settings = operations(12_000)
TestOverlappedGeneration = OverlappedGenerationMachine.TestCase
TestOverlappedGeneration.settings = operations(12_000)
