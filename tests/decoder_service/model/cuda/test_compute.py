"""The CUDA arithmetic through the engine against transformers, in Triton's interpreter."""

from pathlib import Path

import pytest
import torch

from common.model.graph_recorder import Run
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.cuda.attention import Attend, RecordedAttention, Spans
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.cuda.decode_graphs import DecodeGraphs, batch_sizes
from decoder_service.model.cuda.layers import Places
from decoder_service.model.fp8 import FP8, quantize_layers
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from tests.eight_bits import needs_products_on_the_host
from tests.parity.harness import Harness, MakeCompute
from tests.replayer import Replayer
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, reference_logits, save


@pytest.mark.parametrize(("window", "token_budget"), [(9, 7), (None, 200)])
def test_mixed_requests_get_the_reference_logits_and_ids(window: int | None, token_budget: int, tmp_path: Path) -> None:
    shape = Shape(name="pixtral-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=12, window=window)
    model = random_pixtral(shape)
    replayer = Replayer()

    def make(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        return CudaCompute(loaded, kv_cache, recorder=replayer, max_num_requests=6, max_model_len=1024)

    harness = Harness(
        save(model, tmp_path), num_blocks=40, block_size=8, token_budget=token_budget, make_compute=make, new_tokens=6
    )
    picture = torch.randn(3, 3 * shape.patch, 4 * shape.patch, generator=torch.Generator().manual_seed(1))
    text = list(range(20, 38))
    prompts = [
        Prompt(token_ids=text),
        Prompt(token_ids=[1, *image_tokens(3, 4), *text[:5]], images=[picture]),
        Prompt(token_ids=text[:2]),
    ]
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt, ids), atol=1e-4, rtol=0)
    assert replayer.num_runs > 0


