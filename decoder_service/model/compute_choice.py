"""Chooses what computes the decoder's arithmetic, once, when the service starts.

Knows every implementation of `Compute` and what each asks for. Says in the log which one it took, and why.
"""

import logging
from importlib.util import find_spec

from common.model.settings import ModelSettings, Quantize
from common.native.opening import LibraryChoice, choose_library
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.run_config import RunConfig
from decoder_service.model.tiled_compute import TiledCompute
from decoder_service.model.weights import DecoderModel

_log = logging.getLogger(__name__)


def choose_kernels(
    settings: ModelSettings, run_config: RunConfig, *, quantize: Quantize = Quantize.NONE
) -> LibraryChoice:
    """Our kernels, or why they do not compute. Raises ValueError where they are asked for and cannot."""
    is_fp8 = quantize is Quantize.FP8 or run_config.kv_params.dtype != run_config.dtype
    obstacle = "the kernels know no 8-bit floats" if is_fp8 else ""
    kernels = choose_library(settings, device=run_config.device, dtype=run_config.dtype, obstacle=obstacle)
    if quantize is Quantize.INT8 and kernels.library is None:
        raise ValueError(f"--quantize int8 needs the kernels: {kernels.why_not}")
    return kernels


def choose_compute(
    model: DecoderModel,
    kv_cache: KVCache,
    settings: ModelSettings,
    kernels: LibraryChoice,
    *,
    max_num_requests: int,
    max_model_len: int,
    quantize: Quantize = Quantize.NONE,
) -> Compute:
    """What a service with these settings runs with; `kernels` are what `choose_kernels` found."""
    compute: Compute
    if kernels.library is not None:
        compute = NativeCompute(model, kv_cache, kernels.library, in_bytes=quantize is Quantize.INT8)
    elif settings.deterministic:
        compute = TiledCompute(model, kv_cache)
    elif model.device.type == "cuda" and find_spec("triton") is not None:
        compute = _cuda_compute(model, kv_cache, max_num_requests=max_num_requests, max_model_len=max_model_len)
    else:
        compute = TorchCompute(model, kv_cache)
    extra = {
        "implementation": compute.name,
        "quantize": quantize.value,
        "kv_dtype": str(kv_cache.dtype).removeprefix("torch."),
        "deterministic": settings.deterministic,
    }
    _log.info("compute", extra=extra | ({"no_kernels": kernels.why_not} if kernels.why_not else {}))
    return compute


def _cuda_compute(model: DecoderModel, kv_cache: KVCache, *, max_num_requests: int, max_model_len: int) -> Compute:
    # Imported here: triton comes only with torch's CUDA builds, and takes its time.
    from common.model.graph_recorder import CudaGraphRecorder
    from decoder_service.model.cuda.compute import CudaCompute

    return CudaCompute(
        model,
        kv_cache,
        recorder=CudaGraphRecorder(model.device),
        max_num_requests=max_num_requests,
        max_model_len=max_model_len,
    )
