"""Chooses what computes paged attention on CUDA, once, when the service starts.

Knows every implementation and the packages that they need. One that is asked for is tried against plain torch, on rows
and lengths of several kinds, before anybody is served: it is not ours, and what it can do depends on versions, types,
block sizes and the device.
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from common.model.attention import paged_attention
from common.model.devices import mark_for
from common.model.settings import AttentionBackend
from decoder_service.model.cuda.attention import Attend, AttentionShape, PagedAttention, Spans
from decoder_service.model.cuda.flashinfer_attention import FlashInferAttention, PlanMemory, Wrapper
from decoder_service.model.cuda.torch_attention import TorchAttention
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.kv_cache import saturated

_FLASHINFER_BYTES = 128 * 2**20
"""Working memory that FlashInfer recommends."""


def choose_attention(backend: AttentionBackend, shape: AttentionShape, device: torch.device) -> PagedAttention:
    """What computes it with this setting; Triton's kernel, which is ours, where nothing is asked for.

    Raises ValueError where what is asked for cannot be had, or computes something else than plain torch.
    """
    makers: dict[AttentionBackend, Callable[[], PagedAttention]] = {
        AttentionBackend.TORCH: lambda: _torch_attention(shape),
        AttentionBackend.FLASHINFER: lambda: _flashinfer_attention(shape, device),
    }
    if backend not in makers:
        return TritonAttention(shape, device)
    flag = f"--attention-backend {backend.value}"
    try:
        attention = makers[backend]()
        distance = largest_error(attention, shape, device)
    # Whatever packages that are not ours raise.
    except Exception as error:
        raise ValueError(f"{flag} cannot be had: {type(error).__name__}: {error}") from error
    allowed = 8 * torch.finfo(shape.dtype).eps
    if distance > allowed:
        raise ValueError(
            f"{flag} gives other numbers than plain torch: they differ by {distance:.3g}, and {allowed:.3g} is allowed"
        )
    return attention


@torch.inference_mode()
def largest_error(attention: PagedAttention, shape: AttentionShape, device: torch.device) -> float:
    """How far it is from plain torch in float32 at most, of numbers near 1; infinite where it gives no numbers.

    It is planned for once, and as for a recorded pass, in which a third row fills up.
    """
    once = _Trial(shape, new=(1, 5, 1, 70), lengths=(1, 37, 300, 70))
    first = once.distance(attention.plan(once.spans(device, most_tokens=once.lengths)), device)
    again = _Trial(shape, new=(1, 1, 1), lengths=(300, 37, 0))
    recorded = attention.plan_recorded(again.spans(device, most_tokens=[max(again.lengths)] * 3))
    recorded.prepare(again.lengths)
    return max(first, again.distance(recorded.attend, device))


class _Trial:
    """Random rows of requests of these new and whole lengths over keys and values in scattered blocks."""

    def __init__(self, shape: AttentionShape, *, new: Sequence[int], lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self._shape, self._new = shape, new
        counts = [-(-max(length, 1) // shape.block_size) for length in lengths]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(sum(counts), generator=generator, dtype=torch.int32).split(counts)
        self._tables = torch.stack([torch.nn.functional.pad(part, (0, max(counts) - len(part))) for part in order])
        blocks = (sum(counts), shape.block_size, shape.num_key_value_heads, shape.head_dim)
        self._query = torch.randn(sum(new), shape.num_heads, shape.head_dim, generator=generator).to(shape.dtype)
        self._keys = saturated(torch.randn(blocks, generator=generator), shape.kv_dtype)
        self._values = saturated(torch.randn(blocks, generator=generator), shape.kv_dtype)

    def spans(self, device: torch.device, *, most_tokens: Sequence[int]) -> Spans:
        """These rows and blocks on the device."""
        return Spans(
            block_tables=self._tables.to(device),
            query_starts=torch.tensor([0, *self._new]).cumsum(0).int().to(device),
            seq_lens=torch.tensor(self.lengths, dtype=torch.int32, device=device),
            query_lengths=self._new,
            most_tokens=most_tokens,
        )

    def distance(self, attend: Attend, device: torch.device) -> float:
        """From plain torch at most, of all rows that see anything."""
        count = sum(length > 0 for length in self.lengths)
        rows = sum(self._new[:count])
        found = attend(self._query.to(device), self._keys.to(device), self._values.to(device))[:rows]
        want = paged_attention(
            self._query[:rows].float(),
            self._keys.float(),
            self._values.float(),
            block_tables=self._tables[:count],
            query_lengths=self._new[:count],
            seq_lens=self.lengths[:count],
            scale=self._shape.scale,
            sliding_window=self._shape.sliding_window,
        )
        distance = (found.cpu().float() - want).abs().max().item()
        return float("inf") if math.isnan(distance) else distance


def _torch_attention(shape: AttentionShape) -> PagedAttention:
    # Imported here, as below: a part of torch that others have no use for.
    from torch.nn.attention import activate_flash_attention_impl
    from torch.nn.attention.varlen import varlen_attn

    if find_spec("flash_attn_interface") is not None:
        activate_flash_attention_impl("FA3")  # The one that comes with torch reads no block tables.
    return TorchAttention(shape, varlen_attn)


def _flashinfer_attention(shape: AttentionShape, device: torch.device) -> PagedAttention:
    import flashinfer

    scratch = torch.zeros(_FLASHINFER_BYTES, dtype=torch.uint8, device=device)

    def make_wrapper(memory: PlanMemory | None) -> Wrapper:
        if memory is None:
            wrapper: Wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(scratch, "NHD")
            return wrapper
        recorded: Wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            scratch,
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=memory.query_starts,
            paged_kv_indptr_buf=memory.block_starts,
            paged_kv_indices_buf=memory.blocks,
            paged_kv_last_page_len_buf=memory.last_lengths,
        )
        return recorded

    return FlashInferAttention(shape, make_wrapper, mark_for(device))
