"""Opens the kernels for a service: found or built for this processor, loaded, with its threads.

Knows the order. Who asks decides what to do where there are none.
"""

from common.native.build import cpu_level, default_cache, find_or_build
from common.native.library import Library


def open_library(*, threads: int) -> Library:
    """The kernels, with so many threads. Raises NativeUnavailableError; the first time on a machine takes seconds."""
    level = cpu_level()
    return Library(find_or_build(default_cache(), level), level=level, threads=threads)
