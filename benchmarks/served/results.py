"""What a comparison of served systems found: records that become JSON and tables.

Knows SLOs, ratios and the goal. Does not know systems or loads. An SLO is the same for all: five times the lowest
unloaded TTFT and twice the lowest unloaded TPOT that a system reached. There are two: the one of all systems, and the
one of the peers alone, which is wider where we are faster and does not judge a peer by what only we do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.load.figures import LoadFigures, Slo, figures
from benchmarks.load.records import RequestRecord
from benchmarks.markdown import table_lines
from benchmarks.served.loads import Alone

GOAL = 1.2
_TTFT_FACTOR, _TPOT_FACTOR = 5, 2
_COLUMNS = (
    "arrivals",
    "system",
    "goodput",
    "within the SLO",
    "ours / its",
    "goal",
    "P50 TTFT",
    "P99 TTFT",
    "P50 TPOT",
    "P99 TPOT",
    "failed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoad:
    """One system under arrivals at one rate."""

    arrivals: str
    """Of whose capacity the rate is a part."""
    rate: float
    system: str
    processor_seconds: float
    """Of the system, from the first arrival to the last answer."""
    records: Sequence[RequestRecord]

    def judged(self, slo: Slo) -> LoadFigures | None:
        """Its figures; None where no request ended well."""
        return figures(self.records, slo) if any(record.succeeded for record in self.records) else None

    def goodput(self, slo: Slo) -> float:
        """Requests a second within the SLO."""
        found = self.judged(slo)
        return 0.0 if found is None or found.goodput is None else found.goodput


@dataclass(slots=True, kw_only=True)
class Comparison:
    """A case, all systems in turns on the same cores."""

    case: str
    cores: Sequence[int]
    versions: Mapping[str, str]
    """By system; ours is the first."""
    alone: Mapping[str, Alone]
    not_run: Mapping[str, str]
    loads: list[OpenLoad] = field(default_factory=list)

    @property
    def ours(self) -> str:
        """Our name among the systems."""
        return next(iter(self.versions))

    @property
    def slos(self) -> dict[str, Slo]:
        """The SLO of all systems, and the peers' where it is another."""
        found = {"of all systems": slo(list(self.alone.values()))}
        if peers := [each for name, each in self.alone.items() if name != self.ours]:
            found["of the peers"] = slo(peers)
        return found

    def ratio(self, load: OpenLoad, slo: Slo) -> float | None:
        """Our goodput over this one's at the same arrivals, 1 where neither has any; None for ourselves."""
        if load.system == self.ours:
            return None
        ours = next(each for each in self.loads if (each.system, each.arrivals) == (self.ours, load.arrivals))
        our_goodput, its = ours.goodput(slo), load.goodput(slo)
        if not its:
            return math.inf if our_goodput else 1.0
        return our_goodput / its


def slo(alone: Sequence[Alone]) -> Slo:
    """The limits that the fastest of these set."""
    return Slo(
        ttft=_TTFT_FACTOR * min(each.ttft_ms for each in alone), tpot=_TPOT_FACTOR * min(each.tpot_ms for each in alone)
    )


def tables(found: Comparison) -> str:
    """What each system does alone, then a Markdown table for each SLO."""
    alone = "".join(
        f"{name} ({found.versions[name]}): {each.capacity:.2f} requests/s at most; unloaded TTFT "
        f"{each.ttft_ms:.0f} ms, TPOT {each.tpot_ms:.1f} ms; "
        f"prompts of {each.prompt_tokens:.0f} tokens; {each.num_failed} failed\n"
        for name, each in found.alone.items()
    )
    missing = "".join(f"Not run: {name} ({reason}).\n" for name, reason in sorted(found.not_run.items()))
    parts = (
        f"\n{found.case}, the SLO {whose}: TTFT {limits.ttft:.0f} ms, TPOT {limits.tpot:.1f} ms\n\n"
        f"{table(found, limits)}"
        for whose, limits in found.slos.items()
    )
    return f"{found.case}:\n{alone}{missing}{''.join(parts)}"


def table(found: Comparison, limits: Slo) -> str:
    """A row for each system at each rate."""
    return "\n".join([*table_lines(_COLUMNS, (_cells(found, load, limits) for load in found.loads)), ""])


def _cells(found: Comparison, load: OpenLoad, limits: Slo) -> list[str]:
    judged = load.judged(limits)
    ratio = found.ratio(load, limits)
    within = sum(map(limits.is_met, (record for record in load.records if record.succeeded)))
    latencies = (
        ["", "", "", ""]
        if judged is None
        else [f"{each.percentiles[part]:.0f} ms" for each in (judged.ttft,) for part in (50, 99)]
        + [f"{judged.tpot.percentiles[part]:.1f} ms" for part in (50, 99)]
    )
    return [
        f"{load.arrivals}: {load.rate:.2f}/s",
        load.system,
        f"{load.goodput(limits):.2f}/s",
        f"{within} of {len(load.records)}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if ratio is None else f"{GOAL:.2f} {'met' if ratio >= GOAL else 'missed'}",
        *latencies,
        str(sum(not record.succeeded for record in load.records)),
    ]
