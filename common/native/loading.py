"""Loads a library of kernels into this process, where nothing but its interface in C is known of it."""

import ctypes
from pathlib import Path

from common.native.build import VERSION
from common.native.processor import NativeUnavailableError


def load(path: Path) -> ctypes.CDLL:
    """The library in a file. Raises NativeUnavailableError where it does not load or has another interface."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path} does not load: {error}") from error
    if library.diptych_version() != VERSION:
        raise NativeUnavailableError(f"{path} is of another version")
    return library
