"""Diptych's own engine in one process, without services: an engine behind `protocol`.

It is built as the decoder service builds it, with the service's defaults, and turned by hand.
"""

import math
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.peers.protocol import serve
from common.checkpoint.checkpoint import open_checkpoint
from common.model.settings import DtypeChoice, ModelSettings
from common.process import freeze_loaded, tune_allocator
from common.server.config import ServerConfig
from common.version import server_version
from decoder_service.config import DecoderConfig, EngineSettings, RequestSettings
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.engine_builder import build_engine, build_run_config
from decoder_service.sampling.sampling_params import SamplingParams


def in_process_engine(
    model: Path,
    *,
    max_requests: int,
    max_tokens: int,
    settings: EngineSettings | None = None,
    dtype: DtypeChoice = DtypeChoice.AUTO,
) -> Engine:
    """An engine with room for so many requests of so many tokens each, with the service's defaults otherwise."""
    defaults = settings or EngineSettings()
    settings = replace(
        defaults,
        max_num_requests=max_requests,
        # Admission leaves some blocks free, and nobody is to wait for them here.
        num_blocks=math.ceil(1.25 * max_requests * -(-max_tokens // defaults.block_size)) + 8,
    )
    config = DecoderConfig(
        server=ServerConfig(),
        model=ModelSettings(model=model, dtype=dtype),
        engine=settings,
        requests=RequestSettings(),
    )
    checkpoint = open_checkpoint(model)
    return build_engine(config, checkpoint, build_run_config(config, checkpoint))


def complete(engine: Engine, prompts: list[list[int]], *, max_tokens: int, first: int = 0) -> list[list[int]]:
    """Greedy tokens of prompts that run at the same time; `first` numbers the first of them."""
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    tokens: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts, start=first):
        name = f"request-{number}"
        tokens[name] = []
        engine.submit(Request(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling, arrival=number))
    while engine.has_work:
        output = engine.step()
        if output.failed:
            raise output.failed[0][1]
        for token in output.tokens:
            tokens[token.request_id].append(token.token_id)
    return list(tokens.values())


class Worker:
    """The loaded engine."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._num_requests = 0
        self._told = Counter[str]()

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str, tries: int = 0) -> dict[str, object]:
        """Load a checkpoint, and try so many tokens ahead."""
        tune_allocator()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._engine = in_process_engine(
            Path(model),
            max_requests=max_requests,
            max_tokens=max_tokens,
            settings=EngineSettings(num_speculative_tokens=tries),
            dtype=DtypeChoice(dtype),
        )
        freeze_loaded()  # As the service does.
        compute = self._engine.stats().compute
        return {"version": f"diptych {server_version()}, {compute}, torch {torch.__version__}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts, and the seconds that they took."""
        if self._engine is None:
            raise ValueError("no model is loaded")
        started_at = time.perf_counter()
        tokens = complete(self._engine, prompts, max_tokens=max_tokens, first=self._num_requests)
        self._num_requests += len(prompts)
        return {"tokens": tokens, "seconds": time.perf_counter() - started_at}

    def tried(self) -> dict[str, int]:
        """Steps, tokens tried and those of them that were right, since this was last asked."""
        if self._engine is None:
            raise ValueError("no model is loaded")
        stats, told = self._engine.stats(), self._told
        self._told = Counter(steps=stats.num_steps, tried=stats.num_draft_tokens, right=stats.num_accepted_tokens)
        return {name: count - told[name] for name, count in self._told.items()}


if __name__ == "__main__":
    worker = Worker()
    serve({"load": worker.load, "generate": worker.generate, "tried": worker.tried})
