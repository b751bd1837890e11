"""How fast one core reads what another has just written: whether two cores share a cache.

Knows threads and cores. Does not know what is measured beside it. Where a host moves its guests' processors about, the
same machine has them now behind one cache and now behind two, and whatever two processes hand to each other is up to
three times as slow in the latter case; a figure means little without this one.
"""

import ctypes
import os
import statistics
import threading
import time

_SIZE = 256 << 10
_TIMES = 24


def handover_speed() -> float:
    """Gigabytes a second from one core's cache to another; 0 where the process may use only one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return 0.0
    written, place = ctypes.create_string_buffer(_SIZE), ctypes.create_string_buffer(_SIZE)
    ready, taken = threading.Semaphore(0), threading.Semaphore(0)
    seconds: list[float] = []

    def read() -> None:
        os.sched_setaffinity(0, cores[1:2])
        for _ in range(_TIMES):
            ready.acquire()
            begin = time.perf_counter()
            ctypes.memmove(place, written, _SIZE)
            seconds.append(time.perf_counter() - begin)
            taken.release()

    def write() -> None:
        os.sched_setaffinity(0, cores[:1])
        for number in range(_TIMES):
            ctypes.memset(written, number, _SIZE)
            ready.release()
            taken.acquire()

    threads = [threading.Thread(target=each) for each in (read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _SIZE / statistics.median(seconds) / 1e9
