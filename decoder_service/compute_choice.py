"""Chooses what computes the decoder's arithmetic, once, when the service starts.

Knows every implementation of `Compute` and what each asks for. Says in the log which one it took.
"""

import logging

from decoder_service.compute import Compute, TorchCompute
from decoder_service.decoder_model import DecoderModel
from decoder_service.kv_cache import KVCache
from decoder_service.tiled_compute import TiledCompute

_log = logging.getLogger(__name__)


def choose_compute(model: DecoderModel, kv_cache: KVCache, *, deterministic: bool) -> Compute:
    """What a service with these settings runs with."""
    compute = TiledCompute(model, kv_cache) if deterministic else TorchCompute(model, kv_cache)
    _log.info("compute", extra={"implementation": type(compute).__name__, "deterministic": deterministic})
    return compute
