"""What an adapter's config asks for and we do not compute is refused by name, and never left out in silence."""

from pathlib import Path

import pytest

from tests.adapter_files import write_adapter
from tests.checkpoints import edit_json
from tests.decoder_service.adapters.loading import load, refusal
from tests.small_configs import SMALL_TEXT


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_adapter(tmp_path, SMALL_TEXT)
    return tmp_path


def test_what_is_not_refused_is_loaded(directory: Path) -> None:
    """The negative control of every test below."""
    assert load(directory).changes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("peft_type", "IA3", "'LORA'"),
        ("peft_type", None, "'LORA'"),
        ("bias", "all", "'none'"),
        ("bias", "lora_only", "'none'"),
        ("fan_in_fan_out", True, "False"),
        ("use_dora", True, "null, false or empty"),
        ("use_qalora", True, "null, false or empty"),
        ("lora_bias", True, "null, false or empty"),
        ("modules_to_save", ["lm_head"], "null, false or empty"),
        ("trainable_token_indices", [7], "null, false or empty"),
        ("trainable_token_indices", {"embed_tokens": [7]}, "null, false or empty"),
        ("layer_replication", [[0, 2], [1, 2]], "null, false or empty"),
        ("megatron_config", {"tensor_model_parallel_size": 2}, "null, false or empty"),
        ("target_parameters", ["mlp.gate_up_proj"], "null, false or empty"),
        ("alora_invocation_tokens", [1, 2], "null, false or empty"),
        ("use_bdlora", {"nblocks": 2}, "null, false or empty"),
        ("kasa_config", {"beta": 0.1}, "null, false or empty"),
        ("monteclora_config", {"num_samples": 8}, "null, false or empty"),
        ("arrow_config", {"top_k": 3}, "null, false or empty"),
        ("velora_config", {"num_groups": 64}, "null, false or empty"),
        ("a_field_of_tomorrow", "on", "null, false or empty"),
        ("init_lora_weights", "pissa", "'gaussian'"),
        ("init_lora_weights", "pissa_niter_16", "'gaussian'"),
        ("init_lora_weights", "olora", "'gaussian'"),
        ("init_lora_weights", "corda", "'gaussian'"),
        ("init_lora_weights", "loftq", "'gaussian'"),
        ("init_lora_weights", "lora_ga", "'gaussian'"),
        ("r", 0, "at least 1"),
        ("r", ..., "missing"),
        ("r", 4.0, "at least 1"),
        ("lora_alpha", ..., "missing"),
        ("lora_alpha", 0, "over 0"),
        ("lora_alpha", "8", "over 0"),
        ("use_rslora", "yes", "true or false"),
        ("rank_pattern", ["q_proj"], "an object"),
        ("rank_pattern", {"q_proj(": 4}, "a regular expression"),
        ("alpha_pattern", {"q_proj(": 4}, "a regular expression"),
    ],
)
def test_fields_that_change_the_arithmetic_or_make_no_sense(
    directory: Path, key: str, value: object, expected: str
) -> None:
    edit_json(directory / "adapter_config.json", **{key: value})
    message = refusal(directory)
    assert message.startswith(f"adapter_config.json: {key} ")
    assert expected in message


@pytest.mark.parametrize(("key", "value"), [("rank_pattern", "many"), ("alpha_pattern", -1)])
def test_a_patterns_value_that_is_no_number(directory: Path, key: str, value: object) -> None:
    edit_json(directory / "adapter_config.json", **{key: {"q_proj\nk_proj": value}})
    assert refusal(directory).startswith(f"adapter_config.json: {key}.q_proj k_proj must be a ")
