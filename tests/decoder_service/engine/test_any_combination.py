"""Whatever is cached, cut into chunks, preempted or overlapped: every request gets the tokens it gets alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.cache.block_hash import block_hash
from tests.decoder_service.engine_fakes import Host, make_request


@dataclass(frozen=True)
class Wish:
    """A request to make, and how many steps before it comes."""

    text: str
    segments: Sequence[int]
    pictures: Sequence[str]
    max_tokens: int
    pause: int
    priority: int
    tenant: bytes
    n: int


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    """Text and pictures of a few kinds, so that many have a beginning in common."""
    pictures = draw(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from([2, 9, 40, 70])), max_size=3))
    segments = [draw(st.sampled_from([1, 7, 16, 60]))]
    for _, length in pictures:
        segments += [length, draw(st.sampled_from([0, 1, 5, 30]))]
    return Wish(
        text=draw(st.sampled_from(["one", "two"])),
        segments=segments,
        pictures=[f"{name}{length}" for name, length in pictures],
        max_tokens=draw(st.integers(1, 20)),
        pause=draw(st.integers(0, 3)),
        priority=draw(st.sampled_from([0, 0, 1])),
        tenant=draw(st.sampled_from([b"a", b"a", b"b"])),
        n=draw(st.sampled_from([1, 1, 2, 4])),
    )


@given(
    workload=st.lists(wishes(), min_size=1, max_size=7),
    chunk=st.integers(1, 512),
    max_num_requests=st.integers(1, 6),
    block_size=st.sampled_from([1, 4, 16]),
    spare_blocks=st.integers(0, 20),
    caching=st.booleans(),
    last_image_first=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_any_combination_gives_the_tokens_of_the_plain_run(
    workload: list[Wish],
    chunk: int,
    max_num_requests: int,
    block_size: int,
    spare_blocks: int,
    caching: bool,
    last_image_first: bool,
) -> None:
    completions = [min(wish.n, max_num_requests) for wish in workload]
    largest = max(
        sum(wish.segments) + n * (wish.max_tokens + block_size) for wish, n in zip(workload, completions, strict=True)
    )
    host = Host(
        num_blocks=-(-largest // block_size) + spare_blocks,
        block_size=block_size,
        max_num_batched_tokens=max(chunk, max_num_requests),
        max_num_requests=max_num_requests,
        feature_budget=210,
        hash_block=block_hash if caching else None,
    )
    for index, wish in enumerate(workload):
        for _ in range(wish.pause):
            host.step()
        host.submit(
            make_request(
                f"r{index}",
                *wish.segments,
                arrival=index,
                max_tokens=wish.max_tokens,
                text=wish.text,
                pictures=wish.pictures,
                priority=wish.priority,
                tenant=wish.tenant,
                n=completions[index],
            )
        )
    host.run(max_steps=20_000, last_image_first=last_image_first)
    host.check_outputs()
