"""`python -m benchmarks speculation`: what it brings to try tokens ahead, ours and the peers' in turns.

Knows the command line, the table and where results go. Does not know how workloads are run.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.compare.command import PEERS_FOLDER, wanted
from benchmarks.markdown import figure, table_lines
from benchmarks.peers.environments import SPECULATING_PEERS
from benchmarks.peers.protocol import PeerError
from benchmarks.report import save
from benchmarks.rounds import median_ratio
from benchmarks.speculation.turns import Load, Row, run_workloads
from benchmarks.statistics import Spread
from common.settings.settings import from_arguments, setting

_PEERS = tuple(peer.name for peer in SPECULATING_PEERS)
_COLUMNS = ("in the prompt", "at a time", "engine", "tries", "tok/s", "to none", "right/tried", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """How much to try, with how many requests, and how often."""

    model: str = setting("small", choices=("smoke", "tiny", "small"), help="shape of the model")
    requests: tuple[str, ...] = setting(("1", "8", "32"), help="numbers of requests at the same time, with commas")
    tries: tuple[str, ...] = setting(("8",), help="values of --num-speculative-tokens besides 0, with commas")
    max_tokens: int = setting(64, minimum=8, maximum=512, help="tokens of a completion")
    rounds: int = setting(3, minimum=1, help="how often each engine is measured")
    engines: tuple[str, ...] = setting((), help="names of peers; all where empty, none for `none`")
    peers: Path = setting(PEERS_FOLDER, help="folder with the peers' environments, see benchmarks/peers/install")
    cores: str = setting("0", help="cores that every engine is pinned to, with commas")
    json: Path | None = setting(None, help="file for the results")

    def __post_init__(self) -> None:
        for name in ("requests", "tries"):
            if not all(each.isdecimal() and 1 <= int(each) <= 64 for each in getattr(self, name)):
                raise ValueError(f"--{name} must be numbers from 1 to 64")
        if unknown := set(self.engines) - {*_PEERS, "none"}:
            raise ValueError(f"--engines knows no {', '.join(sorted(unknown))}, only {', '.join(_PEERS)} and none")
        vocabulary = checkpoints.text_config(self.model).vocab_size
        if self.max_tokens > vocabulary // 4 - 100:
            raise ValueError(f"--max-tokens {self.max_tokens} is too long to count in a vocabulary of {vocabulary}")


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the file; 1 where an engine that is installed did not run."""
    config = from_arguments(SpeculationConfig, options)
    load = Load(
        model=config.model,
        max_tokens=config.max_tokens,
        rounds=config.rounds,
        cores=[int(core) for core in config.cores.split(",")],
        folder=config.peers,
    )
    numbers, tries = ([int(each) for each in given] for given in (config.requests, config.tries))
    rows: list[Row] = []
    not_run: dict[str, str] = {}
    try:
        for row in run_workloads(numbers, tries, wanted(SPECULATING_PEERS, config.engines), load, not_run):
            rows.append(row)
    except PeerError as error:
        sys.stderr.write(f"speculation: {error}\n")
        return 1
    if config.json is not None:
        save(config.json, "speculation", {"rows": rows, "not_run": not_run})
    sys.stdout.write("\n".join([*table(rows), *(f"Not run: {name} ({why})." for name, why in not_run.items()), ""]))
    return 1 if any(reason != "not installed" for reason in not_run.values()) else 0


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table; each rate beside that of the same engine without tries."""
    return table_lines(_COLUMNS, (_cells(row, _plain(row, rows)) for row in rows))


def _plain(row: Row, rows: Sequence[Row]) -> Row:
    same = (row.workload, row.num_requests, row.engine)
    return next(each for each in rows if (each.workload, each.num_requests, each.engine) == same and not each.num_tries)


def _cells(row: Row, plain: Row) -> list[str]:
    rates = [turn.rate for turn in row.turns]
    spread = Spread.of(rates)
    return [
        row.workload,
        str(row.num_requests),
        row.engine,
        str(row.num_tries),
        f"{figure(spread.median)} ({figure(spread.lowest)} to {figure(spread.highest)})",
        f"{median_ratio(rates, [turn.rate for turn in plain.turns]):.2f}",
        "" if row.tried is None else f"{row.tried['right']}/{row.tried['tried']}",
        "" if row.tried is None else str(row.tried["steps"]),
    ]
