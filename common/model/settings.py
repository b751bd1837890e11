"""The settings that say which model a service runs, and on what; both services have them.

Knows names and defaults. Does not know torch or files.
"""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from common.settings.settings import setting


class DtypeChoice(Enum):
    """Type of weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ComputeChoice(Enum):
    """What computes."""

    AUTO = "auto"
    TORCH = "torch"
    NATIVE = "native"


class Quantize(Enum):
    """How the decoder's weights are kept."""

    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"


class KVCacheDtype(Enum):
    """Type of keys and values."""

    AUTO = "auto"
    FP8 = "fp8"


class AttentionBackend(Enum):
    """What computes the decoder's attention on CUDA."""

    AUTO = "auto"
    TRITON = "triton"
    TORCH = "torch"
    FLASHINFER = "flashinfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What is served, and on what."""

    model: Path = setting(help="checkpoint directory")
    model_name: str = setting("", help="name to serve it under; the directory's name where empty")
    device: str = setting("cpu", help="cpu, cuda or cuda:N")
    dtype: DtypeChoice = setting(
        DtypeChoice.AUTO,
        help="type of weights, and of what is multiplied with them; auto is float32 on cpu, bfloat16 on cuda",
    )
    compute: ComputeChoice = setting(
        ComputeChoice.AUTO,
        help="kernels of our own (native: on a CPU, built at the first start) or plain torch; "
        "auto takes the kernels where they can be had",
    )
    threads: int | None = setting(
        None,
        minimum=1,
        maximum=1024,
        help="threads that compute on a CPU; OMP_NUM_THREADS, or all cores that the container has time of, where unset",
    )
    deterministic: bool = setting(
        False, help="the same answer, bit for bit, whatever else is computed beside it; slower"
    )
    verify_checksums: bool = setting(False, help="check the files against the model's SHA256SUMS while they load")

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.compute is ComputeChoice.NATIVE and not self.may_have_kernels:
            raise ValueError(
                "--compute native needs --device cpu and no --dtype float16, which the kernels do not know"
            )

    @property
    def may_have_kernels(self) -> bool:
        """Whether our kernels for CPUs may compute this, if they can be had."""
        return (
            self.device == "cpu" and self.dtype is not DtypeChoice.FLOAT16 and self.compute is not ComputeChoice.TORCH
        )

    @property
    def served_name(self) -> str:
        """The name that callers see."""
        return self.model_name or self.model.resolve().name


def check_device(device: str) -> None:
    """Raise ValueError for what names no device that we know."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device {device!r} is not supported; use cpu, cuda or cuda:N")
