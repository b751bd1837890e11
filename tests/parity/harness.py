"""An engine over a checkpoint, without a service around it; it keeps the logits that every token was chosen from."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.layout import Part
from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from common.model.attention import packed_attention
from common.model.config import PixtralConfig
from common.model.weight_types import WeightTypes
from common.native.opening import open_library
from decoder_service.adapters.adapter_ref import AdapterRef
from decoder_service.engine.engine import Engine
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import ScheduledBatch, StepResult
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.batch_layout import lay_out
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.staging import HostStaging
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from decoder_service.vision.image_encoder import ImageFeatures
from tests.tiny_models import IMAGE, Prompt
from vision_service.model.encoder import PixtralVisionModel, grid_positions

CPU = torch.device("cpu")
NEW_TOKENS = 64

MakeCompute = Callable[[DecoderModel, KVCache], Compute]


def native(model: DecoderModel, kv_cache: KVCache) -> Compute:
    """Our own kernels, built for this machine on first use."""
    return NativeCompute(model, kv_cache, open_library(threads=2))


def native_bfloat16(model: DecoderModel, kv_cache: KVCache) -> Compute:
    """The kernels where they may round; keys and values of theirs are bfloat16, too."""
    return NativeCompute(model, kv_cache, open_library(threads=2, rounds=True))


COMPUTES = [pytest.param(TorchCompute, id="torch"), pytest.param(native, id="native")]
"""What every test of arithmetic runs over."""


class RecordingRunner(DecoderRunner):
    """Keeps the logits that every token was chosen from.

    Where all is done in one call it is done again part by part, over the same blocks, and must come out the same.
    """

    def __init__(self, model: DecoderModel, kv_cache: KVCache, compute: Compute) -> None:
        super().__init__(model, kv_cache, compute)
        self.last: Tensor = torch.empty(0)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        before = self.last
        result = super().execute(batch)
        if self.last is before:
            layout = lay_out(batch, block_size=self._kv_cache.block_size)
            again = self._choose(layout.to(HostStaging().move), None, batch.sampled, None)
            assert again.read() == result
        return result

    def compute(self, forward: ForwardBatch) -> tuple[Tensor, Tensor]:
        hidden, self.last = super().compute(forward)
        return hidden, self.last


class Harness:
    """An engine over a checkpoint, with the encoder beside it in place of the vision service."""

    def __init__(
        self,
        directory: Path,
        *,
        num_blocks: int,
        block_size: int,
        token_budget: int,
        make_compute: MakeCompute = TorchCompute,
        new_tokens: int = NEW_TOKENS,
        kv_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.checkpoint = open_checkpoint(directory)
        model = DecoderModel.load(self.checkpoint, device=CPU, types=WeightTypes(torch.float32))
        cache = KVCache(model.config, num_blocks=num_blocks, block_size=block_size, device=CPU, dtype=kv_dtype)
        self.runner = RecordingRunner(model, cache, make_compute(model, cache))
        config = SchedulerConfig(max_num_batched_tokens=token_budget, max_num_requests=6, max_model_len=1024)
        self.engine = Engine(config=config, num_blocks=num_blocks, block_size=block_size, runner=self.runner)
        self._new_tokens = new_tokens
        self.num_preemptions = 0
        self.num_hit_tokens = 0

    def run(
        self, prompts: Sequence[Prompt], *, poisoned: Collection[int] = (), adapters: Sequence[AdapterRef] = ()
    ) -> list[tuple[list[int], Tensor]]:
        """Greedy tokens and the logits they were chosen from, for each prompt, all at once in one engine.

        The features of `poisoned` prompts hold a NaN, and those requests must fail. Each prompt has its adapter.
        """
        requests = [self._request(index, prompt) for index, prompt in enumerate(prompts)]
        for request, adapter in zip(requests, adapters, strict=False):
            request.adapter = adapter
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
            sampling=SamplingParams(max_tokens=self._new_tokens, ignore_eos=True),
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
        self.checkpoint.load(Part.VISION, encoder, device=CPU, types=WeightTypes(torch.float32))
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
                data=memoryview(bytearray(rows.numpy().tobytes())),
            )
            for grid, rows in zip(grids, packed.split(lengths), strict=True)
        ]


def _patches(image: Tensor, patch: int) -> Tensor:
    return torch.nn.functional.unfold(image[None], patch, stride=patch)[0].T
