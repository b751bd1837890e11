"""transformers' continuous batching over a paged cache, with attention by torch's own function.

By its defaults it sizes its cache and its steps from what the device has free. Its loop runs on a thread of its own, so
nothing here may be inside torch's inference mode. What a later version renamed is found out, not looked up by version.
"""

import dataclasses
import time
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.peers.transformers_weights import transformers_decoder
from benchmarks.gpu.workloads import Workload
from decoder_service.model.weights import DecoderModel

_MEMORY_SHARES = (0.9, 0.7, 0.5)
"""Of what is free, for its cache: its own default, and less where that does not work out."""
_CPU_BLOCK = 256
"""Tokens in one of its blocks, by default"""


class Paged:
    """`init_continuous_batching` as `generate_batch` uses it, but with a length of its own for every output."""

    def __init__(self, model: DecoderModel) -> None:
        names = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
        # Newer versions page by themselves, and would rather load kernels from elsewhere.
        is_newer = "auto_switch_to_flash" in names
        self._settings: dict[str, Any] = {"auto_switch_to_flash": False} if is_newer else {}
        self._model = transformers_decoder(model, attention="sdpa" if is_newer else "paged|sdpa")
        self._shares = list(_MEMORY_SHARES)

    def answer(self, workload: Workload, *, seconds: float) -> Answers:
        """See `Decoding`. Raises RuntimeError with what a request failed with."""
        stop_at = time.monotonic() + seconds
        while True:
            try:
                return self._answer(workload, stop_at)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                if "out of memory" not in str(error) or len(self._shares) == 1:
                    raise
                self._shares.pop(0)

    def _answer(self, workload: Workload, stop_at: float) -> Answers:
        hints = WorkloadHints(
            max_prompt_length=max(map(len, workload.prompts)),
            max_generated_length=max(workload.num_new),
            num_requests=len(workload.prompts),
        )
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),  # type: ignore[no-untyped-call]
            continuous_batching_config=ContinuousBatchingConfig(**self._room(workload), **self._settings),
            workload_hints=hints,
        )
        manager.warmup()
        manager.start()
        started_at = time.perf_counter()
        try:
            names = [
                manager.add_request(list(prompt), max_new_tokens=count, record_timestamps=True)
                for prompt, count in zip(workload.prompts, workload.num_new, strict=True)
            ]
            results, is_whole = _collect(manager, len(names), stop_at)
        finally:
            # What is not done by now is handed out as far as it is.
            manager.stop(block=True, hard_stop=True)
        elapsed = time.perf_counter() - started_at
        while not is_whole and (result := manager.get_result(timeout=0.1)) is not None:
            results[result.request_id] = result
        outputs = [results.get(name) for name in names]
        times = [[each - started_at for each in output.timestamps or ()] if output else [] for output in outputs]
        tokens = [list(each.generated_tokens) if each else [] for each in outputs]
        return Answers(tokens=tokens, times=times, seconds=max((row[-1] for row in times if row), default=elapsed))

    def _room(self, workload: Workload) -> dict[str, Any]:
        device = self._model.device
        if device.type != "cuda":
            blocks = sum(
                -(-(len(prompt) + count) // _CPU_BLOCK)
                for prompt, count in zip(workload.prompts, workload.num_new, strict=True)
            )
            return {"num_blocks": blocks + 1, "max_batch_tokens": 512}
        # It takes its share of all memory that its process does not use, and others have some of that.
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return {"max_memory_percent": self._shares[0] * free / (total - torch.cuda.memory_allocated(device))}


def _collect(manager: Any, count: int, stop_at: float) -> tuple[dict[str, Any], bool]:  # noqa: ANN401
    """Results by request until all are there or the time is over, and which of the two it was."""
    results: dict[str, Any] = {}
    while len(results) < count:
        left = stop_at - time.monotonic()
        if left <= 0:
            return results, False
        result = manager.get_result(timeout=min(left, 1.0))
        if result is None:
            if not manager.is_running():
                raise RuntimeError(f"its loop ended: {manager.background_thread_status.fatal_error}")
        elif result.error is not None:
            raise RuntimeError(result.error)
        elif result.is_finished():
            results[result.request_id] = result
    return results, True
