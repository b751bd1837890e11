"""Our engine with a model that is there already, built as the decoder service builds it, and turned by hand.

Knows the engine's parts and the service's defaults. Does not know what computes the model: who asks brings that.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.models import BLOCK_SIZE
from benchmarks.gpu.workloads import Workload
from common.model.graph_recorder import CudaGraphRecorder
from decoder_service.cache.block_hash import block_hash
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine.stats import EngineStats
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.device_guard import GuardedRunner
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.memory import plan_num_blocks
from decoder_service.model.run_config import make_run_config
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig

MakeCompute = Callable[[DecoderModel, KVCache], Compute]

_MAX_BATCHED_TOKENS = 8192
_MEMORY_FRACTION, _WATERMARK = 0.8, 0.01
"""The service's defaults."""


def our_compute(
    device: torch.device, *, max_num_requests: int, max_model_len: int, is_recorded: bool = True
) -> MakeCompute:
    """What a service on a GPU computes with, if need be launched kernel by kernel; plain torch on a CPU."""
    if device.type == "cpu":
        return TorchCompute
    # Imported here: triton comes only with torch's CUDA builds.
    from decoder_service.model.cuda.compute import CudaCompute

    recorder = CudaGraphRecorder(device) if is_recorded else None
    return partial(CudaCompute, recorder=recorder, max_num_requests=max_num_requests, max_model_len=max_model_len)


class OurEngine:
    """The engine, with the prefix cache and steps that are planned ahead, as a service on a GPU has them."""

    def __init__(
        self,
        model: DecoderModel,
        make_compute: MakeCompute,
        *,
        max_num_requests: int,
        max_model_len: int,
        num_blocks: int | None = None,
    ) -> None:
        """Take memory for keys and values: as much as is free, or as requests of that length can use."""
        config = make_run_config(
            model.config, dtype=model.dtype, device=model.device, max_seq_len=max_model_len, block_size=BLOCK_SIZE
        )
        self.num_blocks = num_blocks or plan_num_blocks(
            config,
            dtype=model.dtype,
            memory_fraction=_MEMORY_FRACTION,
            max_num_batched_tokens=_MAX_BATCHED_TOKENS,
            # Admission leaves some blocks free, and nobody is to wait for those where there is memory.
            max_num_requests=math.ceil((1 + 2 * _WATERMARK) * max_num_requests) + 1,
        )
        cache = KVCache(
            model.config, num_blocks=self.num_blocks, block_size=BLOCK_SIZE, device=model.device, dtype=model.dtype
        )
        runner = DecoderRunner(model, cache, make_compute(model, cache))
        runner.run_idle(2)
        guarded = GuardedRunner(runner)
        self._engine = Engine(
            config=SchedulerConfig(
                max_num_batched_tokens=_MAX_BATCHED_TOKENS,
                max_num_requests=max_num_requests,
                max_model_len=max_model_len,
                num_spare_blocks=math.ceil(_WATERMARK * self.num_blocks),
            ),
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            runner=guarded,
            launcher=guarded,
            hash_block=block_hash,
        )
        self._num_requests = 0
        self._num_workloads = 0

    def answer(self, workload: Workload) -> Answers:
        """Greedy tokens of all requests, which run as far as there is room. Raises what a request failed with.

        What the prefix cache holds of workloads before this one is not used.
        """
        # Made before the clock starts, as the peers' prompts are lists before theirs does.
        requests = [self._request(*each) for each in zip(workload.prompts, workload.num_new, strict=True)]
        self._num_workloads += 1
        tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
        times: dict[str, list[float]] = {request.request_id: [] for request in requests}
        started_at = time.perf_counter()
        for request in requests:
            self._engine.submit(request)
        while self._engine.has_work:
            output = self._engine.step()
            if output.failed:
                raise output.failed[0][1]
            now = time.perf_counter() - started_at
            for token in output.tokens:
                tokens[token.request_id].append(token.token_id)
                times[token.request_id].append(now)
        seconds = time.perf_counter() - started_at
        return Answers(tokens=list(tokens.values()), times=list(times.values()), seconds=seconds)

    def stats(self) -> EngineStats:
        """What the engine has done."""
        return self._engine.stats()

    def _request(self, prompt: tuple[int, ...], num_new: int) -> Request:
        self._num_requests += 1
        return Request(
            request_id=f"{self._num_requests}",
            prompt_token_ids=prompt,
            cache_salt=self._num_workloads.to_bytes(4, "little"),
            sampling=SamplingParams(max_tokens=num_new, ignore_eos=True),
            arrival=self._num_requests,
        )
