"""What an adapter's files say is what is loaded, under either layout's names and whatever type the file has."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint.checkpoint import open_checkpoint
from decoder_service.adapters.adapter import MODULES, Adapter
from decoder_service.adapters.adapter_files import load_adapter
from tests.adapter_files import OLD_VISION_LAYERS, VISION_LAYERS, edit_tensors, write_adapter
from tests.checkpoints import Loader, edit_json
from tests.decoder_service.adapters.loading import load
from tests.native_checkpoint import write_native
from tests.small_configs import SMALL_TEXT
from tests.tiny_models import Shape, random_text_model, save

CPU = torch.device("cpu")
EACH = [(layer, module) for layer in range(SMALL_TEXT.num_hidden_layers) for module in MODULES]


def factor(adapter: Adapter, other: Adapter, layer: int, module: str) -> float:
    """By how much another adapter's change of a module is larger."""
    changes = [each.changes[layer, module] for each in (adapter, other)]
    mine, others = (change.up @ change.down for change in changes)
    scale = float((others.flatten() @ mine.flatten()) / mine.square().sum())
    torch.testing.assert_close(others, mine * scale)
    return scale


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", SMALL_TEXT)
    return tmp_path / "adapter"


def test_every_module_of_every_layer_has_its_change(directory: Path) -> None:
    adapter = load(directory, name="mine")
    assert (adapter.name, adapter.rank) == ("mine", 4)
    assert sorted(adapter.changes) == sorted(EACH)
    assert all(change.down.dtype == change.up.dtype == torch.float32 for change in adapter.changes.values())


def test_modules_that_are_not_there_are_not_changed(tmp_path: Path) -> None:
    write_adapter(tmp_path, SMALL_TEXT, modules=("self_attn.q_proj", "mlp.down_proj"))
    assert {module for _, module in load(tmp_path).changes} == {"self_attn.q_proj", "mlp.down_proj"}


def test_scale_is_alpha_over_rank_or_over_its_root(directory: Path) -> None:
    before = load(directory)
    edit_json(directory / "adapter_config.json", lora_alpha=24)
    assert factor(before, load(directory), 0, "mlp.up_proj") == pytest.approx(3)
    edit_json(directory / "adapter_config.json", use_rslora=True)
    assert factor(before, load(directory), 0, "mlp.up_proj") == pytest.approx(6)


@pytest.mark.parametrize(
    ("pattern", "changed"),
    [
        ("q_proj", [(0, "self_attn.q_proj"), (1, "self_attn.q_proj")]),
        ("self_attn.q_proj", [(0, "self_attn.q_proj"), (1, "self_attn.q_proj")]),
        (r"layers\.1\..*_proj", [(1, module) for module in MODULES]),
        ("^model.layers.0.mlp.up_proj", [(0, "mlp.up_proj")]),
        (r"mlp\.(up|down)_proj", [(layer, f"mlp.{name}_proj") for layer in (0, 1) for name in ("up", "down")]),
        ("proj", []),
        ("self_attn", []),
        ("^layers.0.mlp.up_proj", []),
    ],
)
def test_a_pattern_is_a_name_or_the_end_of_one_from_a_dot_on(
    directory: Path, pattern: str, changed: list[tuple[int, str]]
) -> None:
    before = load(directory)
    edit_json(directory / "adapter_config.json", alpha_pattern={pattern: 40})
    after = load(directory)
    found = [where for where in EACH if factor(before, after, *where) == pytest.approx(5)]
    assert sorted(found) == sorted(changed)
    assert all(factor(before, after, *where) == pytest.approx(1) for where in EACH if where not in found)


def test_of_two_patterns_the_first_counts(directory: Path) -> None:
    before = load(directory)
    edit_json(directory / "adapter_config.json", alpha_pattern={"q_proj": 16, "layers.0.self_attn.q_proj": 32})
    assert factor(before, load(directory), 0, "self_attn.q_proj") == pytest.approx(2)


