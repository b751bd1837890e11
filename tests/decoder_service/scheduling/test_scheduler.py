"""Who is computed next, and who must wait or give way."""

import pytest

from decoder_service.cache.block_hash import block_hash
from decoder_service.cache.block_manager import BlockManager, IntegrityError
from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import StepOutput, WantedImages
from decoder_service.scheduling.scheduler import Scheduler
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.calls import num_calls
from tests.decoder_service.engine_fakes import Host, make_features, make_request


class Steps:
    """A scheduler whose steps are accounted for as the engine does, every sampled token being 1."""

    def __init__(self, *, num_blocks: int = 16, max_num_batched_tokens: int = 16, max_num_requests: int = 4) -> None:
        self.blocks = BlockManager(num_blocks, block_size=4)
        prefix_cache = PrefixCache(self.blocks, block_hash)
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_batched_tokens=max_num_batched_tokens,
                max_num_requests=max_num_requests,
                max_model_len=1000,
            ),
            self.blocks,
            prefix_cache,
        )
        self.requests: list[Request] = []
        self.output = StepOutput()

    def add(self, request_id: str, *segments: int) -> Request:
        request = make_request(request_id, *segments, arrival=len(self.requests), max_tokens=1000)
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def arrive(self, request: Request, image_index: int) -> None:
        assert request.take_features(image_index, make_features(request, image_index))
        self.scheduler.features_arrived(request)

    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> dict[str, int]:
        """Tokens of each request in the next batch, in batch order."""
        self.output = StepOutput()
        batch = self.scheduler.schedule(self.output)
        sampled = batch.sampled
        for each in batch.requests:
            each.request.num_computed_tokens += each.num_scheduled_tokens
            each.request.release_features(each.request.num_computed_tokens)
        for request in sampled:
            request.output_token_ids.append(1)
        self.scheduler.check_integrity(self.requests)
        return {each.request.request_id: each.num_scheduled_tokens for each in batch.requests}


def test_a_long_prompt_is_computed_in_chunks_beside_single_tokens() -> None:
    steps = Steps()
    steps.add("short", 3)
    steps.add("long", 30)
    assert [steps.step() for _ in range(4)] == [
        {"short": 3, "long": 13},
        {"short": 1, "long": 15},
        {"short": 1, "long": 2},
        {"short": 1, "long": 1},
    ]


def test_every_running_request_moves_though_an_older_one_could_use_the_whole_budget() -> None:
    steps = Steps()
    picture = steps.add("picture", 2, 3, 1, 40)
    steps.arrive(picture, 0)
    assert steps.step() == {"picture": 6}
    steps.add("text", 3)
    assert steps.step() == {"text": 3}
    steps.arrive(picture, 1)
    assert [steps.step() for _ in range(3)] == [{"picture": 15, "text": 1}] * 2 + [{"picture": 10, "text": 1}]


def test_text_before_an_image_is_computed_while_the_image_is_encoded() -> None:
    steps = Steps()
    request = steps.add("a", 2, 3, 4, 5, 1)
    assert steps.step() == {}
    assert request.block_table == []
    steps.arrive(request, 0)
    assert steps.step() == {"a": 2 + 3 + 4}
    assert not steps.has_work()
    assert steps.step() == {}
    steps.arrive(request, 1)
    assert steps.has_work()
    assert steps.step() == {"a": 5 + 1}


def test_images_may_arrive_in_any_order() -> None:
    steps = Steps()
    request = steps.add("a", 1, 3, 1, 3, 1)
    steps.arrive(request, 1)
    assert steps.step() == {}
    steps.arrive(request, 0)
    assert steps.step() == {"a": 9}


def test_computing_stops_and_goes_on_inside_an_image() -> None:
    steps = Steps(max_num_batched_tokens=4)
    request = steps.add("a", 2, 7, 1)
    steps.arrive(request, 0)
    assert steps.step() == {"a": 4}
    assert request.features != [None]
    assert steps.step() == {"a": 4}
    assert request.features != [None]
    assert steps.step() == {"a": 2}
    assert request.features == [None]


def test_a_request_without_its_first_image_does_not_block_those_behind_it() -> None:
    steps = Steps()
    picture = steps.add("picture", 0, 4, 2)
    steps.add("text", 3)
    assert steps.step() == {"text": 3}
    steps.arrive(picture, 0)
    assert steps.step() == {"text": 1, "picture": 6}


