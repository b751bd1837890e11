"""One completion of a request as the engine sees it: tokens, places of images, and how far it has come.

Knows facts and what follows from them. Does not know other requests, the policy that picks between them
(see `scheduler`), text, or what image features hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from decoder_service.adapters.adapter_ref import NO_ADAPTER, AdapterRef
from decoder_service.cache.block_hash import BlockHash
from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.prompt_images import Features, ImageRef, PlaceholderRange
from decoder_service.engine.request_status import RequestStatus
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.sampling.token_counts import TokenCounts
from decoder_service.speculation.drafter import Drafter
from decoder_service.structured.structure import Matcher


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A prompt that is being completed. Compared by identity.

    prompt                                                output
    |-- text --|-- image 0 --|-- text --|-- image 1 --|-- text --|-- o o o --|
    |--- computed ----|---- schedulable ----|                                   image 0 is held,
    0                 num_computed_tokens   offset of image 1        num_tokens  image 1 is not here yet
    """

    request_id: str
    index: int = 0
    """Which completion of the prompt this is, from 0."""
    prompt_token_ids: tuple[int, ...]
    placeholders: tuple[PlaceholderRange, ...] = ()
    """One for each image, in prompt order, not overlapping."""
    image_identities: tuple[bytes, ...] = ()
    """One for each image, see `common.image.identity`; what is cached of a prompt is found by them."""
    cache_salt: bytes = b""
    """Nothing cached is shared with requests of another one."""
    adapter: AdapterRef = NO_ADAPTER
    """What changes the model's products for it; nothing cached is shared with requests of another one."""
    sampling: SamplingParams
    end_token_ids: frozenset[int] = frozenset()
    """The model's own end tokens."""
    matcher: Matcher | None = None
    """Follows the output through the language that it is kept inside; `None` where that is any text."""
    arrival: int
    """Place in the order of arrival; rising from request to request."""
    priority: int = 0
    """Its class: higher ones go first."""
    tenant: bytes = b""
    """Who shares the engine fairly with others."""
    features: list[Features | None] = field(init=False)
    """One for each image; `None` while they are not held: before they arrive and after their rows are computed."""
    output_token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] | None = field(init=False)
    """Of the prompt's tokens from the second on, as far as computed, preempted or not; None if not asked or told."""
    token_counts: TokenCounts = field(default_factory=TokenCounts, repr=False)
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the KV cache."""
    num_cached_tokens: int = 0
    """Tokens that the prefix cache held when it was last asked: while waiting, what it is trusted to hold still."""
    num_saved_tokens: int = 0
    """Tokens of the prompt that it need not compute: a guess until it was admitted, then the truth."""
    num_known_blocks: int = 0
    """Leading blocks of the table that the prefix cache has been told of, or that came from it."""
    block_hashes: list[BlockHash] = field(default_factory=list)
    """Identities of the leading full blocks, as far as the prefix cache has made them."""
    wanted_images: tuple[int, ...] = ()
    """Images that the caller was last asked to fetch, in prompt order."""
    num_fetches: int = 0
    """How often it was asked; what was fetched before the last time is void."""
    num_preemptions: int = 0
    num_finite_tokens: int = 0
    """Leading computed tokens whose keys and values hold no NaN, as finite logits have shown."""
    is_suspect: bool = False
    """Whether anything may stand in its blocks behind those tokens, though no token there counts as computed."""
    num_ahead_tokens: int = 0
    """Tokens behind those that are computed ahead right now: its blocks hold them too, also when it has ended."""
    num_charged_tokens: int = 0
    """Leading tokens that its tenant was charged for; they may have to be computed again."""
    is_paused: bool = False
    """Whether it is not to be computed, because nobody takes what it has put out."""
    drafter: Drafter | None = field(default=None, repr=False)
    """What it tries, from the first time that it may."""
    block_table: list[BlockId] = field(default_factory=list)
    forks: "tuple[Request, ...]" = field(default=(), repr=False)
    """The other completions of the prompt, until it is computed; see `forks`."""
    status: RequestStatus = RequestStatus.WAITING
    is_plain: bool = field(init=False)
    """Whether no more is done with the logits of its next token than to take the largest; asked in every step."""

    def __post_init__(self) -> None:
        self.is_plain = self.matcher is None and self.sampling.is_plain
        self.features = [None] * len(self.placeholders)
        self.prompt_logprobs = None if self.sampling.prompt_logprobs is None else []
        if not self.prompt_token_ids:
            raise ValueError("a prompt needs at least one token")
        end = 0
        for placeholder in self.placeholders:
            if placeholder.offset < end or placeholder.length < 1:
                raise ValueError("placeholder ranges must be in order, apart and not empty")
            end = placeholder.end
        if len(self.image_identities) != len(self.placeholders):
            raise ValueError(f"{len(self.image_identities)} identities for {len(self.placeholders)} images")
        if end > self.num_prompt_tokens:
            raise ValueError(f"a placeholder range ends at {end}, the prompt at {self.num_prompt_tokens}")

    @property
    def completion_id(self) -> str:
        """A name that no other completion of any request has."""
        return f"{self.request_id}/{self.index}"

    @property
    def num_places(self) -> int:
        """Requests that it counts for among those that run: itself and those that will part from it."""
        return 1 + len(self.forks)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens that it was given so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens whose keys and values may come from a cache: all but those that logits are needed of."""
        return self.num_tokens - 1 if self.prompt_logprobs is None else len(self.prompt_logprobs)

    @property
    def num_schedulable_tokens(self) -> int:
        """Tokens that can be computed now: up to the first image that is neither computed nor held."""
        end = self.num_tokens
        if not self.placeholders or self.placeholders[-1].end <= self.num_computed_tokens:
            return end - self.num_computed_tokens
        for placeholder, features in zip(self.placeholders, self.features, strict=True):
            if features is None and placeholder.end > self.num_computed_tokens:
                end = placeholder.offset
                break
        return end - self.num_computed_tokens

    @property
    def num_missing_tokens(self) -> int:
        """Known tokens that are still to be computed, as far as the prefix cache holds what it did when last asked."""
        return self.num_tokens - max(self.num_computed_tokens, self.num_cached_tokens)

    @property
    def is_generating(self) -> bool:
        """Whether one token more is all that must be computed for its next one."""
        return self.num_tokens - self.num_computed_tokens == 1

    @property
    def needs_features(self) -> bool:
        """Whether it has images, here or not, whose tokens are not all computed."""
        return bool(self.placeholders) and self.placeholders[-1].end > self.num_computed_tokens

    @property
    def is_movable(self) -> bool:
        """Whether a token of it can be computed now, if it runs."""
        return not self.is_paused and self.num_schedulable_tokens > 0

    @property
    def is_ready(self) -> bool:
        """Whether it may own blocks: its first image is here or cached, and all are here or on their way.

        Once it has waited twice all must be here. A request that comes back cannot stall again, so it is not
        preempted for stalling twice: two requests cannot take the blocks from each other for ever while each waits
        for its second image.
        """
        missing = [index for index in self.uncovered_images if self.features[index] is None]
        comes_back = self.num_fetches > 1 or self.num_preemptions > 0
        if not missing or comes_back or not set(missing) <= set(self.wanted_images):
            return not missing
        # With a cached start it needs a token to compute before the image that it goes on to wait for.
        return missing[0] > 0 and self.placeholders[missing[0]].offset > self.num_cached_tokens

    @property
    def uncovered_images(self) -> tuple[int, ...]:
        """Images with tokens that the prefix cache did not hold when it was last asked, in prompt order."""
        return tuple(index for index, span in enumerate(self.placeholders) if span.end > self.num_cached_tokens)

    def want_images(self, image_indices: tuple[int, ...]) -> None:
        """Ask anew, for these images and no others. What is held must be released before."""
        self.wanted_images = image_indices
        self.num_fetches += 1

    def token_ids(self, start: int, stop: int) -> Sequence[int]:
        """Tokens from position `start` up to `stop`, prompt and output as one sequence."""
        split = self.num_prompt_tokens
        if start >= split:
            return self.output_token_ids[start - split : stop - split]
        return (*self.prompt_token_ids[start:stop], *self.output_token_ids[: max(stop - split, 0)])

    def take_token(self, token_id: int) -> None:
        """Go on by a token."""
        self.output_token_ids.append(token_id)
        if self.matcher is not None:
            self.matcher.take(token_id)

    def take_features(self, image_index: int, features: Features) -> bool:
        """Hold an image's features; false where they are held already or no longer needed."""
        computed = self.placeholders[image_index].end <= self.num_computed_tokens
        if computed or self.features[image_index] is not None:
            return False
        self.features[image_index] = features
        return True

    def release_covered(self) -> list[ImageRef]:
        """Let go of the images that were asked for and turned out to be cached; returns which, held or not."""
        covered = [index for index in self.wanted_images if self.placeholders[index].end <= self.num_cached_tokens]
        for index in covered:
            self.features[index] = None
        return [ImageRef(self.request_id, image, self.index) for image in covered]

    def release_features(self, num_tokens: int) -> list[ImageRef]:
        """Let go of the features of images that end within the first `num_tokens` tokens; returns which."""
        released = [
            ImageRef(self.request_id, image, self.index)
            for image, (placeholder, features) in enumerate(zip(self.placeholders, self.features, strict=True))
            if features is not None and placeholder.end <= num_tokens
        ]
        for ref in released:
            self.features[ref.image_index] = None
        return released
