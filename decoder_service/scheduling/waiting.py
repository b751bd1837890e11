"""The requests that wait, by what they wait for.

Knows the places and who goes next. Does not know blocks, or why somebody waits (see `scheduler`).

    awaiting features --> ready --> (runs)
          ^                 ^          |  preempted
          +---- returning --+ <--------+
                    ^
                  paused

A step looks at the head of the ready ones and at what has just changed, and at no other: ten thousand that wait cost
it nothing.
"""

from collections.abc import Iterator

from decoder_service.cache.block_manager import IntegrityError
from decoder_service.engine.request import Request
from decoder_service.scheduling.fair_queue import FairQueue
from decoder_service.scheduling.token_counters import TokenCounters


class WaitingRequests:
    """Those that own no blocks."""

    def __init__(self, counters: TokenCounters) -> None:
        self.ready: FairQueue[Request] = FairQueue(counters)
        """Those that could run."""
        self._awaiting_features: dict[Request, None] = {}
        self._paused: dict[Request, None] = {}
        self._changed: dict[Request, None] = {}
        """Those that are to want other images than before: preempted, paused while they waited, or to go on."""

    def __len__(self) -> int:
        # Of a copy, as figures may be read beside a running step.
        num_returning = sum(not request.is_paused for request in tuple(self._changed))
        return len(self.ready) + len(self._awaiting_features) + len(self._paused) + num_returning

    def __iter__(self) -> Iterator[Request]:
        """All of them, each once."""
        yield from self.ready
        yield from self._awaiting_features
        yield from self._paused
        yield from (request for request in self._changed if not request.is_paused)

    @property
    def by_reason(self) -> dict[str, int]:
        """How many wait for what; all of them together are `len`."""
        images, paused = len(self._awaiting_features), len(self._paused)
        return {"images": images, "reader": paused, "capacity": len(self) - images - paused}

    @property
    def could_begin(self) -> bool:
        """Whether anybody waits for its turn, or may soon."""
        return bool(self._changed) or len(self.ready) > 0

    @property
    def has_changed(self) -> bool:
        """Whether `take_changed` would give any."""
        return bool(self._changed)

    def add(self, request: Request) -> None:
        """Let a request wait for its features or for its turn."""
        if request.is_ready:
            self.ready.push(request)
        else:
            self._awaiting_features[request] = None

    def features_arrived(self, request: Request) -> None:
        """Notice that a request holds more features than before."""
        if request in self._awaiting_features and request.is_ready:
            del self._awaiting_features[request]
            self.ready.push(request)

    def preempted(self, request: Request) -> None:
        """Take one that ran."""
        self._changed[request] = None
        if request.is_paused:
            self._paused[request] = None

    def pause(self, request: Request) -> None:
        """Let a waiting request wait for its reader."""
        self.remove(request)
        request.is_paused = True
        self._paused[request] = None
        if request.placeholders:
            self._changed[request] = None

    def resume(self, request: Request) -> None:
        """Let a paused one wait for its features or for its turn again."""
        request.is_paused = False
        del self._paused[request]
        self._changed[request] = None

    def take_changed(self) -> list[Request]:
        """Those that are to want other images than before. Whoever takes them adds those that are not paused."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it waits."""
        is_placed = request in self._awaiting_features or request in self._paused or request in self._changed
        for place in (self._awaiting_features, self._paused, self._changed):
            place.pop(request, None)
        if not is_placed:
            self.ready.remove(request)

    def check_integrity(self) -> None:
        """Compare the places with what is in them; raises IntegrityError."""
        self.ready.check_integrity()
        for request in (*self.ready, *self._awaiting_features):
            if request.is_paused or request in self._changed:
                raise IntegrityError(f"request {request.request_id} waits in two places")
            if (request in self._awaiting_features) == request.is_ready:
                raise IntegrityError(f"request {request.request_id} waits for the wrong thing")
        if not all(request.is_paused for request in self._paused):
            raise IntegrityError("a request that is not paused waits for its reader")
        if any(request.is_paused and request not in self._paused for request in self._changed):
            raise IntegrityError("a paused request waits for nobody")
