"""A burst is made at once and timed; no figure is judged here."""

import re

import pytest

from benchmarks.refusals import GENERATE, bursts, describe, start_bare, text


async def test_every_call_of_a_burst_is_counted_and_the_first_burst_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    address, server = await start_bare()
    try:
        await bursts(address, GENERATE, text, name="bare", count=3, rounds=2)
    finally:
        server.terminate()
        await server.wait()
    told = capsys.readouterr().out
    assert told.startswith("bare, 3 at once ")
    assert told.endswith("of 6 RESOURCE_EXHAUSTED\n")
    assert float(re.search(r"p99 +([0-9.]+) ms", told)[1]) > 0  # type: ignore[index]


def test_answers_are_counted_and_not_among_the_times() -> None:
    line = describe("x", [("OK", 900.0), ("RESOURCE_EXHAUSTED", 1.0), ("RESOURCE_EXHAUSTED", 3.0)])
    assert re.search(r"p50 +2.0 ms +p99 +3.0 ms +max +3.0 ms +of 1 OK, 2 RESOURCE_EXHAUSTED", line)
