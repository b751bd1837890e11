"""The decoder against transformers, through the engine: logits, greedy ids, any batch, any chunk size."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.parity.harness import COMPUTES, NEW_TOKENS, Harness, MakeCompute
from tests.parity.prompts import IMAGE_SHAPES, _picture, mixed_prompts, random_ids
from tests.tiny_models import (
    Prompt,
    Shape,
    random_pixtral,
    random_text_model,
    reference_logits,
    save,
)

MARGIN = 1e-4

TEXT_SHAPES = [
    Shape(name="nemo-like", hidden=48, heads=4, kv_heads=1, head_dim=20),
    Shape(name="tied", kv_heads=4, tied=True, rope_theta=1e4),
    Shape(name="sliding-window", window=24),
    Shape(name="theta-1e9", rope_theta=1e9, layers=3),
]


@pytest.mark.parametrize("shape", TEXT_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("make_compute", COMPUTES)
def test_text_requests_batched_together_get_the_reference_logits_and_ids(
    shape: Shape, make_compute: MakeCompute, tmp_path: Path
) -> None:
    model = random_text_model(shape)
    prompts = [Prompt(token_ids=random_ids(length, seed=length)) for length in (1, 5, 17, 33, 70)]
    harness = Harness(save(model, tmp_path), num_blocks=64, block_size=16, token_budget=48, make_compute=make_compute)
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("token_budget", [6, 40, 500])
@pytest.mark.parametrize("make_compute", COMPUTES)
def test_mixed_requests_get_the_reference_logits_and_ids_at_any_chunk_size(
    shape: Shape, token_budget: int, make_compute: MakeCompute, tmp_path: Path
) -> None:
    model = random_pixtral(shape)
    prompts = mixed_prompts(shape.patch)
    harness = Harness(
        save(model, tmp_path), num_blocks=128, block_size=8, token_budget=token_budget, make_compute=make_compute
    )
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))


@pytest.mark.parametrize("make_compute", COMPUTES)
def test_preempted_requests_get_the_reference_ids(make_compute: MakeCompute, tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = mixed_prompts(shape.patch)
    harness = Harness(save(model, tmp_path), num_blocks=24, block_size=8, token_budget=40, make_compute=make_compute)
    for prompt, (ids, logits) in zip(prompts, harness.run(prompts), strict=True):
        _assert_matches(ids, logits, reference_logits(model, prompt, ids))
    assert harness.num_preemptions > 0


@pytest.mark.parametrize("token_budget", [6, 37, 500])
@pytest.mark.parametrize("make_compute", COMPUTES)
def test_what_the_prefix_cache_holds_gives_the_reference_logits_and_ids(
    token_budget: int, make_compute: MakeCompute, tmp_path: Path
) -> None:
    """The same prompts again, and their beginnings with another end."""
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = mixed_prompts(shape.patch)
    harness = Harness(
        save(model, tmp_path), num_blocks=128, block_size=4, token_budget=token_budget, make_compute=make_compute
    )
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
@pytest.mark.parametrize("make_compute", COMPUTES)
def test_request_with_a_nan_fails_alone(token_budget: int, make_compute: MakeCompute, tmp_path: Path) -> None:
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    prompts = mixed_prompts(shape.patch)
    harness = Harness(
        save(model, tmp_path), num_blocks=128, block_size=8, token_budget=token_budget, make_compute=make_compute
    )
    for _ in range(2):  # the second time in blocks that the poisoned one had
        results = harness.run([*prompts, prompts[1]], poisoned=[5])
        for prompt, (ids, logits) in zip(prompts, results, strict=True):
            _assert_matches(ids, logits, reference_logits(model, prompt, ids))


@pytest.mark.parametrize("make_compute", COMPUTES)
def test_pictures_matter(make_compute: MakeCompute, tmp_path: Path) -> None:
    """The negative control: with another picture's features the reference is missed by far."""
    shape = IMAGE_SHAPES[0]
    model = random_pixtral(shape)
    token_ids = mixed_prompts(shape.patch)[1].token_ids
    seen, other = (Prompt(token_ids=token_ids, images=[_picture(3, 5, shape.patch, seed)]) for seed in (1, 2))
    harness = Harness(save(model, tmp_path), num_blocks=64, block_size=8, token_budget=64, make_compute=make_compute)
    ids, logits = harness.run([seen])[0]
    assert (logits - reference_logits(model, other, ids)).abs().max() > 0.1


def _assert_matches(ids: list[int], logits: Tensor, reference: Tensor) -> None:
    """Equal logits within 1e-4, and equal ids but where the reference's two best are closer than that."""
    assert len(ids) == NEW_TOKENS
    torch.testing.assert_close(logits, reference, atol=1e-4, rtol=0)
    best = reference.topk(2, dim=-1)
    unclear = (best.values[:, 0] - best.values[:, 1]) < MARGIN
    same = best.indices[:, 0] == torch.tensor(ids)
    assert bool((same | unclear).all())
    assert unclear.sum() <= 2, "a model this unsure proves nothing"
