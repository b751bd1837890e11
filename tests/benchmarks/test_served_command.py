"""The served comparison's turns, with systems that are no processes: what a peer's failure does to the rest."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import RequestPlan
from benchmarks.served import command
from benchmarks.served.systems import Running, System


async def answered(plan: RequestPlan) -> RequestRecord:
    sent_at = time.monotonic()
    times = [sent_at + 0.001 * (1 + step) for step in range(plan.output_tokens)]
    return RequestRecord(
        sent_at=sent_at, chunk_times=times, ended_at=times[-1], output_tokens=plan.output_tokens, prompt_tokens=7
    )


async def failed(plan: RequestPlan) -> RequestRecord:
    return RequestRecord(sent_at=time.monotonic(), ended_at=time.monotonic(), error=f"status 503, {len(plan.images)}")


async def broken(plan: RequestPlan) -> RequestRecord:
    raise RuntimeError(f"a mistake of ours, {len(plan.images)}")


def has_ended() -> None:
    raise ProcessLookupError


OURS = System(name="diptych", version="1", send=answered, processor_seconds=lambda: 0.0)
VLLM = System(name="vllm", version="2", send=answered, processor_seconds=lambda: 0.0)
DEAD = System(name="max", version="3", send=failed, pause=has_ended, resume=has_ended, processor_seconds=lambda: 0.0)


def give(monkeypatch: pytest.MonkeyPatch, systems: Sequence[System]) -> None:
    @asynccontextmanager
    async def running_systems(*_: object, **__: object) -> AsyncIterator[Running]:
        yield Running(systems=systems, not_run={"transformers": "not installed"})

    monkeypatch.setattr(command, "running_systems", running_systems)


def test_a_peer_that_answers_nothing_was_not_run_and_the_others_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    give(monkeypatch, [OURS, DEAD, VLLM])
    file = tmp_path / "found.json"
    assert main(["served", "--quick", "--cases", "text", "--json", str(file)]) == 1
    text = capsys.readouterr().out
    assert text.count("Not run: max (none of 6 requests ended well: {'status 503, 0': 6}).") == 1
    assert "| vllm |" in text
    assert "| max |" not in text
    assert file.exists()


def test_peers_that_are_not_installed_or_answer_are_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, [OURS, VLLM])
    assert main(["served", "--cases", "text", "--requests", "4"]) == 0
    assert "figures mean nothing" not in capsys.readouterr().out


def test_that_a_peer_has_ended_hides_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = System(name="max", version="3", send=broken, pause=has_ended, processor_seconds=lambda: 0.0)
    give(monkeypatch, [OURS, dead])
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["served", "--quick", "--cases", "text"])


@pytest.mark.parametrize("name", ["compare", "served"])
def test_engines_that_do_not_exist_are_refused_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([name, "--engines", "vllm,vlm,none"])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--engines knows no vlm, only " in error
    assert " max" in error
    assert error.endswith(" and none\n")
