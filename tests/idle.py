"""What must be left when a test is over: an engine without requests, and a process as it was before.

Engines, hosts and feature stores are noted when they are made. What a test left running is aborted first, as when its
caller leaves; whatever is then still held was leaked.
"""

import gc
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from decoder_service.cache.feature_store import FeatureStore
from decoder_service.engine.engine import Engine

LIBRARY_THREADS = (
    "pytest_timeout",
    "tqdm_monitor",
    "asyncio_",
    "ThreadPoolExecutor-",
    "grpc",
    "tokenizers",
    "OTel",
    "Thread-",
    "Dummy-",  # one of gRPC's own, of which Python knows since it asked for certificates
)
"""Beginnings of names of threads that libraries keep for as long as the process lives."""
SECONDS_TO_END = 3.0
LISTENING = "0A"
"""As Linux writes the state of a socket."""
TASKS = Path("/proc/self/task")
DESCRIPTORS = Path("/proc/self/fd")
TCP = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))


def check_engine(engine: Engine) -> None:
    """End what still runs; then every block must be free and nobody may hold or await anything."""
    for request_id in {request.request_id for request in engine._completions.all()}:
        engine.abort(request_id)
    if engine._pipeline.is_busy:
        engine.step()  # It was computed ahead, in vain now.
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_waiting, stats.num_running) == (0, 0), "requests are left"
    assert stats.num_free_blocks == stats.num_blocks, "blocks are left"


def check_store(store: FeatureStore) -> None:
    """No request may hold features, and no other memory than that of those that are kept may be in use."""
    assert store.bytes_held == 0, f"{store.bytes_held} bytes of features are left"
    if store._places.bytes_lent != store.bytes_cached:
        gc.collect()  # What an error refers to is not lost.
    lent = store._places.bytes_lent - store.bytes_cached
    assert lent == 0, f"{lent} bytes of features' memory are in use"


@contextmanager
def leaves_nothing() -> Iterator[None]:
    """Check after what is inside that nothing of it is left. Raises AssertionError."""
    engines: list[Engine] = []
    stores: list[FeatureStore] = []
    threads, processes, files = set(threading.enumerate()), _children(), _open_files(set())
    ports = _own_ports()
    with pytest.MonkeyPatch.context() as patch:
        _note(patch, Engine, engines)
        _note(patch, FeatureStore, stores)
        yield
    while engines:  # Those of an engine end with it.
        check_engine(engines.pop())
    for store in stores:
        check_store(store)
    _check_threads(threads)
    _check_processes(processes)
    _check_files(files, ports)


def _note(patch: pytest.MonkeyPatch, kind: type, made: list) -> None:  # type: ignore[type-arg]
    init = vars(kind)["__init__"]

    def noting(self: object, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)
        made.append(self)

    patch.setattr(kind, "__init__", noting)


def _check_threads(before: set[threading.Thread]) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end and _new_threads(before):
        gc.collect()
        time.sleep(0.01)
    assert not _new_threads(before), f"threads are left: {_new_threads(before)}"


def _new_threads(before: set[threading.Thread]) -> list[str]:
    new = (thread.name for thread in set(threading.enumerate()) - before)
    return [name for name in new if not name.startswith(LIBRARY_THREADS)]


def _check_processes(before: set[tuple[int, str]]) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end and _children() - before:
        time.sleep(0.01)
    assert not _children() - before, f"processes are left: {_children() - before}"


def _children() -> set[tuple[int, str]]:
    """Processes that this one has begun, dead ones that nobody has waited for among them, with their command lines."""
    found = set()
    for task in TASKS.iterdir() if TASKS.is_dir() else ():
        with suppress(OSError):
            for pid in map(int, (task / "children").read_text().split()):
                found.add((pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]))
    return found


def _check_files(before: set[tuple[str, str]], ports: set[str]) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end and _open_files(ports) - before:
        gc.collect()  # What only waits for the collector, or for a library's own thread, is not lost.
        time.sleep(0.01)
    assert not _open_files(ports) - before, f"files are left open: {_open_files(ports) - before}"


def _open_files(ports: set[str]) -> set[tuple[str, str]]:
    """Descriptors of files, pipes and connections over TCP, with what they are.

    Not the connections at these ports of ours: others hold their ends, and may do so for many tests.
    """
    descriptors = list(_descriptors())
    sockets = {what for what, port in _sockets(_sockets_of(descriptors)) if port not in ports}
    found = set()
    for name, what in descriptors:
        is_other = what.startswith(("anon_inode", "/dev/", "/proc/"))
        if not is_other and (not what.startswith("socket:") or what in sockets):
            found.add((name, what))
    return found


def _own_ports() -> set[str]:
    """Ports at which this process listens."""
    return {port for _, port in _sockets(_sockets_of(_descriptors()), state=LISTENING)}


def _descriptors() -> Iterator[tuple[str, str]]:
    """All of this process, with what they are."""
    for entry in DESCRIPTORS.iterdir() if DESCRIPTORS.is_dir() else ():
        with suppress(OSError):
            yield entry.name, str(entry.readlink())


def _sockets_of(descriptors: Iterable[tuple[str, str]]) -> set[str]:
    return {what for _, what in descriptors if what.startswith("socket:")}


def _sockets(own: set[str], *, state: str = "") -> Iterator[tuple[str, str]]:
    """Which of our sockets are of TCP, and their ports; others wake event loops, and live as long as these."""
    for path in TCP if own else ():  # The kernel takes milliseconds for the list, and most tests have no socket.
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            columns = line.split()
            what = f"socket:[{columns[9]}]"
            if what in own and columns[3].startswith(state):
                yield what, columns[1].rpartition(":")[2]
