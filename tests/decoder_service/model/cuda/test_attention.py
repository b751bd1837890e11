"""Attention by packages that are not ours: what they are told is what plain torch is told."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from common.model.attention import paged_attention
from common.model.settings import AttentionBackend
from decoder_service.model.compute import Compute
from decoder_service.model.cuda.attention import (
    AttentionShape,
    PagedAttention,
    RecordedAttention,
    Spans,
    prepare_nothing,
)
from decoder_service.model.cuda.attention_choice import choose_attention, largest_error
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.cuda.flashinfer_attention import FlashInferAttention, PlanMemory
from decoder_service.model.cuda.torch_attention import TorchAttention
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.fp8 import FP8
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from tests.parity.harness import Harness
from tests.replayer import Replayer
from tests.tiny_models import Prompt, Shape, random_pixtral, reference_logits, save

CPU = torch.device("cpu")
Make = Callable[[AttentionShape], PagedAttention]


def shape(*, window: int | None = None, kv_dtype: torch.dtype = torch.float32, block_size: int = 16) -> AttentionShape:
    return AttentionShape(
        num_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        block_size=block_size,
        scale=0.25,
        sliding_window=window,
        dtype=torch.float32,
        kv_dtype=kv_dtype,
    )


needs_block_tables = pytest.mark.skipif(
    "block_table" not in inspect.signature(varlen_attn).parameters,
    reason="this version of torch's varlen_attn reads no block tables; at start it is refused with that",
)


def fake_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    **options: object,
) -> Tensor:
    """What torch's function documents, on a CPU, where torch itself has nothing."""
    inspect.signature(varlen_attn).bind(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)
    lengths, tables, window = options["seqused_k"], options["block_table"], options["window_size"]
    assert isinstance(lengths, Tensor)
    assert isinstance(tables, Tensor)
    assert isinstance(window, tuple)
    assert {each.dtype for each in (cu_seq_q, lengths, tables)} == {torch.int32}
    assert (cu_seq_k, window[1], options["enable_gqa"]) == (None, 0, True)
    new = cu_seq_q.diff().tolist()
    assert max(new) <= max_q
    assert max(lengths.tolist()) <= max_k
    # A row that fills up sees nothing.
    seen = [max(length, count) for length, count in zip(lengths.tolist(), new, strict=True)]
    return _plain(query, key, value, tables, new, seen, options["scale"], None if window[0] < 0 else window[0] + 1)


class FakeWrapper:
    """What FlashInfer documents of its wrapper, on a CPU."""

    def __init__(self, places: PlanMemory | None) -> None:
        self._places = places
        self._most_rows: int | None = None

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool,
        sm_scale: float,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        numbers = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert {each.dtype for each in numbers} == {torch.int32}
        assert causal
        assert len(paged_kv_indices) == int(paged_kv_indptr[-1])
        assert set(paged_kv_last_page_len.tolist()) <= set(range(1, page_size + 1))
        self._shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size, q_data_type, kv_data_type)
        self._scale, self._window = sm_scale, None if window_left < 0 else window_left + 1
        if self._places is None:
            self._numbers: tuple[Tensor, ...] = numbers
            return
        # Of a recorded pass the number of requests never changes, and all is read from its places.
        places = (
            self._places.query_starts,
            self._places.block_starts,
            self._places.blocks,
            self._places.last_lengths,
        )
        assert len(qo_indptr) == len(places[0])
        for place, given in zip(places, numbers, strict=True):
            place[: len(given)] = given
        self._numbers = places

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        keys, values = paged_kv_cache
        assert self._shape == (q.shape[1], keys.shape[2], q.shape[2], keys.shape[1], q.dtype, keys.dtype)
        query_starts, page_starts, pages, last_lengths = self._numbers
        counts, new = page_starts.diff().tolist(), query_starts.diff().tolist()
        tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, start, count in zip(tables, page_starts.tolist(), counts, strict=False):
            row[:count] = pages[start : start + count]
        lengths = [
            (count - 1) * keys.shape[1] + last for count, last in zip(counts, last_lengths.tolist(), strict=True)
        ]
        return _plain(q, keys, values, tables, new, lengths, self._scale, self._window)


def _plain(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    new: list[int],
    lengths: list[int],
    scale: object,
    window: int | None,
) -> Tensor:
    assert isinstance(scale, float)
    return paged_attention(
        query,
        keys,
        values,
        block_tables=tables,
        query_lengths=new,
        seq_lens=lengths,
        scale=scale,
        sliding_window=window,
    )


def no_mark() -> Callable[[], None]:
    return lambda: None


MAKERS: dict[str, Make] = {
    "triton": lambda of: TritonAttention(of, CPU),
    "torch": lambda of: TorchAttention(of, fake_varlen),
    "flashinfer": lambda of: FlashInferAttention(of, FakeWrapper, no_mark),
}


@pytest.fixture(params=["triton", pytest.param("torch", marks=needs_block_tables), "flashinfer"])
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


@pytest.mark.parametrize(
    "of", [shape(), shape(window=9), shape(kv_dtype=FP8), shape(block_size=256), shape(block_size=3)], ids=str
)
def test_each_is_given_what_gives_plain_torchs_numbers(make: Make, of: AttentionShape) -> None:
    assert largest_error(make(of), of, CPU) < 1e-5


