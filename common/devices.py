"""Names of devices and number types, as torch has them.

Knows torch. Does not know services.
"""

import torch

from common.model_settings import DtypeChoice


def find_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where it is not known or not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not a device; use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name!r} is not here: {torch.cuda.device_count()} CUDA devices were found")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} is not supported; use cpu, cuda or cuda:N")
    return device


def find_dtype(choice: DtypeChoice, device: torch.device) -> torch.dtype:
    """The number type; `auto` is bfloat16 on CUDA and float32 on a CPU, where 16 bits are rarely faster."""
    if choice is DtypeChoice.AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        DtypeChoice.FLOAT32: torch.float32,
        DtypeChoice.BFLOAT16: torch.bfloat16,
        DtypeChoice.FLOAT16: torch.float16,
    }[choice]
