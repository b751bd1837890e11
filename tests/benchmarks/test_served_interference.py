"""C12's load and arithmetic: who is asked what, which gaps count, and what the table says of them."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from benchmarks.load.interference import Interference, InterferenceConfig, interfere, quickly
from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import RequestPlan
from benchmarks.served.interference import InterferenceComparison, compared, tables
from benchmarks.served.systems import Running, System

QUICK = quickly(InterferenceConfig(streams=3))


def record(*times: float, tokens: int = 0, images: int = 0) -> RequestRecord:
    return RequestRecord(
        sent_at=times[0] - 0.1,
        chunk_times=list(times),
        ended_at=times[-1],
        output_tokens=tokens or len(times),
        num_images=images,
    )


FAILED = RequestRecord(sent_at=0.0, ended_at=1.0, error="status 503")


def interference(gap: float, *, failed: Sequence[RequestRecord] = ()) -> Interference:
    """Gaps of 10 ms alone, and of `gap` seconds beside a picture, which ends after two of them."""
    return Interference(
        alone=[record(0, 0.01, 0.02, 0.03)],
        beside=[record(1, 1 + gap, 1 + 2 * gap, 9, 99), *failed],
        pictures=[record(1.05, 1 + 2 * gap, images=1)],
    )


def comparison(**gaps: float) -> InterferenceComparison:
    return InterferenceComparison(
        cores=[0, 1],
        versions={name: "1" for name in gaps},
        not_run={"max": "not installed"},
        config=InterferenceConfig(),
        rounds={name: [interference(gap)] for name, gap in gaps.items()},
    )


def test_gaps_behind_the_last_picture_do_not_count() -> None:
    found = interference(0.013)
    assert found.gaps_beside == pytest.approx([0.013, 0.013])
    assert found.inflation == pytest.approx(1.3)


async def test_a_round_in_which_nothing_came_beside_pictures_says_so() -> None:
    """Not that the goal is met."""

    async def send(plan: RequestPlan) -> RequestRecord:
        await asyncio.sleep(0.005)
        now = time.monotonic()
        return record(now) if plan.images else record(now + 100, now + 101)

    with pytest.raises(ValueError, match="no two messages of text came beside pictures"):
        await interfere(send, replace(QUICK, num_requests=1), token_ids=range(300, 400), number=1)


def test_failed_requests_are_left_out_and_counted() -> None:
    found = interference(0.013, failed=[FAILED])
    assert found.inflation == pytest.approx(1.3)
    assert found.num_failed == 1


def test_several_tokens_in_a_message_are_one_gap_and_are_told() -> None:
    found = replace(interference(0.02), alone=[record(0, 0.03, tokens=5)])
    assert found.inflation == pytest.approx(2 / 3)
    assert found.tokens_in_a_message == pytest.approx((5 + 5) / (2 + 5))


def test_the_table_judges_our_inflation_and_its_ratio_to_each_peers() -> None:
    text = tables(comparison(diptych=0.012, diptych_local=0.02, slow=0.03, vllm=0.02))
    assert "Not run: max (not installed)." in text
    ours, local, slow, vllm = [line for line in text.splitlines() if line.startswith("| ") and " ms " in line]
    assert ours.startswith("| diptych | 10.0 ms | 10.0 ms | 12.0 ms | 12.0 ms | 12 ms | 1.20 |  | 1.30 met |")
    assert "| 2.00 | 0.60 |  |" in local
    assert "| 3.00 | 0.40 | 0.50 met |" in slow
    assert "| 2.00 | 0.60 | 0.50 missed |" in vllm


def test_several_rounds_have_medians() -> None:
    found = comparison(diptych=0.012)
    assert "Median" not in tables(found)
    found.rounds["diptych"] += [interference(0.02), interference(0.013)]
    assert "Median of diptych: P99 beside pictures 13.0 ms, inflation 1.30" in tables(found)


def test_results_can_be_written_as_json() -> None:
    assert json.dumps(asdict(comparison(diptych=0.012)))


class Answering:
    """A system that is no process, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[RequestPlan] = []
        self.num_now = self.most = 0

    async def send(self, plan: RequestPlan) -> RequestRecord:
        self.asked.append(plan)
        self.num_now += not plan.images
        self.most = max(self.most, self.num_now)
        sent_at = time.monotonic()
        await asyncio.sleep(0.005)
        self.num_now -= not plan.images
        times = [sent_at + 0.001 * (1 + step) for step in range(plan.output_tokens)]
        return replace(record(*times), sent_at=sent_at, ended_at=time.monotonic(), num_images=len(plan.images))


async def test_all_are_asked_the_same_in_a_round_and_nothing_comes_twice() -> None:
    first, second = Answering(), Answering()
    for system in (first, second):
        for number in (1, 2):
            found = await interfere(system.send, QUICK, token_ids=range(100, 400), number=number)
            assert len(found.alone) == len(found.pictures) == QUICK.num_requests
            assert all(each.num_images == 1 for each in found.pictures)
            assert found.num_failed == 0
        assert system.most == QUICK.streams
    pictures = [[file for plan in each.asked for file in plan.images] for each in (first, second)]
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) == len(pictures[0]) == 2 * QUICK.num_requests
    texts = [[plan.text_token_ids for plan in each.asked if not plan.images] for each in (first, second)]
    # How many there are beside the pictures is up to the system; which they are is not.
    assert texts[0][: 2 * QUICK.num_requests] != texts[0][2 * QUICK.num_requests :]
    assert len(set(texts[0])) == len(texts[0])
    assert texts[0][: QUICK.num_requests] == texts[1][: QUICK.num_requests]


async def test_streams_go_on_until_the_last_picture_has_ended() -> None:
    system = Answering()
    slow = replace(QUICK, pictures_per_second=40)
    found = await interfere(system.send, slow, token_ids=range(100, 400), number=1)
    assert len(found.beside) > QUICK.num_requests
    ended_at = max(each.ended_at or 0 for each in found.pictures)
    assert max(each.ended_at or 0 for each in found.beside) >= ended_at
    # One of each stream may begin before the end is known.
    assert sum(each.sent_at > ended_at for each in found.beside) <= slow.streams


async def test_a_system_that_answers_nothing_was_not_run_and_the_others_were() -> None:
    async def fails(plan: RequestPlan) -> RequestRecord:
        return replace(FAILED, num_images=len(plan.images))

    def system(name: str, send: object) -> System:
        return System(name=name, version="1", send=send, processor_seconds=lambda: 0.0)  # type: ignore[arg-type]

    running = Running(
        systems=[system("diptych", Answering().send), system("dead", fails), system("vllm", Answering().send)],
        not_run={},
    )
    found = await compared(running, QUICK, model="smoke-pixtral", cores=[0], rounds=2, limit=5)
    assert {name: len(rounds) for name, rounds in found.rounds.items()} == {"diptych": 2, "vllm": 2}
    assert found.not_run == {"dead": "none of 6 requests ended well: status 503"}
