"""The adapters that a service is told to load, by the names that requests ask for them by.

Knows settings. Does not know files (see `adapter_files`).
"""

import logging
import re
from pathlib import Path

from decoder_service.adapters.adapter import Adapter
from decoder_service.adapters.adapter_files import load_adapter
from decoder_service.adapters.adapter_ref import MAX_NAME
from decoder_service.config import AdapterSettings
from decoder_service.model.run_config import RunConfig

_log = logging.getLogger(__name__)
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")


def load_adapters(settings: AdapterSettings, run_config: RunConfig, *, has_vision: bool) -> tuple[Adapter, ...]:
    """All of them, in order. Raises ValueError, CheckpointError among them, with one line."""
    directories: dict[str, Path] = {}
    for given in settings.lora:
        name, separator, directory = given.partition("=")
        if not (separator and directory and _NAME.fullmatch(name)):
            raise ValueError(
                f"--lora {given!r} is not NAME=DIR, NAME being at most {MAX_NAME} letters, digits, '-', '_' and '.'"
            )
        if name in directories:
            raise ValueError(f"--lora gives {name!r} twice")
        directories[name] = Path(directory)
    adapters = tuple(
        load_adapter(
            name,
            directory,
            config=run_config.text,
            has_vision=has_vision,
            dtype=run_config.dtype,
            device=run_config.device,
            max_rank=settings.max_lora_rank,
        )
        for name, directory in directories.items()
    )
    for adapter in adapters:
        _log.info("adapter loaded", extra={"adapter": adapter.name, "rank": adapter.rank})
    return adapters
