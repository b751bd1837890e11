"""The derived numbers of docs/operations.md, worked out again."""

import math
import re
from dataclasses import replace

import pytest
import torch

from common.checkpoint.layout import Part
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig, PixtralConfig, PixtralVisionConfig
from decoder_service.config import EngineSettings
from decoder_service.engine_builder import max_num_tries
from decoder_service.model.memory import activation_bytes
from decoder_service.model.run_config import MAX_TRAINED_LEN, KVCacheParams
from deploy.custom_resources import rendered
from deploy.manifests import ROOT, of_kind
from deploy.references import scaler_queries
from vision_service.config import BatchConfig, CacheConfig, DecodeConfig
from vision_service.model.encoder_graphs import pack_sizes
from vision_service.model.memory_plan import batch_bytes

TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
GIB = 2**30
DECODER = MistralConfig(
    hidden_size=5120, num_attention_heads=32, num_key_value_heads=8, head_dim=128, num_hidden_layers=40,
    feed_forward_length=14336, vocab_size=131072, rms_norm_eps=1e-5, rope_theta=1e9, max_position_embeddings=1024000,
)  # fmt: skip
VISION = PixtralVisionConfig(
    patch_size=16, image_size=1024, num_channels=3, vision_hidden_size=1024, vision_num_attention_heads=16,
    vision_num_hidden_layers=24, vision_intermediate_size=4096, vision_head_dim=64, vision_rope_theta=1e4,
)  # fmt: skip
PIXTRAL = PixtralConfig(text=DECODER, vision=VISION, image_token_index=10)
ENGINE, BATCH = EngineSettings(), BatchConfig()
KV = KVCacheParams(
    dtype=torch.bfloat16, num_layers=40, num_key_value_heads=8, head_dim=128, block_size=ENGINE.block_size
)
WEIGHTS = 24.6e9
SIDE = VISION.image_size // VISION.patch_size
PATCHES, TOKENS = SIDE * SIDE, SIDE * (SIDE + 1)
FLOPS = 788e12


def _row(start: str) -> list[str]:
    """The cells of the table row that begins so."""
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def _number(text: str) -> float:
    return float(text.replace(",", "").split()[0])


def test_memory_of_tokens_pictures_and_steps() -> None:
    assert _number(_row("keys and values of a token")[2]) == KV.bytes_per_token / 1024
    assert _number(_row("a KV block")[2]) == KV.bytes_per_block / 2**20
    step = activation_bytes(
        DECODER,
        dtype=torch.bfloat16,
        max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        max_num_requests=ENGINE.max_num_requests,
    )
    assert _number(_row("a step's working memory")[2]) == pytest.approx(step / 2**20, abs=1)
    batch = batch_bytes(VISION, torch.bfloat16, num_patches=BATCH.max_batch_patches)
    assert _number(_row("a batch's working memory")[2]) == pytest.approx(batch / 2**20, abs=1)
    features = PATCHES * VISION.vision_hidden_size * 2
    assert _number(_row("features of a 1024 x 1024 picture")[2]) == features / 2**20
    assert _number(_row("pictures that wait")[2]) == ENGINE.feature_bytes // features
    assert _number(_row("its tokens in a prompt")[2]) == TOKENS


def test_memory_of_a_step_that_tries_tokens() -> None:
    (found,) = re.finditer(
        r"`--num-speculative-tokens (\d+)` a step of the decoder takes ([\d,]+) MiB,\s.*, up to (\d+) in a step", TEXT
    )
    num_tokens, told, most = found.groups()
    tries = max_num_tries(replace(ENGINE, num_speculative_tokens=int(num_tokens)))
    step = activation_bytes(
        DECODER,
        dtype=torch.bfloat16,
        max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        max_num_requests=ENGINE.max_num_requests,
        max_num_tries=tries,
    )
    assert tries == int(most)
    assert int(told.replace(",", "")) == pytest.approx(step / 2**20, abs=1)


