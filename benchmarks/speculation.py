"""What it brings to try tokens ahead, by how much of a completion stands in its prompt.

Knows the engine as the service builds it, without tries and with, in turns in one process. The completions are known
before, see `counting_model`. Does not know services.

Run: python -m benchmarks speculation
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks import checkpoints
from benchmarks.counting_model import counting_checkpoint
from benchmarks.markdown import figure, table_lines
from benchmarks.peers.ours import in_process_engine
from benchmarks.rounds import in_turn, median_ratio
from benchmarks.statistics import Spread
from decoder_service.config import EngineSettings
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.sampling.sampling_params import SamplingParams

_FIRST = 100
"""The first token that is no control token."""
_WORKLOADS = {
    "all of it in the prompt": 0,
    "all but every 16th token": 16,
    "all but every 8th token": 8,
    "all but every 4th token": 4,
    "nothing of it": 1,
}
"""Every how manieth token of the completion stands in the prompt as another one."""


@dataclass(slots=True)
class System:
    """An engine, and its rates, tokens a second of all requests."""

    engine: Engine
    num_tries: int
    num_requests: int = 0
    rates: list[float] = field(default_factory=list)
    num_drafted: int = 0
    num_accepted: int = 0
    num_steps: int = 0

    def run(self, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> None:
        """Have the prompts completed at the same time, and note what came behind the first tokens.

        Raises RuntimeError where the completions do not count.
        """
        before = self.engine.stats()
        tokens: dict[str, list[int]] = {}
        for prompt in prompts:
            name, self.num_requests = str(self.num_requests), self.num_requests + 1
            tokens[name] = list(prompt[-1:])
            sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
            self.engine.submit(
                Request(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling, arrival=self.num_requests)
            )
        started_at, num_before = time.perf_counter(), 0
        while self.engine.has_work:
            for token in self.engine.step().tokens:
                tokens[token.request_id].append(token.token_id)
            if not num_before and all(len(each) > 1 for each in tokens.values()):
                started_at, num_before = time.perf_counter(), sum(map(len, tokens.values()))
        seconds = time.perf_counter() - started_at
        if any(each != list(range(each[0], each[0] + len(each))) for each in tokens.values()):
            raise RuntimeError("a completion does not count on from its prompt")
        stats = self.engine.stats()
        self.rates.append((sum(map(len, tokens.values())) - num_before) / seconds)
        self.num_drafted += stats.num_draft_tokens - before.num_draft_tokens
        self.num_accepted += stats.num_accepted_tokens - before.num_accepted_tokens
        self.num_steps += stats.num_steps - before.num_steps


def prompts(num_requests: int, *, first: int, other_every: int, max_tokens: int, vocabulary: int) -> list[list[int]]:
    """Prompts that end where their completions begin to count, and have these before, with some tokens changed."""
    found = []
    for index in range(num_requests):
        start = first + index * 2 * max_tokens
        completion = range(start, start + max_tokens + 4)
        # Others, so that no place is like another one.
        told = [
            vocabulary - 1 - token if other_every and place % other_every == other_every - 1 else token
            for place, token in enumerate(completion)
        ]
        found.append([1, *told, *completion[:3]])
    return found


def measure(options: argparse.Namespace) -> Iterator[list[str]]:
    """A row for each workload, number of requests and number of tries."""
    directory, vocabulary = counting_checkpoint(options.model), checkpoints.text_config(options.model).vocab_size
    most = max(options.requests)
    for other_every in _WORKLOADS.values():
        for num_requests in options.requests:
            systems = [
                System(_engine(directory, most, options.max_tokens, num_tries), num_tries)
                for num_tries in (0, *options.tries)
            ]
            for number in range(-1, options.rounds):
                span = 2 * options.max_tokens * num_requests
                first = _FIRST + (number + 1) * span % (vocabulary // 2 - span - _FIRST)
                given = prompts(
                    num_requests,
                    first=first,
                    other_every=other_every,
                    max_tokens=options.max_tokens,
                    vocabulary=vocabulary,
                )
                for system in in_turn(systems, number + 1):
                    system.run(given, max_tokens=options.max_tokens)
            yield from _rows(other_every, num_requests, systems)


def _engine(directory: Path, max_requests: int, max_tokens: int, num_tries: int) -> Engine:
    settings = replace(EngineSettings(), num_speculative_tokens=num_tries, prefix_caching=False)
    return in_process_engine(directory, max_requests=max_requests, max_tokens=2 * max_tokens + 8, settings=settings)


def _rows(other_every: int, num_requests: int, systems: Sequence[System]) -> Iterator[list[str]]:
    name = next(name for name, each in _WORKLOADS.items() if each == other_every)
    plain = systems[0].rates[1:]  # The first round warms up.
    for system in systems:
        rates = system.rates[1:]
        spread = Spread.of(rates)
        yield [
            name,
            str(num_requests),
            str(system.num_tries),
            f"{figure(spread.median)} ({figure(spread.lowest)} to {figure(spread.highest)})",
            f"{median_ratio(rates, plain):.2f}",
            f"{system.num_accepted}/{system.num_drafted}",
            str(system.num_steps),
        ]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speculation", description=__doc__)
    parser.add_argument("--model", default="small", help="tiny or small")
    parser.add_argument("--requests", type=int, nargs="*", default=[1, 8, 32], help="requests at a time")
    parser.add_argument("--tries", type=int, nargs="*", default=[4, 8, 16], help="values of --num-speculative-tokens")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("completion", "at a time", "tries", "tok/s", "to none", "right/tried", "steps")
    print("\n".join(table_lines(columns, measure(options))))


if __name__ == "__main__":
    main()
