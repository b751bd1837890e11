"""A converted checkpoint is the same model: bit for bit after a round trip, and to transformers."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import LlavaForConditionalGeneration, MistralForCausalLM, PreTrainedModel

from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.config import read_end_token_ids, read_model_config
from common.checkpoint.convert import convert_checkpoint
from common.checkpoint.files import CheckpointError, CheckpointFormat
from diptych.cli import main
from diptych.models import demo_model
from tests.checkpoints import Loader, edit_json, save_pixtral
from tests.tiny_models import Prompt, Shape, image_tokens, random_pixtral, random_text_model, reference_logits, save

HF, NATIVE = CheckpointFormat.HF, CheckpointFormat.NATIVE
PIXTRAL = Shape(name="pixtral", heads=8, kv_heads=2, head_dim=12, rope_theta=1e9)
SHAPES = [
    PIXTRAL,
    Shape(name="large", vision_head_dim=20, vision_heads=3, projector_bias=False, patch=2),
    Shape(name="nemo", hidden=48, heads=4, kv_heads=1, head_dim=20),
    Shape(name="tied", kv_heads=4, tied=True, rope_theta=1e4),
    Shape(name="window", window=24),
]
HAS_PICTURES = {"pixtral", "large"}


def model_of(shape: Shape, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = random_pixtral(shape) if shape.name in HAS_PICTURES else random_text_model(shape)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_round_trip_changes_no_bit(shape: Shape, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save(model_of(shape, dtype), tmp_path / "source")
    convert_checkpoint(source, tmp_path / "native", NATIVE)
    convert_checkpoint(tmp_path / "native", tmp_path / "hf", HF)
    before, after = (safetensors.torch.load_file(path / "model.safetensors") for path in (source, tmp_path / "hf"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == dtype
        assert tensor.view(torch.uint8).equal(after[name].view(torch.uint8)), name
    assert read_model_config(source) == read_model_config(tmp_path / "native") == read_model_config(tmp_path / "hf")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_both_formats_load_the_same_numbers(shape: Shape, tmp_path: Path) -> None:
    source = save(model_of(shape), tmp_path / "source")
    convert_checkpoint(source, tmp_path / "native", NATIVE)
    ours, theirs = Loader().load(source), Loader().load(tmp_path / "native")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_native_names_and_row_order_are_those_of_the_specification(tmp_path: Path) -> None:
    """The permutation written out: row r of a head is native row 2r, in the upper half 2(r - d/2) + 1."""
    convert_checkpoint(save_pixtral(tmp_path / "hf", PIXTRAL), tmp_path / "native", NATIVE)
    hf = safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors")
    native = safetensors.torch.load_file(tmp_path / "native" / "consolidated.safetensors")
    towers = [
        ("language_model.model.layers.1.self_attn.q_proj", "layers.1.attention.wq", 12),
        ("language_model.model.layers.1.self_attn.k_proj", "layers.1.attention.wk", 12),
        ("vision_tower.transformer.layers.0.attention.k_proj", "vision_encoder.transformer.layers.0.attention.wk", 16),
    ]
    for hf_name, native_name, width in towers:
        ours, theirs = hf[f"{hf_name}.weight"], native[f"{native_name}.weight"]
        for row in range(len(ours)):
            head, place = divmod(row, width)
            paired = 2 * place if place < width // 2 else 2 * (place - width // 2) + 1
            assert ours[row].equal(theirs[head * width + paired])
    for hf_name, native_name in [
        ("language_model.model.layers.0.self_attn.v_proj", "layers.0.attention.wv"),
        ("language_model.model.layers.0.mlp.down_proj", "layers.0.feed_forward.w2"),
        ("language_model.model.layers.0.post_attention_layernorm", "layers.0.ffn_norm"),
        ("language_model.lm_head", "output"),
        ("multi_modal_projector.linear_2", "vision_language_adapter.w_out"),
        ("vision_tower.patch_conv", "vision_encoder.patch_conv"),
        (
            "vision_tower.transformer.layers.1.feed_forward.up_proj",
            "vision_encoder.transformer.layers.1.feed_forward.w3",
        ),
    ]:
        assert hf[f"{hf_name}.weight"].equal(native[f"{native_name}.weight"])
    assert len(hf) == len(native)


@pytest.mark.parametrize("shape", [PIXTRAL, SHAPES[1]], ids=lambda shape: shape.name)
def test_transformers_reads_a_converted_pixtral(shape: Shape, tmp_path: Path) -> None:
    model = random_pixtral(shape)
    convert_checkpoint(save(model, tmp_path / "source"), tmp_path / "native", NATIVE)
    convert_checkpoint(tmp_path / "native", tmp_path / "hf", HF)
    picture = torch.randn(3, 3 * shape.patch, 5 * shape.patch, generator=torch.Generator().manual_seed(1))
    prompt = Prompt(token_ids=[1, 3, *image_tokens(3, 5), 40, 41], images=[picture])
    converted = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert reference_logits(converted, prompt, [50, 51]).equal(reference_logits(model, prompt, [50, 51]))


@pytest.mark.parametrize("shape", SHAPES[2:], ids=lambda shape: shape.name)
def test_transformers_reads_a_converted_mistral(shape: Shape, tmp_path: Path) -> None:
    model = random_text_model(shape)
    convert_checkpoint(save(model, tmp_path / "source"), tmp_path / "native", NATIVE)
    convert_checkpoint(tmp_path / "native", tmp_path / "hf", HF)
    converted = MistralForCausalLM.from_pretrained(tmp_path / "hf")
    prompt = Prompt(token_ids=list(range(20, 60)))
    assert reference_logits(converted, prompt, [50, 51]).equal(reference_logits(model, prompt, [50, 51]))


@pytest.mark.skipif(not (demo_model() / "config.json").is_file(), reason="the demo model is not here")
def test_the_command_converts_the_demo_model_with_its_tokenizer(tmp_path: Path) -> None:
    native, hf = tmp_path / "native", tmp_path / "hf"
    assert main(["convert", str(demo_model()), str(native), "--to", "native"]) == 0
    assert main(["convert", str(native), str(hf), "--to", "hf"]) == 0
    assert (hf / "model.safetensors").read_bytes() == (demo_model() / "model.safetensors").read_bytes()
    assert (native / "tekken.json").read_bytes() == (demo_model() / "tekken.json").read_bytes()
    assert read_end_token_ids(native) == read_end_token_ids(demo_model()) != frozenset()
    ours, theirs = Loader().load(demo_model()), Loader().load(native)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert not (native / "config.json").exists()


def test_end_tokens_that_only_the_config_states_survive(tmp_path: Path) -> None:
    source = save_pixtral(tmp_path / "source")
    (source / "generation_config.json").unlink(missing_ok=True)
    edit_json(source / "config.json", text_config__eos_token_id=[2, 7])
    convert_checkpoint(source, tmp_path / "native", NATIVE)
    assert read_end_token_ids(tmp_path / "native") == {2, 7}


def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_pixtral(tmp_path / "source")
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf"]) == 1
    assert "in the format hf already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "hf"]) == 1
    assert "no checkpoint here" in capsys.readouterr().err
    assert main(["convert", str(source), str(source), "--to", "native"]) == 1
    assert "is not empty" in capsys.readouterr().err
    (source / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(CheckpointError, match="cannot state this image_mean"):
        convert_checkpoint(source, tmp_path / "out", NATIVE)
    assert not (tmp_path / "out").exists()


def test_half_a_conversion_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_pixtral(tmp_path / "source")
    monkeypatch.setattr("common.checkpoint.safetensors_file.StoredTensor.read", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert_checkpoint(source, tmp_path / "out", NATIVE)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        open_checkpoint(tmp_path / "out")
