"""Settings of the decoder service.

Knows names, defaults and bounds. Does not know the model: what is bounded by it is checked when it is there.
"""

from dataclasses import dataclass, field
from pathlib import Path

from common.model.settings import AttentionBackend, ComputeChoice, DtypeChoice, KVCacheDtype, ModelSettings, Quantize
from common.server.config import ServerConfig, check_image_fits
from common.settings.settings import setting
from common.telemetry.logs import LogSettings
from common.telemetry.tracing import TracingSettings
from decoder_service.adapters.adapter_ref import ADAPTER_NAME, MAX_NAME
from decoder_service.vision.resolver import check_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How the engine batches, and with how much memory."""

    max_model_len: int | None = setting(None, minimum=2, help="longest prompt and completion; the model's where unset")
    max_num_batched_tokens: int = setting(2048, minimum=1, help="most tokens in a step")
    max_num_mixed_tokens: int | None = setting(
        None,
        minimum=1,
        help="what each prompt may have in a step that also gives others their next tokens, beyond their second, "
        "besides as many tokens as those are, and a shorter one behind a longer one its part of that; where unset, on "
        "a CPU what adds three tenths to a step's time, measured at start, and at least 8, or what doubles it where "
        "max_step_stretch is set; on CUDA no limit",
    )
    max_step_stretch: float | None = setting(
        None,
        minimum=1.01,
        help="most times as long that a step with next tokens may take, about, as without prompts; one more than the "
        "prompts that it has where unset, a shorter one behind a longer one being a part; the lower, the longer "
        "prompts take",
    )
    max_num_requests: int = setting(64, minimum=1, help="most requests that run at once")
    max_queue: int = setting(1024, minimum=0, help="most requests that wait")
    max_queue_tokens: int = setting(
        2**22, minimum=1, help="most tokens that requests which wait may come to, prompts and completions together"
    )
    max_picture_bytes: int = setting(2**30, minimum=1, help="memory for the picture files of open requests")
    max_unread_tokens: int = setting(
        256, minimum=1, help="tokens that a caller may be behind before its request is paused"
    )
    stream_interval: int = setting(
        1,
        minimum=1,
        help="tokens of a completion in a message; the first comes alone; the more, the less work for each",
    )
    hang_seconds: float = setting(
        30.0, minimum=0.1, maximum=86400, help="time that a step may take before the process is called dead"
    )
    quantize: Quantize = setting(
        Quantize.NONE,
        help="keep the decoder's weights in a byte each, faster and a little less exact: int8 on a CPU, fp8 on CUDA",
    )
    kv_cache_dtype: KVCacheDtype = setting(
        KVCacheDtype.AUTO,
        help="type of keys and values; auto is that of the weights, fp8 takes a byte each and so holds more tokens",
    )
    attention_backend: AttentionBackend = setting(
        AttentionBackend.AUTO,
        help="what computes attention on CUDA: a Triton kernel of our own (auto), torch's where FlashAttention 3 is "
        "installed, or FlashInfer where it is; each is tried at start",
    )
    block_size: int = setting(16, minimum=1, help="tokens in a KV block")
    num_blocks: int | None = setting(None, minimum=1, help="KV blocks; as many as memory holds where unset")
    memory_fraction: float = setting(0.8, minimum=0.01, maximum=1.0, help="part of free memory for the KV blocks")
    watermark: float = setting(
        0.01, minimum=0.0, maximum=0.5, help="part of the KV blocks that an admission leaves to those that run already"
    )
    overlap: bool | None = setting(
        None,
        help="plan and begin a step while the one before it still runs; where unset, on CUDA alone, and not beside "
        "num_speculative_tokens",
    )
    num_speculative_tokens: int = setting(
        0,
        minimum=0,
        maximum=64,
        help="speculative decoding by prompt lookup: most tokens that a request tries in a step beyond its next one, "
        "taken from what followed its last three further up, or from what a structure leaves no choice about; answers "
        "that repeat their prompts or themselves come sooner, and stay the same; 0 tries none; not with --overlap",
    )
    prefix_caching: bool = setting(True, help="keep the KV blocks of what was computed and use them again")
    feature_bytes: int = setting(512 * 2**20, minimum=1, help="memory for image features that wait to be computed")
    feature_caching: bool = setting(True, help="keep image features in that memory until it is needed")

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_requests:
            raise ValueError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens} is below --max-num-requests "
                f"{self.max_num_requests}: each running request has a token in every step"
            )
        if self.overlap and self.num_speculative_tokens:
            raise ValueError(
                "--overlap and --num-speculative-tokens do not go together: what to try is known after each step"
            )

    def has_overlap(self, *, on_cpu: bool) -> bool:
        """Whether a step begins while the one before it runs."""
        return self.overlap if self.overlap is not None else not on_cpu and not self.num_speculative_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """LoRA adapters, which requests ask for by name."""

    lora: tuple[str, ...] = setting(
        (),
        help="NAME=DIR of each adapter to load, separated by commas, in PEFT's format: adapter_config.json and "
        "adapter_model.safetensors",
    )
    max_lora_rank: int = setting(64, minimum=1, help="largest rank of an adapter")

    def __post_init__(self) -> None:
        self.directories()

    def directories(self) -> dict[str, Path]:
        """Where each adapter lies, by its name, in order. Raises ValueError."""
        found: dict[str, Path] = {}
        for given in self.lora:
            name, _, directory = given.partition("=")
            if not (directory and ADAPTER_NAME.fullmatch(name)):
                raise ValueError(
                    f"--lora {given!r} is not NAME=DIR, NAME being at most {MAX_NAME} letters, digits, '-', '_' and '.'"
                )
            if name in found:
                raise ValueError(f"--lora gives {name!r} twice")
            found[name] = Path(directory)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSettings:
    """What one request may ask for."""

    max_images: int = setting(16, minimum=0, help="most pictures in a request")
    max_image_bytes: int = setting(20 * 2**20, minimum=1, help="largest picture file")
    max_image_pixels: int = setting(50_000_000, minimum=1, help="largest picture, in pixels")
    max_priority: int = setting(0, minimum=-10, maximum=10, help="highest priority that a request may ask for")
    max_seconds: float = setting(300.0, minimum=0.001, help="longest time for a request that sets no deadline")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTlsSettings:
    """How the decoder speaks with the vision replicas. The files are read again when they change."""

    vision_tls: bool = setting(False, help="speak TLS with the vision replicas; --vision-ca and --vision-cert imply it")
    vision_ca: Path | None = setting(None, help="authorities, PEM, to trust; the system's where unset")
    vision_cert: Path | None = setting(None, help="certificate chain of this decoder, PEM")
    vision_key: Path | None = setting(None, help="its private key, PEM")
    vision_server_name: str = setting(
        "", help="name in the replicas' certificates; the one in --vision-addresses where empty"
    )

    def __post_init__(self) -> None:
        if (self.vision_cert is None) != (self.vision_key is None):
            raise ValueError("--vision-cert and --vision-key go together")
        if self.vision_server_name and not self.is_on:
            raise ValueError("--vision-server-name needs --vision-tls or --vision-ca")

    @property
    def is_on(self) -> bool:
        """Whether to speak TLS at all."""
        return self.vision_tls or self.vision_ca is not None or self.vision_cert is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """All settings of the service."""

    server: ServerConfig
    model: ModelSettings
    engine: EngineSettings
    requests: RequestSettings
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    logs: LogSettings = field(default_factory=LogSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    vision: VisionTlsSettings = field(default_factory=VisionTlsSettings)
    tokenizer: Path | None = setting(None, help="tokenizer file; the checkpoint's own where unset")
    vision_addresses: tuple[str, ...] = setting(
        (), help="HOST:PORT of each vision replica, or dns:///NAME:PORT for all behind a name"
    )
    shared_memory: bool = setting(True, help="take features through memory that a vision service on this host offers")
    vision_hedge_seconds: float | None = setting(
        None, minimum=0.001, help="time after which a picture is sent to a second vision replica too; never where unset"
    )

    def __post_init__(self) -> None:
        check_image_fits(self.requests.max_image_bytes, self.server.max_message_bytes)
        check_targets(self.vision_addresses)
        if self.requests.max_image_bytes > self.engine.max_picture_bytes:
            raise ValueError(
                f"--max-image-bytes {self.requests.max_image_bytes} does not fit into --max-picture-bytes "
                f"{self.engine.max_picture_bytes}"
            )
        self._check_number_types()
        self._check_attention()

    def _check_attention(self) -> None:
        backend, model = self.engine.attention_backend, self.model
        has_choice = model.device != "cpu" and model.compute is ComputeChoice.AUTO and not model.deterministic
        if backend is not AttentionBackend.AUTO and not has_choice:
            raise ValueError(
                f"--attention-backend {backend.value} is for --device cuda, without --compute torch or --deterministic"
            )

    def _check_number_types(self) -> None:
        quantize, model = self.engine.quantize, self.model
        is_fp8 = quantize is Quantize.FP8 or self.engine.kv_cache_dtype is KVCacheDtype.FP8
        if quantize is Quantize.INT8 and not model.may_have_kernels:
            raise ValueError(
                "--quantize int8 needs the kernels: --device cpu, no --dtype float16 and not --compute torch"
            )
        if is_fp8 and (quantize is Quantize.INT8 or model.compute is ComputeChoice.NATIVE):
            raise ValueError(
                "--quantize int8 and --compute native do not go with fp8: the kernels know no 8-bit floats"
            )
        if (
            quantize is Quantize.FP8
            and model.device != "cpu"
            and model.dtype not in (DtypeChoice.AUTO, DtypeChoice.BFLOAT16)
        ):
            raise ValueError(f"--quantize fp8 needs --dtype bfloat16 on a GPU, not {model.dtype.value}")
