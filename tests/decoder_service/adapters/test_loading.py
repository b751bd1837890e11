"""Adapters are loaded as the setting says, or the service says what is wrong with it."""

from pathlib import Path

import pytest
import torch

from decoder_service.adapters.loading import load_adapters
from decoder_service.config import AdapterSettings
from decoder_service.model.run_config import RunConfig, make_run_config
from tests.adapter_files import write_adapter
from tests.small_configs import SMALL_TEXT


def run_config() -> RunConfig:
    return make_run_config(SMALL_TEXT, dtype=torch.float32, device=torch.device("cpu"), max_seq_len=None, block_size=8)


def test_all_are_loaded_in_order(tmp_path: Path) -> None:
    for name in ("dogs", "cats"):
        write_adapter(tmp_path / name, SMALL_TEXT)
    settings = AdapterSettings(lora=(f"dogs={tmp_path / 'dogs'}", f"c-a_t.5={tmp_path / 'cats'}"))
    loaded = load_adapters(settings, run_config(), has_vision=False)
    assert [adapter.name for adapter in loaded] == ["dogs", "c-a_t.5"]
    assert loaded[0].digest == loaded[1].digest


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("cats",), "'cats' is not NAME=DIR"),
        (("=/tmp",), "'=/tmp' is not NAME=DIR"),
        (("cats=",), "'cats=' is not NAME=DIR"),
        (("c ats=/tmp",), "'c ats=/tmp' is not NAME=DIR"),
        ((f"{'c' * 65}=/tmp",), "at most 64 letters"),
        (("cats=/tmp", "cats=/var"), "gives 'cats' twice"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_file_is_read(given: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AdapterSettings(lora=given)


def test_a_larger_rank_than_the_setting_allows_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, SMALL_TEXT, rank=5)
    settings = AdapterSettings(lora=(f"cats={tmp_path}",), max_lora_rank=4)
    with pytest.raises(ValueError, match="5"):
        load_adapters(settings, run_config(), has_vision=False)