def test_modules_may_have_ranks_of_their_own(directory: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "wide", SMALL_TEXT, rank=7)
    wide = tmp_path / "wide" / "adapter_model.safetensors"

    def widen(tensors: dict[str, Tensor]) -> None:
        for name, tensor in load_file(wide).items():
            if "v_proj" in name:
                tensors[name] = tensor

    edit_tensors(directory, widen)
    edit_json(directory / "adapter_config.json", rank_pattern={"v_proj": 7})
    adapter, other = load(directory), load(tmp_path / "wide")
    assert adapter.rank == 7
    assert adapter.changes[0, "self_attn.v_proj"].down.shape == (7, 16)
    assert adapter.changes[0, "self_attn.q_proj"].down.shape == (4, 16)
    # An alpha of 8 over a rank of 7, where the other has one of 14.
    assert factor(other, adapter, 1, "self_attn.v_proj") == pytest.approx(8 / 14)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_any_type_of_a_file_becomes_the_decoders(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    write_adapter(tmp_path, SMALL_TEXT, dtype=stored, scale=1.0)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change = load(tmp_path, dtype=wanted).changes[1, "mlp.gate_proj"]
    name = "base_model.model.model.layers.1.mlp.gate_proj"
    assert change.down.dtype == change.up.dtype == wanted
    assert torch.equal(change.down, tensors[f"{name}.lora_A.weight"].to(wanted))
    assert torch.equal(change.up, tensors[f"{name}.lora_B.weight"].to(wanted))


def test_both_layouts_of_a_pixtral_are_read(tmp_path: Path) -> None:
    write_adapter(tmp_path / "new", SMALL_TEXT, has_vision=True)
    shutil.copytree(tmp_path / "new", tmp_path / "old")

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            assert name.startswith(VISION_LAYERS)
            tensors[OLD_VISION_LAYERS + name.removeprefix(VISION_LAYERS)] = tensors.pop(name)

    edit_tensors(tmp_path / "old", rename)
    new, old = load(tmp_path / "new", has_vision=True), load(tmp_path / "old", has_vision=True)
    assert sorted(new.changes) == sorted(EACH)
    assert new.digest == old.digest


def test_equal_content_has_an_equal_digest_whatever_its_name(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    edit_json(tmp_path / "copy" / "adapter_config.json", base_model_name_or_path="elsewhere", lora_dropout=0.5)
    one, other = load(directory, name="one"), load(tmp_path / "copy", name="other")
    assert len(one.digest) == 32
    assert one.digest == other.digest


def test_one_other_number_gives_another_digest(directory: Path) -> None:
    digests = {load(directory).digest}
    edit_json(directory / "adapter_config.json", alpha_pattern={"layers.1.mlp.up_proj": 8.001})
    digests.add(load(directory).digest)

    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"][3, 5] += 1e-3

    edit_tensors(directory, nudge)
    digests.add(load(directory).digest)
    edit_json(directory / "adapter_config.json", alpha_pattern={})
    digests.add(load(directory).digest)
    assert len(digests) == 4


def test_the_same_change_of_another_module_has_another_digest(directory: Path, tmp_path: Path) -> None:
    """Key and value rows have the same shape, so that only the place differs."""
    for kept in "kv":
        write_adapter(tmp_path / kept, SMALL_TEXT, modules=(f"self_attn.{kept}_proj",))
    one, other = load(tmp_path / "k"), load(tmp_path / "v")
    assert torch.equal(one.changes[0, "self_attn.k_proj"].up, other.changes[0, "self_attn.v_proj"].up)
    assert one.digest != other.digest


def test_rows_fit_a_checkpoint_of_either_format_without_being_reordered(tmp_path: Path) -> None:
    """Mistral's own files hold query and key rows in another order, but what is loaded from them does not."""
    model = random_text_model(Shape(name="any"))
    directories = [save(model, tmp_path / "hf"), write_native(model, tmp_path / "native")]
    config = open_checkpoint(directories[0]).text_config
    write_adapter(tmp_path / "adapter", config)
    adapter = load_adapter(
        "any", tmp_path / "adapter", config=config, has_vision=False, dtype=torch.float32, device=CPU, max_rank=4
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name and name.endswith("_proj.weight"):
                lora = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                weight.add_(2 * lora[f"{stem}.lora_B.weight"] @ lora[f"{stem}.lora_A.weight"])
    wanted = model.state_dict()
    for directory in directories:
        loaded = Loader().load(directory)
        for (layer, module), change in adapter.changes.items():
            name = f"model.layers.{layer}.{module}.weight"
            torch.testing.assert_close(loaded[f"language_model.{name}"] + change.up @ change.down, wanted[name])


def test_a_rank_at_the_limit_is_taken(directory: Path) -> None:
    assert load(directory, max_rank=4).rank == 4
