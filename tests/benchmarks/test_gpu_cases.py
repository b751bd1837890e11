"""Cases by themselves: one that fails costs no other its figures, and what is chosen is what runs."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import benchmarks.gpu.__main__ as main
from benchmarks.gpu.cases import CASES, Bench, WrongError, run_cases
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.eight_bits import eight_bit_rows
from benchmarks.gpu.engine_rows import engine_rows, offline_limit, offline_rows
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.report import Report
from benchmarks.gpu.workloads import decode_workload, offline_workload
from benchmarks.operations import key_value_bytes, prompt_flops, weight_bytes
from tests.benchmarks.on_cpu import CPU, TINY, engine_for
from tests.eight_bits import needs_products_on_the_host
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CEILINGS = Ceilings(copy_bytes=3e12, read_bytes=4e12, flops=7e14)


def bench(path: Path) -> Bench:
    return Bench(device=CPU, ceilings=CEILINGS, decoder=TINY, report=Report(path), own=OwnFigures())


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    def good(name: str) -> Callable[[Bench], None]:
        def run(bench: Bench) -> None:
            bench.report.add(name, [{"case": name, "ms": 1.5}])

        return run

    def bad(_: Bench) -> None:
        raise WrongError("other tokens\nmore about it")

    file = tmp_path / "gpu.json"
    cases = {"G1": good("G1 decode"), "G3": bad, "G4": good("G4 overlap")}
    assert run_cases(["G1", "G3", "G4"], cases, bench(file)) == ["G3"]
    assert json.loads(file.read_text())["results"] == {
        "G1 decode": [{"case": "G1 decode", "ms": 1.5}],
        "G3 failed": [{"error": "WrongError: other tokens"}],
        "G4 overlap": [{"case": "G4 overlap", "ms": 1.5}],
    }


def test_rows_are_in_the_file_as_soon_as_they_are_made(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"

    def rows() -> "list[dict[str, object]]":
        return json.loads(file.read_text())["results"]["G1"]  # type: ignore[no-any-return]

    def made() -> object:
        yield {"case": 1}
        assert rows() == [{"case": 1}]
        yield {"case": 2}

    Report(file).add("G1", made())  # type: ignore[arg-type]
    assert rows() == [{"case": 1}, {"case": 2}]


def test_names_are_chosen_with_commas_and_unknown_ones_refused() -> None:
    parse = main.some_of(["G1", "G2", "G8"])
    assert parse("G8,G1") == ["G8", "G1"]
    assert parse("none") == []
    with pytest.raises(argparse.ArgumentTypeError, match="G7 is none of G1, G2, G8"):
        parse("G1,G7")


def test_the_peers_of_the_chosen_cases_run_and_one_that_dies_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str, cases: list[str], ours: Path, *_: object, **__: object) -> list[str]:
        found = f"{name} {cases} {sorted(OwnFigures.read(ours).pictures)}"
        code = "raise SystemExit('no memory')" if name == "gpt-fast" else f"print({json.dumps({'case': found})!r})"
        return [sys.executable, "-c", code]

    monkeypatch.setattr(main, "child_command", command)
    arguments = argparse.Namespace(
        json=tmp_path / "gpu.json",
        cases=["G1", "G3", "G8"],
        peers=["gpt-fast", "transformers", "transformers-paged", "transformers-encoder"],
        peer_seconds=60.0,
        small=True,
        gpt_fast=None,
    )
    own = OwnFigures({}, {"256 px": 1.0})
    main.run_peers(arguments, Report(arguments.json), own, time.monotonic() + 60.0)
    assert json.loads(arguments.json.read_text())["results"] == {
        "G1 beside transformers": [{"case": "transformers ['G1'] ['256 px']"}],
        "G1 beside gpt-fast": [{"not run": "its process ended with 1: no memory"}],
        "G8 beside transformers-paged": [{"case": "transformers-paged ['G8'] ['256 px']"}],
    }


def test_no_peer_begins_when_the_time_of_the_run_is_over(tmp_path: Path) -> None:
    arguments = argparse.Namespace(json=tmp_path / "gpu.json", cases=["G6"], peers=["transformers-encoder"])
    arguments.peer_seconds = 240.0
    main.run_peers(arguments, Report(arguments.json), OwnFigures(), time.monotonic() + 1.0)
    assert json.loads(arguments.json.read_text())["results"] == {
        "G6 beside transformers-encoder": [{"not run": "no time was left"}]
    }


def test_what_a_machine_that_is_taken_away_should_have_told_by_then_comes_first() -> None:
    """The goals of decode steps, prompts, attention and pictures, before what takes longest and what only explains."""
    names = list(CASES)
    assert names[:5] == ["G1", "G2", "G5", "G3", "G6"]
    assert set(names[-3:]) == {"fp8", "one-row", "launches"}


@needs_products_on_the_host
def test_products_in_eight_bits_are_rated_and_held_against_exact_sums_both_ways() -> None:
    times = iter([1e-3, 5e-4, 2e-3, 1e-3])
    config = replace(TINY, hidden_size=32, feed_forward_length=48)
    up, down = eight_bit_rows(CPU, CEILINGS, config=config, num_rows=7, clock=lambda work: next(times))
    assert (up["case"], down["case"]) == ("7 rows, 32 to 96", "7 rows, 48 to 32")
    assert up["rate / bfloat16, exact"] == pytest.approx(2 * 7 * 32 * 96 / 1e-3 / CEILINGS.flops)
    assert up["rate / bfloat16, fast"] == pytest.approx(2 * 7 * 32 * 96 / 5e-4 / CEILINGS.flops)
    for row in (up, down):
        assert all(0 < float(str(row[f"error, {name}"])) < 0.01 for name in ("exact", "fast"))


async def test_a_run_that_is_told_to_end_takes_with_it_what_it_started(tmp_path: Path) -> None:
    """Or its child would keep the device."""
    file = tmp_path / "child"
    child = f"import os, pathlib, time; pathlib.Path({str(file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = f"""
