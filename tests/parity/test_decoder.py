"""The decoder against transformers, through the engine: logits, greedy ids, any batch, any chunk size."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.attention import packed_attention
from common.checkpoint import open_checkpoint
from common.checkpoint_layout import Part
from common.features import FeatureSpec
from common.identity import ImageHash
from common.model_config import PixtralConfig
from common.preprocessing import PatchGrid
from decoder_service.engine import Engine
from decoder_service.image_encoder import ImageFeatures
from decoder_service.kv_cache import KVCache
from decoder_service.request import PlaceholderRange, Request
from decoder_service.runner import DecoderModel, DecoderRunner
from decoder_service.sampling_params import SamplingParams
from decoder_service.scheduler import SchedulerConfig
from tests.tiny_models import (
    IMAGE,
    Prompt,
    Shape,
    image_tokens,
    random_pixtral,
    random_text_model,
    reference_logits,
    save,
)
from vision_service.encoder import PixtralVisionModel, grid_positions

CPU = torch.device("cpu")
NEW_TOKENS = 64
MARGIN = 1e-4

TEXT_SHAPES = [
    Shape(name="nemo-like", hidden=48, heads=4, kv_heads=1, head_dim=20),
    Shape(name="tied", kv_heads=4, tied=True, rope_theta=1e4),
    Shape(name="sliding-window", window=24),
    Shape(name="theta-1e9", rope_theta=1e9, layers=3),
]
IMAGE_SHAPES = [
    Shape(name="pixtral-like", rope_theta=1e9, heads=8, kv_heads=2, head_dim=12),
    Shape(name="large-like", vision_head_dim=20, vision_heads=3, projector_bias=False, patch=2),
]


class RecordingRunner(DecoderRunner):
    """Keeps the logits that every token was chosen from."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache) -> None:
        super().__init__(model, kv_cache)
        self.last: Tensor = torch.empty(0)

    def logits(self, hidden: Tensor) -> Tensor:
        self.last = super().logits(hidden)
        return self.last


