"""Services run on asyncio's own loop, and on uvloop where that is asked for and installed."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from common.server import event_loop


async def kind_of_loop() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


def test_services_run_on_asyncios_own_loop() -> None:
    assert event_loop.run(kind_of_loop()) is asyncio.SelectorEventLoop


def test_services_run_on_the_faster_loop_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, "1")
    assert event_loop.run(kind_of_loop()) is uvloop.Loop


def test_without_it_they_run_on_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "uvloop", None)  # As if it were not installed.
    assert event_loop.run(kind_of_loop()) is asyncio.SelectorEventLoop


@pytest.mark.parametrize("module", ["decoder_service", "vision_service", "diptych/local.py"])
def test_no_service_makes_a_loop_of_its_own(module: str) -> None:
    path = Path(module)
    text = (path / "__main__.py" if path.suffix == "" else path).read_text()
    assert "event_loop.run(" in text
    assert "asyncio.run(" not in text


def test_a_worker_that_is_killed_is_seen_to_end_on_either_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def kill_one() -> int:
        sleeper = (sys.executable, "-c", "import time; time.sleep(60)")
        process = await asyncio.create_subprocess_exec(*sleeper, stdout=subprocess.PIPE)
        process.kill()
        await process.communicate()
        return process.returncode or 0

    assert event_loop.run(kill_one()) == -9
    monkeypatch.setenv(event_loop.VARIABLE, "1")
    assert event_loop.run(kill_one()) == -9
