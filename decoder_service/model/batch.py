"""The numbers and tensors of one forward pass.

Plain records, on the host and on the device. Does not know how they are made (see `batch_layout`), or the model.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from torch import Tensor

from decoder_service.vision.image_encoder import ImageFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRows:
    """Rows of one image's features that this pass splices in."""

    features: ImageFeatures
    """All of the image's rows, row-major."""
    first: int
    """First row to use."""
    last: int
    """One past the last row to use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRows:
    """Rows of one request whose logits say how likely the prompt's next tokens were."""

    request_id: str
    first: int
    """First row in the batch; one row follows another."""
    token_ids: tuple[int, ...]
    """For each row, the token of the prompt that comes after it."""
    num_top: int
    """Likeliest tokens to tell with each."""


@dataclass(slots=True)
class BatchLayout:
    """New tokens of several requests, packed one request after another, as numbers on the host."""

    token_ids: list[int] = field(default_factory=list)
    """[num_tokens]"""
    positions: list[int] = field(default_factory=list)
    """[num_tokens], counted from 0 in each request"""
    slots: list[int] = field(default_factory=list)
    """[num_tokens], where each token's key and value go"""
    query_lengths: list[int] = field(default_factory=list)
    """[num_requests], new tokens"""
    seq_lens: list[int] = field(default_factory=list)
    """[num_requests], tokens with the new ones"""
    logits_indices: list[int] = field(default_factory=list)
    """[num_sampled], rows that get logits to choose a token from; several completions begin with one row"""
    image_indices: list[int] = field(default_factory=list)
    """[num_image_rows], rows whose embedding an image row replaces"""
    image_rows: list[ImageRows] = field(default_factory=list)
    """The image rows, in the order of `image_indices`"""
    prompt_rows: list[PromptRows] = field(default_factory=list)
    """Rows that get logits to judge the prompt by; none for requests that do not ask for them"""
    block_tables: Sequence[int] = ()
    """[num_requests * max_blocks], padded with each request's own first block, which the lengths hide"""
    max_blocks: int = 0
    sources: Sequence[int] = ()
    """[num_tokens], of a step that is planned ahead: the places of its tokens among those of the step before"""
    adapters: Sequence[int] = ()
    """[num_requests], each one's adapter as `Request` has it; none where nobody has one"""

    def continue_from(self, before: Sequence[int]) -> None:
        """Take the tokens of a step that is planned ahead from those that the step before has chosen."""
        self.token_ids = [before[source] for source in self.sources]

    def to(self, move: "Callable[[array[int]], Tensor]") -> "ForwardBatch":
        """The same as tensors on the device, where `move` brings numbers."""
        columns = (
            self.token_ids,
            self.positions,
            self.slots,
            self.logits_indices,
            self.image_indices,
            self.seq_lens,
            self.sources,
            self.block_tables,
        )
        # One tensor made and moved, not eight; an array becomes one in a fraction of the time that a list takes.
        tensor = move(array("q", [*chain.from_iterable(columns)]))
        on_device = tensor.split_with_sizes([len(column) for column in columns])
        return ForwardBatch(
            token_ids=on_device[0],
            positions=on_device[1],
            slot_mapping=on_device[2],
            block_tables=on_device[7].view(-1, self.max_blocks),
            query_lengths=tuple(self.query_lengths),
            seq_lens=tuple(self.seq_lens),
            seq_lens_there=on_device[5],
            logits_indices=on_device[3],
            image_indices=on_device[4],
            image_rows=tuple(self.image_rows),
            prompt_rows=tuple(self.prompt_rows),
            sources=on_device[6] if self.sources else None,
            adapters=tuple(self.adapters),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """New tokens of several requests, as a forward pass takes them; see `BatchLayout`."""

    token_ids: Tensor
    """[num_tokens]; any at all in a step that is planned ahead, until `continued_from` knows them"""
    positions: Tensor
    """[num_tokens], counted from 0 in each request"""
    slot_mapping: Tensor
    """[num_tokens], where each token's key and value go"""
    block_tables: Tensor
    """[num_requests, max_blocks], padded with each request's own first block, which the lengths hide"""
    query_lengths: tuple[int, ...]
    """[num_requests], new tokens"""
    seq_lens: tuple[int, ...]
    """[num_requests], tokens with the new ones"""
    seq_lens_there: Tensor
    """[num_requests], the same on the device"""
    logits_indices: Tensor
    """[num_sampled], rows that get logits to choose a token from; several completions begin with one row"""
    image_indices: Tensor
    """[num_image_rows], rows whose embedding an image row replaces"""
    image_rows: tuple[ImageRows, ...]
    """The image rows, in the order of `image_indices`"""
    prompt_rows: tuple[PromptRows, ...] = ()
    """Rows that get logits to judge the prompt by; none for requests that do not ask for them"""
    sources: Tensor | None = None
    """[num_tokens], see `BatchLayout`; None for a step that is not planned ahead"""
    adapters: tuple[int, ...] = ()
    """[num_requests], each one's adapter as `Request` has it; none where nobody has one"""

    def continued_from(self, before: Tensor) -> "ForwardBatch":
        """The batch with the tokens that the step before has chosen, if it is planned ahead."""
        return self if self.sources is None else replace(self, token_ids=before[self.sources])
