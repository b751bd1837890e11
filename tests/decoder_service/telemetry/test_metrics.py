"""What the engine's figures say when somebody scrapes, above all that no block is lost."""

import asyncio
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from decoder_service.cache.block_hash import block_hash
from decoder_service.cache.block_manager import BlockId
from decoder_service.cache.feature_store import FeatureStore
from decoder_service.engine.admission import Admission, AdmissionLimits
from decoder_service.engine.engine import Engine
from decoder_service.engine.host import EngineHost
from decoder_service.engine.listener import Nobody
from decoder_service.engine.step import ScheduledBatch, StepResult
from decoder_service.model.splice_error import SpliceError
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.telemetry.metrics import EngineCollector
from decoder_service.vision.arena_guest import Sharing
from decoder_service.vision.replica import VisionReplica
from decoder_service.vision.replica_state import ReplicaState
from tests.decoder_service.engine_fakes import make_request
from tests.decoder_service.runner_fakes import FakeRunner

NUM_BLOCKS = 16


class Encoders:
    def __init__(self) -> None:
        self.bad_streams = Counter({"EMBED_CORRUPT": 2})
        self.num_repeated = 3
        self.replicas: list[VisionReplica] = []

    def add(self, sharing: Sharing | None) -> None:
        """Have one more replica that is ready."""
        replica: Any = SimpleNamespace(state=ReplicaState.READY, sharing=sharing)
        self.replicas.append(replica)


class SlowRunner(FakeRunner):
    """Takes its time."""

    def __init__(self) -> None:
        super().__init__(num_blocks=NUM_BLOCKS, block_size=4)
        self.seconds = 0.0
        self.began = threading.Event()

    def execute(self, batch: ScheduledBatch) -> StepResult:
        self.began.set()
        time.sleep(self.seconds)
        return super().execute(batch)


def make_engine(runner: SlowRunner) -> Engine:
    config = SchedulerConfig(max_num_batched_tokens=8, max_num_requests=4, max_model_len=64)
    return Engine(config=config, num_blocks=NUM_BLOCKS, block_size=4, runner=runner, hash_block=block_hash)


class Scraped:
    """A host of an engine, and what a scrape of it says."""

    def __init__(self, runner: SlowRunner) -> None:
        self.engine = make_engine(runner)
        self.host = EngineHost(self.engine, on_fatal=lambda: None)
        self.registry = CollectorRegistry()
        store = FeatureStore(None, budget_bytes=100)
        limits = AdmissionLimits(max_requests=9, max_waiting_tokens=99, max_picture_bytes=999)
        self.admission = Admission(limits)
        self.encoders = Encoders()
        self.registry.register(EngineCollector(self.host, store, self.encoders, admission=self.admission, block_size=4))

    async def value(self, name: str, **labels: str) -> float | None:
        """As the scraping thread gets it."""
        return await asyncio.to_thread(self.registry.get_sample_value, name, labels)


async def test_free_and_owned_blocks_are_all_while_requests_run_and_after() -> None:
    scraped = Scraped(SlowRunner())
    scraped.host.start()
    try:
        await scraped.host.submit(make_request("a", 9, max_tokens=20), Nobody())
        await scraped.host.submit(make_request("b", 5, max_tokens=20, arrival=1), Nobody())
        seen = set()
        while scraped.host.num_requests:
            assert await scraped.value("diptych_kv_blocks_leaked") == 0
            seen.add(await scraped.value("diptych_kv_blocks_owned"))
        assert await scraped.value("diptych_kv_blocks_free") == NUM_BLOCKS
        assert await scraped.value("diptych_kv_blocks_owned") == 0
    finally:
        await scraped.host.stop()


async def test_several_completions_of_one_prompt_own_shared_blocks_once() -> None:
    runner = SlowRunner()
    runner.seconds = 0.01
    scraped = Scraped(runner)
    scraped.host.start()
    try:
        await scraped.host.submit(make_request("many", 9, max_tokens=12, n=3, ignore_eos=True), Nobody())
        owned = set()
        while scraped.host.num_requests:
            owned.add(await scraped.value("diptych_kv_blocks_owned"))
            assert await scraped.value("diptych_kv_blocks_leaked") == 0
        assert max(count or 0 for count in owned) > 0
    finally:
        await scraped.host.stop()


async def test_a_block_that_is_lost_is_seen() -> None:
    """The negative control: one is taken from the free ones and given to nobody."""
    scraped = Scraped(SlowRunner())
    lost: list[BlockId] = []
    scraped.engine._blocks.allocate(lost, 4)
    scraped.host.start()
    try:
        assert await scraped.value("diptych_kv_blocks_leaked") == 1
    finally:
        await scraped.host.stop()
        scraped.engine._blocks.free(lost)


async def test_a_scrape_during_a_long_step_answers_without_the_check_of_blocks() -> None:
    runner = SlowRunner()
    scraped = Scraped(runner)
    scraped.host.start()
    try:
        runner.seconds = 3.0
        await scraped.host.submit(make_request("slow", 3, max_tokens=1), Nobody())
        # The engine is also busy with the submission itself, behind which it still takes commands before the step.
        await asyncio.to_thread(runner.began.wait)
        # One scrape for all, as each waits half a second for the step's end.
        metrics = await asyncio.to_thread(lambda: list(scraped.registry.collect()))
        found = {sample.name: sample.value for metric in metrics for sample in metric.samples}
        assert "diptych_kv_blocks_leaked" not in found
        assert found["diptych_kv_blocks"] == NUM_BLOCKS
        assert found["diptych_engine_busy_seconds"] > 0
    finally:
        await scraped.host.stop()


async def test_a_splice_that_does_not_fit_is_counted_and_another_failure_is_not() -> None:
    runner = SlowRunner()
    scraped = Scraped(runner)
    scraped.host.start()
    try:
        for index, error in enumerate((SpliceError("rows"), RuntimeError("other"))):
            runner.error = error
            await scraped.host.submit(make_request(f"r{index}", 3, arrival=index), Nobody())
            while scraped.host.num_requests:
                await asyncio.sleep(0.01)
        assert await scraped.value("diptych_splice_mismatches_total") == 1
        assert await scraped.value("diptych_bad_feature_streams_total", reason="EMBED_CORRUPT") == 2
        assert await scraped.value("diptych_encode_repeated_total") == 3
    finally:
        await scraped.host.stop()


async def test_waiting_requests_are_told_apart_and_add_up() -> None:
    scraped = Scraped(SlowRunner())
    scraped.host.start()
    try:
        await scraped.host.submit(make_request("pictured", 2, 3, 1), Nobody())
        assert await scraped.value("diptych_num_requests_waiting") == 1
        assert await scraped.value("diptych_num_requests_waiting_by_reason", reason="images") == 1
        assert await scraped.value("diptych_num_requests_waiting_by_reason", reason="capacity") == 0
    finally:
        await scraped.host.stop()


async def test_replicas_are_told_apart_by_what_became_of_the_memory_that_they_offer() -> None:
    scraped = Scraped(SlowRunner())
    for sharing in (Sharing.MAPPED, Sharing.OUT_OF_REACH, Sharing.MAPPED, None):
        scraped.encoders.add(sharing)
    shares = [await scraped.value("diptych_vision_replicas_sharing_memory", state=each.value) for each in Sharing]
    assert shares == [2, 1]
    assert await scraped.value("diptych_vision_replicas", state="ready") == 4
