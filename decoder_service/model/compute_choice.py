"""Chooses what computes the decoder's arithmetic, once, when the service starts.

Knows every implementation of `Compute` and what each asks for. Says in the log which one it took, and why.
"""

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from common.model.settings import AttentionBackend, ComputeChoice, ModelSettings, Quantize
from common.native.opening import LibraryChoice, choose_library
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.run_config import RunConfig
from decoder_service.model.tiled_compute import TiledCompute
from decoder_service.model.weights import DecoderModel

_log = logging.getLogger(__name__)

MakeCompute = Callable[[KVCache], Compute]


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
    settings: ModelSettings,
    kernels: LibraryChoice,
    *,
    max_num_requests: int,
    max_model_len: int,
    quantize: Quantize = Quantize.NONE,
    attention: AttentionBackend = AttentionBackend.AUTO,
) -> MakeCompute:
    """What makes what a service with these settings runs with; `kernels` are what `choose_kernels` found.

    On CUDA the model's weights have their last places when this returns, so that the memory that is left then is what
    the KV cache can have. Raises ValueError where what is to compute attention cannot, and so does what is returned.
    """
    if kernels.library is not None:
        return partial(NativeCompute, model, library=kernels.library, in_bytes=quantize is Quantize.INT8)
    if settings.deterministic:
        return partial(TiledCompute, model)
    if model.device.type == "cuda" and settings.compute is not ComputeChoice.TORCH and find_spec("triton"):
        return _cuda_compute(model, attention, max_num_requests=max_num_requests, max_model_len=max_model_len)
    if attention is not AttentionBackend.AUTO:
        raise ValueError(f"--attention-backend {attention.value} needs Triton, which is not installed")
    return partial(TorchCompute, model)


def log_compute(
    compute: Compute, kv_cache: KVCache, settings: ModelSettings, *, quantize: Quantize, why_no_kernels: str
) -> None:
    """Say what was taken, and why not the kernels."""
    extra = {
        "implementation": compute.name,
        "quantize": quantize.value,
        "kv_dtype": str(kv_cache.dtype).removeprefix("torch."),
        "deterministic": settings.deterministic,
    }
    _log.info("compute", extra=extra | ({"no_kernels": why_no_kernels} if why_no_kernels else {}))


def _cuda_compute(
    model: DecoderModel, attention: AttentionBackend, *, max_num_requests: int, max_model_len: int
) -> MakeCompute:
    # Imported here: triton comes only with torch's CUDA builds, and takes its time.
    from common.model.graph_recorder import CudaGraphRecorder
    from decoder_service.model.cuda.attention import AttentionShape
    from decoder_service.model.cuda.attention_choice import choose_attention
    from decoder_service.model.cuda.compute import CudaCompute
    from decoder_service.model.cuda.layer_weights import join_layers

    weights = join_layers(model.decoder)

    def make(kv_cache: KVCache) -> Compute:
        return CudaCompute(
            model,
            kv_cache,
            attention=choose_attention(attention, AttentionShape.of(model.config, kv_cache, model.dtype), model.device),
            recorder=CudaGraphRecorder(model.device),
            max_num_requests=max_num_requests,
            max_model_len=max_model_len,
            weights=weights,
        )

    return make
