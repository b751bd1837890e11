"""Every command runs at a tiny size, without peers, and says what it found. No figure is judged here."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import _COMMANDS, _PROGRAMS, main
from benchmarks.checkpoints import checkpoint
from benchmarks.load.pair import running_pair
from benchmarks.report import QUICK
from tests.benchmarks.commands import results, run


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_of_a_command_says_what_it_measures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([name, "--help"])
    assert raised.value.code == 0
    words = _COMMANDS[name][2]
    assert f"\n\n{words[0].upper()}{words[1:]}.\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", _PROGRAMS)
def test_help_names_the_command_and_measures_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert re.match(f"usage: python -m benchmarks[ .]{name} ", capsys.readouterr().out)


def test_compare_runs_ourselves_and_names_the_peers_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        "compare", "--cases", "smoke 2,smoke pictures", "--peers", str(tmp_path), "--rounds", "1", "--json", str(file)
    )
    assert "Not run: vllm (not installed)." in text
    found = results(file)
    assert [len(case["engines"]) for case in found] == [1, 1]
    assert all(case["engines"][0]["rate"]["median"] > 0 for case in found)


def test_components_measures_every_part(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run("components", "--quick", "--seconds", "0.005", "--json", str(file))
    assert text.startswith(QUICK)
    found = results(file)["measurements"]
    assert {each["component"] for each in found} == {
        "step by running requests",
        "step by context",
        "step by waiting requests",
        "block manager",
        "prompt",
        "detokenise",
        "image decode",
        "encoder",
        "decode step",
        "prefill",
        "product",
    }
    assert all(each["value"]["median"] > 0 for each in found)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running pair."""
    log = tmp_path_factory.mktemp("pair") / "log"
    with running_pair(checkpoint("smoke-pixtral"), cores=sorted(os.sched_getaffinity(0)), log=log) as pair:
        assert pair.processor_seconds() > 0
        yield pair.address


def test_load_counts_what_a_pair_answered(address: str, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        *("load", "--address", address, "--requests", "6", "--warm-up", "1", "--concurrency", "2"),
        *("--images", "1", "--image-sizes", "32x32", "--text-tokens", "5", "--output-tokens", "3"),
        *("--slo-ttft", "60000", "--json", str(file), "--plots", str(tmp_path)),
    )
    assert "6 requests in" in text
    assert (tmp_path / "latencies.png").read_bytes().startswith(b"\x89PNG")
    found = results(file)
    assert found["figures"]["num_failed"] == 0
    assert found["figures"]["goodput"] == pytest.approx(found["figures"]["request_throughput"])
    for record in found["records"]:
        # 5 tokens of text behind the begin token, and 2 x 2 patches, a break and an end.
        assert (record["prompt_tokens"], record["output_tokens"], record["num_images"]) == (1 + 6 + 5, 3, 1)


def test_load_starts_both_halves_in_one_process_where_that_is_asked_for() -> None:
    text = run(
        *("load", "--local", "--model", "smoke-pixtral", "--requests", "2", "--warm-up", "1", "--images", "1"),
        *("--image-sizes", "32x32", "--text-tokens", "5", "--output-tokens", "3"),
    )
    assert "2 requests in" in text


def test_service_compares_itself_with_the_engine_alone(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run("service", "--quick", "--starts", "1", "--rounds", "1", "--json", str(file))
    assert text.startswith(QUICK)
    assert "C10 at 2" in text
    (found,) = results(file)["runs"]
    one, two = found["C10"]
    rates = [one[name]["median"] for name in ("service_rate", "in_process_rate", "rate_ratio")]
    assert rates[2] == pytest.approx(rates[0] / rates[1])
    assert two["added_ttft_ms"] is None


def test_served_runs_ours_and_names_the_servers_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run("served", "--quick", "--cases", "pictures", "--peers", str(tmp_path), "--json", str(file))
    assert text.startswith(QUICK)
    assert "Not run: transformers (not installed).\nNot run: vllm (not installed)." in text
    (found,) = results(file)
    assert [(load["system"], load["arrivals"]) for load in found["loads"]] == [
        ("diptych", "0.5 of ours"),
        ("diptych", "0.8 of ours"),
    ]
    assert all(record["error"] is None for load in found["loads"] for record in load["records"])


def test_scheduling_measures_ours_and_names_the_peers_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        *("scheduling", "--running", "1,3", "--steps", "4", "--rounds", "1", "--seconds", "0.001"),
        *("--peers", str(tmp_path), "--json", str(file)),
    )
    assert "Not run: transformers paged (not installed).\nNot run: vllm (not installed)." in text
    found = results(file)["results"]
    assert [(case["running"], [row["name"] for row in case["rows"]]) for case in found] == [
        (1, ["diptych"]),
        (3, ["diptych"]),
    ]
    assert all(case["rows"][0]["processor_microseconds"]["median"] > 0 for case in found)


def test_served_measures_pictures_beside_text_for_both_forms_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        *("served", "--quick", "--cases", "interference", "--requests", "5", "--rounds", "2"),
        *("--peers", str(tmp_path), "--json", str(file)),
    )
    assert text.startswith(QUICK)
    assert "Not run: vllm (not installed).\nNot run: vllm 128 tokens (not installed)." in text
    (found,) = results(file)
    assert [len(rounds) for rounds in found["rounds"].values()] == [2, 2]
    for records in (each for rounds in found["rounds"].values() for one in rounds for each in one.values()):
        assert all(record["error"] is None for record in records)


def test_mixing_tells_what_long_prompts_do_with_each_limit() -> None:
    lines = run("mixing", "--model", "smoke", "--requests", "2", "--rates", "200", "--tokens", "8", "2048").splitlines()
    assert [line.split(":")[0] for line in lines] == ["alone", "200 a second, 8 tokens", "200 a second, 2048 tokens"]


@pytest.mark.parametrize("wrong", [["--images", "5-2"], ["--local", "--address", "127.0.0.1:50051"]])
def test_a_wrong_setting_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["load", *wrong])
    assert refused.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in (*_COMMANDS, *_PROGRAMS):
        assert re.search(rf"^    {command}\s", text, re.MULTILINE)


def test_speculation_tells_what_was_right_of_what_was_tried(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        *("speculation", "--model", "smoke", "--rounds", "1", "--requests", "2", "--tries", "4", "--max-tokens", "20"),
        *("--peers", str(tmp_path), "--json", str(file)),
    )
    assert "Not run: vllm (not installed)." in text
    found = {(row["workload"], row["num_tries"]): row for row in results(file)["rows"]}
    assert len(found) == 10
    for (workload, num_tries), row in found.items():
        assert row["turns"][0]["rate"] > 0
        assert bool(row["tried"]["tried"]) == (num_tries == 4 and workload != "nothing of it")
    told = found["all of it", 4]["tried"]
    assert 0 < told["right"] == told["tried"]
    assert told["steps"] < found["all of it", 0]["tried"]["steps"]
