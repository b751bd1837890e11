"""Products in 8-bit floats against the definition of rounding and against the exact product."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from common.checkpoint.checkpoint import open_checkpoint
from common.model.weight_types import WeightTypes
from decoder_service.model.compute import TorchCompute
from decoder_service.model.fp8 import (
    FEW_ROWS,
    FP8,
    FP8_MAX,
    Fp8Linear,
    check_fp8,
    load_rounded,
    quantize_layers,
    round_rows,
)
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.tiled_compute import TiledCompute
from decoder_service.model.weights import DecoderModel
from tests.checkpoints import save_text
from tests.eight_bits import needs_products_on_the_host
from tests.parity.harness import Harness
from tests.tiny_models import Prompt, Shape, random_text_model, save


def rows_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_every_row_reaches_the_largest_number_and_comes_back_within_a_sixteenth() -> None:
    x = rows_of(5, 64) * torch.tensor([1e-4, 1.0, 30.0, 1e4, 1e6])[:, None]
    rounded, scale = round_rows(x)
    assert rounded.dtype == FP8
    assert rounded.float().abs().amax(dim=1).tolist() == [FP8_MAX] * 5
    # Three bits of mantissa; what is small beside the largest number of its row is spaced evenly.
    error = (rounded.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10)).all()


def test_a_row_of_zeros_stays_one_and_what_is_not_finite_stays_so() -> None:
    rounded, scale = round_rows(torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]]))
    out = rounded.float() * scale
    assert out[0].tolist() == [0.0, 0.0]
    assert not out[1:].isfinite().all(dim=1).any()


@needs_products_on_the_host
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_what_was_rounded(dtype: torch.dtype) -> None:
    linear = nn.Linear(64, 48, bias=False)
    with torch.no_grad():
        linear.weight.copy_(rows_of(48, 64))
    x = rows_of(7, 64).to(dtype)
    product = Fp8Linear.of(linear.to(dtype))
    rounded, scale = round_rows(x)
    weight = product.weight.float() * product.scale
    expected = (rounded.float() * scale) @ weight.T
    torch.testing.assert_close(product(x).float(), expected, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=1e-2)
    exact = x.float() @ linear.weight.detach().float().T
    relative = ((product(x).float() - exact).norm() / exact.norm()).item()
    assert 0.005 < relative < 0.06, "rounded, and by no more than 8 bits cost"


@needs_products_on_the_host
def test_few_rows_and_many_are_multiplied_to_the_same_numbers() -> None:
    """Few are scaled after torch has multiplied, many by torch."""
    product, x = Fp8Linear.of(nn.Linear(64, 48, bias=False)), rows_of(FEW_ROWS + 1, 64)
    torch.testing.assert_close(product(x[:-1]), product(x)[:-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(product(x[1:]), product(x)[:-1])


@needs_products_on_the_host
def test_a_rows_result_does_not_depend_on_the_other_rows() -> None:
    product = Fp8Linear.of(nn.Linear(64, 48, bias=False))
    x = rows_of(5, 64)
    company = x.clone()
    company[1:] *= 1e5
    torch.testing.assert_close(product(x)[0], product(company)[0], atol=0, rtol=0)


def test_only_the_layers_products_are_rounded(tmp_path: Path) -> None:
    model = DecoderModel.load(
        open_checkpoint(save_text(tmp_path)), device=torch.device("cpu"), types=WeightTypes(torch.bfloat16)
    )
    before = sum(parameter.numel() for parameter in model.decoder.parameters())
    quantize_layers(model.decoder)
    layer = model.decoder.decoder_layers[0]
    modules = [*layer.self_attn.children(), *layer.mlp.children()]
    assert len(modules) == 7
    assert all(isinstance(module, Fp8Linear) for module in modules)
    rest = {name for name, parameter in model.decoder.named_parameters() if parameter.dtype == torch.bfloat16}
    assert {name.split(".")[-2] for name in rest} <= {
        "embed_tokens", "norm", "input_layernorm", "post_attention_layernorm", "lm_head",
    }  # fmt: skip
    scales = sum(parameter.numel() for name, parameter in model.decoder.named_parameters() if name.endswith("scale"))
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == before + scales


def test_weights_are_rounded_as_they_are_read_and_none_stays_beside_its_rounded_one(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_text(tmp_path))
    whole = DecoderModel.load(checkpoint, device=torch.device("cpu"), types=WeightTypes(torch.bfloat16)).decoder
    unrounded: list[weakref.ref[torch.Tensor]] = []

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in whole.state_dict().items():
            assert all(tensor() is None for tensor in unrounded), name
            tensor = parameter.clone()
            if name.endswith("proj.weight"):
                unrounded.append(weakref.ref(tensor))
            yield name, tensor
            del tensor

    with torch.device("meta"):
        decoder = MistralForCausalLM(checkpoint.text_config)
    load_rounded(decoder, read())
    assert len(unrounded) == 7 * checkpoint.text_config.num_hidden_layers
    quantize_layers(whole)
    loaded = DecoderModel.load(
        checkpoint, device=torch.device("cpu"), types=WeightTypes(torch.bfloat16), in_fp8=True
    ).decoder
    for expected, *others in zip(whole.parameters(), decoder.parameters(), loaded.parameters(), strict=True):
        assert all(torch.equal(expected.view(torch.uint8), other.view(torch.uint8)) for other in others)


def test_an_old_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"compute capability 8\.9"):
        check_fp8(device)
    check_fp8(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    check_fp8(device)


def test_keys_and_values_in_eight_bits_are_read_by_the_ways_that_promise_equal_bits_too(tmp_path: Path) -> None:
    """`--deterministic` reads blocks with a function of its own."""
    directory = save(random_text_model(Shape(name="small", heads=4, kv_heads=2, head_dim=16)), tmp_path)
    plain, tiled = (
        Harness(
            directory,
            num_blocks=8,
            block_size=8,
            token_budget=64,
            make_compute=make_compute,
            new_tokens=3,
            kv_dtype=FP8,
        ).run([Prompt(token_ids=list(range(20, 38)))])
        for make_compute in (TorchCompute, TiledCompute)
    )
    torch.testing.assert_close(tiled[0][1][0], plain[0][1][0], atol=0.02, rtol=0)
