"""`python -m benchmarks load`: a load on a running pair, or on one that is started for it.

Knows the command line, warm-up and where results go. Does not know how requests are drawn, sent or judged.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tqdm import tqdm

from benchmarks import checkpoints
from benchmarks.load.arrivals import arrival_times
from benchmarks.load.figures import LoadFigures, Slo, figures
from benchmarks.load.generator import closed_loop, open_loop
from benchmarks.load.pair import running_pair
from benchmarks.load.prompts import PromptMaker
from benchmarks.load.records import RequestRecord
from benchmarks.load.sender import MAX_CALLS, Sender
from benchmarks.load.summary import summary
from benchmarks.load.workload import ImageSize, RequestPlan, Span, WorkloadConfig, plan_requests
from benchmarks.report import save
from common.client.client import AsyncDiptychClient
from common.settings.settings import from_arguments, setting

_LOG = Path("build/benchmarks/logs/pair.log")


class Loop(Enum):
    """What a request waits for before it is sent."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """A load."""

    address: str | None = setting(None, help="HOST:PORT of a running decoder service; a pair is started where unset")
    model: str = setting("pixtral", help="directory or name of a random checkpoint that a started pair serves")
    local: bool = setting(False, help="a started pair is one process, as `diptych up --local-vision` has it")
    cores: str = setting("0,1", help="cores that a started pair is pinned to, with commas")
    loop: Loop = setting(Loop.CLOSED, help="closed: callers wait for their answers; open: requests come at their times")
    concurrency: int = setting(8, minimum=1, help="callers of a closed loop")
    rate: float = setting(4.0, minimum=0.001, help="requests a second of an open loop")
    burstiness: float = setting(1.0, minimum=0.001, help="shape of the gaps: 1 is Poisson's, below it come bursts")
    requests: int = setting(64, minimum=1, help="requests to measure")
    warm_up: int = setting(8, minimum=0, help="requests before, which do not count")
    text_tokens: str = setting("64", help="tokens of text in a prompt, N or LOW-HIGH")
    output_tokens: str = setting("64", help="tokens to generate, N or LOW-HIGH")
    images: str = setting("0", help="pictures in a request, N or LOW-HIGH")
    image_sizes: tuple[str, ...] = setting(("256x256",), help="sizes of pictures, WIDTHxHEIGHT:WEIGHT with commas")
    shared_image_ratio: float = setting(0.0, minimum=0, maximum=1, help="part of the pictures that come again")
    slo_ttft: float | None = setting(None, minimum=0, help="longest time to first token of a good request, in ms")
    slo_tpot: float | None = setting(None, minimum=0, help="longest time per output token of a good request, in ms")
    slo_e2el: float | None = setting(None, minimum=0, help="longest whole time of a good request, in ms")
    seed: int = setting(0, help="seed of all that is drawn")
    json: Path | None = setting(None, help="file for the results, all records included")
    plots: Path | None = setting(None, help="folder for plots, PNG; needs matplotlib")

    @property
    def slo(self) -> Slo | None:
        """The limits of a good request; None where none is set."""
        slo = Slo(ttft=self.slo_ttft, tpot=self.slo_tpot, e2el=self.slo_e2el)
        return None if slo == Slo() else slo

    @property
    def workload(self) -> WorkloadConfig:
        """What is asked. Raises ValueError for a span or a size that cannot be read."""
        return WorkloadConfig(
            text_tokens=Span.parse(self.text_tokens),
            output_tokens=Span.parse(self.output_tokens),
            images=Span.parse(self.images),
            image_sizes=tuple(map(ImageSize.parse, self.image_sizes)),
            shared_image_ratio=self.shared_image_ratio,
            seed=self.seed,
        )

    def __post_init__(self) -> None:
        _ = self.workload
        if self.local and self.address is not None:
            raise ValueError("--local is about a pair that is started, and --address names one that runs")


def run(options: argparse.Namespace) -> int:
    """Load the pair, print the figures, write the files; 1 where a request failed."""
    config = from_arguments(LoadConfig, options)
    with ExitStack() as stack:
        address = config.address
        if address is None:
            cores = [int(core) for core in config.cores.split(",")]
            flags = ("--local-vision",) if config.local else ()
            pair = stack.enter_context(running_pair(model_directory(config.model), cores=cores, log=_LOG, flags=flags))
            address = pair.address
        records = asyncio.run(load(address, config))
    result = figures(records, config.slo)
    sys.stdout.write(summary(result))
    _write(config, result, records)
    return 1 if result.num_failed else 0


def model_directory(model: str) -> Path:
    """The directory of a checkpoint, made where `model` is the name of a random one."""
    return checkpoints.checkpoint(model) if model in checkpoints.MODELS else Path(model)


async def load(address: str, config: LoadConfig) -> list[RequestRecord]:
    """Warm the service up and put the load on it."""
    async with AsyncDiptychClient(address, max_calls=MAX_CALLS) as client:
        prompts = PromptMaker(client, await client.get_model_info(timeout=60))
        count = config.warm_up + config.requests
        plans = plan_requests(config.workload, count, token_ids=prompts.text_token_ids)
        sender = Sender(client, prompts)
        await closed_loop(plans[: config.warm_up], config.concurrency, sender.send)
        return await _measured(plans[config.warm_up :], config, sender)


async def _measured(plans: Sequence[RequestPlan], config: LoadConfig, sender: Sender) -> list[RequestRecord]:
    with tqdm(total=len(plans), unit="request", disable=None) as bar:

        async def send(plan: RequestPlan) -> RequestRecord:
            record = await sender.send(plan)
            bar.update()
            return record

        if config.loop is Loop.CLOSED:
            return await closed_loop(plans, config.concurrency, send)
        times = arrival_times(len(plans), rate=config.rate, burstiness=config.burstiness, seed=config.seed)
        return await open_loop(plans, times, send)


def _write(config: LoadConfig, result: LoadFigures, records: Sequence[RequestRecord]) -> None:
    if config.json is not None:
        save(config.json, "load", {"config": config, "figures": result, "records": list(records)})
    if config.plots is not None:
        from benchmarks.load.plots import plot_load

        for path in plot_load(records, config.plots):
            sys.stdout.write(f"{path}\n")
