"""`python -m benchmarks scheduling`: case C13, what a step costs on the host, beside the peers in turns.

Knows the command line and where results go. Does not know how steps are run.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.command import PEERS_FOLDER, wanted
from benchmarks.peers.environments import SCHEDULING_PEERS
from benchmarks.peers.protocol import PeerError
from benchmarks.peers.stepping import MAX_REQUESTS
from benchmarks.report import save
from benchmarks.scheduling.results import StepsResult, table
from benchmarks.scheduling.turns import Load, run_steps
from common.settings.settings import from_arguments, setting

_PEERS = tuple(peer.name for peer in SCHEDULING_PEERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingConfig:
    """How many requests to run, and how often."""

    running: tuple[str, ...] = setting(("1", "32", "64", "128", "256"), help="numbers of running requests, with commas")
    context: int = setting(64, minimum=2, maximum=256, help="tokens of each prompt")
    steps: int = setting(256, minimum=1, maximum=512, help="steps behind the prompts before all begins anew")
    seconds: float = setting(0.3, minimum=0.001, help="least time of an engine's turn in a round")
    rounds: int = setting(5, minimum=1, help="how often each engine is measured")
    engines: tuple[str, ...] = setting((), help="names of peers; all where empty, none for `none`")
    peers: Path = setting(PEERS_FOLDER, help="folder with the peers' environments, see benchmarks/peers/install")
    core: int = setting(0, minimum=0, help="core that every engine is pinned to")
    json: Path | None = setting(None, help="file for the results")

    def __post_init__(self) -> None:
        if not all(each.isdecimal() and 1 <= int(each) <= MAX_REQUESTS for each in self.running):
            raise ValueError(f"--running must be numbers from 1 to {MAX_REQUESTS}")
        if unknown := set(self.engines) - {*_PEERS, "none"}:
            raise ValueError(f"--engines knows no {', '.join(sorted(unknown))}, only {', '.join(_PEERS)} and none")


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the file; 1 where an engine that is installed did not run."""
    config = from_arguments(SchedulingConfig, options)
    load = Load(context=config.context, steps=config.steps, seconds=config.seconds, rounds=config.rounds)
    numbers, peers = [int(each) for each in config.running], wanted(SCHEDULING_PEERS, config.engines)
    results: list[StepsResult] = []
    try:
        for result in run_steps(numbers, peers, load, folder=config.peers, core=config.core):
            results.append(result)
            if config.json is not None:
                save(config.json, "scheduling", {"load": load, "results": results})
    except PeerError as error:
        sys.stderr.write(f"scheduling: {error}\n")
        return 1
    sys.stdout.write(f"{table(results)}\n")
    return 1 if any(reason != "not installed" for result in results for reason in result.not_run.values()) else 0
