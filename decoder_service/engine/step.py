"""What goes into a step and what comes out of it.

Plain records between the scheduler, the engine, the runner and whoever turns the engine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from common.errors import DiptychError
from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.request_status import FinishReason
from decoder_service.sampling.logprobs import Logprobs


class ScheduledRequest(NamedTuple):
    """A request's part in a step: its next `num_scheduled_tokens` tokens after `num_computed_tokens`.

    Positions hold until the step is accounted for, which moves that number.
    """

    request: Request
    num_scheduled_tokens: int
    place: int | None = None
    """Position of the first token where the step is planned ahead: not all tokens before it are computed yet."""
    draft: tuple[int, ...] = ()
    """Tokens to try behind these, which are its last known ones then; see `drafting`."""

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.request.num_computed_tokens if self.place is None else self.place

    @property
    def end(self) -> int:
        """Position after the last token, what is tried aside."""
        return self.start + self.num_scheduled_tokens

    @property
    def is_sampled(self) -> bool:
        """Whether the step computes its last known token, and so yields the next one."""
        return self.request.num_computed_tokens + self.num_scheduled_tokens == self.request.num_tokens


class BlockCopy(NamedTuple):
    """A block whose keys and values another block gets."""

    source: BlockId
    target: BlockId


class ScheduledBatch:
    """All that one step computes. Made right before it: who gets a token depends on how far each request is by then."""

    __slots__ = ("copies", "num_draft_tokens", "num_tokens", "requests", "sampled", "sources")

    def __init__(
        self,
        requests: tuple[ScheduledRequest, ...],
        copies: tuple[BlockCopy, ...] = (),
        *,
        sources: tuple[int, ...] = (),
    ) -> None:
        self.requests = requests
        self.num_draft_tokens = sum([len(scheduled.draft) for scheduled in requests])
        """Tokens that the step tries."""
        self.num_tokens = sum([scheduled.num_scheduled_tokens for scheduled in requests]) + self.num_draft_tokens
        """Tokens that the step computes."""
        self.copies = copies
        """Made once, before anything is computed, as if all at once: every source is read before any target is written.

        A source may be somebody else's already, who writes to it in this step.
        """
        self.sources = sources
        """Of a step that is planned ahead: for each request the place of its token among those that the step before
        it gives, as nobody knows that token yet. Empty for any other step.
        """
        self.sampled: tuple[Request, ...] = tuple(
            [
                request
                for scheduled in requests
                if sources or scheduled.is_sampled
                for request in (*(scheduled.request,) * (1 + len(scheduled.draft)), *scheduled.request.forks)
            ]
        )
        """The requests that get a token, in batch order.

        Those that part from a request get theirs from its logits, right behind it. One that tries tokens is told one
        behind its last known one, and then one behind each of them.
        """

    def part(self, requests: Sequence[ScheduledRequest]) -> "ScheduledBatch":
        """A batch of some of the requests, perhaps with fewer tokens, that can be run by itself after the copies."""
        return ScheduledBatch(tuple(requests))

    @property
    def is_ahead(self) -> bool:
        """Whether it is planned while the step before it runs, and goes on from tokens that only that one knows."""
        return bool(self.sources)


class NoToken(Enum):
    """Why a request gets no token, and so ends."""

    NOT_FINITE = "not finite"
    """Its logits held a NaN or an infinity."""
    NONE_ALLOWED = "none allowed"
    """Its own sampling parameters rule out every token."""


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What the runner computed for a batch."""

    token_ids: Sequence[int | NoToken]
    """One for each of `ScheduledBatch.sampled`."""
    num_near_ties: int = 0
    """Greedy choices between tokens so close that rounding may have decided."""
    logprobs: Mapping[str, Logprobs] = field(default_factory=dict)
    """Of the new token, by completion_id, for those that ask for it."""
    prompt_logprobs: Mapping[str, Sequence[Logprobs]] = field(default_factory=dict)
    """What follows on `Request.prompt_logprobs`, by request_id: the first completion's alone has any."""


class Runner(Protocol):
    """Computes batches."""

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks, all at once: every source is read before any target is written."""
        ...

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Compute the scheduled tokens, copies aside, and choose the next one of each of `batch.sampled`."""
        ...

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        """Make sure that what these blocks hold harms nobody who gets them next."""
        ...


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that was begun."""

    result: Callable[[], StepResult]
    """Waits for its end. Raises what `Runner.execute` raises, whenever it went wrong."""
    tokens: object
    """How whoever launched it finds its tokens for the step that goes on from them; nobody else looks inside."""


class Launcher(Protocol):
    """Computes batches while the next ones are planned."""

    def launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        """Begin to compute as `Runner.execute` does, behind all that was begun before, and wait for nothing.

        A batch that is planned ahead goes on from the tokens of `after`, the one launched before it. All that it needs
        of the requests is read now: they may change, or end, while it runs.
        """
        ...


@dataclass(slots=True)
class TokenOutput:
    """A new token of a request and, with its last one, why it ended."""

    request_id: str
    token_id: int
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token that ended it, where the reason is STOP."""
    logprobs: Logprobs | None = None
    """Of this token, where they are asked for."""
    prompt_logprobs: Sequence[Logprobs] = ()
    """With the first token, where they are asked for: of the prompt's tokens from the second one on."""
    index: int = 0
    """The completion that it belongs to."""
    is_last: bool = False
    """Whether the request has ended with it: the last of its completions."""


@dataclass(frozen=True, slots=True)
class WantedImages:
    """Images that a request needs from now on; every fetch that it began before is void."""

    request_id: str
    image_indices: tuple[int, ...]
    """In prompt order; may be none at all."""
    index: int = 0
    """The completion that needs them."""


@dataclass(slots=True)
class StepOutput:
    """What a step changed, for the callers to hear. Filled while the step goes on."""

    tokens: list[TokenOutput] = field(default_factory=list)
    consumed: list[ImageRef] = field(default_factory=list)
    """Images that the engine needs no more: what it held of them it has let go of, what is still fetched is in vain."""
    wanted: list[WantedImages] = field(default_factory=list)
    """What is to be fetched anew; see `Engine.features_arrived`."""
    failed: list[tuple[str, DiptychError]] = field(default_factory=list)
    """Requests that ended with an error, with all of their completions; each is named once."""
    first_scheduled: list[str] = field(default_factory=list)
    """Requests that were admitted for the first time."""

    def want(self, request: Request, image_indices: tuple[int, ...]) -> None:
        """Ask for these images of a request, and for no others any more."""
        if request.placeholders:
            request.want_images(image_indices)
            self.wanted.append(WantedImages(request.request_id, image_indices, request.index))
