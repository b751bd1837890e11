"""Host cost of the engine: its steps without a model, and its books of blocks.

Knows the engine and a runner that answers at once, so that what is measured is all that Python does in a step. Does not
know tensors. The three growths: steps against running requests, against their contexts, and against those that wait.
"""

from collections.abc import Iterator, Sequence

from benchmarks.components.timing import Measurement, scaled, seconds_of_calls, seconds_per_call
from decoder_service.cache.block_hash import BlockHash
from decoder_service.cache.block_manager import BlockId, BlockManager
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, ScheduledBatch, StepResult
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig

BLOCK_SIZE = 16
STEPS = 100
"""Steps of a sample; there are five samples, and one request must outlive them all."""
_MAX_TOKENS = 16 * STEPS
_MICROSECONDS = 1e6
STEP_BY_RUNNING = "step by running requests"
STEP_BY_CONTEXT = "step by context"
STEP_BY_WAITING = "step by waiting requests"


class InstantRunner:
    """Says token 7, whatever it is asked."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Choose without computing."""
        return StepResult(token_ids=[7] * len(batch.sampled))

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """There is nothing to copy."""

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        """There is nothing to clear."""


def engine_with(*, running: int, context: int = 64, waiting: int = 0, max_tokens: int = _MAX_TOKENS) -> Engine:
    """An engine in which so many requests of so long a context run, and others wait as there is no place for them."""
    blocks = running * -(-(context + max_tokens) // BLOCK_SIZE)
    engine = Engine(
        config=SchedulerConfig(max_num_batched_tokens=8192, max_num_requests=running, max_model_len=1 << 22),
        num_blocks=blocks,
        block_size=BLOCK_SIZE,
        runner=InstantRunner(),
    )
    for number in range(running):
        engine.submit(_request(number, context, max_tokens))
    while engine.stats().num_running < running or engine.stats().num_batched_tokens > running:
        engine.step()
    for number in range(waiting):
        engine.submit(_request(running + number, 64, max_tokens))
    return engine


def measure_steps(*, running: Sequence[int], contexts: Sequence[int], waiting: Sequence[int]) -> Iterator[Measurement]:
    """Microseconds of a step over each of the three growths."""
    for number in running:
        yield _step(STEP_BY_RUNNING, f"{number} running", number, engine_with(running=number))
    for context in contexts:
        at = f"32 running with {context} tokens each"
        yield _step(STEP_BY_CONTEXT, at, context, engine_with(running=32, context=context))
    for number in waiting:
        yield _step(STEP_BY_WAITING, f"32 running, {number} waiting", number, engine_with(running=32, waiting=number))


def measure_blocks(seconds: float) -> Iterator[Measurement]:
    """Microseconds of taking 64 blocks and giving them back, and of finding 64 that are remembered."""
    manager = BlockManager(4096, BLOCK_SIZE)
    remembered: list[BlockId] = []
    manager.allocate(remembered, 64 * BLOCK_SIZE)
    hashes = [BlockHash(number.to_bytes(32, "little")) for number in range(64)]
    for block_id, name in zip(remembered, hashes, strict=True):
        manager.remember(block_id, name)

    def allocate_and_free() -> None:
        table: list[BlockId] = []
        manager.allocate(table, 64 * BLOCK_SIZE)
        manager.free(table)

    for at, work in (("allocate and free 64", allocate_and_free), ("find 64", lambda: manager.find(hashes))):
        value = scaled(seconds_per_call(work, seconds=seconds), _MICROSECONDS)
        yield Measurement(component="block manager", at=at, value=value, unit="us")


def _step(component: str, at: str, parameter: int, engine: Engine) -> Measurement:
    found = seconds_of_calls(engine.step, calls=STEPS)
    return Measurement(
        component=component, at=at, value=scaled(found, _MICROSECONDS), unit="us", parameter=float(parameter)
    )


def _request(number: int, length: int, max_tokens: int) -> Request:
    return Request(
        request_id=f"request-{number}",
        # No two prompts share a block.
        prompt_token_ids=(100 + number, *range(100, 100 + length - 1)),
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        arrival=number,
    )
