"""Chooses what computes the decoder's arithmetic, once, when the service starts.

Knows every implementation of `Compute` and what each asks for. Says in the log which one it took, and why.
"""

import logging
from importlib.util import find_spec

import torch

from common.model_settings import ComputeChoice, ModelSettings
from common.native.build import NativeUnavailableError
from common.native.opening import open_library
from decoder_service.compute import Compute, TorchCompute
from decoder_service.decoder_model import DecoderModel
from decoder_service.kv_cache import KVCache
from decoder_service.native_compute import NativeCompute
from decoder_service.tiled_compute import TiledCompute

_log = logging.getLogger(__name__)


def choose_compute(
    model: DecoderModel, kv_cache: KVCache, settings: ModelSettings, *, max_num_requests: int, max_model_len: int
) -> Compute:
    """What a service with these settings runs with. Raises ValueError where they ask for what cannot be."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    compute, reason = _kernels(model, kv_cache, settings)
    if compute is None and settings.deterministic:
        compute = TiledCompute(model, kv_cache)
    elif compute is None and model.device.type == "cuda" and find_spec("triton") is not None:
        compute = _cuda_compute(model, kv_cache, max_num_requests=max_num_requests, max_model_len=max_model_len)
    compute = compute or TorchCompute(model, kv_cache)
    extra = {"implementation": compute.name, "deterministic": settings.deterministic}
    _log.info("compute", extra=extra | ({"no_kernels": reason} if reason else {}))
    return compute


def _kernels(model: DecoderModel, kv_cache: KVCache, settings: ModelSettings) -> tuple[Compute | None, str]:
    """The CPU's kernels, or why not."""
    if settings.compute is ComputeChoice.TORCH:
        return None, "not asked for"
    try:
        return _native(model, kv_cache), ""
    except NativeUnavailableError as error:
        if settings.compute is ComputeChoice.NATIVE:
            raise ValueError(f"--compute native: {error}") from None
        return None, str(error)


def _native(model: DecoderModel, kv_cache: KVCache) -> Compute:
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise NativeUnavailableError(f"the kernels are for float32 on a CPU, not {model.dtype} on {model.device}")
    compute = NativeCompute(model, kv_cache, open_library(threads=torch.get_num_threads()))
    # What is left to torch is small, and its threads would stand in the way of ours.
    torch.set_num_threads(1)
    return compute


def _cuda_compute(model: DecoderModel, kv_cache: KVCache, *, max_num_requests: int, max_model_len: int) -> Compute:
    # Imported here: triton comes only with torch's CUDA builds, and takes its time.
    from common.graph_recorder import CudaGraphRecorder
    from decoder_service.cuda.compute import CudaCompute

    return CudaCompute(
        model,
        kv_cache,
        recorder=CudaGraphRecorder(),
        max_num_requests=max_num_requests,
        max_model_len=max_model_len,
    )
