"""What steps without a model cost in each engine: records that become JSON and a table.

Knows times and ratios. Does not know engines' processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.markdown import figure, table_lines
from benchmarks.rounds import median_ratio
from benchmarks.statistics import Spread, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One engine's steps in one round."""

    microseconds: float
    """Of a step, by the clock."""
    processor_microseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row of the table: a part of an engine, over all rounds."""

    name: str
    version: str
    processor_microseconds: Spread
    """Of a step, in the time of its process, which others on the machine hardly change."""
    microseconds: float
    """Of a step, by the clock; the median round's."""
    ratio: float | None = None
    """Median over the rounds of our processor time over this one's; None for ourselves."""
    goal: float | None = None
    """What the ratio may be at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsResult:
    """Steps of so many requests, in all engines."""

    running: int
    rows: Sequence[RowResult]
    not_run: Mapping[str, str]
    """Engines that did not run, and why."""


def row_result(
    name: str, version: str, turns: Sequence[Turn], ours: Sequence[Turn], *, goal: float | None = None
) -> RowResult:
    """The rounds of one row beside ours of the same rounds; `turns` may be ours themselves."""
    costs = [turn.processor_microseconds for turn in turns]
    return RowResult(
        name=name,
        version=version,
        processor_microseconds=Spread.of(costs),
        microseconds=percentile([turn.microseconds for turn in turns], 50),
        ratio=None if turns is ours else median_ratio([turn.processor_microseconds for turn in ours], costs),
        goal=goal,
    )


_COLUMNS = (
    "running",
    "engine",
    "us a step",
    "lowest to highest",
    "by the clock",
    "us a request",
    "ours / its",
    "goal",
)


def table(results: Sequence[StepsResult]) -> str:
    """A Markdown table, one row for each part of an engine at each number of requests."""
    rows = [_cells(result.running, row) for result in results for row in result.rows]
    missing = {f"{engine} ({reason})" for result in results for engine, reason in result.not_run.items()}
    return "\n".join([*table_lines(_COLUMNS, rows), "", *(f"Not run: {each}." for each in sorted(missing))])


def _cells(running: int, row: RowResult) -> list[str]:
    spread, ratio, goal = row.processor_microseconds, row.ratio, row.goal
    verdict = "" if ratio is None or goal is None else f"{goal:.2f} {'met' if ratio <= goal else 'missed'}"
    return [
        str(running),
        row.name,
        figure(spread.median),
        f"{figure(spread.lowest)} to {figure(spread.highest)}",
        figure(row.microseconds),
        figure(spread.median / running),
        "" if ratio is None else f"{ratio:.2f}",
        verdict,
    ]