@needs_products_on_the_host
def test_in_eight_bits_it_gives_the_logits_that_plain_torch_gives_in_eight_bits(tmp_path: Path) -> None:
    """Weights, keys and values; and the rounding is seen, or nothing was tried."""
    shape = Shape(name="pixtral-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=16)
    directory = save(random_pixtral(shape), tmp_path)
    prompts = [Prompt(token_ids=list(range(20, 38))), Prompt(token_ids=[20, 21])]

    def cuda(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        quantize_layers(loaded.decoder)
        return CudaCompute(loaded, kv_cache, recorder=Replayer(), max_num_requests=6, max_model_len=1024)

    def plain(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
        quantize_layers(loaded.decoder)
        return TorchCompute(loaded, kv_cache)

    def first_logits(make: MakeCompute, kv_dtype: torch.dtype) -> torch.Tensor:
        harness = Harness(
            directory, num_blocks=40, block_size=8, token_budget=64, make_compute=make, new_tokens=1, kv_dtype=kv_dtype
        )
        return torch.cat([logits for _, logits in harness.run(prompts)])

    expected, exact = first_logits(plain, FP8), first_logits(TorchCompute, torch.float32)
    spread = exact.std().item()
    # A sum in another order may round to another one of 8 bits, here and there.
    torch.testing.assert_close(first_logits(cuda, FP8), expected, atol=0.05 * spread, rtol=0)
    assert 0.01 * spread < (expected - exact).abs().max() < spread


@pytest.mark.parametrize("in_fp8", [False, pytest.param(True, marks=needs_products_on_the_host)])
def test_steps_of_one_token_give_the_same_by_kernels_of_their_own(in_fp8: bool, tmp_path: Path) -> None:
    """Kernels that are slower are not taken; what both give differs by rounding, or only one of them was tried."""
    shape = Shape(name="pixtral-like", rope_theta=1e9, heads=6, kv_heads=2, head_dim=16)
    model = random_pixtral(shape)
    directory, prompt = save(model, tmp_path), Prompt(token_ids=list(range(20, 38)))
    kv_dtype = FP8 if in_fp8 else torch.float32

    def logits(seconds: tuple[float, float]) -> tuple[list[int], torch.Tensor]:
        """`seconds` of their own kernels, and of the usual ones."""
        times, computes = iter(seconds), []

        def make(loaded: DecoderModel, kv_cache: KVCache) -> Compute:
            if in_fp8:
                quantize_layers(loaded.decoder)
            computes.append(
                CudaCompute(
                    loaded,
                    kv_cache,
                    recorder=Replayer(),
                    max_num_requests=2,
                    max_model_len=1024,
                    clock=lambda _: next(times),
                )
            )
            return computes[0]

        harness = Harness(
            directory, num_blocks=40, block_size=8, token_budget=64, make_compute=make, new_tokens=4, kv_dtype=kv_dtype
        )
        ((ids, found),) = harness.run([prompt])
        assert computes[0].one_row_figures["ms"] == seconds[0] * 1e3
        return ids, found

    (ids, own), (_, usual) = logits((1.0, 2.0)), logits((2.0, 1.0))
    assert not own[1:].equal(usual[1:])
    assert own[0].equal(usual[0])  # Of the prompt.
    # In 8 bits only the usual way rounds what goes into a product.
    torch.testing.assert_close(own, usual, atol=(0.2 if in_fp8 else 1e-4) * usual.std().item(), rtol=0)
    if not in_fp8:
        torch.testing.assert_close(own, reference_logits(model, prompt, ids), atol=1e-4, rtol=0)


def test_recorded_sizes_reach_the_most_and_rise() -> None:
    for most in (1, 3, 6, 64, 100, 256, 400):
        sizes = batch_sizes(most)
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == most


@pytest.mark.parametrize(("passes_left", "fitting"), [(0, ()), (1, (1, 2, 3, 4)), (3, (1, 2, 3, 4))])
def test_steps_that_cannot_be_recorded_are_left_to_run_kernel_by_kernel(
    passes_left: int, fitting: tuple[int, ...]
) -> None:
    graphs = DecodeGraphs(
        lambda embeds, places: embeds,
        Seen(),
        Full(passes_left),
        sizes=batch_sizes(4),
        max_model_len=2,
        block_size=1,
        hidden_size=8,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert [count for count in range(1, 7) if graphs.fits(single_tokens(count))] == list(fitting)


def test_rows_that_fill_a_batch_up_store_nothing_and_see_nothing() -> None:
    """Whatever an earlier and larger batch left in their places."""
    slots: list[list[int]] = []
    attention = Seen()

    def layers(embeds: torch.Tensor, places: Places) -> torch.Tensor:
        slots.append(places.slot_mapping.tolist())
        places.attend(embeds, embeds, embeds)
        return embeds

    graphs = DecodeGraphs(
        layers,
        attention,
        Replayer(),
        sizes=(4,),
        max_model_len=2,
        block_size=1,
        hidden_size=8,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    for count in (4, 1):
        graphs.hidden(torch.zeros(count, 8), single_tokens(count))
    assert slots[-2:] == [[0, 0, 0, 0], [0, -1, -1, -1]]
    assert attention.lengths[-2:] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert attention.prepared == [(1, 1, 1, 1), (1, 0, 0, 0)]


class Seen:
    """Attention that notes the lengths that it is given, by tensors and by numbers."""

    name = "seen"

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []
        self.prepared: list[tuple[int, ...]] = []

    def plan(self, spans: Spans) -> Attend:
        def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            self.lengths.append(spans.seq_lens.tolist())
            return query

        return attend

    def plan_recorded(self, spans: Spans) -> RecordedAttention:
        return RecordedAttention(self.plan(spans), lambda lengths: self.prepared.append(tuple(lengths)))


class Full(Replayer):
    """Has memory for so many passes."""

    def __init__(self, passes_left: int) -> None:
        super().__init__()
        self._passes_left = passes_left

    def record(self, work: Run) -> Run:
        if self._passes_left == 0:
            raise torch.OutOfMemoryError("full")
        self._passes_left -= 1
        return super().record(work)


def single_tokens(count: int) -> ForwardBatch:
    rows = torch.zeros(count, dtype=torch.long)
    return ForwardBatch(
        token_ids=rows,
        positions=rows,
        slot_mapping=rows,
        block_tables=rows[:, None],
        query_lengths=(1,) * count,
        seq_lens=(1,) * count,
        seq_lens_there=rows + 1,
        logits_indices=rows,
        image_indices=rows[:0],
        image_rows=(),
    )
