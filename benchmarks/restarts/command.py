"""`python -m benchmarks restarts`: restarts every service in turns under load, and judges what callers saw.

Knows the command line and the order of restarts. Does not know what makes a history right (`history`).
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.restarts.history import StreamRecord, Verdict, judge
from benchmarks.restarts.replicas import Replica, Replicas
from common.client.client import AsyncDiptychClient
from common.client.messages import Prompt, raw_text, user_message
from common.client.types import ClientError
from common.settings.settings import from_arguments, setting
from decoder_service.prompt.tokenizer_files import find_tokenizer_file, load_tokenizer
from training.scores import held_out

_DEMO = Path(__file__).parents[2] / "models/demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartsConfig:
    """Restarts under load."""

    restarts: int = setting(10, minimum=1, help="restarts of each service")
    streams: int = setting(64, minimum=1, help="streams at the same time")
    services: tuple[str, ...] = setting(("vision", "decoder"), help="services to restart, one after the other")
    replicas: int = setting(2, minimum=2, help="replicas of each service")
    max_tokens: int = setting(64, minimum=1, help="tokens of a stream without pictures")
    grace_seconds: float = setting(60.0, minimum=0, help="time that running calls get at a restart")
    linger_seconds: float = setting(0.5, minimum=0, help="time before it in which new calls are still taken")
    log: Path = setting(Path("build/benchmarks/logs/restarts.log"), help="file for what the services say")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run showed."""

    verdict: Verdict
    seconds: float
    statuses: tuple[int, ...]
    """Exit statuses of the processes that were restarted."""


def run(options: argparse.Namespace) -> int:
    """Run and print; returns 0 where nothing was lost, came twice or differed."""
    config = from_arguments(RestartsConfig, options)
    outcome = asyncio.run(measure(config))
    verdict = outcome.verdict
    print(
        f"{len(outcome.statuses)} restarts ({config.restarts} of each of {', '.join(config.services)}; "
        f"{config.replicas} replicas) under {config.streams} streams in {outcome.seconds:.0f} s: "
        f"{verdict.num_streams} streams, {verdict.num_tokens} tokens; {len(verdict.lost)} lost, "
        f"{len(verdict.duplicated)} duplicated, {len(verdict.differing)} differing; "
        f"exit statuses {sorted(set(outcome.statuses))}"
    )
    for line in (*verdict.lost, *verdict.duplicated, *verdict.differing)[:20]:
        sys.stderr.write(f"{line}\n")
    return 0 if verdict.is_right and not any(outcome.statuses) else 1


async def measure(config: RestartsConfig) -> Outcome:
    """Start replicas, record an oracle, restart under load, and judge."""
    flags = ["--deterministic", "--grace-seconds", str(config.grace_seconds)]
    flags += ["--linger-seconds", str(config.linger_seconds)]
    config.log.parent.mkdir(parents=True, exist_ok=True)
    prompts = _prompts()
    tokenizer = load_tokenizer(find_tokenizer_file(_DEMO))
    async with Replicas(
        _DEMO, visions=config.replicas, decoders=config.replicas, log=config.log, flags=flags
    ) as replicas:
        async with AsyncDiptychClient(replicas.target) as client:
            oracle = [await _stream(client, prompts, index, config.max_tokens) for index in range(len(prompts))]
        load = _Load(replicas.target, prompts, config)
        started = time.monotonic()
        callers = [asyncio.create_task(load.call(number)) for number in range(config.streams)]
        statuses = await _restart_all(replicas, config)
        load.stop()
        await asyncio.gather(*callers)
        seconds = time.monotonic() - started
    decode = lambda ids: b"".join(map(tokenizer.token_bytes, ids)).decode()  # noqa: E731 - needs the tokenizer
    return Outcome(verdict=judge(load.history, oracle, decode), seconds=seconds, statuses=tuple(statuses))


async def _restart_all(replicas: Replicas, config: RestartsConfig) -> list[int]:
    """Restart the replicas of each service in turns; another one is always ready meanwhile."""
    by_name: dict[str, Sequence[Replica]] = {"vision": replicas.visions, "decoder": replicas.decoders}
    statuses = []
    for restart in range(config.restarts):
        for service in config.services:
            group = by_name[service]
            statuses.append(await group[restart % len(group)].restart())
            sys.stderr.write(f"restart {restart + 1} of a {service} service: status {statuses[-1]}\n")
            # As a rollout waits until others have noticed that the new one is there.
            await asyncio.sleep(2.0)
    return statuses


class _Load:
    """Callers who ask again as soon as they are answered."""

    def __init__(self, target: str, prompts: Sequence[tuple[Prompt, bool]], config: RestartsConfig) -> None:
        self._target = target
        self._prompts = prompts
        self._config = config
        self._stopping = False
        self.history: list[StreamRecord] = []

    def stop(self) -> None:
        """Let every caller end with the stream that it has."""
        self._stopping = True

    async def call(self, number: int) -> None:
        """Ask, over a connection of this caller's own, until told to stop."""
        async with AsyncDiptychClient(self._target) as client:
            index = number
            while not self._stopping:
                index += 1
                self.history.append(
                    await _stream(client, self._prompts, index % len(self._prompts), self._config.max_tokens)
                )


def _prompts() -> list[tuple[Prompt, bool]]:
    """Prompts, and whether each is long text; half of them have pictures."""
    prompts: list[tuple[Prompt, bool]] = []
    for index in range(8):
        example = held_out("shapes", 7, index)
        prompts.append(([user_message(example.turns[0].question, example.png_images)], False))
        prompts.append((raw_text(f"red circle {index}"), True))
    return prompts


async def _stream(
    client: AsyncDiptychClient, prompts: Sequence[tuple[Prompt, bool]], index: int, max_tokens: int
) -> StreamRecord:
    prompt, is_long = prompts[index]
    record = StreamRecord(prompt=index)
    responses = client.generate(prompt, max_tokens=max_tokens if is_long else 32, ignore_eos=is_long, timeout=120)
    try:
        async with aclosing(responses):
            async for response in responses:
                record.messages.append(response)
    except ClientError as error:
        record.error = str(error)
    return record
