"""Measures what a tenant at ten times the load does to another's first tokens: `python -m benchmarks fairness`.

Runs the pair with the demo model on one core and sends from another. Three rounds of the same arrivals: one tenant
alone; beside it a second one that sends ten times as much; and, as the control, the same two under one salt, which is
plain first come, first served. Prints the first's times to first token in each. A request waits for the step that is
under way and shares its own with others, so --budget, which bounds a step, bounds what a neighbour can cost. Knows
loads and times. Does not know how the services share (see `decoder_service.scheduling.fair_queue`).
"""

import argparse
import asyncio
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.pair import running_pair, service_flags
from benchmarks.load.sender import MAX_CALLS
from benchmarks.peers.protocol import ROOT
from benchmarks.statistics import percentile
from common.client.client import AsyncDiptychClient
from common.client.messages import token_ids
from common.client.types import ClientError

PROMPT_TOKENS = 200
MAX_TOKENS = 40
TIMES_THE_LOAD = 10
FIRST_TEXT_TOKEN = 100
"""Ids below it are the demo model's control tokens and single bytes."""
VOCABULARY = 512
_LOG = ROOT / "build/benchmarks/logs/fairness.log"


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times at which requests come by chance, `rate` a second."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    times: list[float] = []
    now = 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        times.append(now)
    return times


async def first_token_seconds(client: AsyncDiptychClient, *, at: float, salt: bytes, seed: int) -> float | None:
    """Send one request at a time of the loop's clock; the time to its first token, or None where it is refused."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    ids = [draw.randrange(FIRST_TEXT_TOKEN, VOCABULARY) for _ in range(PROMPT_TOKENS)]
    await asyncio.sleep(at - time.monotonic())
    found = None
    try:
        async for response in client.generate(
            token_ids(ids), max_tokens=MAX_TOKENS, ignore_eos=True, cache_salt=salt, timeout=300
        ):
            if found is None and response.delta.token_ids:
                found = time.monotonic() - at
    except ClientError:
        return None
    return found


async def run_round(
    address: str, times: Sequence[float], noise: Sequence[float], *, noise_salt: bytes
) -> list[float | None]:
    """Send both tenants' requests and wait for all of the first's; its times to first token."""
    async with AsyncDiptychClient(address) as client, AsyncDiptychClient(address, max_calls=MAX_CALLS) as other:
        start = time.monotonic() + 0.5
        noisy = [
            asyncio.create_task(first_token_seconds(other, at=start + at, salt=noise_salt, seed=10**6 + index))
            for index, at in enumerate(noise)
        ]
        heard = await asyncio.gather(
            *(first_token_seconds(client, at=start + at, salt=b"victim", seed=index) for index, at in enumerate(times))
        )
        for task in noisy:
            task.cancel()
        await asyncio.gather(*noisy, return_exceptions=True)
    return list(heard)


def describe(name: str, found: Sequence[float | None]) -> str:
    """One line of the table."""
    times = [each * 1000 for each in found if each is not None]
    row = "  ".join(f"p{percent} {percentile(times, percent):8.1f} ms" for percent in (50, 95, 99))
    return f"{name:32}  {row}  {len(times)} answered, {len(found) - len(times)} refused"


def main() -> None:
    """Run the three rounds and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fairness", description=__doc__)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of the first tenant")
    parser.add_argument("--seconds", type=float, default=20.0, help="time in which requests come, in each round")
    parser.add_argument("--budget", type=int, default=256, help="the decoder's --max-num-batched-tokens")
    parser.add_argument("--model", type=Path, default=ROOT / "models/demo", help="checkpoint directory")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    times = arrivals(options.rate, options.seconds, seed=1)
    noise = arrivals(TIMES_THE_LOAD * options.rate, options.seconds, seed=2)
    rounds: tuple[tuple[str, list[float], bytes], ...] = (
        ("alone", [], b"noisy"),
        ("beside ten times the load", noise, b"noisy"),
        ("control: both under one salt", noise, b"victim"),
    )
    with service_flags([f"decoder.engine.max_num_batched_tokens={options.budget}"]) as flags:
        for name, others, salt in rounds:
            # A fresh pair for each, so that no cache knows the prompts.
            with running_pair(options.model, cores=cores[:1], log=_LOG, flags=flags) as pair:
                asyncio.run(run_round(pair.address, times[:3], [], noise_salt=b""))  # Warm up.
                print(describe(name, asyncio.run(run_round(pair.address, times, others, noise_salt=salt))), flush=True)


if __name__ == "__main__":
    main()
