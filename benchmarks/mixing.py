"""What long prompts do to the tokens beside them, and how long they wait themselves, by `--max-num-mixed-tokens`
and `--max-step-stretch`.

Knows the engine as the service builds it, on a clock that only the processor time of its steps turns: others on the
machine hardly change it. The long prompts are as long as those of pictures; encoding them is left out, as it has cores
of its own. Does not know services.

Run: python -m benchmarks mixing
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from benchmarks import checkpoints
from benchmarks.peers.ours import in_process_engine
from benchmarks.statistics import percentile
from decoder_service.config import EngineSettings
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.sampling.sampling_params import SamplingParams

_TEXT_TOKENS, _TEXT_OUTPUT = 29, 128
_LONG_TOKENS, _LONG_OUTPUT = (301, 701), 32
"""Prompts with pictures of 256 x 256 and 320 x 512."""
_NO_LIMIT = 2048
_MAX_REQUESTS = 32


@dataclass(slots=True, kw_only=True)
class Course:
    """When a request came and got its tokens, in seconds of processor time."""

    came_at: float
    token_times: list[float] = field(default_factory=list)


class Run:
    """One load on one engine."""

    def __init__(self, engine: Engine, vocabulary_size: int) -> None:
        self._engine = engine
        self._vocabulary_size = vocabulary_size
        self._random = random.Random(1)  # noqa: S311 - a load, not a secret
        self._clock = 0.0
        self._courses: dict[str, Course] = {}
        self._num_open_streams = self._num_long = 0

    def load(self, *, streams: int, requests: int, long_times: Iterator[float]) -> tuple[list[Course], list[Course]]:
        """So many requests in so many streams, beside long prompts that come until the last one ends."""
        num_left, next_long = requests, next(long_times)
        while num_left or self._num_open_streams or self._engine.has_work:
            while num_left and self._num_open_streams < streams:
                num_left -= 1
                self._num_open_streams += 1
                self._submit("text", _TEXT_TOKENS, _TEXT_OUTPUT, at=self._clock)
            while next_long <= self._clock and self._num_open_streams:
                self._submit("long", _LONG_TOKENS[self._num_long % 2], _LONG_OUTPUT, at=next_long)
                self._num_long += 1
                next_long = next(long_times)
            self._step()
        kinds = {kind: [c for name, c in self._courses.items() if name.startswith(kind)] for kind in ("text", "long")}
        return kinds["text"], kinds["long"]

    def _submit(self, kind: str, num_tokens: int, max_tokens: int, *, at: float) -> None:
        name = f"{kind}-{len(self._courses)}"
        token_ids = tuple(self._random.randrange(3, self._vocabulary_size) for _ in range(num_tokens))
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        arrival = len(self._courses)
        self._courses[name] = Course(came_at=at)
        self._engine.submit(Request(request_id=name, prompt_token_ids=token_ids, sampling=sampling, arrival=arrival))

    def _step(self) -> None:
        started_at = time.process_time()
        output = self._engine.step()
        self._clock += time.process_time() - started_at
        for token in output.tokens:
            self._courses[token.request_id].token_times.append(self._clock)
            self._num_open_streams -= token.is_last and token.request_id.startswith("text")


def gaps(courses: Sequence[Course]) -> list[float]:
    """Times between consecutive tokens, in milliseconds."""
    return [1000 * (after - before) for course in courses for before, after in pairwise(course.token_times)]


def first_tokens(courses: Sequence[Course]) -> list[float]:
    """Times to first tokens, in milliseconds."""
    return [1000 * (course.token_times[0] - course.came_at) for course in courses]


def every(seconds: float) -> Iterator[float]:
    """Moments at this distance, from one distance on."""
    moment = 0.0
    while True:
        moment += seconds
        yield moment


def main() -> None:
    """Run each setting and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mixing", description=__doc__)
    parser.add_argument("--model", default="small", help="tiny or small")
    parser.add_argument("--streams", type=int, default=4, help="streams of text at a time")
    parser.add_argument("--requests", type=int, default=16, help="requests of the streams, together")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5], help="long prompts a second")
    parser.add_argument("--tokens", type=int, nargs="*", default=[4, 16, 64, _NO_LIMIT], help="limits to run")
    parser.add_argument("--stretches", type=float, nargs="*", default=[], help="values of --max-step-stretch, besides")
    options = parser.parse_args()
    torch.set_num_threads(1)
    directory = checkpoints.checkpoint(options.model)
    for number, rate in enumerate([0.0, *options.rates]):
        mixed = [(f"{tokens} tokens", {"max_num_mixed_tokens": tokens}) for tokens in options.tokens]
        stretched = [(f"stretch {stretch}", {"max_step_stretch": stretch}) for stretch in options.stretches]
        for name, changes in [*mixed, *stretched] if number else [("", {"max_num_mixed_tokens": _NO_LIMIT})]:
            settings = replace(EngineSettings(), **changes)
            engine = in_process_engine(directory, max_requests=_MAX_REQUESTS, max_tokens=1024, settings=settings)
            run = Run(engine, checkpoints.text_config(options.model).vocab_size)
            text, long = run.load(
                streams=options.streams,
                requests=options.requests,
                long_times=every(1 / rate) if rate else iter([float("inf")]),
            )
            print(describe(rate, name, text, long), flush=True)


def describe(rate: float, name: str, text: Sequence[Course], long: Sequence[Course]) -> str:
    """One line."""
    inter, first, ends = gaps(text), first_tokens(long), [course.token_times[-1] for course in text]
    if not rate:
        return f"alone: ITL P50 {percentile(inter, 50):.1f}, P99 {percentile(inter, 99):.1f} ms"
    rate_of_text = len(text) * _TEXT_OUTPUT / max(ends)
    return (
        f"{rate:g} a second, {name}: ITL of text P50 {percentile(inter, 50):.1f}, "
        f"P99 {percentile(inter, 99):.1f}, most {max(inter):.0f} ms; TTFT of {len(long)} long prompts P50 "
        f"{percentile(first, 50):.0f}, P99 {percentile(first, 99):.0f} ms; text {rate_of_text:.0f} tok/s"
    )


if __name__ == "__main__":
    main()
