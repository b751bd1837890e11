"""Our whole engine on the workloads that the peers get: cases G1 and G2 by decode steps, G8 by all its tokens.

Knows limits by the measured ceilings. Does not know what computes: who asks brings an engine.
"""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.models import BLOCK_SIZE
from benchmarks.gpu.ours import OurEngine
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.report import Row
from benchmarks.gpu.workloads import Workload
from benchmarks.operations import key_value_bytes, prompt_flops, weight_bytes
from common.model.config import MistralConfig


def engine_rows(engine: OurEngine, workloads: Sequence[Workload], own: OwnFigures) -> Iterator[Row]:
    """A row per workload: steps in which all of its requests are decoded, with all that the host does between them."""
    for workload in workloads:
        engine.answer(workload)  # Warms up.
        answers = own.answers[workload.name] = engine.answer(workload)
        rate = answers.decode_rate()
        yield {"case": workload.name, "ms/step": len(workload.prompts) / rate * 1e3, "tokens/s": rate}


def offline_rows(engine: OurEngine, workload: Workload, limit: float, own: OwnFigures) -> Iterator[Row]:
    """A row for all requests; `limit` is the least seconds that they can take."""
    engine.answer(workload.beginning(num_requests=32, num_new=8))
    preempted = engine.stats().num_preemptions
    answers = own.answers[workload.name] = engine.answer(workload)
    yield {
        "case": workload.name,
        "output tokens/s": answers.num_tokens / answers.seconds,
        "all tokens/s": (answers.num_tokens + workload.num_prompt_tokens) / answers.seconds,
        "seconds": answers.seconds,
        "limit seconds": limit,
        "share of limit": limit / answers.seconds,
        "room for tokens": engine.num_blocks * BLOCK_SIZE,
        "preemptions": engine.stats().num_preemptions - preempted,
    }


def offline_limit(workload: Workload, config: MistralConfig, dtype: torch.dtype, ceilings: Ceilings) -> float:
    """Seconds: the operations of all prompts at the matrix rate, then the bytes of decode steps at the memory's.

    As if there were room for all requests at once: then there are as many steps as the longest output has tokens after
    its first, each reads the weights, and of each request that still runs the keys and values. The products of decode
    steps count for nothing.
    """
    flops = sum(prompt_flops(config, len(prompt)) for prompt in workload.prompts)
    num_bytes = (max(workload.num_new) - 1) * weight_bytes(config, dtype)
    keys = sum(
        (count - 1) * len(prompt) + count * (count - 1) // 2
        for prompt, count in zip(workload.prompts, workload.num_new, strict=True)
    )
    num_bytes += key_value_bytes(config, keys, dtype)
    return flops / ceilings.flops + num_bytes / ceilings.memory_bytes
