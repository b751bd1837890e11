"""Whatever is cached, cut into chunks, preempted or mixed: every request gets the tokens it gets alone.

And for the same reason as it does where no step begins before the last one has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from decoder_service.cache.block_hash import block_hash
from tests.decoder_service.engine_fakes import Host, make_request
from tests.decoder_service.runner_fakes import VOCABULARY


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
    end_token_id: int
    ends: bool
    """Whether its caller leaves before it would end."""


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
        n=draw(st.sampled_from([1, 1, 1, 2, 4])),
        end_token_id=draw(st.integers(0, VOCABULARY - 1)),
        ends=draw(st.sampled_from([False, False, True])),
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
    hosts = [
        Host(
            num_blocks=-(-largest // block_size) + spare_blocks,
            block_size=block_size,
            max_num_batched_tokens=max(chunk, max_num_requests),
            max_num_requests=max_num_requests,
            feature_budget=210,
            hash_block=block_hash if caching else None,
            overlap=overlap,
        )
        for overlap in (False, True)
    ]
    for host in hosts:
        run(host, workload, completions, last_image_first=last_image_first)
        host.check_outputs()
    plain, overlapped = (host.outcomes for host in hosts)
    # A step more or less, and who leaves in the end of it may have ended before.
    ended = [name for name, heard in plain.items() if "aborted" not in (heard.end, overlapped[name].end)]
    assert [plain[name] for name in ended] == [overlapped[name] for name in ended]


def run(host: Host, workload: list[Wish], completions: list[int], *, last_image_first: bool) -> None:
    """Let all requests come, and end, as they wish."""
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
                end_token_ids=frozenset({wish.end_token_id}),
            )
        )
        if wish.ends and index and f"r{index - 1}" in host.live:
            host.abort(f"r{index - 1}")
    host.run(max_steps=20_000, last_image_first=last_image_first)