@pytest.mark.parametrize("gibibytes", [39, 78, 139])
def test_blocks_of_a_gpu(gibibytes: int) -> None:
    step = activation_bytes(
        DECODER,
        dtype=torch.bfloat16,
        max_num_batched_tokens=ENGINE.max_num_batched_tokens,
        max_num_requests=ENGINE.max_num_requests,
    )
    blocks = int((ENGINE.memory_fraction * (gibibytes * GIB - WEIGHTS) - step) // KV.bytes_per_block)
    _, *cells = _row(f"{gibibytes} GiB")
    request = -(-(TOKENS + 100 + 240) // ENGINE.block_size)
    assert [_number(cell) for cell in cells] == [blocks, blocks * ENGINE.block_size, blocks // request]


def test_what_the_kv_cache_leaves_is_enough_for_a_vision_service_on_the_same_gpu() -> None:
    (words,) = re.findall(r"\*\*One GPU for both\.\*\*(.*?)\n\n", TEXT, re.DOTALL)
    words = " ".join(words.split())
    encoder = sum(math.prod(size) for part, _, size in tensor_shapes(PIXTRAL) if part is Part.VISION) * 2
    batch = batch_bytes(VISION, torch.bfloat16, num_patches=BATCH.max_batch_patches)
    recorded = batch_bytes(VISION, torch.bfloat16, num_patches=max(pack_sizes(BATCH.max_batch_patches)))
    sizes = re.search(
        r"takes ([\d.]+) GiB: weights ([\d.]+), its largest batch ([\d.]+), recorded passes ([\d.]+)", words
    )
    assert sizes is not None
    found = [encoder + batch + recorded, encoder, batch, recorded]
    assert [float(each) for each in sizes.groups()] == [round(each / GIB, 2) for each in found]
    total, *parts = map(float, sizes.groups())
    assert total == pytest.approx(sum(parts))
    for gibibytes in (39, 78, 139):
        left = (1 - ENGINE.memory_fraction) * (gibibytes * GIB - WEIGHTS)
        assert re.search(rf"\b{left / GIB:.1f}\b[^.:]*\b{gibibytes}\b", words)
        assert left > found[0] + GIB


def test_limits_by_arithmetic() -> None:
    weights = 24 * (4 * 1024**2 + 3 * 1024 * 4096) + 3 * 16 * 16 * 1024
    encode = 2 * weights * PATCHES + 4 * PATCHES**2 * 1024 * 24
    assert _number(_row("encoding a 1024")[2]) == round(FLOPS / encode)
    layer = 2 * 5120 * 4096 + 2 * 5120 * 1024 + 3 * 5120 * 14336
    prefill = 2 * 40 * layer * TOKENS + 2 * TOKENS**2 * 4096 * 40
    assert _number(_row("its prefill in the decoder")[2]) == pytest.approx(FLOPS / prefill, abs=0.05)
    assert f"one encoder feeds {round(prefill / encode)}" in TEXT
    step = (WEIGHTS + 32 * 1000 * KV.bytes_per_token) / 4.3e12
    milliseconds, rate = re.findall(r"\d[\d.,]*", _row("a step of 32")[2])[:2]
    assert float(milliseconds) == pytest.approx(step * 1e3, abs=0.05)
    assert _number(rate) == pytest.approx(32 / step, rel=0.01)


def test_settings_that_the_page_names() -> None:
    assert MAX_TRAINED_LEN == 131_072
    assert MAX_TRAINED_LEN / ENGINE.block_size == 8192
    decode, cache = DecodeConfig(), CacheConfig()
    assert f"{BATCH.max_pending_patches:,}" in TEXT
    host = BATCH.max_pending_bytes + cache.feature_cache_bytes + decode.decode_workers * decode.decode_memory_bytes
    assert host / GIB + 1.5 == 7
    assert 2 * BATCH.max_batch_patches == _number(_row("vision | `diptych_vision_pending_patches`")[2])


def test_scaling_table_is_what_the_scalers_do() -> None:
    manifests = dict(rendered())["production"]
    for scaler in of_kind(manifests, "ScaledObject"):
        for query, trigger in zip(scaler_queries(scaler), scaler["spec"]["triggers"], strict=True):
            (metric,) = re.findall(r"diptych_\w+", query)
            row = _row(f"{scaler['metadata']['name']} | `{metric}`")
            assert _number(row[2]) == float(trigger["metadata"]["threshold"])


def test_every_overlay_and_component_is_on_the_page() -> None:
    for folder in (
        *(ROOT / "deploy/kubernetes/overlays").iterdir(),
        *(ROOT / "deploy/kubernetes/components").iterdir(),
    ):
        assert f"`{folder.parent.name}/{folder.name}`" in TEXT
