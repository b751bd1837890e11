"""Opens the kernels for a service: found or built for this processor, loaded, with its threads.

Knows when they can be used, and sets how many threads compute. Who asks does without where there are none.
"""

from typing import NamedTuple

import torch

from common.model.cores import num_threads
from common.model.settings import ComputeChoice, ModelSettings
from common.model.weight_types import Matrices, WeightTypes
from common.native.build import best_library, default_cache
from common.native.library import Library
from common.native.processor import NativeUnavailableError


def open_library(*, threads: int, rounds: bool = False) -> Library:
    """The kernels, with so many threads; see `Library` for `rounds`.

    Raises NativeUnavailableError; the first time on a machine takes seconds.
    """
    path, level = best_library(default_cache())
    return Library(path, level=level, threads=threads, rounds=rounds)


def weight_types(library: Library | None, dtype: torch.dtype) -> WeightTypes:
    """What weights are loaded as where a model runs in `dtype`: the kernels take float32, but for matrices."""
    if library is None:
        return WeightTypes(dtype)
    return WeightTypes(torch.float32, Matrices.ROUNDED if library.rounds else Matrices.STORED)


class LibraryChoice(NamedTuple):
    """The kernels, or why they do not compute."""

    library: Library | None
    why_not: str
    """Empty where they do."""


def choose_library(
    settings: ModelSettings, *, device: torch.device, dtype: torch.dtype, obstacle: str = ""
) -> LibraryChoice:
    """The kernels where a service with these settings computes with them, or why it does not.

    An `obstacle` is what the caller knows to stand against them. Threads are given either to them or to torch. Raises
    ValueError where they are insisted on and cannot be had.
    """
    # torch counts the machine's cores, whatever a container has time of.
    torch.set_num_threads(settings.threads or min(torch.get_num_threads(), num_threads()))
    if settings.compute is ComputeChoice.TORCH:
        return LibraryChoice(None, "plain torch is asked for")
    try:
        if obstacle:
            raise NativeUnavailableError(obstacle)
        if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            raise NativeUnavailableError(f"the kernels are for float32 and bfloat16 on a CPU, not {dtype} on {device}")
        library = open_library(threads=torch.get_num_threads(), rounds=dtype == torch.bfloat16)
    except NativeUnavailableError as error:
        if settings.compute is ComputeChoice.NATIVE:
            raise ValueError(f"--compute native: {error}") from None
        return LibraryChoice(None, str(error))
    # What is left to torch is small, and its threads would stand in the way of the kernels' own.
    torch.set_num_threads(1)
    return LibraryChoice(library, "")
