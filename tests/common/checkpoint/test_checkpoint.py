"""A checkpoint loads whole and exactly, or one line says which tensor of which file is wrong."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.checksums import MANIFEST_NAME, file_digest, read_manifest
from common.checkpoint.config import read_model_config
from common.checkpoint.convert import convert_checkpoint
from common.checkpoint.files import CheckpointError, CheckpointFormat
from common.checkpoint.layout import Part, place, stored_name
from common.checkpoint.safetensors_file import read_header
from common.checkpoint.shapes import tensor_shapes
from common.model.config import MistralConfig
from common.model.weight_types import WeightTypes
from tests.checkpoints import CPU, Loader, build_parts, edit_header, edit_json, save_pixtral, save_text
from tests.tiny_models import Shape, random_pixtral, save

ROOT = Path(__file__).parents[3]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def pixtral(tmp_path: Path) -> Path:
    return save_pixtral(tmp_path / "pixtral")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    random_pixtral(Shape(name="sharded")).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    return tmp_path / "sharded"


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of a file, or remove them."""
    tensors = safetensors.torch.load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Loader().load(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_list_of_tensors_is_that_of_the_modules(bias: bool, tied: bool, tmp_path: Path) -> None:
    config = read_model_config(save_pixtral(tmp_path, Shape(name="any", projector_bias=bias, tied=tied)))
    modules = {
        (part, name, tuple(tensor.shape))
        for part, module in build_parts(open_checkpoint(tmp_path).config).items()
        for name, tensor in module.state_dict().items()
    }
    assert {tuple(each) for each in tensor_shapes(open_checkpoint(tmp_path).config)} == modules
    for part, name, _ in tensor_shapes(config):
        for layout in CheckpointFormat:
            stored = stored_name(part, name, layout=layout, has_vision=True)
            found = place(stored, layout=layout, has_vision=True)
            assert found is not None
            assert (found.part, found.name) == (part, name)


def test_tensors_are_those_that_the_formats_own_library_reads(pixtral: Path) -> None:
    theirs = safetensors.torch.load_file(pixtral / WEIGHTS)
    ours = read_header(pixtral / WEIGHTS)
    assert {tensor.name for tensor in ours} == theirs.keys()
    for tensor in ours:
        assert tensor.read().equal(theirs[tensor.name])
        assert tensor.dtype == theirs[tensor.name].dtype


def test_both_tensor_layouts_of_transformers_load_the_same(tmp_path: Path) -> None:
    old = save_pixtral(tmp_path / "old")
    new = shutil.copytree(old, tmp_path / "new")
    prefixes = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    renamed = {
        next(after + name.removeprefix(before) for before, after in prefixes.items() if name.startswith(before)): tensor
        for name, tensor in safetensors.torch.load_file(old / WEIGHTS).items()
    }
    safetensors.torch.save_file(renamed, new / WEIGHTS)
    ours, theirs = Loader().load(old), Loader().load(new)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert open_checkpoint(old).digest(Part.VISION) == open_checkpoint(new).digest(Part.VISION)


def test_a_tensor_under_both_layouts_is_refused(pixtral: Path) -> None:
    tensor = safetensors.torch.load_file(pixtral / WEIGHTS)[Q_PROJ]
    rewrite(pixtral / WEIGHTS, **{"model.language_model.layers.0.self_attn.q_proj.weight": tensor})
    assert "self_attn.q_proj.weight is left over" in refusal(pixtral)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_exactly_when_the_head_is_absent(tied: bool, tmp_path: Path) -> None:
    directory = save_text(tmp_path, Shape(name="any", tied=tied))
    for claim in (True, False, ...):
        edit_json(directory / "config.json", tie_word_embeddings=tied)
        edit_json(directory / "config.json", tie_word_embeddings=claim)
        config = open_checkpoint(directory).config
        assert isinstance(config, MistralConfig)
        assert config.tie_word_embeddings == tied
        if claim is ...:
            break


def test_shards_load_like_one_file_and_other_files_do_not_count(sharded: Path, tmp_path: Path) -> None:
    whole = save(random_pixtral(Shape(name="sharded")), tmp_path / "whole")
    (sharded / "model-extra.safetensors").write_bytes(b"not even one")
    (sharded / "pytorch_model.bin").write_bytes(b"a pickle")
    ours, theirs = Loader().load(sharded), Loader().load(whole)
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    for part in Part:
        assert open_checkpoint(sharded).digest(part) == open_checkpoint(whole).digest(part)


def test_a_missing_shard_or_index_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    aside = shard.rename(sharded / "aside")
    assert refusal(sharded).startswith(f"{shard.name}: {INDEX} names this file, but it is missing")
    aside.rename(shard)
    (sharded / INDEX).unlink()
    assert refusal(sharded).startswith(f"{INDEX}: missing")


def test_an_index_that_disagrees_with_its_files_is_refused(sharded: Path) -> None:
    original = (sharded / INDEX).read_text()
    names = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    first = next(name for name in names if len(read_header(sharded / name)) > 1)
    second = next(name for name in names if name != first)
    tensor = read_header(sharded / first)[0].name

    def said(**weight_map: Any) -> str:  # noqa: ANN401 - what JSON may be
        (sharded / INDEX).write_text(original)
        edit_json(sharded / INDEX, **{f"weight_map__{name}": value for name, value in weight_map.items()})
        return refusal(sharded)

    assert said(**{tensor: second}) == f"{first}: tensor {tensor} is left over by {INDEX}"
    assert said(**{tensor: ...}) == f"{first}: tensor {tensor} is left over by {INDEX}"
    assert said(**{"lm_head.x": first}) == f"{first}: tensor lm_head.x is missing, but {INDEX} names it"
    for escape in ("../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 7, None, ""):
        assert "is no file name" in said(**{tensor: escape})


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    name = read_header(first)[0].name
    rewrite(second, **{name: safetensors.torch.load_file(first)[name]})
    assert refusal(sharded) in (
        f"{second.name}: tensor {name} is in {first.name} too",
        f"{second.name}: tensor {name} is left over by {INDEX}",
    )


def test_native_shards_with_equal_names_are_refused(pixtral: Path, tmp_path: Path) -> None:
    convert_checkpoint(pixtral, tmp_path / "native", CheckpointFormat.NATIVE)
    whole = tmp_path / "native" / "consolidated.safetensors"
    whole.rename(tmp_path / "native" / "consolidated.00.safetensors")
    Loader().load(tmp_path / "native")
    shutil.copy(
        tmp_path / "native" / "consolidated.00.safetensors", tmp_path / "native" / "consolidated.01.safetensors"
    )
    assert "is in consolidated.00.safetensors too" in refusal(tmp_path / "native")


def test_a_directory_with_both_formats_loads_one_and_says_which(
    pixtral: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = save_pixtral(tmp_path / "other", Shape(name="other"))
    convert_checkpoint(other, tmp_path / "native", CheckpointFormat.NATIVE)
    shutil.copytree(tmp_path / "native", pixtral, dirs_exist_ok=True)
    with caplog.at_level(logging.INFO):
        opened = open_checkpoint(pixtral)
    assert opened.layout is CheckpointFormat.HF
    (record,) = (record for record in caplog.records if record.message == "checkpoint")
    assert (record.__dict__["format"], record.__dict__["ignored_formats"]) == ("hf", "native")


def test_missing_left_over_and_mis_shaped_tensors_are_named_with_their_file(pixtral: Path) -> None:
    original = (pixtral / WEIGHTS).read_bytes()
    breaks: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({Q_PROJ: None}, f"{WEIGHTS}: tensor {Q_PROJ} is missing"),
        ({"vision_tower.ln_pre.weight": None}, f"{WEIGHTS}: tensor vision_tower.ln_pre.weight is missing"),
        ({Q_PROJ: torch.zeros(16, 17)}, f"{WEIGHTS}: tensor {Q_PROJ} has shape [16, 17], expected [16, 16]"),
        ({Q_PROJ: torch.zeros(256)}, f"{WEIGHTS}: tensor {Q_PROJ} has shape [256], expected [16, 16]"),
        ({"extra.weight": torch.zeros(1)}, f"{WEIGHTS}: tensor extra.weight is left over"),
        ({Q_PROJ.replace("0", "7"): torch.zeros(16, 16)}, "layers.7.self_attn.q_proj.weight is left over"),
        ({Q_PROJ.replace("weight", "bias"): torch.zeros(16)}, "q_proj.bias is left over"),
        ({Q_PROJ: torch.zeros(16, 16, dtype=torch.int32)}, f"tensor {Q_PROJ}: type I32 is not supported"),
        ({Q_PROJ: torch.zeros(16, 16).to(torch.float8_e4m3fn)}, "type F8_E4M3 is not supported"),
    ]
    for change, message in breaks:
        (pixtral / WEIGHTS).write_bytes(original)
        rewrite(pixtral / WEIGHTS, **change)
        assert message in refusal(pixtral)


def test_a_config_that_claims_another_model_is_refused_before_it_is_built(pixtral: Path) -> None:
    edit_json(pixtral / "config.json", text_config__num_hidden_layers=10**12)
    assert "layers.1.input_layernorm.weight is missing" in refusal(pixtral)
    edit_json(pixtral / "config.json", text_config__num_hidden_layers=1, text_config__vocab_size=10**15)
    assert "expected [1000000000000000, 16]" in refusal(pixtral)


def test_headers_that_lie_are_refused(pixtral: Path) -> None:
    path = pixtral / WEIGHTS
    original = path.read_bytes()

    def said(change: Any) -> str:  # noqa: ANN401 - a function on a header
        path.write_bytes(original)
        edit_header(path, change)
        message = refusal(pixtral)
        assert message.startswith(f"{WEIGHTS}: ")
        return message

    def first_at(header: dict[str, Any], start: int, end: int) -> None:
        header[Q_PROJ]["data_offsets"] = [start, end]

    assert f"tensor {Q_PROJ}: its shape" in said(lambda header: first_at(header, 0, 8))
    assert "overlaps the one before it" in said(lambda header: first_at(header, 0, 1024))
    assert "beyond the end" in said(lambda header: first_at(header, 2**40, 2**40 + 1024)) or "gap" in refusal(pixtral)
    assert "are not two offsets" in said(lambda header: first_at(header, -1024, 0))
    assert "its shape" in said(lambda header: header[Q_PROJ].update(dtype="BF16"))
    assert "entry must have" in said(lambda header: header[Q_PROJ].pop("dtype"))
    assert "entry must have" in said(lambda header: header[Q_PROJ].update(more=1))
    assert "is not a shape" in said(lambda header: header[Q_PROJ].update(shape=[True, 256]))
    for length in (2**63, 2**64 - 1, len(original), 200_000_000):
        path.write_bytes(length.to_bytes(8, "little") + original[8:])
        assert f"the header claims {length} bytes" in refusal(pixtral)
    path.write_bytes(original + b"\0")
    assert "1 bytes after tensor" in refusal(pixtral)
    path.write_bytes(original[:5])
    assert "ends inside the length of its header" in refusal(pixtral)
    duplicated = b'{"a":{},"a":{}}'
    path.write_bytes(len(duplicated).to_bytes(8, "little") + duplicated)
    assert "names something twice" in refusal(pixtral)


def test_a_file_that_shrinks_under_the_service_is_an_error_and_no_signal(pixtral: Path) -> None:
    opened = open_checkpoint(pixtral)
    os.truncate(pixtral / WEIGHTS, 9000)
    module = build_parts(opened.config)[Part.DECODER]
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: tensor \S+: the file ends too early$"):
        opened.load(Part.DECODER, module, device=CPU, types=WeightTypes(torch.float32))


def write_manifest(directory: Path) -> None:
    """By the tool whose format it is."""
    names = sorted(path.name for path in directory.iterdir())
    done = subprocess.run(["sha256sum", *names], cwd=directory, capture_output=True, check=True)  # noqa: S603, S607
    (directory / MANIFEST_NAME).write_bytes(done.stdout)


def test_a_flipped_bit_in_a_weight_is_found_by_the_manifest_alone(pixtral: Path) -> None:
    write_manifest(pixtral)
    Loader().load(pixtral, verify_checksums=True)
    with (pixtral / WEIGHTS).open("r+b") as file:
        file.seek(-100, 2)
        byte = file.read(1)
        file.seek(-100, 2)
        file.write(bytes([byte[0] ^ 1]))
    Loader().load(pixtral)
    with pytest.raises(CheckpointError, match=rf"^{WEIGHTS}: its SHA-256 is not the one in SHA256SUMS$"):
        Loader().load(pixtral, verify_checksums=True)


def test_a_manifest_must_list_every_file_that_is_used(pixtral: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^SHA256SUMS: cannot be read"):
        Loader().load(pixtral, verify_checksums=True)
    write_manifest(pixtral)
    (pixtral / "README.md").write_text("not used")
    Loader().load(pixtral, verify_checksums=True)
    (pixtral / "tekken.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^SHA256SUMS: tekken.json is not listed$"):
        Loader().load(pixtral, verify_checksums=True)


def test_manifests_are_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    (tmp_path / "a b.json").write_text("x")
    write_manifest(tmp_path)
    assert read_manifest(tmp_path) == {"a b.json": file_digest(tmp_path / "a b.json")}
    digest = "0" * 64
    (tmp_path / MANIFEST_NAME).write_text(f"{digest} *./a.json\n")
    assert read_manifest(tmp_path) == {"a.json": digest}
    for wrong in ("x", f"{digest[1:]}  a", f"\\{digest}  a\\nb", f"{digest}  a\n{'1' * 64}  a", f"{digest}a"):
        (tmp_path / MANIFEST_NAME).write_text(wrong)
        with pytest.raises(CheckpointError, match=r"^SHA256SUMS: line \d "):
            read_manifest(tmp_path)


@pytest.mark.parametrize("service", ["vision_service", "decoder_service"])
def test_a_service_ends_with_one_line_before_it_listens(service: str, pixtral: Path) -> None:
    rewrite(pixtral / WEIGHTS, **{Q_PROJ: None})
    vision = ["--vision-addresses", "127.0.0.1:1"] if service == "decoder_service" else []
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", service, "--model", str(pixtral), "--port", "0", *vision],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode not in (0, -11, -6)
    assert "listening" not in done.stdout
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert lines == [f"{service}: {WEIGHTS}: tensor {Q_PROJ} is missing"]


def test_a_head_dim_that_is_not_stated_is_the_width_over_the_heads(tmp_path: Path) -> None:
    directory = save_text(tmp_path, Shape(name="like 7B v0.1", head_dim=12, window=24))
    edit_json(directory / "config.json", head_dim=...)
    assert len(Loader().load(directory)) == 21
    config = open_checkpoint(directory).config
    assert isinstance(config, MistralConfig)
    assert (config.head_dim, config.sliding_window) == (12, 24)
    edit_json(directory / "config.json", num_attention_heads=5)
    assert "head_dim is missing, and hidden_size 48 is no multiple of 5 heads" in refusal(directory)
