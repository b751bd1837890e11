"""What tests of the engine turn it with: requests, what must become of them, and a host without a network."""

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import DiptychError
from common.image.preprocessing import PatchGrid
from decoder_service.cache.block_hash import HashBlock, block_hash
from decoder_service.engine.engine import Engine
from decoder_service.engine.prompt_images import ImageRef, PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import (
    StepOutput,
)
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.runner_fakes import Entry, FakeRunner, NextToken, next_token

IMAGE_TOKEN = 49


def make_request(
    request_id: str,
    *segments: int,
    arrival: int = 0,
    max_tokens: int = 4,
    end_token_ids: frozenset[int] = frozenset(),
    stop_token_ids: frozenset[int] = frozenset(),
    ignore_eos: bool = False,
    text: str | None = None,
    pictures: Sequence[str] = (),
    cache_salt: bytes = b"",
    priority: int = 0,
    tenant: bytes = b"",
    n: int = 1,
) -> Request:
    """A request whose prompt alternates lengths of text and of images: `5, 4, 2` is 5 tokens, image, 2 tokens.

    The text and the images depend on the request_id, so that no two requests have anything in common, but
    where they are given the same `text` or names of pictures; those go with the salt, as identities do.
    """
    names = pictures or [f"{request_id}/{index}" for index in range(len(segments) // 2)]
    token_ids: list[int] = []
    placeholders: list[PlaceholderRange] = []
    for index, length in enumerate(segments):
        if index % 2:
            placeholders.append(PlaceholderRange(len(token_ids), length, PatchGrid(height=1, width=length - 1)))
            token_ids.extend([IMAGE_TOKEN] * length)
        else:
            start = zlib.crc32((request_id if text is None else text).encode())
            token_ids.extend((start + 7 * place) % IMAGE_TOKEN for place in range(length))
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(token_ids),
        placeholders=tuple(placeholders),
        image_identities=tuple(name.encode() + cache_salt for name in names[: len(placeholders)]),
        cache_salt=cache_salt,
        sampling=SamplingParams(max_tokens=max_tokens, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos, n=n),
        end_token_ids=end_token_ids,
        arrival=arrival,
        priority=priority,
        tenant=tenant,
    )


def make_features(request: Request, image_index: int) -> bytes:
    """Features that no other image has: one byte for each of the image's tokens."""
    return make_rows(request.image_identities[image_index], request.placeholders[image_index].length)


def make_rows(identity: bytes, length: int) -> bytes:
    """As many bytes that no other image has."""
    seed = zlib.crc32(identity)
    return bytes((seed + 3 * row) % 256 for row in range(length))


def tokens_alone(request: Request, index: int = 0, *, next_token: NextToken = next_token) -> list[int]:
    """What a completion of the request must be: computed without an engine, a cache or a batch."""
    entries: list[Entry] = [(token_id, None) for token_id in request.prompt_token_ids]
    for image, placeholder in enumerate(request.placeholders):
        for row, feature in enumerate(make_features(request, image)):
            entries[placeholder.offset + row] = (IMAGE_TOKEN, feature)
    ends = request.sampling.stop_token_ids | (frozenset() if request.sampling.ignore_eos else request.end_token_ids)
    output: list[int] = []
    while len(output) < request.sampling.max_tokens and not (output and output[-1] in ends):
        output.append(next_token(entries, index))
        entries.append((output[-1], None))
    return output


@dataclass
class Outcome:
    """What a completion's caller has heard."""

    token_ids: list[int] = field(default_factory=list)
    end: str | None = None
    """A finish reason, an error's reason, "aborted" or "ended"."""


class Host:
    """Turns an engine and gives out feature memory, in bytes, first come first served in prompt order.

    Checks while it goes on that every request ends once and all features come back once.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 16,
        block_size: int = 4,
        max_num_batched_tokens: int = 16,
        max_num_requests: int = 4,
        max_model_len: int = 1000,
        feature_budget: int = 1000,
        num_spare_blocks: int = 0,
        max_num_mixed_tokens: int | None = None,
        max_step_stretch: float | None = None,
        num_speculative_tokens: int = 0,
        num_doubling_tokens: int = 200,
        hash_block: HashBlock | None = block_hash,
        overlap: bool = False,
        next_token: NextToken = next_token,
    ) -> None:
        config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_requests=max_num_requests,
            max_model_len=max_model_len,
            num_spare_blocks=num_spare_blocks,
            max_num_mixed_tokens=max_num_mixed_tokens,
            max_step_stretch=max_step_stretch,
            num_speculative_tokens=num_speculative_tokens,
            num_doubling_tokens=num_doubling_tokens,
        )
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=block_size, next_token=next_token)
        self.engine = Engine(
            config=config,
            num_blocks=num_blocks,
            block_size=block_size,
            runner=self.runner,
            launcher=self.runner if overlap else None,
            hash_block=hash_block,
        )
        self._overlap = overlap
        self._next_token = next_token
        self.feature_budget = feature_budget
        self.requests: dict[str, Request] = {}
        self.outcomes: dict[str, Outcome] = {}
        """Of each completion: the first one of a request has its name, the others `name/index`."""
        self.in_flight: list[ImageRef] = []
        """Images that have memory and are being encoded."""
        self._queue: deque[ImageRef] = deque()
        self._held: set[ImageRef] = set()
        self._paused: set[str] = set()

    @property
    def live(self) -> list[str]:
        """Requests that have not ended, in order of submission."""
        return [request_id for request_id in self.requests if self.unfinished(request_id)]

    def unfinished(self, request_id: str) -> list[int]:
        """A request's completions that have not ended."""
        return [i for i in range(self.requests[request_id].sampling.n) if self.outcome(request_id, i).end is None]

    def submit(self, request: Request) -> Request:
        wanted = self.engine.submit(request)
        self.requests[request.request_id] = request
        for index in range(request.sampling.n):
            self.outcomes[_name(request.request_id, index)] = Outcome()
        self._fetch(request.request_id, wanted)
        self._check()
        return request

    def arrive(self, ref: ImageRef) -> None:
        """Hand the engine an image that is in flight."""
        self.in_flight.remove(ref)
        self._held.add(ref)
        features = make_features(self.requests[ref.request_id], ref.image_index)
        assert self.engine.features_arrived(ref.request_id, ref.image_index, features, index=ref.index)
        self._check()

    @property
    def paused(self) -> list[str]:
        """Requests that are paused and have not ended."""
        return [request_id for request_id in self.live if request_id in self._paused]

    def pause(self, request_id: str) -> None:
        self._paused.add(request_id)
        self.engine.set_paused(request_id, paused=True)
        self._check()

    def resume(self, request_id: str) -> None:
        self._paused.remove(request_id)
        self.engine.set_paused(request_id, paused=False)
        self._check()

    def abort(self, request_id: str) -> None:
        self._release(self.engine.abort(request_id))
        self._end_all(request_id, "aborted")
        self._check()

    def end(self, request_id: str, index: int) -> None:
        """As when a stop text ends a completion."""
        self._release(self.engine.end(request_id, index))
        self._end(request_id, index, "ended")
        self._check()

    def fail(self, request_id: str, error: DiptychError) -> None:
        """As when an encoder gives up; the caller hears of it with the next step."""
        self._release(self.engine.fail(request_id, error))
        for index in range(self.requests[request_id].sampling.n):
            self._forget_fetches(request_id, index)
        self._check()

    def step(self) -> StepOutput:
        output = self.engine.step()
        for ref in output.consumed:
            if ref in self._held:
                self._held.remove(ref)
            elif ref in self.in_flight:
                self.in_flight.remove(ref)
            else:
                self._queue.remove(ref)
        for wanted in output.wanted:
            assert (wanted.request_id, wanted.index) not in {(ref.request_id, ref.index) for ref in self._held}
            self._forget_fetches(wanted.request_id, wanted.index)
            self._fetch(wanted.request_id, wanted.image_indices, wanted.index)
        for token in output.tokens:
            self.outcome(token.request_id, token.index).token_ids.append(token.token_id)
            if token.finish_reason is not None:
                self._end(token.request_id, token.index, token.finish_reason.value)
        for request_id, error in output.failed:
            self._end_all(request_id, error.reason)
        for token in output.tokens:
            assert not (token.is_last and self.unfinished(token.request_id))
        self._check()
        return output

    def run(self, *, max_steps: int = 500, last_image_first: bool = False) -> None:
        """Bring in all images and step until all have ended; fails where that takes too long.

        Between any two steps one image arrives: the first one, or the last one, of those in flight.
        """
        self.run_unpaused(max_steps=max_steps, last_image_first=last_image_first)
        assert not self.live, f"still not ended: {self.live}"
        if self._overlap and self.engine.has_work:
            assert not self.step().tokens, "a token that was computed ahead is told"
        self.check_idle()

    def run_unpaused(self, *, max_steps: int = 500, last_image_first: bool = False) -> None:
        """The same until only paused ones are left, which must not hold up the others."""
        for _ in range(max_steps):
            if set(self.live) <= self._paused:
                break
            if self.in_flight:
                self.arrive(sorted(self.in_flight, key=lambda ref: ref.image_index)[-1 if last_image_first else 0])
            self.step()
        waiting = set(self.live) - self._paused
        assert not waiting, f"still not ended: {waiting}"

    def check_idle(self) -> None:
        """Nothing is left behind: the state is that of a new engine."""
        stats = self.engine.stats()
        assert (stats.num_waiting, stats.num_running) == (0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        assert not self._held
        assert not self.in_flight
        assert not self._queue
        assert not self.engine.has_work
        for request in self.requests.values():
            assert not any(request.features)

    def check_outputs(self) -> None:
        """What finished has the tokens it would have alone, what ended otherwise the beginning of them."""
        for request_id, request in self.requests.items():
            for index in range(request.sampling.n):
                outcome = self.outcome(request_id, index)
                expected = tokens_alone(request, index, next_token=self._next_token)
                if outcome.end not in ("stop", "length"):
                    expected = expected[: len(outcome.token_ids)]
                assert outcome.token_ids == expected

    def outcome(self, request_id: str, index: int) -> Outcome:
        """What the caller of a completion has heard."""
        return self.outcomes[_name(request_id, index)]

    def _fetch(self, request_id: str, image_indices: Sequence[int], index: int = 0) -> None:
        assert list(image_indices) == sorted(image_indices)
        self._queue.extend(ImageRef(request_id, image, index) for image in image_indices)

    def _size(self, ref: ImageRef) -> int:
        return self.requests[ref.request_id].placeholders[ref.image_index].length

    def _release(self, refs: list[ImageRef]) -> None:
        for ref in refs:
            self._held.remove(ref)

    def _end(self, request_id: str, index: int, end: str) -> None:
        assert self.outcome(request_id, index).end is None, "ended twice"
        self.outcome(request_id, index).end = end
        self._forget_fetches(request_id, index)

    def _end_all(self, request_id: str, end: str) -> None:
        assert self.unfinished(request_id), "ended twice"
        for index in self.unfinished(request_id):
            self._end(request_id, index, end)

    def _forget_fetches(self, request_id: str, index: int) -> None:
        self.in_flight = [ref for ref in self.in_flight if (ref.request_id, ref.index) != (request_id, index)]
        self._queue = deque(ref for ref in self._queue if (ref.request_id, ref.index) != (request_id, index))

    def _check(self) -> None:
        self.engine.check_integrity()
        while self._queue:
            reserved = sum(map(self._size, (*self.in_flight, *self._held)))
            if reserved + self._size(self._queue[0]) > self.feature_budget:
                break
            self.in_flight.append(self._queue.popleft())


def _name(request_id: str, index: int) -> str:
    return f"{request_id}/{index}" if index else request_id