import pathlib, sys
import benchmarks.gpu.__main__ as main
from benchmarks.gpu.peers.process import rows_of
main.end_when_told()
list(rows_of([sys.executable, "-c", {child!r}], seconds=60.0, log=pathlib.Path({str(tmp_path / "log")!r})))
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT) as process:  # noqa: S603
        await until(lambda: file.exists() and file.read_text() != "", seconds=60)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    await until(lambda: not Path(f"/proc/{file.read_text()}").exists())


def test_our_engine_is_timed_while_all_decode_and_its_answers_are_kept() -> None:
    workload, own = decode_workload(3, vocab_size=TINY.vocab_size, context=20, num_new=6), OwnFigures()
    (row,) = engine_rows(engine_for(workload), [workload], own)
    answers = own.answers[workload.name]
    assert answers.num_tokens == 18
    assert row["tokens/s"] == pytest.approx(answers.decode_rate())
    assert row["ms/step"] == pytest.approx(3000 / answers.decode_rate())


def test_requests_have_the_same_tokens_where_the_cache_has_no_room_for_all() -> None:
    workload = offline_workload(vocab_size=TINY.vocab_size, num_requests=8, least=10, most=60)
    roomy, narrow = OwnFigures(), OwnFigures()
    (row,) = offline_rows(engine_for(workload), workload, 0.1, roomy)
    (tight,) = offline_rows(engine_for(workload, num_blocks=16), workload, 0.1, narrow)
    assert (row["preemptions"], tight["room for tokens"]) == (0, 256)
    assert int(str(tight["preemptions"])) > 0
    assert narrow.answers[workload.name].tokens == roomy.answers[workload.name].tokens
    assert [len(each) for each in narrow.answers[workload.name].tokens] == list(workload.num_new)


def test_nothing_that_was_answered_before_makes_a_workload_faster() -> None:
    workload = offline_workload(vocab_size=TINY.vocab_size, num_requests=4, least=30, most=60)
    engine = engine_for(workload)
    first = engine.answer(workload)
    assert engine.answer(workload).tokens == first.tokens
    assert engine.stats().num_hit_tokens == 0


def test_the_limit_is_that_of_steps_counted_one_by_one() -> None:
    workload = offline_workload(vocab_size=TINY.vocab_size, num_requests=5, least=3, most=40)
    num_bytes = 0
    for step in range(1, max(workload.num_new)):
        num_bytes += weight_bytes(TINY, torch.bfloat16)
        for prompt, count in zip(workload.prompts, workload.num_new, strict=True):
            if step < count:
                num_bytes += key_value_bytes(TINY, len(prompt) + step, torch.bfloat16)
    prompts = sum(prompt_flops(TINY, len(prompt)) for prompt in workload.prompts)
    want = prompts / 7e14 + num_bytes / 4e12
    assert offline_limit(workload, TINY, torch.bfloat16, CEILINGS) == pytest.approx(want)


def test_a_host_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--cases", "G1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "build/gen")]),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )
    assert (done.returncode, done.stderr.strip()) == (1, "no CUDA device here")


_ALONE = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
import benchmarks.gpu.__main__
import benchmarks.gpu.peers.__main__
print("found nothing missing")
"""


def test_it_needs_torch_triton_and_numpy_alone_and_no_stubs() -> None:
    """What a host with a GPU has anyway; transformers is imported where it runs."""
    absent = {"diptych", "google", "grpc", "grpc_health", "jinja2", "mistral_common", "PIL", "safetensors"}
    absent |= {"tokenizers", "transformers", "yaml", "zlib_ng", "prometheus_client", "sentencepiece", "tqdm"}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", _ALONE.format(absent=absent)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "found nothing missing\n", done.stderr
