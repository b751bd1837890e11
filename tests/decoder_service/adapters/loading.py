"""Loads adapters of the small decoder, for the tests of what is taken and of what is refused."""

from pathlib import Path

import pytest
import torch

from common.checkpoint.files import CheckpointError
from decoder_service.adapters.adapter import Adapter
from decoder_service.adapters.adapter_files import load_adapter
from tests.small_configs import SMALL_TEXT


def load(
    directory: Path,
    *,
    name: str = "sql",
    has_vision: bool = False,
    dtype: torch.dtype = torch.float32,
    max_rank: int = 64,
) -> Adapter:
    return load_adapter(
        name,
        directory,
        config=SMALL_TEXT,
        has_vision=has_vision,
        dtype=dtype,
        device=torch.device("cpu"),
        max_rank=max_rank,
    )


def refusal(
    directory: Path, *, has_vision: bool = False, dtype: torch.dtype = torch.float32, max_rank: int = 64
) -> str:
    """The message, one line that names the adapter."""
    with pytest.raises(CheckpointError) as caught:
        load(directory, has_vision=has_vision, dtype=dtype, max_rank=max_rank)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("adapter sql: ")
    return message.removeprefix("adapter sql: ")
