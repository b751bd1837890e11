"""The comparison of steps without a model: what is timed, what is held against whom, and what counts as a step."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.__main__ import main
from benchmarks.peers import stepping
from benchmarks.peers.environments import Peer
from benchmarks.peers.protocol import PeerError
from benchmarks.peers.stepping import WARM_UP, Step, prompts, time_steps
from benchmarks.scheduling.results import RowResult, StepsResult, Turn, row_result, table
from benchmarks.scheduling.turns import Load, run_steps
from tests.benchmarks.scripted import Scripted

LOAD = Load(context=4, steps=8, seconds=0.001, rounds=2)

_SCRIPT = """
from benchmarks.peers.protocol import serve

def step(running, context, steps, seconds):
    tokens = steps * running - MISSING
    return {"seconds": steps * 1.0, "processor_seconds": steps * 0.5, "steps": steps, "tokens": tokens}

serve({"load": lambda model: {"version": "one"}, "step": step, "schedule": step})
"""


_PEER = Scripted(name="vllm", script=_SCRIPT.replace("MISSING", "0"))
"""Its steps take half a second of the processor's."""


def test_steps_are_begun_anew_until_the_time_is_measured_and_warm_up_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, busy = itertools.count(), itertools.count(step=0.25)
    monkeypatch.setattr(
        stepping, "time", SimpleNamespace(perf_counter=lambda: next(clock), process_time=lambda: next(busy))
    )
    begun: list[tuple[int, int, int]] = []
    taken: list[int] = []

    def begin(running: int, context: int, steps: int) -> Step:
        begun.append((running, context, steps))

        def step() -> int:
            taken.append(running)
            return running

        return step

    found = time_steps(begin, running=3, context=5, steps=10, seconds=2.5)
    assert begun == [(3, 5, WARM_UP + 10)] * 3
    assert len(taken) == 3 * (WARM_UP + 10)
    assert found == {"seconds": 3.0, "processor_seconds": 0.75, "steps": 30, "tokens": 90}


def test_no_two_prompts_share_a_beginning_also_of_different_turns() -> None:
    made = [*prompts(8, 16, first=0), *prompts(8, 16, first=8)]
    assert len({prompt[0] for prompt in made}) == 16
    assert {len(prompt) for prompt in made} == {16}


def test_every_step_of_ours_gives_every_request_a_token(tmp_path: Path) -> None:
    (one, many) = run_steps([1, 5], [], LOAD, folder=tmp_path, core=0)
    assert [(found.running, [row.name for row in found.rows]) for found in (one, many)] == [
        (1, ["diptych"]),
        (5, ["diptych"]),
    ]
    assert many.rows[0].processor_microseconds.median > 0
    assert many.rows[0].ratio is None


def test_a_peer_has_a_row_for_its_step_and_one_for_its_scheduler_alone(tmp_path: Path) -> None:
    (found,) = run_steps([2], [_PEER], LOAD, folder=tmp_path, core=0)
    ours, step, schedule = found.rows
    assert [step.name, schedule.name] == ["vllm", "vllm, scheduler alone"]
    assert step.processor_microseconds.median == pytest.approx(0.5e6)
    assert step.microseconds == pytest.approx(1e6)
    assert step.ratio is not None
    assert 0 < step.ratio < 0.01
    assert (ours.goal, step.goal) == (None, 0.3)


def test_a_step_that_gives_too_few_tokens_is_no_step(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="8 steps of 2 requests gave 15 tokens"):
        list(run_steps([2], [replace(_PEER, script=_SCRIPT.replace("MISSING", "1"))], LOAD, folder=tmp_path, core=0))


def test_peers_that_are_not_there_or_cannot_be_built_are_named(tmp_path: Path) -> None:
    absent = Peer(name="absent", module="scripted", folder="absent")
    broken = replace(_PEER, name="broken", module="benchmarks.peers.no_such_module")
    (found,) = run_steps([1], [absent, broken], LOAD, folder=tmp_path, core=0)
    assert found.not_run["absent"] == "not installed"
    assert found.not_run["broken"].startswith("the process ended")
    assert "Not run: absent (not installed)." in table([found])


def test_rounds_are_held_against_each_other_one_by_one_and_the_goal_is_an_upper_bound() -> None:
    ours = [Turn(microseconds=each, processor_microseconds=each) for each in (10.0, 20.0, 40.0)]
    its = [Turn(microseconds=2 * each, processor_microseconds=each) for each in (40.0, 50.0, 100.0)]
    rows: list[RowResult] = [
        row_result("ours", "", ours, ours),
        row_result("met", "", its, ours, goal=0.4),
        row_result("missed", "", its, ours, goal=0.39),
    ]
    assert [row.ratio for row in rows] == [None, 0.4, 0.4]
    assert rows[1].microseconds == 100.0
    lines = table([StepsResult(running=2, rows=rows, not_run={})]).splitlines()
    assert lines[2] == "| 2 | ours | 20 | 10 to 40 | 20 | 10 |  |  |"
    assert lines[3].endswith("| 0.40 | 0.40 met |")
    assert lines[4].endswith("| 0.40 | 0.39 missed |")


@pytest.mark.parametrize("wrong", [["--running", "0"], ["--running", "1,two"], ["--engines", "llama.cpp"]])
def test_a_wrong_setting_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["scheduling", *wrong])
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
