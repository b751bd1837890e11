"""Our own cases in processes of their own: whatever one does to its process or device, no other loses its figures."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.cases import Bench
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.own_process import Lines, run_all
from benchmarks.gpu.own_runs import run_own
from benchmarks.gpu.peers.process import rows_of
from benchmarks.gpu.report import Report, Row
from benchmarks.pixtral_12b import DECODER_12B

NAMES = ("first", "bad", "last")


def results(file: Path) -> Mapping[str, list[Row]]:
    found: Mapping[str, list[Row]] = json.loads(file.read_text())["results"]
    return found


def run(bad: str, tmp_path: Path, *, silent_seconds: float = 30.0) -> tuple[list[str], Path, OwnFigures]:
    """Three cases of which the second one does something; each process imports nothing."""
    code = f"""
import json, os, sys, time
def write(**line): print(json.dumps(line), flush=True)
for name in sys.argv[1:]:
    write(table=name, row={{"case": name}})
    if name == "bad": {bad}
    write(over=name, failed=False, figures={{"answers": {{}}, "pictures": {{name: 1.0}}}})
"""

    def run_process(left: Sequence[str]) -> Iterable[Row]:
        command = [sys.executable, "-c", code, *left]
        return rows_of(command, seconds=60.0, log=tmp_path / "log", silent_seconds=silent_seconds)

    own = OwnFigures()
    return run_own(NAMES, run_process, Report(tmp_path / "gpu.json"), own), tmp_path / "gpu.json", own


def test_cases_that_are_well_run_in_one_process(tmp_path: Path) -> None:
    failed, file, own = run("write(table='process', row={'id': os.getpid()})", tmp_path)
    assert failed == []
    assert [len(rows) for rows in results(file).values()] == [1, 1, 1, 1]
    assert set(own.pictures) == set(NAMES)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("os.abort()", "its process ended with -6: it said nothing"),
        ("sys.exit('no kernel')", "its process ended with 1: no kernel"),
        ("os._exit(0)", "its process ended before it was over"),
        ("print('{', end='', flush=True); time.sleep(600)", "the rest, as it said nothing for 2 s"),
    ],
)
def test_a_case_that_takes_its_process_along_or_hangs_is_named_and_the_next_one_runs(
    bad: str, reason: str, tmp_path: Path
) -> None:
    failed, file, own = run(bad, tmp_path, silent_seconds=2.0)
    assert failed == ["bad"]
    assert results(file) == {
        "first": [{"case": "first"}],
        "bad": [{"case": "bad"}],
        "bad failed": [{"error": reason}],
        "last": [{"case": "last"}],
    }
    assert set(own.pictures) == {"first", "last"}


def test_a_case_that_loses_the_device_costs_the_next_one_a_new_process_and_nothing_else(tmp_path: Path) -> None:
    lost = "write(over=name, failed=True, figures={'answers': {}, 'pictures': {}}); write(lost='x'); os._exit(0)"
    failed, file, _ = run(lost, tmp_path)
    assert failed == ["bad"]
    assert set(results(file)) == set(NAMES)


def test_where_no_time_is_left_every_case_says_so(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json")
    assert run_own(NAMES, lambda _: [{"not run": "no time was left"}], report, OwnFigures()) == list(NAMES)
    assert set(results(tmp_path / "gpu.json")) == {f"{name} failed" for name in NAMES}


def test_the_process_says_what_it_found_and_ends_behind_the_case_that_loses_the_device() -> None:
    written: list[Mapping[str, object]] = []
    ceilings = Ceilings(copy_bytes=3e12, read_bytes=4e12, flops=7e14)
    bench = Bench(
        device=torch.device("cpu"),
        ceilings=ceilings,
        decoder=DECODER_12B,
        report=Lines(written.append),
        own=OwnFigures(),
    )

    def case(name: str, bench: Bench) -> None:
        def rows() -> Iterator[Row]:
            yield {"case": name}
            if name == "bad":
                raise RuntimeError("an illegal memory access")

        bench.report.add(name, rows())
        bench.own.answers[name] = Answers(tokens=[[1]], times=[[0.5]], seconds=0.5)

    cases = {name: partial(case, name) for name in NAMES}

    def was_bad() -> bool:
        return any(line.get("over") == "bad" for line in written)

    assert not run_all(NAMES, cases, bench, written.append, is_lost=was_bad)
    read = json.loads(json.dumps(written))
    assert [next(iter(line)) for line in read] == ["table", "over", "table", "table", "over", "lost"]
    assert [line["failed"] for line in read if "over" in line] == [False, True]
    own = OwnFigures()
    own.take(read[1]["figures"])
    assert asdict(own) == asdict(OwnFigures({"first": Answers(tokens=[[1]], times=[[0.5]], seconds=0.5)}))
