"""Cost of the decoder: a decode step by batch, a prefill by length, on a random model.

Knows the engine as the service builds it. Does not know services.
"""

import time
from collections.abc import Iterator, Sequence

from benchmarks import checkpoints
from benchmarks.components.timing import Measurement, scaled
from benchmarks.peers.ours import complete, in_process_engine
from benchmarks.statistics import Spread
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.sampling.sampling_params import SamplingParams

_CONTEXT = 64
_SAMPLES = 3


def measure_decode(model: str, *, batches: Sequence[int], steps: int) -> Iterator[Measurement]:
    """Milliseconds of a step that gives each of so many requests its next token."""
    engine = in_process_engine(
        checkpoints.checkpoint(model), max_requests=max(batches), max_tokens=_CONTEXT + steps + 8
    )
    for batch in batches:
        found = Spread.of([_decode_step(engine, model, batch, steps, sample) for sample in range(_SAMPLES)])
        yield Measurement(
            component="decode step",
            at=f"{batch} requests",
            value=scaled(found, 1e3),
            unit="ms",
            parameter=float(batch),
        )


def measure_prefill(model: str, *, lengths: Sequence[int]) -> Iterator[Measurement]:
    """Milliseconds of a prompt of so many tokens, to its first token."""
    engine = in_process_engine(checkpoints.checkpoint(model), max_requests=1, max_tokens=max(lengths) + 1)
    for length in lengths:
        found = []
        for sample in range(_SAMPLES + 1):
            prompts = checkpoints.random_prompts(model, 1, length, seed=1000 * length + sample)
            started_at = time.perf_counter()
            complete(engine, prompts, max_tokens=1, first=length * 100 + sample)
            found.append(time.perf_counter() - started_at)
        value = scaled(Spread.of(found[1:]), 1e3)
        yield Measurement(component="prefill", at=f"{length} tokens", value=value, unit="ms", parameter=float(length))


def _decode_step(engine: Engine, model: str, batch: int, steps: int, sample: int) -> float:
    prompts = checkpoints.random_prompts(model, batch, _CONTEXT, seed=batch * 10 + sample)
    sampling = SamplingParams(max_tokens=steps + 4, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        name = f"{batch}-{sample}-{number}"
        engine.submit(Request(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling, arrival=number))
    while engine.stats().num_running < batch or engine.stats().num_batched_tokens > batch:
        engine.step()
    started_at = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = (time.perf_counter() - started_at) / steps
    while engine.has_work:
        engine.step()
    return seconds
