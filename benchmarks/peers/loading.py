"""Starts engines and has them load a model, and bears it where a peer cannot.

Knows which engine is ours. Does not know what is measured.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import OURS, Peer
from benchmarks.peers.protocol import PeerError, Worker


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has loaded its model."""

    worker: Worker
    version: str


def load_installed(
    peers: Sequence[Peer],
    stack: ExitStack,
    *,
    folder: Path,
    cores: Sequence[int],
    request: Callable[[Peer], Mapping[str, object]],
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """Start all that are installed, for as long as the stack lives, and ask each to load what `request` says.

    Returns engines by their names, and who is not among them and why. Raises PeerError where that is ours.
    """
    loaded, not_run = {}, {}
    for peer in peers:
        if peer.python(folder) is None:
            not_run[peer.name] = "not installed"
            continue
        worker = stack.enter_context(peer.start(folder, cores))
        with noted(peer.name, not_run):
            loaded[peer.name] = Loaded(worker, worker.ask("load", **request(peer))["version"])
            sys.stderr.write(f"{peer.name} has loaded\n")
    return loaded, not_run


@contextmanager
def noted(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Write down why a peer failed inside, and go on without it. Raises PeerError where it is ours that failed."""
    try:
        yield
    except PeerError as error:
        if name == OURS.name:
            raise
        failed[name] = str(error)
