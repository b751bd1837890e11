"""Whatever ends a peer's process, the rows that it wrote are there, and one says why there are no more."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.peers.__main__ import all_rows
from benchmarks.gpu.peers.decoding_rows import CHECKED
from benchmarks.gpu.peers.peer import Peer, Setting
from benchmarks.gpu.peers.process import child_command, rows_of
from benchmarks.gpu.report import Row
from tests.processes import is_running

ROOT = Path(__file__).parents[2]
ONE_ROW = "print('{\"case\": 1}', flush=True);"


def of(code: str, tmp_path: Path, *, seconds: float = 60.0) -> list[Row]:
    return list(rows_of([sys.executable, "-c", code], seconds=seconds, log=tmp_path / "log"))


def test_rows_come_one_by_one_and_nothing_is_added_to_a_good_end(tmp_path: Path) -> None:
    assert of(ONE_ROW + "print('{\"case\": 2}')", tmp_path) == [{"case": 1}, {"case": 2}]


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = ONE_ROW + (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    found = of(code, tmp_path, seconds=4.0)
    assert found == [{"case": 1}, {"not run": "the rest, as it took more than 4 s"}]
    pid = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("sys.exit('first\\nno memory left')", "its process ended with 1: no memory left"),
        ("os.kill(os.getpid(), 9)", "its process ended with -9: it said nothing"),
    ],
)
def test_one_that_dies_is_named_with_its_last_words(end: str, words: str, tmp_path: Path) -> None:
    assert of(f"import os, sys; {ONE_ROW} {end}", tmp_path) == [{"case": 1}, {"not run": words}]


def test_a_process_that_is_not_waited_for_is_ended(tmp_path: Path) -> None:
    rows = rows_of([sys.executable, "-c", ONE_ROW + "import time; time.sleep(600)"], seconds=60.0, log=tmp_path / "log")
    assert next(rows) == {"case": 1}
    begin = time.monotonic()
    rows.close()  # type: ignore[attr-defined] # a generator
    assert time.monotonic() - begin < 30


def setting() -> Setting:
    return Setting(
        device=torch.device("cpu"), cases=frozenset({"G1"}), decoder=CHECKED, ours=OwnFigures(), seconds=100.0
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'transformers'"), "ModuleNotFoundError: No module named 'transformers'"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_what_a_peer_raises_is_its_last_row(error: Exception, words: str) -> None:
    def rows(_: Setting) -> Iterator[Row]:
        yield {"case": "float32"}
        raise error

    peer = Peer(name="one", cases=frozenset({"G1"}), rows=rows)
    assert list(all_rows(peer, setting())) == [{"case": "float32"}, {"not run": words}]


def test_a_peer_runs_in_a_process_as_it_is_started_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot run, so that it is soon over: what comes back came through the whole way."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "build/gen")]))
    OwnFigures().write(tmp_path / "ours.json")
    command = child_command("gpt-fast", ["G1"], tmp_path / "ours.json", 60.0, small=True, gpt_fast=None)
    found = list(rows_of([*command, "--device", "cpu"], seconds=120.0, log=tmp_path / "log"))
    assert found == [{"not run": "ValueError: no checkout of it was given (--gpt-fast)"}]
    assert "Traceback" in (tmp_path / "log").read_text()
