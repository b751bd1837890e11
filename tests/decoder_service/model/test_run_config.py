"""What the user wants is bounded by what the model and the memory allow."""

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.pixtral_12b import DECODER_12B
from common.checkpoint.config import read_model_config
from common.model.config import MistralConfig, PixtralConfig
from common.settings.settings import read
from decoder_service.config import DecoderConfig
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.memory import activation_bytes, check_num_blocks, plan_num_blocks
from decoder_service.model.run_config import RunConfig, make_run_config
from decoder_service.service import DecoderService
from diptych.models import demo_model
from tests.checkpoints import CPU, save_pixtral
from tests.tiny_models import Shape

TEXT = replace(DECODER_12B, max_position_embeddings=32768)


def run_config(wanted: int | None = None, *, text: MistralConfig = TEXT, block_size: int = 16) -> RunConfig:
    return make_run_config(text, dtype=torch.bfloat16, device=CPU, max_seq_len=wanted, block_size=block_size)


@pytest.mark.parametrize(("wanted", "length"), [(None, 32768), (32768, 32768), (100, 100)])
def test_the_length_is_the_users_within_the_models(wanted: int | None, length: int) -> None:
    assert run_config(wanted).max_seq_len == length


def test_a_length_over_the_models_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="--max-model-len 32769 is over the model's 32768"):
        run_config(32769)


def test_a_limit_beyond_training_is_only_for_those_who_ask() -> None:
    long = dataclasses.replace(TEXT, max_position_embeddings=1_024_000)
    assert run_config(text=long).max_seq_len == 131_072
    assert run_config(1_024_000, text=long).max_seq_len == 1_024_000


def test_a_token_of_pixtral_12b_takes_the_published_bytes() -> None:
    params = run_config().kv_params
    assert params.bytes_per_token == 163_840
    assert params.bytes_per_block == 16 * 163_840


def test_the_cache_takes_the_bytes_that_its_layout_says() -> None:
    config = run_config(text=dataclasses.replace(TEXT, num_hidden_layers=2), block_size=4)
    params = config.kv_params
    cache = KVCache(config.text, num_blocks=3, block_size=params.block_size, device=CPU, dtype=params.dtype)
    taken = sum(blocks.nbytes for blocks in (*cache.key_blocks, *cache.value_blocks))
    assert taken == 3 * params.bytes_per_block


def test_every_value_comes_from_the_checkpoint(tmp_path: Path) -> None:
    shape = Shape(name="any", hidden=40, heads=6, kv_heads=3, head_dim=10, layers=3, rope_theta=5e5, window=9)
    model = read_model_config(save_pixtral(tmp_path, shape))
    assert isinstance(model, PixtralConfig)
    config = make_run_config(model.text, dtype=torch.float32, device=CPU, max_seq_len=None, block_size=8)
    text, params = config.text, config.kv_params
    assert (text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (40, 6, 3, 10)
    assert (text.num_hidden_layers, text.feed_forward_length, text.vocab_size) == (3, 72, 160)
    assert (text.rms_norm_eps, text.rope_theta, text.sliding_window) == (1e-5, 5e5, 9)
    assert text.attention_multiplier == pytest.approx(10**-0.5)
    assert (params.num_layers, params.num_key_value_heads, params.head_dim, params.block_size) == (3, 3, 10, 8)
    assert (config.dtype, params.dtype) == (torch.float32, torch.float32)
    assert (config.device, config.max_seq_len) == (CPU, 1024)


def plan(config: RunConfig, monkeypatch: pytest.MonkeyPatch, free: int, num_requests: int = 2) -> int:
    monkeypatch.setattr("decoder_service.model.memory.free_bytes", lambda _: free)
    return plan_num_blocks(
        config,
        dtype=config.dtype,
        memory_fraction=0.5,
        max_num_batched_tokens=num_requests,
        max_num_requests=num_requests,
    )


def test_blocks_fill_the_memory_or_serve_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(1600)
    assert plan(config, monkeypatch, 10**15) == 2 * 100
    free = 2 * 150 * config.kv_params.bytes_per_block
    assert 100 <= plan(config, monkeypatch, free) <= 150
    with pytest.raises(ValueError, match="one request of 1600 tokens needs 100"):
        plan(config, monkeypatch, 10**8)


def test_a_step_has_room_for_the_logits_of_what_is_tried() -> None:
    """Else a step in which many try much would find no memory, though it is planned as any other."""

    def planned(max_num_requests: int, max_num_tries: int) -> int:
        return activation_bytes(
            TEXT,
            dtype=torch.bfloat16,
            max_num_batched_tokens=512,
            max_num_requests=max_num_requests,
            max_num_tries=max_num_tries,
        )

    assert planned(64, 100) == planned(164, 0) > planned(64, 0)


def test_more_blocks_than_memory_holds_are_refused_with_the_most_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(1600)
    monkeypatch.setattr("decoder_service.model.memory.free_bytes", lambda _: 7 * config.kv_params.bytes_per_block)
    assert check_num_blocks(config, 7) == 7
    with pytest.raises(ValueError, match=r"^--num-blocks 8 needs .* GiB are free on cpu: room for 7$"):
        check_num_blocks(config, 8)


def test_a_tokenizer_that_does_not_fit_is_refused_by_its_name(tmp_path: Path) -> None:
    """The demo's tokenizer has more ids than this model."""
    shutil.copy(demo_model() / "tekken.json", save_pixtral(tmp_path, Shape(name="any")))
    with pytest.raises(ValueError, match=r"^tekken\.json: the tokenizer has 512 ids, the model only 160$"):
        DecoderService(read(DecoderConfig, {"model": str(tmp_path), "vision_addresses": "127.0.0.1:1"}))
