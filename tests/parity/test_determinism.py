"""What `--deterministic` promises: a request's logits are the same bits in any company."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoder_service.model.compute import TorchCompute
from decoder_service.model.tiled_compute import TiledCompute
from tests.parity.harness import Harness, MakeCompute, native, native_bfloat16
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, random_text_model, reference_logits, save

NEW_TOKENS = 9
SHAPES = [
    Shape(name="nemo-like", hidden=160, heads=6, kv_heads=2, head_dim=32),
    Shape(name="sliding-window", hidden=64, heads=4, kv_heads=1, head_dim=20, window=24, tied=True),
]
PICTURE = Shape(name="pixtral-like", hidden=160, heads=6, kv_heads=2, head_dim=32, vision_heads=4, vision_head_dim=32)
BATCH_FREE = [pytest.param(TiledCompute, id="tiled"), pytest.param(native, id="native")]
ROUNDING = pytest.param(native_bfloat16, id="native-bfloat16")


@pytest.mark.parametrize("make_compute", [*BATCH_FREE, ROUNDING])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_request_has_the_same_logits_bit_by_bit_in_any_company(
    shape: Shape, make_compute: MakeCompute, tmp_path: Path
) -> None:
    """Other batch sizes, chunks, blocks, preemptions and what the prefix cache holds change nothing."""
    directory = save(random_text_model(shape), tmp_path)
    asked = Prompt(token_ids=_ids(45, seed=1))
    seen, num_preemptions = _logits_in_random_company(directory, asked, make_compute, rounds=5)
    assert num_preemptions > 0
    assert all(torch.equal(each, seen[0]) for each in seen)


@pytest.mark.parametrize("make_compute", [*BATCH_FREE, ROUNDING])
def test_a_request_with_pictures_too(make_compute: MakeCompute, tmp_path: Path) -> None:
    model = random_pixtral(PICTURE)
    generator = torch.Generator().manual_seed(3)
    picture = torch.randn(3, 5 * PICTURE.patch, 7 * PICTURE.patch, generator=generator)
    asked = Prompt(token_ids=[1, *_ids(6, seed=1), *image_tokens(5, 7), *_ids(6, seed=2)], images=[picture])
    seen, _ = _logits_in_random_company(save(model, tmp_path), asked, make_compute, rounds=3)
    assert all(torch.equal(each, seen[0]) for each in seen)


def test_plain_torch_promises_less(tmp_path: Path) -> None:
    """The negative control: where kernels are chosen by the batch's size, some bit differs."""
    directory = save(random_text_model(SHAPES[0]), tmp_path)
    seen, _ = _logits_in_random_company(directory, Prompt(token_ids=_ids(45, seed=1)), TorchCompute, rounds=5)
    assert not all(torch.equal(each, seen[0]) for each in seen)


@pytest.mark.parametrize("make_compute", BATCH_FREE)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_what_is_the_same_in_any_company_is_also_right(shape: Shape, make_compute: MakeCompute, tmp_path: Path) -> None:
    model = random_text_model(shape)
    harness = Harness(
        save(model, tmp_path), num_blocks=64, block_size=8, token_budget=24, make_compute=make_compute, new_tokens=24
    )
    prompts = [Prompt(token_ids=_ids(length, seed=length)) for length in (1, 16, 45)]
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        torch.testing.assert_close(logits, reference_logits(model, prompt, ids), atol=1e-4, rtol=0)


def _logits_in_random_company(
    directory: Path, asked: Prompt, make_compute: MakeCompute, *, rounds: int
) -> tuple[Sequence[Tensor], int]:
    """Logits of every token of the prompt's answer: alone, then twice each in engines of random sizes and company.

    Also how many preemptions there were.
    """
    found, preemptions, hits = [], 0, 0
    for seed in range(rounds):
        draw = random.Random(seed)
        company = [Prompt(token_ids=_ids(draw.randint(1, 50), seed=draw.random())) for _ in range(draw.randint(1, 5))]
        block_size = draw.choice((4, 8, 16))
        place = draw.randint(0, len(company))
        harness = Harness(
            directory,
            num_blocks=draw.randint(66, 130) // block_size,
            block_size=block_size,
            token_budget=draw.randint(7, 90),
            make_compute=make_compute,
            new_tokens=NEW_TOKENS,
            kv_dtype=torch.bfloat16 if make_compute is native_bfloat16 else torch.float32,
        )
        prompts = [asked] if seed == 0 else [*company[:place], asked, *company[place:]]
        for _ in range(2):  # the second time with its beginning in the prefix cache
            found.append(harness.run(prompts)[prompts.index(asked)][1])
        preemptions += harness.num_preemptions
        hits += harness.num_hit_tokens
    assert hits > 0
    return found, preemptions


def _ids(length: int, *, seed: float) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(20, 159) for _ in range(length)]
