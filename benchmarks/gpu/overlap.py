"""Case G4: steps that are begun while the ones before them run, beside steps that wait for each other.

Knows the engine, and what both ways must have in common: the tokens. Does not know kernels: who asks brings what
computes, so that the comparison itself runs on a CPU too.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from benchmarks.gpu.clock import Marks
from benchmarks.gpu.models import BLOCK_SIZE
from benchmarks.gpu.ours import MakeCompute
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, StepResult
from decoder_service.model.device_guard import GuardedRunner
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.step_queue import AtOnce
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig

PROMPT = 64
NEW_TOKENS = 128
_GREEDY = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
_DRAWN = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, temperature=0.8, top_p=0.95, top_k=50)

Result = TypeVar("Result")


class TimedQueue:
    """Does steps at once, and notes from when to when the device had each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queue = AtOnce()
        self._marks = Marks(device)

    def put(self, work: Callable[[], Result]) -> "Future[Result]":
        """See `StepQueue`."""
        self._marks.note()
        future = self._queue.put(work)
        self._marks.note()
        return future

    def start_anew(self) -> None:
        """Forget the steps so far."""
        self._marks = Marks(self._device)

    def idle_share(self) -> float:
        """Part of the time from the first step to the last in which the device had none."""
        moments = [0.0, *self._marks.seconds()]
        begins, ends = moments[::2], moments[1::2]
        return sum(begin - end for end, begin in zip(ends, begins[1:], strict=False)) / moments[-1]

    def slack_share(self) -> float:
        """Part of that time by which steps took longer than the fastest tenth of them.

        In it the device may have waited for the host within a step; it is no less than that, as steps also grow.
        """
        moments = [0.0, *self._marks.seconds()]
        steps = sorted(end - begin for begin, end in zip(moments[::2], moments[1::2], strict=True))
        fast = steps[len(steps) // 10]
        return sum(max(step - fast, 0.0) for step in steps) / moments[-1]


class LaunchingRunner(DecoderRunner):
    """Puts steps that are waited for into its queue too."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """See `Runner`."""
        return self.launch(batch).result()


def overlap_rows(model: DecoderModel, make_compute: MakeCompute, batches: Sequence[int]) -> Iterator[dict[str, object]]:
    """A row per batch and way to sample: tokens a second and the device's idle share, with overlap and without."""
    for batch in batches:
        count = batch * -(-(PROMPT + NEW_TOKENS) // BLOCK_SIZE) + 1
        cache = KVCache(model.config, num_blocks=count, block_size=BLOCK_SIZE, device=model.device, dtype=model.dtype)
        compute = make_compute(model, cache)
        for name, sampling in (("greedy", _GREEDY), ("drawn", _DRAWN)):
            tokens, rates, idle, slack = {}, {}, {}, {}
            for overlap in (False, True):
                queue = TimedQueue(model.device)
                runner = GuardedRunner(LaunchingRunner(model, cache, compute, queue=queue))
                _run(runner, queue, count, batch, sampling, overlap=overlap)  # Warms up.
                tokens[overlap], rates[overlap] = _run(runner, queue, count, batch, sampling, overlap=overlap)
                idle[overlap], slack[overlap] = queue.idle_share(), queue.slack_share()
            yield {
                "case": f"{batch} requests, {name}",
                "tokens/s": rates[True],
                "tokens/s without overlap": rates[False],
                "ratio": rates[True] / rates[False],
                "idle share": idle[True],
                "share of slack within steps": slack[True],
                "idle share without overlap": idle[False],
                "right": tokens[True] == tokens[False],
            }


def _run(
    runner: GuardedRunner,
    queue: TimedQueue,
    num_blocks: int,
    batch: int,
    sampling: SamplingParams,
    *,
    overlap: bool,
) -> tuple[dict[str, list[int]], float]:
    """The requests' tokens, and how many of them came a second once all had their first."""
    engine = Engine(
        config=SchedulerConfig(max_num_batched_tokens=8192, max_num_requests=batch, max_model_len=PROMPT + NEW_TOKENS),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        runner=runner,
        launcher=runner if overlap else None,
        hash_block=None,
    )
    vocabulary = 1000
    for number in range(batch):
        ids = tuple((97 * number + 31 * place) % vocabulary for place in range(PROMPT))
        engine.submit(Request(request_id=f"{number}", prompt_token_ids=ids, sampling=sampling, arrival=number))
    tokens: dict[str, list[int]] = {f"{number}": [] for number in range(batch)}
    num_before, begin = 0, 0.0
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise output.failed[0][1]
        for token in output.tokens:
            tokens[token.request_id].append(token.token_id)
        if not begin and all(tokens.values()):
            num_before, begin = sum(map(len, tokens.values())), time.perf_counter()
            queue.start_anew()
    return tokens, (sum(map(len, tokens.values())) - num_before) / (time.perf_counter() - begin)
