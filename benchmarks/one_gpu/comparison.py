"""What the pair's loads say beside those of one process.

Knows figures of loads. Does not know how they were measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.figures import LoadFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load on one way to run."""

    mode: str
    load: str
    """What a request has."""
    rate: float
    """Requests a second that were sent."""
    figures: LoadFigures

    @property
    def goodput(self) -> float:
        """Requests a second within the SLO."""
        return self.figures.goodput or 0.0

    @property
    def late_tpot(self) -> float:
        """P99 of the time per output token, in milliseconds."""
        return self.figures.tpot.percentiles[99]

    def line(self) -> str:
        """The load in a line."""
        found = self.figures
        return (
            f"{self.mode}, {self.load}, {self.rate:g} a second: goodput {self.goodput:.2f} of "
            f"{found.request_throughput:.2f} requests/s, TTFT P50 {found.ttft.percentiles[50]:.0f} P99 "
            f"{found.ttft.percentiles[99]:.0f} ms, TPOT P50 {found.tpot.percentiles[50]:.1f} P99 "
            f"{found.tpot.percentiles[99]:.1f} ms, {found.num_failed} failed\n"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The pair over one process under loads that both had."""

    load: str
    goodput_pair: float
    """The best of its rates"""
    goodput_one_process: float
    goodput_ratio: float | None
    """None where one process kept no request within the SLO"""
    tpot_ratios: dict[float, float]
    """P99 of TPOT by the rate, where one process has one: tokens that all come in one message have none"""

    def line(self) -> str:
        """The comparison in a line."""
        ratio = "no ratio" if self.goodput_ratio is None else f"ratio {self.goodput_ratio:.2f}"
        tpot = ", ".join(f"{value:.2f} at {rate:g}" for rate, value in self.tpot_ratios.items())
        return (
            f"G7, {self.load}: best goodput {self.goodput_pair:.2f} and {self.goodput_one_process:.2f} requests/s, "
            f"{ratio}; P99 TPOT of the pair over one process {tpot} a second\n"
        )


def compare(loads: Sequence[Measured]) -> list[Comparison]:
    """A comparison for each kind of request, of the rates that both ways to run had."""
    found = []
    for load in dict.fromkeys(each.load for each in loads):
        ours, others = ({each.rate: each for each in loads if (each.load, each.mode) == (load, mode)}
                        for mode in ("pair", "one process"))  # fmt: skip
        rates = [rate for rate in ours if rate in others]
        if not rates:
            continue
        best, other = (max(each[rate].goodput for rate in rates) for each in (ours, others))
        found.append(
            Comparison(
                load=load,
                goodput_pair=best,
                goodput_one_process=other,
                goodput_ratio=best / other if other else None,
                tpot_ratios={rate: ours[rate].late_tpot / late for rate in rates if (late := others[rate].late_tpot)},
            )
        )
    return found
