"""A step that hangs is noticed, one that ends is too, and idleness is no hang."""

from decoder_service.engine.watchdog import Watchdog


class Bench:
    """A clock and an engine that are moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.busy_since: float | None = None
        self.reports: list[bool] = []
        self.watchdog = Watchdog(
            lambda: self.busy_since, max_seconds=30.0, report=self.reports.append, now=lambda: self.now
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.watchdog.look()


def test_idleness_is_no_hang() -> None:
    bench = Bench()
    bench.pass_time(10_000)
    assert bench.reports == []


def test_work_that_goes_on_in_pieces_is_no_hang_however_long_it_takes() -> None:
    bench = Bench()
    for _ in range(20):
        bench.busy_since = bench.now
        bench.pass_time(29)
    assert bench.reports == []


def test_a_hang_is_reported_once_and_so_is_its_end() -> None:
    bench = Bench()
    bench.busy_since = bench.now
    bench.pass_time(29)
    assert bench.reports == []
    for _ in range(3):
        bench.pass_time(2)
    assert bench.reports == [False]
    bench.busy_since = bench.now
    bench.pass_time(1)
    assert bench.reports == [False, True]
    bench.busy_since = None
    bench.pass_time(100)
    assert bench.reports == [False, True]
