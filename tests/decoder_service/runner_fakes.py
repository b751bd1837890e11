"""A runner without a model: what it computes shows every fault of the engine's, in tokens or at once."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.device_errors import DeviceMemoryError
from decoder_service.engine.request import Request
from decoder_service.engine.step import (
    BlockCopy,
    Launched,
    NoToken,
    ScheduledBatch,
    ScheduledRequest,
    StepResult,
)
from decoder_service.vision.image_encoder import ImageFeatures

VOCABULARY = 50

Entry = tuple[int, int | None]
"""A token as the cache keeps it: its id and, inside an image, the feature of its row."""

NextToken = Callable[[Sequence[Entry], int], int]
"""The next token of a completion, by what it has read and its index."""

NAN: Entry = (-1, None)
"""What poisons everything that is computed from it."""


def next_token(entries: Sequence[Entry], index: int = 0) -> int:
    """The next token of a completion: a function of everything before it, so any wrong row shows."""
    return zlib.crc32(repr(list(entries)).encode(), index) % VOCABULARY


def repeated_token(entries: Sequence[Entry], index: int = 0) -> int:
    """The same, but four times out of five the last token again."""
    checksum = zlib.crc32(repr(list(entries)).encode(), index)
    return entries[-1][0] if checksum % 5 else checksum % VOCABULARY


class FakeRunner:
    """Keeps a KV cache of entries in slots and reads every prefix back through the block table.

    A block with two owners, freed too early or not computed again changes the tokens. What must not happen
    ends the test by `pytest.fail`, which no `except Exception` of the engine can hide.
    """

    def __init__(self, *, num_blocks: int, block_size: int, next_token: NextToken = next_token) -> None:
        self._next_token = next_token
        self.batches: list[dict[str, int]] = []
        """Of every step, the number of tokens of each request."""
        self.not_finite: set[str] = set()
        """Requests, or single completions by their completion_id, whose logits are NaN."""
        self.poisoned: set[str] = set()
        """Requests whose keys and values are NaN."""
        self.culprits: set[str] = set()
        """Requests that no step can compute."""
        self.most_tokens: int | None = None
        """Tokens that there is memory for."""
        self.error: Exception | None = None
        """Raised by the next step, before it writes."""
        self.late_error: Exception | None = None
        """Raised by the next step when it has written all that it writes."""
        self.copy_error: Exception | None = None
        """Raised by the next step that copies."""
        self.clear_error: Exception | None = None
        """Raised when blocks are next to be cleared."""
        self.launch_error: Exception | None = None
        """Raised by the next step that is begun before it is waited for."""
        self.has_poisonous_drafts = False
        """Whether keys and values of what requests try are NaN."""
        self.num_near_ties = 0
        """Told of every step."""
        self.is_eager = False
        """Whether a step that is begun is computed right then, as the queue of a device does that is never late."""
        self._late: list[_Work] = []
        """Steps that were begun and not computed, in order."""
        self._block_size = block_size
        self._cache: list[Entry | None] = [None] * (num_blocks * block_size)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self._check_idle()
        if self.copy_error is not None:
            error, self.copy_error = self.copy_error, None
            raise error
        size = self._block_size
        read = [self._cache[source * size : (source + 1) * size] for source, _ in copies]
        for (_, target), entries in zip(copies, read, strict=True):
            self._cache[target * size : (target + 1) * size] = entries

    def execute(self, batch: ScheduledBatch) -> StepResult:
        self._check_idle()
        return self._compute(_Work(batch, None))

    def launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        """Begin a step.

        Unless the device is eager, nothing is computed before somebody asks for its result, or for that of a later one.
        """
        before = after.tokens if after is not None else None
        if batch.is_ahead and not isinstance(before, _Work):
            pytest.fail("a step ahead goes on from no step")
        if self.launch_error is not None:
            error, self.launch_error = self.launch_error, None
            raise error
        work = _Work(batch, before if isinstance(before, _Work) else None)
        self._late.append(work)
        if self.is_eager:
            self._catch_up(work)
        return Launched(partial(self._result, work), work)

    def _catch_up(self, work: "_Work") -> None:
        while work in self._late:
            first = self._late.pop(0)
            try:
                first.result = self._compute(first)
            except Exception as error:
                first.error = error

    def _result(self, work: "_Work") -> StepResult:
        self._catch_up(work)
        if work.error is not None:
            raise work.error
        assert work.result is not None
        return work.result

    def _compute(self, work: "_Work") -> StepResult:
        self.batches.append({each.request.request_id: each.num_tokens for each in work.parts})
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.most_tokens is not None and sum(each.num_tokens for each in work.parts) > self.most_tokens:
            raise DeviceMemoryError
        for each in work.parts:
            for position in range(each.start, each.end):
                self._cache[self._slot(each, position)] = self._entry(each, position, work)
        if any(each.request.request_id in self.culprits for each in work.parts):
            raise RuntimeError("a culprit, when everything is written already")
        if self.late_error is not None:
            error, self.late_error = self.late_error, None
            raise error
        if work.is_void:
            return StepResult(token_ids=[0] * sum(len(each.sampled) for each in work.parts))
        token_ids = [
            self._sample(each, completion, until)
            for each in work.parts
            for completion in each.sampled
            for until in range(each.end - each.num_draft_tokens, each.end + 1)
        ]
        return StepResult(token_ids=token_ids, num_near_ties=self.num_near_ties)

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        self._check_idle()
        if self.clear_error is not None:
            error, self.clear_error = self.clear_error, None
            raise error
        for block_id in block_ids:
            start = block_id * self._block_size
            self._cache[start : start + self._block_size] = [None] * self._block_size

    def _check_idle(self) -> None:
        if self._late:
            pytest.fail("blocks are read or written at once while a step runs")

    def _slot(self, part: "_Part", position: int) -> int:
        return part.block_table[position // self._block_size] * self._block_size + position % self._block_size

    def _entry(self, part: "_Part", position: int, work: "_Work") -> Entry:
        request = part.request
        token_id = part.token_ids[position - part.start] if part.source is None else work.token_before(part.source)
        is_tried = position >= part.end - part.num_draft_tokens
        if request.request_id in self.poisoned or (is_tried and self.has_poisonous_drafts):
            return NAN
        for placeholder, features in zip(request.placeholders, part.features, strict=True):
            if placeholder.offset <= position < placeholder.end:
                rows = features.data if isinstance(features, ImageFeatures) else features
                if not isinstance(rows, bytes | bytearray | memoryview):
                    pytest.fail("scheduled before its features arrived")
                return token_id, rows[position - placeholder.offset]
        return token_id, None

    def _sample(self, part: "_Part", completion: Request, until: int) -> int | NoToken:
        if {part.request.request_id, completion.completion_id} & self.not_finite:
            return NoToken.NOT_FINITE
        for block_id in part.block_table:
            start = block_id * self._block_size
            # Whole blocks, as hidden values are multiplied by 0, and that makes NaN of NaN.
            if NAN in self._cache[start : start + self._block_size]:
                return NoToken.NOT_FINITE
        entries = [self._cache[self._slot(part, position)] for position in range(until)]
        read = [entry for entry in entries if entry is not None]
        if len(read) != len(entries):
            pytest.fail("a slot was read before it was written")
        return self._next_token(read, completion.index)


class _Part:
    """What a step needs of a request, as it is when the step begins: later the request may be another's, or gone."""

    def __init__(self, scheduled: ScheduledRequest, source: int | None, *, is_sampled: bool) -> None:
        request = scheduled.request
        self.request, self.source = request, source
        self.num_draft_tokens = len(scheduled.draft)
        self.start, self.end = scheduled.start, scheduled.end + self.num_draft_tokens
        self.num_tokens = scheduled.num_scheduled_tokens + self.num_draft_tokens
        self.token_ids = (*request.token_ids(self.start, scheduled.end), *scheduled.draft)
        self.block_table = tuple(request.block_table)
        self.features = tuple(request.features)
        self.sampled = (request, *request.forks) if is_sampled else ()
        if source is None and len(self.token_ids) != self.num_tokens:
            pytest.fail("a token is computed that nobody knows")


class _Work:
    """A step on its way through the device."""

    def __init__(self, batch: ScheduledBatch, before: "_Work | None") -> None:
        sampled = set(batch.sampled)
        sources = batch.sources or [None] * len(batch.requests)
        self.parts = [
            _Part(each, source, is_sampled=each.request in sampled)
            for each, source in zip(batch.requests, sources, strict=True)
        ]
        rows = [each for part in self.parts for each in part.sampled for _ in range(1 + part.num_draft_tokens)]
        assert rows == list(batch.sampled)
        self.before = before
        self.result: StepResult | None = None
        self.error: Exception | None = None

    @property
    def is_void(self) -> bool:
        """Whether it goes on from a step that failed: a device would compute all the same."""
        return self.before is not None and self.before.result is None

    def token_before(self, source: int) -> int:
        """A token of the step before; any at all where that gave none."""
        if self.before is None or self.before.result is None:
            return 0
        token_id = self.before.result.token_ids[source]
        return 0 if isinstance(token_id, NoToken) else token_id
