"""What was computed is not computed again, and nobody gets what was computed of something else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from decoder_service.cache.block_hash import BlockHash, BlockImage, HashBlock, block_hash
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import RequestStatus
from decoder_service.engine.step import WantedImages
from tests.decoder_service.engine_fakes import Host, make_request, tokens_alone


def blind_hash(parent: BlockHash, token_ids: Sequence[int], images: Sequence[BlockImage]) -> BlockHash:
    """The mistake that must not be made: an image is told by its placeholder tokens alone."""
    return block_hash(parent, token_ids, ())


def next_turn(request: Request, request_id: str, *, question: Sequence[int]) -> Request:
    """The chat that goes on after a request has ended: its prompt, its answer and a question."""
    return replace(
        request,
        request_id=request_id,
        arrival=request.arrival + 1,
        prompt_token_ids=(*request.prompt_token_ids, *request.output_token_ids, *question),
        output_token_ids=[],
        block_table=[],
        block_hashes=[],
        num_computed_tokens=0,
        num_known_blocks=0,
        num_fetches=0,
        status=RequestStatus.WAITING,
    )


def num_computed(host: Host, request_id: str) -> int:
    return sum(batch.get(request_id, 0) for batch in host.runner.batches)


def finish(host: Host, request: Request) -> Request:
    host.submit(request)
    host.run()
    return request


def test_the_second_turn_about_a_picture_computes_only_new_tokens_and_encodes_nothing() -> None:
    host = Host(num_blocks=64)
    first = finish(host, make_request("first", 3, 40, 2, max_tokens=7))
    second = host.submit(next_turn(first, "second", question=[1, 2, 3]))
    assert not host.in_flight
    assert second.wanted_images == ()
    host.run()
    host.check_outputs()
    # Of 55 tokens the first turn computed 51, which fill 12 blocks.
    assert second.num_prompt_tokens == 55
    assert second.num_saved_tokens == 48
    assert num_computed(host, "second") == 55 - 48 + second.sampling.max_tokens - 1
    stats = host.engine.stats()
    assert (stats.num_queried_tokens, stats.num_hit_tokens, stats.num_images_covered) == (45 + 55, 48, 1)


def ask_about_two_pictures(hash_block: HashBlock) -> list[list[int]]:
    """The same question about two pictures of one size, one after the other; the answers."""
    host = Host(num_blocks=64, hash_block=hash_block)
    for index, picture in enumerate(("cat", "dog")):
        finish(host, make_request(picture, 6, 9, 3, arrival=index, text="?", pictures=[picture]))
    return [host.outcomes[picture].token_ids for picture in ("cat", "dog")]


def test_two_pictures_of_one_size_never_share_blocks() -> None:
    alone = [tokens_alone(make_request(name, 6, 9, 3, text="?", pictures=[name])) for name in ("cat", "dog")]
    assert ask_about_two_pictures(block_hash) == alone


def test_without_the_identity_of_images_the_second_one_is_answered_as_the_first() -> None:
    """The negative control: this is what the test above would see."""
    cat, dog = ask_about_two_pictures(blind_hash)
    assert dog == cat


def test_what_comes_before_a_picture_is_shared_by_requests_with_different_pictures() -> None:
    host = Host(num_blocks=64)
    finish(host, make_request("cat", 13, 9, 3, text="?", pictures=["cat"]))
    dog = finish(host, make_request("dog", 13, 9, 3, arrival=1, text="?", pictures=["dog"]))
    assert dog.num_saved_tokens == 12
    host.check_outputs()


def test_salts_share_nothing() -> None:
    host = Host(num_blocks=64)
    for index, salt in enumerate((b"a", b"b", b"", b"a")):
        finish(host, make_request(f"r{index}", 20, 9, arrival=index, text="?", pictures=["p"], cache_salt=salt))
    assert [request.num_saved_tokens for request in host.requests.values()] == [0, 0, 0, 28]


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9])
def test_the_last_token_of_a_prompt_is_always_computed(length: int) -> None:
    host = Host()
    for index in range(2):
        finish(host, make_request(f"r{index}", length, arrival=index, text="?", max_tokens=9))
    assert host.requests["r1"].num_saved_tokens == (length - 1) // 4 * 4
    host.check_outputs()


def test_without_a_cache_everything_is_computed() -> None:
    host = Host(hash_block=None)
    for index in range(2):
        finish(host, make_request(f"r{index}", 20, arrival=index, text="?"))
    assert num_computed(host, "r0") == num_computed(host, "r1")
    assert host.engine.stats().num_hit_tokens == 0


def test_requests_that_run_at_once_own_shared_blocks_together() -> None:
    host = Host(num_blocks=12)
    finish(host, make_request("r0", 33, text="?", max_tokens=1))
    for index in range(1, 4):
        host.submit(make_request(f"r{index}", 33, arrival=index, text="?", max_tokens=3))
    host.step()
    assert host.engine.stats().num_running == 3
    assert host.engine.stats().num_free_blocks == 12 - 8 - 3
    host.run()
    assert host.engine.stats().num_preemptions == 0
    host.check_outputs()


@pytest.mark.parametrize(("text", "expected"), [("a", 8), ("b", 12)])
def test_the_longest_unused_start_gives_way_and_its_end_before_its_beginning(text: str, expected: int) -> None:
    host = Host(num_blocks=8)
    for index, name in enumerate("ab"):
        finish(host, make_request(name, 16, arrival=index, text=name, max_tokens=1))
    # Takes the last of the four blocks of "a", and makes the first two the latest used of all.
    finish(host, make_request("a again", 9, arrival=2, text="a", max_tokens=1))
    # Takes that block, the third one of "a" and the last one of "b".
    finish(host, make_request("c", 12, arrival=3, text="c", max_tokens=1))
    assert host.engine.stats().num_evicted_blocks == 3
    assert finish(host, make_request("last", 16, arrival=4, text=text, max_tokens=1)).num_saved_tokens == expected
    host.check_outputs()


def test_a_preempted_request_finds_its_own_blocks_and_needs_no_picture() -> None:
    cached, plain = (preempt_young(hash_block) for hash_block in (block_hash, None))
    assert cached[0] == [WantedImages("young", ())]
    assert plain[0] == [WantedImages("young", (0,))]
    # Of the 20 tokens that it had computed when it was preempted, 8 were left.
    assert plain[1] - cached[1] == 8


def preempt_young(hash_block: HashBlock | None) -> tuple[list[WantedImages], int]:
    """What the younger of two requests wants when it is preempted, and how many tokens are computed for it."""
    host = Host(num_blocks=10, hash_block=hash_block)
    host.submit(make_request("old", 8, arrival=0, max_tokens=24))
    host.submit(make_request("young", 1, 6, 1, arrival=1, max_tokens=14))
    wanted: list[WantedImages] = []
    while host.live:
        for ref in list(host.in_flight):
            host.arrive(ref)
        wanted += host.step().wanted
    host.check_idle()
    host.check_outputs()
    return wanted, num_computed(host, "young")


def test_a_request_whose_cached_picture_was_evicted_while_it_waited_fetches_it() -> None:
    host = Host(num_blocks=8, max_num_requests=1)
    finish(host, make_request("first", 0, 12, 1, text="?", pictures=["p"]))
    host.submit(make_request("running", 10, arrival=1, max_tokens=20))
    host.step()
    waiting = host.submit(make_request("waiting", 0, 12, 1, arrival=2, text="?", pictures=["p"]))
    assert waiting.wanted_images == ()
    while "running" in host.live:
        host.step()
    output = host.step()
    assert output.wanted == [WantedImages("waiting", (0,))]
    assert host.in_flight == [ImageRef("waiting", 0)]
    host.run()
    assert waiting.num_saved_tokens == 0
    host.check_outputs()


def test_a_request_is_not_ready_while_the_cache_lacks_a_picture_that_nobody_fetches() -> None:
    request = make_request("a", 7, 2, 30, 9, 0, 9, 1)
    request.num_cached_tokens = 48
    request.want_images(request.uncovered_images)
    assert request.wanted_images == (2,)
    request.take_features(2, b"features")
    assert request.is_ready
    request.num_cached_tokens = 16  # The block with the second picture was evicted.
    assert not request.is_ready


def test_a_cached_picture_is_worked_on_while_the_next_one_is_encoded() -> None:
    host = Host(num_blocks=64)
    finish(host, make_request("first", 0, 12, 1, text="?", pictures=["p"]))
    second = host.submit(make_request("second", 0, 12, 7, 5, 1, arrival=1, text="?", pictures=["p", "q"]))
    assert second.wanted_images == (1,)
    host.step()
    assert second.num_computed_tokens == 19
    assert second.num_saved_tokens == 12
    host.run()
    host.check_outputs()


def test_a_cache_that_ends_where_a_picture_begins_waits_without_blocks() -> None:
    host = Host(num_blocks=64)
    finish(host, make_request("first", 0, 12, 1, text="?", pictures=["p"]))
    second = host.submit(make_request("second", 0, 12, 0, 5, 1, arrival=1, text="?", pictures=["p", "q"]))
    assert not host.engine.has_work
    assert second.block_table == []
    host.run()
    host.check_outputs()


def test_a_picture_that_a_twin_has_computed_meanwhile_is_needed_no_more() -> None:
    host = Host(num_blocks=64, max_num_requests=1)
    twins = [
        host.submit(make_request(f"r{index}", 5, 12, 1, arrival=index, text="?", pictures=["p"])) for index in (0, 1)
    ]
    for twin in twins:
        host.arrive(ImageRef(twin.request_id, 0))
    while "r0" in host.live:
        host.step()
    assert ImageRef("r1", 0) in host.step().consumed
    assert twins[1].num_saved_tokens == 16
    host.run()
    host.check_outputs()


def test_nothing_of_a_request_that_was_not_finite_is_used_again() -> None:
    host = Host(num_blocks=64, max_num_batched_tokens=8)
    host.runner.not_finite.add("bad")
    finish(host, make_request("bad", 30, text="?"))
    assert host.outcomes["bad"].end == "NUMERIC_ERROR"
    good = finish(host, make_request("good", 30, arrival=1, text="?"))
    assert good.num_saved_tokens == 0
    host.check_outputs()


def test_blocks_that_were_known_are_forgotten_when_a_request_turns_out_not_finite() -> None:
    host = Host(num_blocks=64)
    host.submit(make_request("bad", 30, text="?", max_tokens=9))
    host.step()
    host.step()
    host.runner.not_finite.add("bad")
    host.run()
    assert finish(host, make_request("good", 30, arrival=1, text="?")).num_saved_tokens == 0


def test_a_request_that_is_not_finite_clears_no_block_of_its_neighbour() -> None:
    """The fake's cache is read as a whole, so a cleared slot ends the test."""
    host = Host(num_blocks=64)
    finish(host, make_request("first", 30, text="?", max_tokens=1))
    for index, name in enumerate(("bad", "good")):
        host.submit(make_request(name, 31, arrival=index, text="?", max_tokens=5))
    host.runner.not_finite.add("bad")
    host.run()
    assert host.outcomes["good"].end == "length"
    host.check_outputs()


def test_a_failed_step_leaves_nothing_to_be_found() -> None:
    host = Host(num_blocks=64)
    host.submit(make_request("failed", 12, text="?"))
    host.runner.error = RuntimeError("planted")
    host.run()
    assert finish(host, make_request("next", 12, arrival=1, text="?")).num_saved_tokens == 0


def test_identities_must_be_given_for_all_images() -> None:
    with pytest.raises(ValueError, match="0 identities for 1 images"):
        replace(make_request("a", 1, 4), image_identities=())
