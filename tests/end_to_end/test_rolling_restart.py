"""Every service is restarted under load; what the callers saw is judged as a whole."""

import asyncio
from pathlib import Path

from benchmarks.restarts.command import RestartsConfig, measure


def test_a_rolling_restart_loses_repeats_and_changes_nothing(tmp_path: Path) -> None:
    config = RestartsConfig(restarts=1, streams=12, max_tokens=24, log=tmp_path / "log")
    outcome = asyncio.run(asyncio.wait_for(measure(config), 110))
    verdict = outcome.verdict
    assert (verdict.lost, verdict.duplicated, verdict.differing) == ((), (), ())
    assert verdict.num_streams > config.streams
    assert outcome.statuses == (0, 0)
