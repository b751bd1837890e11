"""Devices and number types, as torch names them, and the memory that a device has left.

Knows torch. Does not know services.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from common.model.cgroup import free_bytes_of
from common.model.settings import DtypeChoice

Mark = Callable[[], Callable[[], None]]
"""Notes the place that a device's work has reached; what it returns waits until the device is there."""


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
    """The number type; `auto` is bfloat16 on CUDA and float32, which rounds nothing, on a CPU."""
    if choice is DtypeChoice.AUTO:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        DtypeChoice.FLOAT32: torch.float32,
        DtypeChoice.BFLOAT16: torch.bfloat16,
        DtypeChoice.FLOAT16: torch.float16,
    }[choice]


def mark_for(device: torch.device) -> Mark:
    """What marks places in the work of a device; a CPU's is done when it is given."""
    return partial(_mark_stream, device) if device.type == "cuda" else lambda: wait_for_nothing


def wait_for_nothing() -> None:
    """There is nothing to wait for."""


def _mark_stream(device: torch.device) -> Callable[[], None]:
    """See `Mark`: of a CUDA device's current stream."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: on a GPU what the driver says, else the host's or the container's."""
    if device.type == "cuda":
        # What torch keeps of weights that were rounded or joined counts as used there until it is handed back.
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes(Path("/"))


def free_host_bytes(root: Path) -> int:
    """Memory that can still be taken on the machine, or in the container, whose file system is at `root`."""
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    in_container = free_bytes_of(root)
    return available if in_container is None else min(available, in_container)
