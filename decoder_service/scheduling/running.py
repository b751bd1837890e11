"""The requests that run, and which of them gives way.

Knows their order and what each tenant has of them. Does not know blocks, or when somebody must give way (see
`scheduler`).
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator

from decoder_service.cache.block_manager import IntegrityError
from decoder_service.engine.request import Request


class RunningRequests:
    """Those that own blocks: the highest class first, in it in order of arrival."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self.num_changes = 0
        """How often somebody came or left."""

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    @property
    def can_move(self) -> bool:
        """Whether any of them has a token that can be computed."""
        return any(request.is_movable for request in self._requests)

    @property
    def movable(self) -> list[Request]:
        """Those with a token that can be computed, in order."""
        return [each for each in self._requests if each.is_movable]

    def add(self, request: Request) -> None:
        """Let a request run."""
        insort(self._requests, request, key=_place)
        self.num_changes += 1

    def remove(self, request: Request) -> None:
        """Let it run no more."""
        self._requests.remove(request)
        self.num_changes += 1

    def victim(self) -> Request:
        """Who gives way when blocks run out.

        First those that cannot use theirs, as their reader is behind or an image is missing; then the lowest class,
        and in it the latest. So the oldest of the highest class always gets to its end.
        """
        return max(self._requests, key=_willingness)

    def victims_for(self, request: Request) -> list[Request]:
        """Those that give way to a waiting request whose turn it is, in the order in which they do.

        First those whose reader is behind, then those of lower classes. Then, for fairness, those of its own class
        whose tenant has most left, as long as that tenant keeps as many as the request's then has: so two tenants
        never take places from each other in turn, and nobody's last is taken.
        """
        # Asked in every step in which somebody waits for a place, and most often nobody gives way.
        yielding = [each for each in self._requests if each.is_paused or each.priority < request.priority]
        victims = sorted(yielding, key=_willingness, reverse=True)
        shares = Counter([each.tenant for each in self._requests])
        shares.subtract([each.tenant for each in victims])
        equals = [each for each in self._requests if not each.is_paused and each.priority == request.priority]
        least = shares[request.tenant] + 2
        while equals and (share := max([shares[each.tenant] for each in equals])) >= least:
            victim = max((each for each in equals if shares[each.tenant] == share), key=_willingness)
            equals.remove(victim)
            victims.append(victim)
            shares[victim.tenant] -= 1
        return victims

    def check_integrity(self) -> None:
        """Raises IntegrityError where they are not in order."""
        if self._requests != sorted(self._requests, key=_place):
            raise IntegrityError("those that run are not in order")


def num_places_of(requests: Iterable[Request]) -> int:
    """The places that they take: those that will part from them have theirs from the start."""
    return sum(request.num_places for request in requests)


def _place(request: Request) -> tuple[int, int]:
    """Where a request stands among those that run; completions of one prompt stand together."""
    return -request.priority, request.arrival


def _willingness(request: Request) -> tuple[bool, bool, int, int, int]:
    """What makes a request give way before others; the largest goes first."""
    return request.is_paused, not request.is_movable, -request.priority, request.arrival, request.index