@pytest.mark.parametrize("window", [None, 9])
def test_whole_requests_get_the_reference_logits_through_each(make: Make, window: int | None, tmp_path: Path) -> None:
    """Prompts in chunks beside next tokens, and recorded passes, of which some have rows that fill up."""
    tiny = Shape(name="pixtral-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=16, window=window)
    model, replayer = random_pixtral(tiny), Replayer()

    def compute(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        attention = make(AttentionShape.of(loaded.config, kv_cache, loaded.dtype))
        return CudaCompute(
            loaded, kv_cache, recorder=replayer, max_num_requests=8, max_model_len=128, attention=attention
        )

    harness = Harness(
        save(model, tmp_path), num_blocks=40, block_size=8, token_budget=11, make_compute=compute, new_tokens=6
    )
    prompts = [Prompt(token_ids=list(range(20, 20 + count))) for count in (18, 2, 9)]
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt, ids), atol=1e-4, rtol=0)
    assert replayer.num_runs > 0


def test_a_plan_waits_until_the_device_has_read_the_one_before() -> None:
    told: list[str] = []

    class Wrapper(FakeWrapper):
        def plan(self, *numbers: object, **options: object) -> None:
            told.append("plan")

        def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
            return q

    def mark() -> Callable[[], None]:
        told.append("mark")
        return lambda: told.append("wait")

    attention = FlashInferAttention(shape(), Wrapper, mark)
    once = Spans(
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        query_starts=torch.arange(2, dtype=torch.int32),
        seq_lens=torch.ones(1, dtype=torch.int32),
        query_lengths=[1],
        most_tokens=[1],
    )
    for _ in range(2):
        attention.plan(once)
    assert told == ["plan", "mark", "wait", "plan", "mark"]


class Wrong:
    """Computes with a scale of its own."""

    def __call__(self, *arguments: object, **options: object) -> Tensor:
        return fake_varlen(*arguments, **(options | {"scale": 0.5}))  # type: ignore[arg-type]


def _refuse(*arguments: object, **options: object) -> Tensor:
    raise RuntimeError("block_table is not supported")


def _nan(query: Tensor, *arguments: object, **options: object) -> Tensor:
    return torch.full_like(query, float("nan"))


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Puts a function in the place of torch's."""

    def offer(function: object) -> None:
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", function)

    return offer


@needs_block_tables
def test_what_is_asked_for_is_chosen_and_ours_where_nothing_is(offered: Callable[[object], None]) -> None:
    offered(fake_varlen)
    assert choose_attention(AttentionBackend.TORCH, shape(), CPU).name == "torch"
    for unset in (AttentionBackend.AUTO, AttentionBackend.TRITON):
        assert choose_attention(unset, shape(), CPU).name == "triton"


def test_a_recorded_pass_that_reads_an_old_plan_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = FlashInferAttention(shape(), FakeWrapper, no_mark)
    assert largest_error(attention, shape(), CPU) < 1e-5
    plan_recorded = attention.plan_recorded

    def unprepared(spans: Spans) -> RecordedAttention:
        return RecordedAttention(plan_recorded(spans).attend, prepare_nothing)

    monkeypatch.setattr(attention, "plan_recorded", unprepared)
    assert largest_error(attention, shape(), CPU) > 1e-3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param(
            Wrong(),
            "--attention-backend torch gives other numbers than plain torch: they differ by",
            marks=needs_block_tables,
        ),
        (_nan, "--attention-backend torch gives other numbers than plain torch: they differ by inf"),
        (_refuse, "--attention-backend torch cannot be had: RuntimeError: block_table is not supported"),
    ],
)
def test_one_that_computes_something_else_or_nothing_is_refused_at_start(
    function: object, message: str, offered: Callable[[object], None]
) -> None:
    offered(function)
    with pytest.raises(ValueError, match=message):
        choose_attention(AttentionBackend.TORCH, shape(), CPU)


def test_flashinfer_computes_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapper(
        scratch: Tensor,
        layout: str,
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
    ) -> FakeWrapper:
        assert (scratch.dtype, layout) == (torch.uint8, "NHD")
        memory = (qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf)
        given = [each for each in memory if each is not None]
        assert len(given) == 4 * use_cuda_graph
        return FakeWrapper(PlanMemory(*given) if use_cuda_graph else None)

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=wrapper))
    of = shape(block_size=4)
    attention = choose_attention(AttentionBackend.FLASHINFER, of, CPU)
    tables = torch.tensor([[3, 1], [2, 0]], dtype=torch.int32)
    spans = Spans(
        block_tables=tables,
        query_starts=torch.arange(3, dtype=torch.int32),
        seq_lens=torch.tensor([6, 0], dtype=torch.int32),
        query_lengths=[1, 1],
        most_tokens=[8, 8],
    )
    recorded = attention.plan_recorded(spans)
    query, (keys, values) = torch.randn(2, 6, 16), torch.randn(2, 4, 4, 2, 16)
    recorded.prepare((6, 0))
    want = _plain(query, keys, values, tables, [1, 1], [6, 1], of.scale, None)
    torch.testing.assert_close(recorded.attend(query, keys, values), want)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match=r"--attention-backend flashinfer cannot be had: .*flashinfer"):
        choose_attention(AttentionBackend.FLASHINFER, shape(), CPU)


@needs_block_tables
def test_a_length_that_is_one_too_short_is_found_out(offered: Callable[[object], None]) -> None:
    """The negative control: of the longest request alone, which has one new row and hundreds of keys."""

    def one_less(*arguments: object, **options: object) -> Tensor:
        lengths = options["seqused_k"]
        assert isinstance(lengths, Tensor)
        shorter = torch.where(lengths > 100, lengths - 1, lengths)
        return fake_varlen(*arguments, **(options | {"seqused_k": shorter}))  # type: ignore[arg-type]

    offered(one_less)
    with pytest.raises(ValueError, match="gives other numbers than plain torch"):
        choose_attention(AttentionBackend.TORCH, shape(), CPU)
