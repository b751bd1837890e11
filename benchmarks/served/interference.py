"""C12 beside the peers' servers: what pictures do to streams of text, for each system in turns.

Knows turns, goals and what the table says. Does not know how systems are started, or what is asked (see
`load.interference`). A gap is one between two messages, as in vLLM's own benchmark, however many tokens a message has.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.checkpoints import text_config
from benchmarks.load.interference import Interference, InterferenceConfig, interfere
from benchmarks.markdown import table_lines
from benchmarks.rounds import in_turn
from benchmarks.served.loads import FIRST_PLAIN_TOKEN, limited
from benchmarks.served.systems import Running, System
from benchmarks.statistics import percentile

NAME, MODEL = "interference", "pixtral"
GOAL, GOAL_BESIDE_PEERS = 1.3, 0.5
"""Our own inflation at most; and at most so many times a peer's."""
_WARM_UP = 8
_COLUMNS = (
    "system",
    "ITL alone, P50",
    "P99",
    "beside pictures, P50",
    "P99",
    "most",
    "inflation",
    "ours / its",
    "goal",
    "TTFT of pictures, P50",
    "P99",
    "tokens in a message",
    "failed",
)


@dataclass(slots=True, kw_only=True)
class InterferenceComparison:
    """All systems in turns on the same cores, some rounds."""

    cores: Sequence[int]
    versions: Mapping[str, str]
    """By system; ours is the first."""
    not_run: dict[str, str]
    config: InterferenceConfig
    rounds: dict[str, list[Interference]] = field(default_factory=dict)
    """By system."""

    @property
    def ours(self) -> str:
        """Our name among the systems."""
        return next(iter(self.versions))

    def ratio(self, system: str, number: int) -> float | None:
        """Our inflation over this system's in a round; None for ourselves."""
        if system == self.ours:
            return None
        return self.rounds[self.ours][number].inflation / self.rounds[system][number].inflation


async def compared(
    running: Running, config: InterferenceConfig, *, model: str, cores: Sequence[int], rounds: int, limit: float
) -> InterferenceComparison:
    """Measure all that run, each round beginning with another; a system that answers nothing was not run."""
    found = InterferenceComparison(
        cores=cores,
        versions={system.name: system.version for system in running.systems},
        not_run=dict(running.not_run),
        config=config,
    )
    token_ids = range(FIRST_PLAIN_TOKEN, text_config(model).vocab_size)
    few = replace(config, num_requests=min(config.num_requests, _WARM_UP), pictures_per_second=2)

    async def turn(system: System, how: InterferenceConfig, number: int) -> Interference:
        sys.stderr.write(f"{system.name}, {f'round {number}' if number else 'warming up'}\n")
        with system.awake():
            return await interfere(limited(system.send, limit), how, token_ids=token_ids, number=number)

    answering = []
    for system in running.systems:
        try:
            await turn(system, few, 0)
        except ValueError as error:  # It started, and answers nothing.
            found.not_run[system.name] = str(error)
        else:
            answering.append(system)
            found.rounds[system.name] = []
    for number in range(rounds):
        for system in in_turn(answering, number):
            found.rounds[system.name].append(await turn(system, config, 1 + number))
    return found


def tables(found: InterferenceComparison) -> str:
    """A Markdown table with a row for each system's rounds, and one for their medians where there are several."""
    missing = "".join(f"Not run: {name} ({reason}).\n" for name, reason in sorted(found.not_run.items()))
    versions = "".join(f"{name} ({version})\n" for name, version in found.versions.items())
    rows = [_cells(found, name, number) for name, rounds in found.rounds.items() for number in range(len(rounds))]
    how = found.config
    load = f"{how.streams} streams of text, {how.pictures_per_second:g} pictures a second"
    return "\n".join([f"{NAME}: {load}\n{versions}{missing}", *table_lines(_COLUMNS, rows), *_medians(found), ""])


def _cells(found: InterferenceComparison, name: str, number: int) -> list[str]:
    one, ratio = found.rounds[name][number], found.ratio(name, number)
    alone, beside, ttft = one.itl_alone.percentiles, one.itl_beside.percentiles, one.ttft_of_pictures.percentiles
    return [
        name,
        *(f"{alone[percent]:.1f} ms" for percent in (50, 99)),
        *(f"{beside[percent]:.1f} ms" for percent in (50, 99)),
        f"{1000 * max(one.gaps_beside):.0f} ms",
        f"{one.inflation:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        _goal(found, name, one.inflation, ratio),
        *(f"{ttft[percent]:.0f} ms" for percent in (50, 99)),
        f"{one.tokens_in_a_message:.2f}",
        str(one.num_failed),
    ]


def _medians(found: InterferenceComparison) -> list[str]:
    """What the rounds of each system say together; nothing of a single one."""
    lines = []
    for name, rounds in found.rounds.items():
        if len(rounds) < 2:
            continue
        inflation = percentile([each.inflation for each in rounds], 50)
        beside = percentile([each.itl_beside.percentiles[99] for each in rounds], 50)
        lines.append(f"Median of {name}: P99 beside pictures {beside:.1f} ms, inflation {inflation:.2f}")
    return ["", *lines] if lines else []


def _goal(found: InterferenceComparison, name: str, inflation: float, ratio: float | None) -> str:
    if ratio is None:
        return _judged(inflation, GOAL)
    return "" if name.startswith(found.ours) else _judged(ratio, GOAL_BESIDE_PEERS)  # No goal for ours beside ours.


def _judged(value: float, goal: float) -> str:
    return f"{goal:.2f} {'met' if value <= goal else 'missed'}"
