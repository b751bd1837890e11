"""A loaded adapter changes every weight as PEFT does when it merges the adapter that it wrote.

PEFT and transformers are the oracle: nothing of ours makes these adapters, their files or the merged weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.files import CheckpointError
from common.model.config import MistralConfig, PixtralConfig
from decoder_service.adapters.adapter import MODULES, Adapter
from decoder_service.adapters.adapter_files import load_adapter
from tests.checkpoints import Loader
from tests.tiny_models import Shape, random_pixtral, random_text_model, save

# PEFT asks transformers for what transformers calls otherwise by now.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SHAPE = Shape(name="any", layers=3, vision_layers=1)
PROJECTIONS = [module.rpartition(".")[2] for module in MODULES]
# In a Pixtral the encoder has projections of the same names.
DECODERS = r".*layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model without an adapter, as it is on disk."""

    directory: Path
    config: MistralConfig
    has_vision: bool

    def model(self) -> PreTrainedModel:
        return random_pixtral(SHAPE) if self.has_vision else random_text_model(SHAPE)

    def load(self, adapter: Path) -> Adapter:
        return load_adapter(
            "any",
            adapter,
            config=self.config,
            has_vision=self.has_vision,
            dtype=torch.float32,
            device=torch.device("cpu"),
            max_rank=16,
        )


@pytest.fixture(scope="module", params=[False, True], ids=["mistral", "pixtral"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    model = random_pixtral(SHAPE) if request.param else random_text_model(SHAPE)
    directory = save(model, tmp_path_factory.mktemp("base"))
    checkpoint = open_checkpoint(directory)
    has_vision = isinstance(checkpoint.config, PixtralConfig)
    assert has_vision == request.param
    return Base(directory=directory, config=checkpoint.text_config, has_vision=has_vision)


def trained(base: Base, **fields: Any) -> peft.PeftModel:  # noqa: ANN401 - what LoraConfig takes
    """An adapter with random numbers in both halves."""
    defaults: dict[str, Any] = {"init_lora_weights": False, "target_modules": DECODERS}
    config = peft.LoraConfig(**defaults | fields)
    torch.manual_seed(3)
    return peft.get_peft_model(base.model(), config)


def decoder_weights(state: Mapping[str, Tensor]) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """The weights that an adapter can change, by layer and module."""
    for name, tensor in state.items():
        layer, _, module = name.removesuffix(".weight").rpartition("layers.")[2].partition(".")
        if module in MODULES:
            yield (int(layer), module), tensor


def assert_merged(base: Base, adapter: Adapter, model: peft.PeftModel, directory: Path) -> None:
    """The model's weights with the loaded changes are those that PEFT merges."""
    before = dict(decoder_weights(Loader().load(base.directory)))
    after = dict(decoder_weights(Loader().load(save(model.merge_and_unload(), directory))))
    assert adapter.changes
    for where, merged in after.items():
        change = adapter.changes.get(where)
        if change is None:
            assert torch.equal(merged, before[where])
        else:
            assert not torch.allclose(merged, before[where], atol=1e-3)
            torch.testing.assert_close(before[where] + change.up @ change.down, merged)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"r": 4, "lora_alpha": 12}, id="plain"),
        pytest.param({"r": 8, "lora_alpha": 3, "use_rslora": True}, id="rank-stabilised"),
        pytest.param(
            {
                "r": 4,
                "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 16},
                "alpha_pattern": {"mlp.up_proj": 3, r".*\.2\.self_attn\.o_proj": 40, "up_proj": 9},
            },
            id="patterns",
        ),
        pytest.param(
            {
                "r": 3,
                "use_rslora": True,
                "rank_pattern": {"v_proj": 7},
                # PEFT sorts them when it writes them, and takes the first that fits when it reads them.
                "alpha_pattern": {"v_proj": 30, "layers.0.self_attn.v_proj": 10},
            },
            id="rank-stabilised-patterns",
        ),
        pytest.param({"target_modules": r".*layers\.[02]\.(self_attn\.v|mlp\.down)_proj"}, id="some-modules"),
        pytest.param({"lora_dropout": 0.5, "task_type": "CAUSAL_LM"}, id="dropout"),
    ],
)
def test_changes_are_those_that_peft_merges(base: Base, tmp_path: Path, fields: dict[str, Any]) -> None:
    trained(base, **fields).save_pretrained(str(tmp_path / "adapter"))
    model = peft.PeftModel.from_pretrained(base.model(), str(tmp_path / "adapter"))
    assert_merged(base, base.load(tmp_path / "adapter"), model, tmp_path / "merged")


def test_an_adapter_that_transformers_writes_is_the_one_that_peft_writes(base: Base, tmp_path: Path) -> None:
    model = trained(base)
    model.save_pretrained(str(tmp_path / "peft"))
    other = base.model()
    other.load_adapter(str(tmp_path / "peft"))
    other.save_pretrained(tmp_path / "transformers")
    assert base.load(tmp_path / "transformers").digest == base.load(tmp_path / "peft").digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_trained_in_half_the_bits_is_read_exactly(base: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained(base).to(dtype)
    model.save_pretrained(str(tmp_path / "adapter"))
    wide = model.float()
    adapter = base.load(tmp_path / "adapter")
    assert {change.up.dtype for change in adapter.changes.values()} == {torch.float32}
    # The base's weights have been rounded too, so that only the changes can be compared.
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in wide.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    found = dict(decoder_weights(deltas))
    assert found.keys() == adapter.changes.keys()
    for where, delta in found.items():
        torch.testing.assert_close(adapter.changes[where].up @ adapter.changes[where].down, delta)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens|vision"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"kasa_config": peft.KasaConfig()}, "kasa_config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to:UserWarning")
def test_what_peft_writes_for_more_than_lora_is_refused(
    base: Base, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    trained(base, **fields).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=named):
        base.load(tmp_path)


def test_another_method_than_lora_is_refused(base: Base, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=DECODERS, feedforward_modules=r".*mlp\.down_proj")
    peft.get_peft_model(base.model(), config).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match="peft_type 'IA3' is not supported"):
        base.load(tmp_path)


def test_projections_of_the_encoder_are_refused(tmp_path: Path) -> None:
    """As PEFT changes all modules of a name, where it is given names alone."""
    directory = save(random_pixtral(SHAPE), tmp_path / "base")
    base = Base(directory=directory, config=open_checkpoint(directory).text_config, has_vision=True)
    trained(base, target_modules=PROJECTIONS).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(CheckpointError, match="adapters of the vision part are not supported"):
        base.load(tmp_path / "adapter")
