"""What a comparison found: records that become JSON and a table.

Knows rates and ratios. Does not know engines' processes or cases' workloads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.compare.turns import Turn
from benchmarks.markdown import figure, table_lines
from benchmarks.rounds import median_ratio
from benchmarks.statistics import Spread, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """One engine in one case."""

    engine: str
    version: str
    rate: Spread
    """Of `CaseResult.unit`, over the rounds."""
    processor_seconds: float
    """For 1,000 counted tokens or items, of the whole process tree; the median round's."""
    agreement: str
    """With our tokens."""
    ratio: float | None = None
    """Median over the rounds of our rate over this engine's; None for ourselves."""
    ratio_goal: float | None = None

    @property
    def is_goal_met(self) -> bool | None:
        """Whether the ratio is as high as it was meant to be; None without a goal."""
        return None if self.ratio is None or self.ratio_goal is None else self.ratio >= self.ratio_goal


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """All engines in one case on the same cores."""

    case: str
    cores: int
    unit: str
    limit: float | None
    """The rate at the machine's measured limits."""
    limit_goal: float | None = None
    ceilings: dict[str, float] = field(default_factory=dict)
    """What the machine was measured to do just before, see `benchmarks.ceilings`."""
    engines: list[EngineResult] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """Engines that did not run, and why."""


def engine_result(
    name: str, version: str, turns: Sequence[Turn], ours: Sequence[Turn], *, agreement: str, goal: float | None
) -> EngineResult:
    """The rounds of one engine beside ours of the same rounds; `turns` may be ours themselves."""
    rates = [turn.rate for turn in turns]
    return EngineResult(
        engine=name,
        version=version,
        rate=Spread.of(rates),
        processor_seconds=percentile([turn.cost for turn in turns], 50),
        agreement=agreement,
        ratio=None if turns is ours else median_ratio([turn.rate for turn in ours], rates),
        ratio_goal=goal,
    )


_COLUMNS = (
    "case",
    "cores",
    "engine",
    "rate",
    "lowest to highest",
    "ours / its",
    "goal",
    "of the limit",
    "CPU s / 1k",
    "CPU its / ours",
    "agreement",
)


def table(results: list[CaseResult]) -> str:
    """A Markdown table, one row for each engine in each case."""
    rows: list[list[str]] = []
    for result in results:
        ours = next(engine.processor_seconds for engine in result.engines if engine.ratio is None)
        rows.extend(_cells(result, engine, ours) for engine in result.engines)
    missing = {f"{engine} ({reason})" for result in results for engine, reason in result.not_run.items()}
    return "\n".join([*table_lines(_COLUMNS, rows), "", *(f"Not run: {each}." for each in sorted(missing))])


def _cells(result: CaseResult, engine: EngineResult, our_processor_seconds: float) -> list[str]:
    share = engine.rate.median / result.limit if result.limit else math.nan
    share_goal = f" (goal {result.limit_goal:.2f})" if result.limit_goal and engine.ratio is None else ""
    goal = "" if engine.ratio_goal is None else f"{engine.ratio_goal:.2f} {'met' if engine.is_goal_met else 'missed'}"
    return [
        result.case,
        str(result.cores),
        engine.engine,
        f"{figure(engine.rate.median)} {result.unit}",
        f"{figure(engine.rate.lowest)} to {figure(engine.rate.highest)}",
        "" if engine.ratio is None else f"{engine.ratio:.2f}",
        goal,
        "" if math.isnan(share) else f"{share:.2f}{share_goal}",
        f"{engine.processor_seconds:.2f}",
        f"{engine.processor_seconds / our_processor_seconds:.2f}" if engine.ratio and our_processor_seconds else "",
        engine.agreement,
    ]
