"""The check that tests leave nothing sees what is left: its negative controls."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from decoder_service.cache.feature_store import FeatureStore
from tests.decoder_service.encoder_fakes import FakeEncoder, image, settle
from tests.decoder_service.engine_fakes import Host, make_request
from tests.idle import leaves_nothing


def test_an_engine_whose_requests_only_still_run_is_fine() -> None:
    with leaves_nothing():
        host = Host()
        host.submit(make_request("a", 9))
        host.submit(make_request("b", 2, 4, arrival=1))
        host.step()


@pytest.mark.breaks_the_books
def test_blocks_that_are_not_given_back_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak() -> None:
        host = Host()
        host.submit(make_request("a", 9))
        host.step()
        scheduler = host.engine._scheduler
        monkeypatch.setattr(scheduler._prefix_cache, "give_back", lambda request: request.block_table.clear())
        host.engine.abort("a")

    with pytest.raises(Exception, match=r"tables but counts|blocks are left"), leaves_nothing():
        leak()


@pytest.mark.breaks_the_books
async def test_features_that_are_not_given_back_are_seen() -> None:
    async def leak() -> None:
        encoder = FakeEncoder()
        store = FeatureStore(encoder, budget_bytes=100)
        await store.lease([image("p")], salt=b"", request_id="a", take=lambda index, lease: None)
        await settle()
        await encoder.finish("p")

    with pytest.raises(AssertionError, match="bytes of features are left"), leaves_nothing():
        await leak()


def test_threads_that_go_on_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.idle.SECONDS_TO_END", 0.05)
    may_end = threading.Event()
    thread = threading.Thread(target=may_end.wait, name="forgotten")
    with pytest.raises(AssertionError, match="forgotten"), leaves_nothing():
        thread.start()
    may_end.set()
    thread.join()


def test_processes_that_go_on_or_that_nobody_waited_for_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.idle.SECONDS_TO_END", 0.05)
    command = [sys.executable, "-c", "input()"]
    with pytest.raises(AssertionError, match="processes are left"), leaves_nothing():
        process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
    process.communicate()

    def begin_and_forget() -> subprocess.Popen[bytes]:
        dead = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        return dead

    with pytest.raises(AssertionError, match="processes are left"), leaves_nothing():
        dead = begin_and_forget()
    dead.wait()


def test_files_and_connections_that_stay_open_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.idle.SECONDS_TO_END", 0.05)
    held: list[object] = []
    with pytest.raises(AssertionError, match="left open"), leaves_nothing():
        held.append((tmp_path / "file").open("w"))
    with pytest.raises(AssertionError, match="left open"), leaves_nothing():
        server = socket.create_server(("127.0.0.1", 0))
    held.append(server)
    with leaves_nothing():  # A server that was there before may be spoken to after the test that began it.
        caller = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", f"import socket; socket.create_connection({server.getsockname()}); input()"],
            stdin=subprocess.PIPE,
        )
        held.append(server.accept()[0])
        caller.communicate()
    with pytest.raises(AssertionError, match="left open"), leaves_nothing():
        held.append(socket.create_connection(server.getsockname()))
    for each in held:
        each.close()  # type: ignore[attr-defined]


async def test_tasks_that_go_on_are_seen_by_the_fixture_of_this_folder() -> None:
    """As `no_task_is_left` sees them."""
    forgotten = asyncio.create_task(asyncio.sleep(60))
    assert asyncio.all_tasks() - {asyncio.current_task()} == {forgotten}
    forgotten.cancel()
