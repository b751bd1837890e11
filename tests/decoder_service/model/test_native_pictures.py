"""A step with pictures is one call of the kernels, and says what the projector and the layers say one by one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from common.model.weight_types import WeightTypes
from common.native.opening import open_library
from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, ScheduledRequest
from decoder_service.model.batch import BatchLayout, ImageRows
from decoder_service.model.compute import WholeCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.projector import Projector
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.splice_error import SpliceError
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.vision.image_encoder import ImageFeatures
from tests.tiny_models import Shape, random_pixtral, save

SHAPE = Shape(name="odd", hidden=52, heads=4, kv_heads=2, head_dim=20)
"""As wide as no number of whole vectors."""
WIDTH = SHAPE.vision_heads * SHAPE.vision_head_dim
NUM_ROWS, BLOCK_SIZE, TEXT_LENGTH = 6, 16, 3


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> DecoderModel:
    directory = save(random_pixtral(replace(SHAPE, projector_bias=request.param)), tmp_path)
    return DecoderModel.load(open_checkpoint(directory), device=torch.device("cpu"), types=WeightTypes(torch.float32))


@torch.inference_mode()
def test_features_are_projected_as_torch_does_however_large_they_are(model: DecoderModel) -> None:
    features = rows_of_features() * torch.logspace(-3, 3, NUM_ROWS)[:, None]
    expected = projector_of(model)(features)
    torch.testing.assert_close(compute_of(model).project(features), expected, rtol=1e-5, atol=1e-5)


def test_a_row_is_the_same_bits_in_any_company(model: DecoderModel) -> None:
    compute, features = compute_of(model), rows_of_features(70)
    together = compute.project(features)
    for row in (0, 33, 69):
        assert torch.equal(compute.project(features[row : row + 1])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_step_with_pictures_chooses_what_its_parts_choose(model: DecoderModel, dtype: torch.dtype) -> None:
    compute = compute_of(model)
    # The rows stand in two pictures, of which the second is begun in the middle.
    first, second = rows_of_features().to(dtype), rows_of_features(seed=2).to(dtype)
    layout = layout_of([(first, 0, NUM_ROWS), (second, 2, NUM_ROWS)])
    assert compute.takes(layout)
    chosen, _ = compute.next_tokens(layout)
    forward = layout.to(lambda numbers: torch.frombuffer(numbers, dtype=torch.int64))
    embeds = compute.embed(forward.token_ids)
    rows = compute.project(torch.cat([first, second[2:]]).float())
    hidden = compute.hidden(embeds.index_copy(0, forward.image_indices, rows), forward)
    assert list(chosen) == compute.logits(hidden[forward.logits_indices]).argmax(dim=1).tolist()
    changed, _ = compute.next_tokens(layout_of([(-first, 0, NUM_ROWS), (-second, 2, NUM_ROWS)]))
    assert changed != chosen


def test_the_runner_has_a_greedy_prompt_with_a_picture_computed_in_one_call(
    model: DecoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = compute_of(model)
    monkeypatch.setattr(compute, "hidden", lambda *_: pytest.fail("computed part by part"))
    grid = PatchGrid(NUM_ROWS, 1)
    request = Request(
        request_id="a",
        prompt_token_ids=(7,) * (1 + 2 * NUM_ROWS + TEXT_LENGTH),
        placeholders=(PlaceholderRange(1, 2 * NUM_ROWS, grid),),
        image_identities=(bytes(32),),
        sampling=SamplingParams(max_tokens=1),
        arrival=1,
    )
    request.want_images((0,))
    assert request.take_features(0, features_of(rows_of_features()))
    request.block_table.extend([BlockId(0), BlockId(1)])
    batch = ScheduledBatch((ScheduledRequest(request, request.num_prompt_tokens),), ())
    found = DecoderRunner(model, cache_of(model), compute).execute(batch)
    assert all(isinstance(token_id, int) for token_id in found.token_ids)


def test_rows_that_are_missing_are_an_error_and_not_read(model: DecoderModel) -> None:
    compute = compute_of(model)
    with pytest.raises(SpliceError, match="5 image rows for 6 placeholders"):
        compute.next_tokens(layout_of([(rows_of_features(NUM_ROWS - 1), 0, NUM_ROWS)]))


def test_features_of_other_types_are_left_to_torch(model: DecoderModel) -> None:
    compute, features = compute_of(model), rows_of_features()
    assert not compute.takes(layout_of([(features.half(), 0, NUM_ROWS)]))
    assert not compute.takes(layout_of([(features, 0, NUM_ROWS), (features.bfloat16(), 0, NUM_ROWS)]))
    assert compute.takes(BatchLayout())


def projector_of(model: DecoderModel) -> Projector:
    assert model.projector is not None
    return model.projector


def compute_of(model: DecoderModel) -> NativeCompute:
    compute = NativeCompute(model, cache_of(model), open_library(threads=2))
    assert isinstance(compute, WholeCompute)
    return compute


def cache_of(model: DecoderModel) -> KVCache:
    cache = KVCache(model.config, num_blocks=4, block_size=BLOCK_SIZE, device=torch.device("cpu"), dtype=torch.float32)
    cache.clear(range(4))
    return cache


def rows_of_features(count: int = NUM_ROWS, *, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def layout_of(pictures: Sequence[tuple[Tensor, int, int]]) -> BatchLayout:
    """One prompt: a word, so many rows of each picture, and some words; a token is chosen behind each row."""
    count = sum(last - first for _, first, last in pictures)
    length = 1 + count + TEXT_LENGTH
    return BatchLayout(
        token_ids=[7] * length,
        positions=list(range(length)),
        slots=list(range(length)),
        query_lengths=[length],
        seq_lens=[length],
        logits_indices=list(range(length)),
        image_indices=list(range(1, 1 + count)),
        image_rows=[ImageRows(features=features_of(rows), first=first, last=last) for rows, first, last in pictures],
        block_tables=(0, 1),
        max_blocks=2,
    )


def features_of(rows: Tensor) -> ImageFeatures:
    dtype = str(rows.dtype).removeprefix("torch.")
    spec = FeatureSpec(image_hash=ImageHash(bytes(32)), grid=PatchGrid(len(rows), 1), width=WIDTH, dtype=dtype)
    return ImageFeatures(spec=spec, data=memoryview(bytes(rows.contiguous().view(torch.uint8).flatten().tolist())))