def test_a_large_request_at_the_head_is_not_overtaken() -> None:
    steps = Steps(num_blocks=4)
    steps.add("running", 5)
    steps.step()
    steps.add("large", 11)
    steps.add("small", 1)
    assert steps.step() == {"running": 1}
    assert steps.scheduler.num_waiting == 2


def test_a_request_is_admitted_only_when_all_its_known_tokens_have_room() -> None:
    """Else it would run out of blocks halfway and start again."""
    steps = Steps(num_blocks=8, max_num_batched_tokens=4)
    steps.add("running", 4)
    steps.step()
    steps.add("long", 26)
    assert steps.step() == {"running": 1}
    assert steps.blocks.num_free_blocks == 6


def test_an_early_request_that_becomes_ready_late_goes_before_later_ones() -> None:
    steps = Steps(max_num_requests=1)
    picture = steps.add("picture", 0, 4, 2)
    first, _ = steps.add("first", 1), steps.add("second", 1)
    assert steps.step() == {"first": 1}
    steps.arrive(picture, 0)
    steps.scheduler.remove(first)
    steps.requests.remove(first)
    assert steps.step() == {"picture": 6}


def test_the_youngest_gives_way_and_keeps_its_output() -> None:
    steps = Steps(num_blocks=4)
    old, young = steps.add("old", 7), steps.add("young", 7)
    assert steps.step() == {"old": 7, "young": 7}
    assert steps.step() == {"old": 1, "young": 1}
    assert steps.step() == {"old": 1}
    assert young.status is RequestStatus.WAITING
    assert (young.num_computed_tokens, young.output_token_ids, young.block_table) == (0, [1, 1], [])
    assert len(old.block_table) == 3
    # It comes back when the old one has ended, and computes its output again like a prompt.
    steps.scheduler.remove(old)
    steps.requests.remove(old)
    assert steps.step() == {"young": 9}
    assert young.output_token_ids == [1, 1, 1]


def test_the_youngest_that_lacks_a_block_gives_way_itself() -> None:
    steps = Steps(num_blocks=4)
    steps.add("old", 6)
    young = steps.add("young", 8)
    steps.step()
    assert steps.step() == {"old": 1}
    assert young.num_preemptions == 1


def test_a_stalled_request_gives_way_before_the_youngest_even_to_a_younger_one() -> None:
    steps = Steps(num_blocks=6)
    stalled = steps.add("stalled", 0, 6, 0, 6)
    steps.arrive(stalled, 0)
    steps.step()
    steps.add("a", 7)
    steps.add("b", 7)
    assert steps.step() == {"a": 7, "b": 7}
    assert steps.step() == {"a": 1, "b": 1}
    assert steps.step() == {"a": 1, "b": 1}
    assert stalled.status is RequestStatus.WAITING
    assert steps.output.wanted == [WantedImages("stalled", (0, 1))]


def test_a_preempted_request_drops_its_features_and_wants_all_its_images() -> None:
    steps = Steps(num_blocks=6, max_num_batched_tokens=14)
    steps.add("old", 12)
    picture = steps.add("picture", 0, 4, 0, 8)
    steps.arrive(picture, 0)
    steps.arrive(picture, 1)
    assert steps.step() == {"old": 12, "picture": 2}
    assert steps.step() == {"old": 1, "picture": 6}, "as far as the blocks reach"
    assert steps.step() == {"old": 1}
    assert picture.features == [None, None]
    assert steps.output.consumed == [ImageRef("picture", 1)]
    assert steps.output.wanted == [WantedImages("picture", (0, 1))]


def test_stalled_requests_give_their_blocks_to_a_ready_one_when_nothing_else_can_move() -> None:
    """Else the ready one would hold the feature memory that the stalled ones wait for, and all would wait."""
    steps = Steps(num_blocks=5)
    first, second = steps.add("first", 0, 7, 0, 2), steps.add("second", 0, 7, 0, 2)
    steps.arrive(first, 0)
    steps.arrive(second, 0)
    assert steps.step() == {"first": 7, "second": 7}
    assert not steps.has_work()
    steps.add("ready", 7)
    assert steps.has_work()
    assert steps.step() == {"ready": 7}
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)


