"""The adapters that a service is told to load, by the names that requests ask for them by.

Knows settings. Does not know files (see `adapter_files`).
"""

import logging

from decoder_service.adapters.adapter import Adapter
from decoder_service.adapters.adapter_files import load_adapter
from decoder_service.config import AdapterSettings
from decoder_service.model.run_config import RunConfig

_log = logging.getLogger(__name__)


def load_adapters(settings: AdapterSettings, run_config: RunConfig, *, has_vision: bool) -> tuple[Adapter, ...]:
    """All of them, in order. Raises CheckpointError."""
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
        for name, directory in settings.directories().items()
    )
    for adapter in adapters:
        _log.info("adapter loaded", extra={"adapter": adapter.name, "rank": adapter.rank})
    return adapters