class Harness:
    """An engine over a checkpoint, with the encoder beside it in place of the vision service."""

    def __init__(self, directory: Path, *, num_blocks: int, block_size: int, token_budget: int) -> None:
        self.checkpoint = open_checkpoint(directory)
        model = DecoderModel(self.checkpoint, device=CPU, dtype=torch.float32)
        cache = KVCache(model.config, num_blocks=num_blocks, block_size=block_size, device=CPU, dtype=torch.float32)
        self.runner = RecordingRunner(model, cache)
        config = SchedulerConfig(max_num_batched_tokens=token_budget, max_num_requests=6, max_model_len=1024)
        self.engine = Engine(config=config, num_blocks=num_blocks, block_size=block_size, runner=self.runner)
        self.num_preemptions = 0
        self.num_hit_tokens = 0

    def run(self, prompts: Sequence[Prompt], *, poisoned: Collection[int] = ()) -> list[tuple[list[int], Tensor]]:
        """Greedy tokens and the logits they were chosen from, for each prompt, all at once in one engine.

        The features of `poisoned` prompts hold a NaN, and those requests must fail.
        """
        requests = [self._request(index, prompt) for index, prompt in enumerate(prompts)]
        for index in poisoned:
            requests[index].cache_salt = b"poisoned"  # Else it would find what a sound twin has left.
        features = [self._encode(prompt) for prompt in prompts]
        for index in poisoned:
            features[index][0].data[:4] = b"\xff\xff\xff\x7f"
        failed: set[str] = set()
        logits: dict[str, list[Tensor]] = {request.request_id: [] for request in requests}
        for request, held in zip(requests, features, strict=True):
            self.engine.submit(request)
            self._hand_over(request, held)
        while self.engine.has_work:
            output = self.engine.step()
            failed.update(request_id for request_id, _ in output.failed)
            finite = self.runner.last[self.runner.last.isfinite().all(dim=-1)]
            for token, row in zip(output.tokens, finite, strict=True):
                logits[token.request_id].append(row)
            for wanted in output.wanted:
                index = int(wanted.request_id)
                self._hand_over(requests[index], features[index])
            self.engine.check_integrity()
        stats = self.engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
        self.num_preemptions = stats.num_preemptions
        self.num_hit_tokens = stats.num_hit_tokens
        assert failed == {str(index) for index in poisoned}
        return [
            (request.output_token_ids, torch.stack(logits[request.request_id]))
            for request in requests
            if request.request_id not in failed
        ]

    def _hand_over(self, request: Request, features: Sequence[ImageFeatures]) -> None:
        for index, each in enumerate(features):
            self.engine.features_arrived(request.request_id, index, each)

    def _request(self, index: int, prompt: Prompt) -> Request:
        return Request(
            request_id=str(index),
            prompt_token_ids=tuple(prompt.token_ids),
            placeholders=tuple(self._placeholders(prompt)),
            image_identities=tuple(hashlib.sha256(image.numpy().tobytes()).digest() for image in prompt.images),
            sampling=SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True),
            arrival=index,
        )

    def _grids(self, prompt: Prompt) -> list[PatchGrid]:
        config = self.checkpoint.config
        if not isinstance(config, PixtralConfig):
            return []
        patch = config.vision.patch_size
        return [PatchGrid(image.shape[1] // patch, image.shape[2] // patch) for image in prompt.images]

    def _placeholders(self, prompt: Prompt) -> list[PlaceholderRange]:
        spans, start = [], 0
        for grid in self._grids(prompt):
            offset = prompt.token_ids.index(IMAGE, start)
            spans.append(PlaceholderRange(offset, grid.num_tokens, grid))
            start = offset + grid.num_tokens
        return spans

    def _encode(self, prompt: Prompt) -> list[ImageFeatures]:
        """Features as the vision service makes them: all images packed into one pass."""
        config = self.checkpoint.config
        if not isinstance(config, PixtralConfig) or not prompt.images:
            return []
        with torch.device("meta"):
            encoder = PixtralVisionModel(config.vision)
        self.checkpoint.load(Part.VISION, encoder, device=CPU, dtype=torch.float32)
        grids = self._grids(prompt)
        lengths = [grid.num_patches for grid in grids]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scale = config.vision.vision_attention_multiplier
            return packed_attention(query, key, value, lengths=lengths, causal=False, scale=scale)

        patch = config.vision.patch_size
        patches = torch.cat([_patches(image, patch) for image in prompt.images])
        with torch.inference_mode():
            packed = encoder(patches, *grid_positions(grids, CPU), attend)
        return [
            ImageFeatures(
                spec=FeatureSpec(image_hash=ImageHash(b""), grid=grid, width=rows.shape[1], dtype="float32"),
                data=bytearray(rows.numpy().tobytes()),
            )
            for grid, rows in zip(grids, packed.split(lengths), strict=True)
        ]


@pytest.mark.parametrize("shape", TEXT_SHAPES, ids=lambda shape: shape.name)
def test_text_requests_batched_together_get_the_reference_logits_and_ids(shape: Shape, tmp_path: Path) -> None:
    model = random_text_model(shape)
    prompts = [Prompt(token_ids=_random_ids(length, seed=length)) for length in (1, 5, 17, 33, 70)]
    harness = Harness(save(model, tmp_path), num_blocks=64, block_size=16, token_budget=48)
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("token_budget", [6, 40, 500])
def test_mixed_requests_get_the_reference_logits_and_ids_at_any_chunk_size(
    shape: Shape, token_budget: int, tmp_path: Path
) -> None:
    model = random_pixtral(shape)
    prompts = _mixed_prompts(shape.patch)
    harness = Harness(save(model, tmp_path), num_blocks=128, block_size=8, token_budget=token_budget)
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))


def test_preempted_requests_get_the_reference_ids(tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = _mixed_prompts(shape.patch)
    harness = Harness(save(model, tmp_path), num_blocks=24, block_size=8, token_budget=40)
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))
    assert harness.num_preemptions > 0


