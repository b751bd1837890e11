"""`python -m benchmarks compare`: ourselves and every peer that is installed, in turns, in one run.

Knows the command line and where results go. Does not know how cases are run.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from benchmarks.compare.cases import HALF_CASES, SMOKE_CASES, TEXT_CASES, TextCase
from benchmarks.compare.conditions import Conditions
from benchmarks.compare.picture_cases import SMOKE_PICTURE_CASES, PictureCase, picture_cases
from benchmarks.compare.pictures import run_picture_cases
from benchmarks.compare.results import CaseResult, table
from benchmarks.compare.text import run_text_cases
from benchmarks.peers.environments import TEXT_PEERS, VISION_PEERS, Peer
from benchmarks.report import save
from common.model.settings import DtypeChoice
from common.settings.settings import from_arguments, setting

PEERS_FOLDER = Path("build/peers")
PICTURES_FOLDER = Path("build/benchmarks/pictures")
_PEERS = tuple(dict.fromkeys(peer.name for peer in (*TEXT_PEERS, *VISION_PEERS)))

Case = TypeVar("Case", TextCase, PictureCase)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What to compare, and how often."""

    cases: tuple[str, ...] = setting(
        (), help="first words of the names of cases, such as C1,C3b; all but smoke where empty"
    )
    engines: tuple[str, ...] = setting(
        (), help="whole names of peers, such as `vllm,vllm bfloat16`; all where empty, none for `none`"
    )
    dtype: DtypeChoice = setting(DtypeChoice.FLOAT32, help="type that we compute in; peers have their own")
    peers: Path = setting(PEERS_FOLDER, help="folder with the peers' environments, see benchmarks/peers/install")
    cores: str = setting("0", help="cores that every engine is pinned to, with commas")
    rounds: int = setting(3, minimum=1, help="how often each engine is measured")
    json: Path | None = setting(None, help="file for the results")
    niceness: int = setting(0, minimum=-20, maximum=19, help="of the engines while measured; below 0 as root")

    def __post_init__(self) -> None:
        if unknown := set(self.engines) - {*_PEERS, "none"}:
            raise ValueError(f"--engines knows no {', '.join(sorted(unknown))}, only {', '.join(_PEERS)} and none")


def run(options: argparse.Namespace) -> int:
    """Compare, print the table, write the file; 1 where an engine that is installed did not run."""
    config = from_arguments(CompareConfig, options)

    results: list[CaseResult] = []
    for result in _run(config):
        results.append(result)
        if config.json is not None:
            save(config.json, "compare", results)  # After each, as the next may take long.
    sys.stdout.write(f"{table(results)}\n")
    return 1 if any(_broken(result) for result in results) else 0


def _run(config: CompareConfig) -> Iterator[CaseResult]:
    conditions = Conditions(
        folder=config.peers,
        cores=[int(core) for core in config.cores.split(",")],
        rounds=config.rounds,
        niceness=config.niceness,
        our_dtype=config.dtype.value,
    )
    text = chosen(TEXT_CASES + HALF_CASES + SMOKE_CASES, config.cases)
    yield from run_text_cases(text, wanted(TEXT_PEERS, config.engines), conditions)
    pictures = chosen([*picture_cases(PICTURES_FOLDER), *SMOKE_PICTURE_CASES], config.cases)
    for _, cases in groupby(pictures, key=lambda case: case.model):
        yield from run_picture_cases(list(cases), wanted(VISION_PEERS, config.engines), conditions)


def wanted(peers: Sequence[Peer], names: Sequence[str]) -> list[Peer]:
    """The peers of these names, and no others whose names begin so; without a wish all."""
    return [peer for peer in peers if not names or peer.name in names]


def chosen(cases: Sequence[Case], beginnings: Sequence[str]) -> list[Case]:
    """The cases whose names begin with these words; without a wish all but those that are there to be quick."""
    if not beginnings:
        return [case for case in cases if not case.name.startswith("smoke")]
    wanted = tuple(f"{beginning} " for beginning in beginnings)
    return [case for case in cases if f"{case.name} ".startswith(wanted)]


def _broken(result: CaseResult) -> bool:
    return any(reason != "not installed" for reason in result.not_run.values())
