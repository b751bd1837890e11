"""The comparison: what counts as the same tokens, how a limit is made, and how an engine's process is asked."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.checkpoints import SMALL
from benchmarks.compare.agreement import agreement
from benchmarks.compare.cases import TextCase, limit_seconds
from benchmarks.compare.results import CaseResult, EngineResult, table
from benchmarks.peers.protocol import PeerError, Worker
from benchmarks.statistics import Spread

CASE = TextCase(name="x", model="small", concurrency=4, prompt_tokens=10, new_tokens=3)


def test_tokens_count_as_the_same_up_to_the_first_that_differs() -> None:
    found = agreement([[1, 2, 3], [1, 2, 3], [1, 2]], [[1, 2, 3], [1, 9, 3], [1]])
    assert str(found) == "1/3 prompts, 5/8 tokens"
    assert not found.is_exact
    assert agreement([[1]], [[1]]).is_exact


def test_the_limit_is_bandwidth_for_few_requests_and_products_for_many() -> None:
    def seconds(case: TextCase) -> float:
        return limit_seconds(case, SMALL, bytes_per_weight=4, bytes_per_second=20e9, flops=80e9)

    weights = 8 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 1792) + 512 * 32000
    one = replace(CASE, concurrency=1, prompt_tokens=0)
    step = seconds(replace(one, new_tokens=3)) - seconds(replace(one, new_tokens=2))
    assert step == pytest.approx(weights * 4 / 20e9)
    many = replace(one, concurrency=64)
    step = seconds(replace(many, new_tokens=3)) - seconds(replace(many, new_tokens=2))
    assert step == pytest.approx(64 * 2 * weights / 80e9)


def test_the_table_names_goals_and_engines_that_did_not_run() -> None:
    ours = EngineResult(engine="diptych", version="", rate=Spread(200, 190, 210), processor_seconds=1.0, agreement="")
    peer = replace(ours, engine="other", rate=Spread(100, 90, 110), ratio=2.0, ratio_goal=2.5)
    text = table(
        [
            CaseResult(
                case="C", cores=1, unit="tok/s", limit=400.0, engines=[ours, peer], not_run={"third": "not installed"}
            )
        ]
    )
    assert "| 2.00 | 2.50 missed | 0.25 |" in text
    assert "Not run: third (not installed)." in text


def test_a_worker_answers_in_turn_whatever_its_engine_prints(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text(
        "from benchmarks.peers.protocol import serve\n"
        "def double(number):\n"
        "    print('chatter')\n"
        "    return 2 * number\n"
        "serve({'double': double, 'fail': lambda: 1 / 0})\n"
    )
    module = "chatty"
    log = tmp_path / "log"
    environment = {"PYTHONSAFEPATH": "", "EXTRA": "1"}
    with _worker(script.parent, module, log, environment) as worker:
        assert worker.ask("double", number=4) == 8
        with pytest.raises(PeerError, match="ZeroDivisionError"):
            worker.ask("fail")
        assert worker.ask("double", number=5) == 10
        assert worker.processor_seconds() > 0
    assert "chatter" in log.read_text()


def test_a_worker_that_dies_says_where_to_look(tmp_path: Path) -> None:
    with _worker(tmp_path, "no_such_module", tmp_path / "log", {}) as worker, pytest.raises(PeerError, match="log"):
        worker.ask("anything")


def test_a_worker_does_nothing_while_it_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "turner.py").write_text(
        "import threading, time\n"
        "from benchmarks.peers.protocol import serve\n"
        "def turn():\n"
        "    while True: pass\n"
        "def begin():\n"
        "    threading.Thread(target=turn, daemon=True).start()\n"
        "serve({'begin': begin, 'turn': lambda: time.sleep(0.2)})\n"
    )
    with _worker(tmp_path, "turner", tmp_path / "log", {}) as worker:
        worker.ask("begin")
        time.sleep(0.2)  # For the signal to arrive.
        idle_from = worker.processor_seconds()
        time.sleep(0.2)
        assert worker.processor_seconds() == idle_from
        worker.ask("turn")
        assert worker.processor_seconds() > idle_from


def test_what_an_engine_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(
        "import subprocess, sys\n"
        "from benchmarks.peers.protocol import serve\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "serve({'child': lambda: child.pid})\n"
    )
    with _worker(tmp_path, "leaver", tmp_path / "log", {}) as worker:
        child = Path("/proc") / str(worker.ask("child"))
        assert _runs(child)
    end = time.monotonic() + 60
    while _runs(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(process: Path) -> bool:
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


def _worker(folder: Path, module: str, log: Path, environment: dict[str, str]) -> Worker:
    return Worker(Path(sys.executable), module, cores=[0], environment=environment, log=log, extra_paths=[str(folder)])