def test_stalled_requests_give_up_their_turn_too_not_only_blocks() -> None:
    steps = Steps(max_num_requests=1)
    stalled = steps.add("stalled", 0, 4, 0, 4)
    steps.arrive(stalled, 0)
    steps.step()
    steps.add("ready", 3)
    assert steps.step() == {"ready": 3}
    assert stalled.status is RequestStatus.WAITING


def test_stalled_requests_keep_their_blocks_while_anything_moves() -> None:
    steps = Steps(num_blocks=4)
    stalled = steps.add("stalled", 0, 7, 0, 2)
    steps.arrive(stalled, 0)
    steps.add("moving", 2)
    steps.step()
    steps.add("ready", 7)
    assert steps.step() == {"moving": 1}
    assert stalled.status is RequestStatus.RUNNING


def test_a_preempted_request_returns_when_all_its_images_are_here() -> None:
    steps = Steps(max_num_requests=1)
    picture = steps.add("picture", 0, 4, 0, 4)
    steps.arrive(picture, 0)
    steps.step()
    text = steps.add("text", 3)
    steps.step()
    steps.scheduler.remove(text)
    steps.requests.remove(text)
    steps.arrive(picture, 0)
    assert steps.step() == {}
    steps.arrive(picture, 1)
    assert steps.step() == {"picture": 8}


def test_waiting_requests_cost_a_step_nothing() -> None:
    def calls_in_a_step(num_waiting: int) -> int:
        steps = Steps(max_num_requests=2)
        steps.add("a", 1)
        steps.add("b", 1)
        steps.step()
        for index in range(num_waiting):
            steps.add(f"ready {index}", 5)
            steps.add(f"awaiting features {index}", 0, 5)
        return num_calls(lambda: steps.scheduler.schedule(StepOutput()))

    assert calls_in_a_step(10) == calls_in_a_step(10_000) > 0


@pytest.mark.parametrize(
    ("max_num_batched_tokens", "max_num_requests", "max_model_len"), [(4, 0, 8), (4, 4, 0), (3, 4, 8)]
)
def test_limits_that_contradict_each_other_are_refused(
    max_num_batched_tokens: int, max_num_requests: int, max_model_len: int
) -> None:
    with pytest.raises(ValueError, match="max_num_requests"):
        SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_requests=max_num_requests,
            max_model_len=max_model_len,
        )


def test_a_request_in_no_place_or_with_the_wrong_blocks_is_found() -> None:
    steps = Steps()
    request = steps.add("a", 6)
    steps.step()
    with pytest.raises(IntegrityError, match="in no place"):
        steps.scheduler.check_integrity([])
    request.num_computed_tokens = 9
    with pytest.raises(IntegrityError, match="9 computed tokens"):
        steps.scheduler.check_integrity([request])


def test_a_paused_request_that_came_back_keeps_no_feature_memory_from_others() -> None:
    """A completion that gave way computes its image again when its reader falls behind."""
    host = Host(num_blocks=12, max_num_batched_tokens=4, feature_budget=6, hash_block=None)
    request = host.submit(make_request("paused", 6, 6, 4, arrival=1, max_tokens=12))
    while len(host.outcomes["paused"].token_ids) < 3:
        _step_with_images(host)
    host.submit(make_request("first", 40, arrival=2, max_tokens=1, priority=1))
    while not (request.num_preemptions and request.status is RequestStatus.RUNNING):
        _step_with_images(host)
    assert request.features != [None]
    host.pause("paused")
    host.submit(make_request("other", 2, 5, 2, arrival=3, max_tokens=2))
    host.run_unpaused()
    assert host.outcomes["other"].end == "length"
    host.resume("paused")
    host.run()
    host.check_outputs()


def test_a_paused_request_keeps_the_blocks_that_nobody_needs_once_its_images_are_computed() -> None:
    host = Host()
    request = host.submit(make_request("a", 2, 5, 2, max_tokens=8))
    _step_with_images(host)
    host.pause("a")
    host.step()
    assert (request.status, request.num_preemptions) == (RequestStatus.RUNNING, 0)
    host.resume("a")
    host.run()


def _step_with_images(host: Host) -> None:
    for ref in list(host.in_flight):
        host.arrive(ref)
    host.step()
