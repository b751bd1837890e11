"""Requests with LoRA adapters, beside others and those without, get what transformers gives with the weights merged."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.native.opening import open_library
from decoder_service.adapters.adapter import MODULES
from decoder_service.adapters.adapter_ref import NO_ADAPTER, AdapterRef
from decoder_service.model.compute import Compute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.tiled_compute import TiledCompute
from decoder_service.model.weights import DecoderModel
from tests.parity.adapters import merged, random_adapter, with_adapters
from tests.parity.harness import COMPUTES, Harness, MakeCompute, native, native_bfloat16
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, random_text_model, reference_logits, save

SHAPE = Shape(name="nemo-like", hidden=160, heads=6, kv_heads=2, head_dim=32, layers=3)
NEW_TOKENS = 8


@pytest.mark.parametrize("token_budget", [7, 200])
@pytest.mark.parametrize("make_compute", [*COMPUTES, pytest.param(TiledCompute, id="tiled")])
def test_each_request_gets_the_logits_of_its_own_adapter(
    make_compute: MakeCompute, token_budget: int, tmp_path: Path
) -> None:
    """All at once, with prompts that begin alike: nothing cached of one is another's."""
    model = random_text_model(SHAPE)
    adapters = [random_adapter(model, seed=1), random_adapter(model, seed=2, modules=("self_attn.v_proj",))]
    adapters += [random_adapter(model, seed=3, modules=("mlp.up_proj", "self_attn.k_proj"), rank=40)]
    refs = [AdapterRef(index, adapter.digest) for index, adapter in enumerate(adapters)]
    chosen = [refs[1], NO_ADAPTER, refs[0], refs[0], refs[2], refs[1]]
    models = [model, *(merged(model, adapter) for adapter in adapters)]
    harness = Harness(
        save(model, tmp_path),
        num_blocks=64,
        block_size=8,
        token_budget=token_budget,
        make_compute=with_adapters(make_compute, adapters),
        new_tokens=NEW_TOKENS,
    )
    text = [*range(20, 50)]
    prompts = [Prompt(token_ids=text[:length]) for length in (30, 30, 30, 17, 9, 30)]
    for _ in range(2):  # the second time with what the prefix cache holds
        found = harness.run(prompts, adapters=chosen)
        for prompt, ref, (ids, logits) in zip(prompts, chosen, found, strict=True):
            expected = reference_logits(models[ref.index + 1], prompt, ids)
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
    assert harness.num_hit_tokens > 0


def test_an_adapter_makes_a_difference_that_the_test_above_would_see(tmp_path: Path) -> None:
    model = random_text_model(SHAPE)
    for seed, modules in ((1, MODULES), (2, ("self_attn.v_proj",)), (3, ("mlp.up_proj",)), (4, ("self_attn.k_proj",))):
        prompt = Prompt(token_ids=[*range(20, 50)])
        changed = reference_logits(merged(model, random_adapter(model, seed=seed, modules=modules)), prompt, [5])
        assert (changed - reference_logits(model, prompt, [5])).abs().max() > 0.05


@pytest.mark.parametrize("make_compute", COMPUTES)
def test_pictures_are_spliced_into_prompts_with_adapters(make_compute: MakeCompute, tmp_path: Path) -> None:
    model = random_pixtral(SHAPE)
    adapter = random_adapter(model, seed=5)
    changed = merged(model, adapter)
    picture = torch.randn(3, 3 * SHAPE.patch, 4 * SHAPE.patch, generator=torch.Generator().manual_seed(1))
    prompt = Prompt(token_ids=[1, *image_tokens(3, 4), *range(20, 26)], images=[picture])
    harness = Harness(
        save(model, tmp_path),
        num_blocks=64,
        block_size=8,
        token_budget=11,
        make_compute=with_adapters(make_compute, [adapter]),
        new_tokens=NEW_TOKENS,
    )
    found = harness.run([prompt, prompt], adapters=[AdapterRef(0, adapter.digest), NO_ADAPTER])
    for its, (ids, logits) in zip((changed, model), found, strict=True):
        torch.testing.assert_close(logits, reference_logits(its, prompt, ids), atol=2e-4, rtol=0)


@pytest.mark.parametrize("make_compute", [pytest.param(native, id="native"), pytest.param(TiledCompute, id="tiled")])
def test_a_request_has_the_same_bits_whatever_adapters_are_beside_it(make_compute: MakeCompute, tmp_path: Path) -> None:
    model = random_text_model(SHAPE)
    adapters = [random_adapter(model, seed=1), random_adapter(model, seed=2, modules=("mlp.down_proj",))]
    first, second = (AdapterRef(index, adapter.digest) for index, adapter in enumerate(adapters))
    directory = save(model, tmp_path)
    asked = Prompt(token_ids=[*range(30, 47)])
    others = [Prompt(token_ids=[*range(50, 50 + length)]) for length in (5, 21, 1)]

    def logits(prompts: Sequence[Prompt], chosen: Sequence[AdapterRef], *, budget: int) -> torch.Tensor:
        make = with_adapters(make_compute, adapters)
        harness = Harness(
            directory, num_blocks=64, block_size=8, token_budget=budget, make_compute=make, new_tokens=NEW_TOKENS
        )
        return harness.run(prompts, adapters=chosen)[prompts.index(asked)][1]

    alone = logits([asked], [first], budget=200)
    for budget in (7, 200):
        for beside in ([first, first, first], [second, NO_ADAPTER, first], [NO_ADAPTER, second, second]):
            found = logits([others[0], asked, *others[1:]], [beside[0], first, *beside[1:]], budget=budget)
            assert torch.equal(found, alone)


def native_int8(model: DecoderModel, kv_cache: KVCache) -> Compute:
    return NativeCompute(model, kv_cache, open_library(threads=1), in_bytes=True)


@pytest.mark.parametrize(
    ("make_compute", "kv_dtype"),
    [
        pytest.param(native_int8, torch.float32, id="int8"),
        pytest.param(native_bfloat16, torch.bfloat16, id="bfloat16"),
    ],
)
def test_weights_that_are_rounded_are_changed_as_much(
    make_compute: MakeCompute, kv_dtype: torch.dtype, tmp_path: Path
) -> None:
    """To within their rounding, which is small beside what the adapter changes."""
    model = random_text_model(SHAPE)
    adapter, prompt = random_adapter(model, seed=1), Prompt(token_ids=[*range(20, 50)])
    harness = Harness(
        save(model, tmp_path),
        num_blocks=64,
        block_size=8,
        token_budget=200,
        make_compute=with_adapters(make_compute, [adapter]),
        new_tokens=1,
        kv_dtype=kv_dtype,
    )
    ((ids, found),) = harness.run([prompt], adapters=[AdapterRef(0, adapter.digest)])
    changed, plain = (reference_logits(each, prompt, ids) for each in (merged(model, adapter), model))
    assert (found - changed).norm() < 0.1 * (plain - changed).norm()
