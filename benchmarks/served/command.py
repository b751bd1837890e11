"""`python -m benchmarks served`: C11 and C12 beside the peers' servers, all in turns in one run on the same cores.

Knows the command line, turns and where results go. Does not know how systems are started, loaded or judged.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.compare.command import PEERS_FOLDER
from benchmarks.load.interference import InterferenceConfig, quickly
from benchmarks.peers.environments import OURS
from benchmarks.report import QUICK, save
from benchmarks.rounds import in_turn
from benchmarks.served import interference
from benchmarks.served.interference import InterferenceComparison
from benchmarks.served.loads import CASES, Alone, Loads, ServedCase, quick, rates
from benchmarks.served.peers import INTERFERENCE_PEERS, ServedPeer
from benchmarks.served.results import Comparison, OpenLoad, tables
from benchmarks.served.systems import Running, System, running_systems
from common.settings.settings import from_arguments, setting

_NAMES = (*(case.name for case in CASES), interference.NAME)
_PEERS = tuple(
    dict.fromkeys(peer.name for peers in (*(case.peers for case in CASES), INTERFERENCE_PEERS) for peer in peers)
)
_LOCAL = ("--local-vision",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedConfig:
    """What to compare, and how large."""

    cases: tuple[str, ...] = setting(_NAMES, help=f"cases to run, of {', '.join(_NAMES)}")
    engines: tuple[str, ...] = setting((), help="names of peers; all where empty, none for `none`")
    peers: Path = setting(PEERS_FOLDER, help="folder with the peers' environments, see benchmarks/peers/install")
    cores: str = setting("0,1", help="cores that every system is pinned to, with commas; the caller shares them")
    requests: int | None = setting(None, minimum=4, help="requests of each load; 40 with pictures and 80 without")
    rounds: int = setting(1, minimum=1, help="rounds of interference")
    streams: int = setting(4, minimum=1, help="streams of text at the same time in interference")
    pictures_per_second: float = setting(1.0, minimum=0.01, help="requests with a picture beside them")
    bfloat16: bool = setting(False, help="weights that are all bfloat16 in interference, in the same file for all")
    limit_seconds: float = setting(20.0, minimum=1, help="longest time of a request, after which it is given up")
    ours: tuple[str, ...] = setting((), help="settings of our services, such as decoder.engine.max_step_stretch=1.3")
    local: bool = setting(False, help="ours is one process, as `diptych up --local-vision` has it")
    quick: bool = setting(False, help="tiny models and few requests, to see that everything runs")
    json: Path | None = setting(None, help="file for the results, all records included")

    def __post_init__(self) -> None:
        if unknown := set(self.cases) - set(_NAMES):
            raise ValueError(f"--cases knows no {', '.join(sorted(unknown))}")
        if unknown := set(self.engines) - {*_PEERS, "none"}:
            raise ValueError(f"--engines knows no {', '.join(sorted(unknown))}, only {', '.join(_PEERS)} and none")
        if not all(re.fullmatch(r"(decoder|vision)\.\w+\.\w+=[\w.]+", each) for each in self.ours):
            raise ValueError("--ours must be settings such as decoder.engine.max_step_stretch=1.3")
        if self.quick and self.bfloat16:
            raise ValueError("--quick has no models in bfloat16")


def run(options: argparse.Namespace) -> int:
    """Compare, print the tables, write the file; 1 where a server that is installed did not run."""
    config = from_arguments(ServedConfig, options)
    found: list[Comparison | InterferenceComparison] = []
    for name in config.cases:
        each = asyncio.run(_measured(config, name))
        found.append(each)
        text = tables(each) if isinstance(each, Comparison) else interference.tables(each)
        sys.stdout.write(f"{QUICK if config.quick else ''}{text}\n")
        sys.stdout.flush()
        if config.json is not None:
            save(config.json, "served", found)  # After each, as the next may take long.
    reasons = {reason for each in found for reason in each.not_run.values()}
    return 1 if reasons - {"not installed"} else 0


async def _measured(config: ServedConfig, name: str) -> Comparison | InterferenceComparison:
    cores = [int(core) for core in config.cores.split(",")]
    if name == interference.NAME:
        return await _interfered(config, cores)
    case = _sized(config, next(case for case in CASES if case.name == name))
    return await _compared(config, case, cores)


def _sized(config: ServedConfig, case: ServedCase) -> ServedCase:
    sized = quick(case) if config.quick else case
    return replace(sized, peers=_wanted(config, case.peers), num_requests=config.requests or sized.num_requests)


def _wanted(config: ServedConfig, peers: Sequence[ServedPeer]) -> tuple[ServedPeer, ...]:
    return tuple(peer for peer in peers if not config.engines or peer.name in config.engines)


async def _interfered(config: ServedConfig, cores: list[int]) -> InterferenceComparison:
    model = f"{'smoke-' * config.quick}{interference.MODEL}{'-bfloat16' * config.bfloat16}"
    load = InterferenceConfig(streams=config.streams, pictures_per_second=config.pictures_per_second)
    if config.requests is not None:
        load = replace(load, num_requests=config.requests)
    async with running_systems(
        model,
        _wanted(config, INTERFERENCE_PEERS),
        folder=config.peers,
        cores=cores,
        settings=config.ours,
        ours={OURS.name: _LOCAL} if config.local else {OURS.name: (), f"{OURS.name} in one process": _LOCAL},
    ) as running:
        return await interference.compared(
            running,
            quickly(load) if config.quick else load,
            model=model,
            cores=cores,
            rounds=config.rounds,
            limit=config.limit_seconds,
        )


async def _compared(config: ServedConfig, case: ServedCase, cores: list[int]) -> Comparison:
    forms = {OURS.name: _LOCAL if config.local else ()}
    async with running_systems(
        case.model, case.peers, folder=config.peers, cores=cores, settings=config.ours, ours=forms
    ) as running:
        loads = Loads(case, limit_seconds=config.limit_seconds)
        ours, *peers = running.systems
        alone, not_run = {ours.name: await _alone(ours, loads)}, dict(running.not_run)
        for peer in peers:
            try:
                alone[peer.name] = await _alone(peer, loads)
            except ValueError as error:  # It started, and answers nothing.
                not_run[peer.name] = str(error)
        answering = [system for system in running.systems if system.name in alone]
        return await _loaded(Running(systems=answering, not_run=not_run), case, cores, loads, alone)


async def _loaded(
    running: Running, case: ServedCase, cores: list[int], loads: Loads, alone: dict[str, Alone]
) -> Comparison:
    ours, *peers = running.systems
    found = Comparison(
        case=case.name,
        cores=cores,
        versions={system.name: system.version for system in running.systems},
        alone=alone,
        not_run=running.not_run,
    )
    chosen = rates(alone[ours.name].capacity, [alone[peer.name].capacity for peer in peers])
    for number, (arrivals, rate) in enumerate(chosen.items()):
        for system in in_turn(running.systems, number):
            found.loads.append(await _open(system, loads, arrivals, rate, number))
    order = {system.name: place for place, system in enumerate(running.systems)}
    found.loads.sort(key=lambda load: (list(chosen).index(load.arrivals), order[load.system]))
    return found


async def _alone(system: System, loads: Loads) -> Alone:
    sys.stderr.write(f"{system.name} alone\n")
    with system.awake():
        return await loads.alone(system.send)


async def _open(system: System, loads: Loads, arrivals: str, rate: float, number: int) -> OpenLoad:
    sys.stderr.write(f"{system.name} under {arrivals}, {rate:.2f}/s\n")
    with system.awake():
        before = system.processor_seconds()
        records = await loads.open(system.send, rate=rate, number=number)
        return OpenLoad(
            arrivals=arrivals,
            rate=rate,
            system=system.name,
            processor_seconds=system.processor_seconds() - before,
            records=records,
        )