@pytest.mark.parametrize("token_budget", [6, 37, 500])
def test_what_the_prefix_cache_holds_gives_the_reference_logits_and_ids(token_budget: int, tmp_path: Path) -> None:
    """The same prompts again, and their beginnings with another end."""
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = _mixed_prompts(shape.patch)
    harness = Harness(save(model, tmp_path), num_blocks=128, block_size=4, token_budget=token_budget)
    harness.run(prompts)
    assert harness.num_hit_tokens == 0
    longer = [Prompt(token_ids=[*each.token_ids[:-1], *range(30, 44)], images=each.images) for each in prompts]
    for asked in (prompts, longer):
        before = harness.num_hit_tokens
        for prompt, (ids, logits) in zip(asked, harness.run(asked), strict=True):
            _assert_matches(ids, logits, reference_logits(model, prompt, ids))
        lengths = [len(each.token_ids) for each in asked]
        assert harness.num_hit_tokens - before > sum(lengths) - sum(10 if asked is prompts else 20 for _ in asked)


@pytest.mark.parametrize("token_budget", [12, 500])
def test_request_with_a_nan_fails_alone(token_budget: int, tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = _mixed_prompts(shape.patch)
    harness = Harness(save(model, tmp_path), num_blocks=128, block_size=8, token_budget=token_budget)
    for _ in range(2):  # the second time in blocks that the poisoned one had
        results = harness.run([*prompts, prompts[1]], poisoned=[5])
        for prompt, (ids, logits) in zip(prompts, results, strict=True):
            _assert_matches(ids, logits, reference_logits(model, prompt, ids))


def test_pictures_matter(tmp_path: Path) -> None:
    """The negative control: with another picture's features the reference is missed by far."""
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    token_ids = _mixed_prompts(shape.patch)[1].token_ids
    seen, other = (Prompt(token_ids=token_ids, images=[_picture(3, 5, shape.patch, seed)]) for seed in (1, 2))
    harness = Harness(save(model, tmp_path), num_blocks=64, block_size=8, token_budget=64)
    ids, logits = harness.run([seen])[0]
    assert (logits - reference_logits(model, other, ids)).abs().max() > 0.1


def _mixed_prompts(patch: int) -> list[Prompt]:
    """Text, one image, images between texts, four images of odd grids, an image at the very start."""

    def pictures(*grids: tuple[int, int]) -> list[Tensor]:
        return [_picture(*grid, patch, seed) for seed, grid in enumerate(grids)]

    text = _random_ids(9, seed=3)
    return [
        Prompt(token_ids=text),
        Prompt(token_ids=[1, 3, *image_tokens(3, 5), *text, 4], images=pictures((3, 5))),
        Prompt(
            token_ids=[1, *text, *image_tokens(1, 1), 50, *image_tokens(7, 2), *text],
            images=pictures((1, 1), (7, 2)),
        ),
        Prompt(
            token_ids=[1, *(id_ for grid in ((2, 3), (3, 2), (1, 6), (5, 5)) for id_ in image_tokens(*grid)), *text],
            images=pictures((2, 3), (3, 2), (1, 6), (5, 5)),
        ),
        Prompt(token_ids=[*image_tokens(4, 4), 60], images=pictures((4, 4))),
    ]


def _picture(height: int, width: int, patch: int, seed: int) -> Tensor:
    return torch.randn(3, height * patch, width * patch, generator=torch.Generator().manual_seed(seed))


def _patches(image: Tensor, patch: int) -> Tensor:
    return torch.nn.functional.unfold(image[None], patch, stride=patch)[0].T


def _random_ids(length: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 160, (length,), generator=generator).tolist()


def _assert_matches(ids: list[int], logits: Tensor, reference: Tensor) -> None:
    """Equal logits within 1e-4, and equal ids but where the reference's two best are closer than that."""
    assert len(ids) == NEW_TOKENS
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=0)
    best = reference.topk(2, dim=-1)
    unclear = (best.values[:, 0] - best.values[:, 1]) < MARGIN
    same = best.indices[:, 0] == torch.tensor(ids)
    assert bool((same | unclear).all())
    assert unclear.sum() <= 2, "a model this unsure proves nothing"
