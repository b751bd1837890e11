"""A queue in which the highest class goes first, in it the tenant that got least, and of a tenant the first.

Knows order. Does not know what waits, or when its turn comes. Looking at the head costs the same for ten that wait and
for ten thousand: only the heads of tenants that were charged since the last look are moved.
"""

from bisect import bisect_left
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from typing import Generic, Protocol, TypeVar

from decoder_service.cache.block_manager import IntegrityError
from decoder_service.scheduling.token_counters import TokenCounters


class Queued(Protocol):
    """What can wait."""

    @property
    def priority(self) -> int:
        """Class: higher ones go first, whatever else."""

    @property
    def tenant(self) -> bytes:
        """Who shares fairly with others."""

    @property
    def arrival(self) -> int:
        """Place in the order of arrival."""


Item = TypeVar("Item", bound=Queued)


class FairQueue(Generic[Item]):
    """Whoever goes next is at the head; anybody may leave at any time."""

    def __init__(self, counters: TokenCounters) -> None:
        """Take the counters that say who got how much; whoever does the work charges them."""
        self._counters = counters
        self._classes: dict[int, _Class[Item]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """All that wait, in no order."""
        return (item for each in self._classes.values() for line in each.lines.values() for item in line)

    def push(self, item: Item) -> None:
        """Let something wait."""
        if item.priority not in self._classes:
            self._classes[item.priority] = _Class(self._counters)
        self._classes[item.priority].push(item)
        self._length += 1

    @property
    def head(self) -> Item | None:
        """What goes next; None where nothing waits."""
        if not self._length:
            return None
        return self._classes[max(priority for priority, each in self._classes.items() if each.lines)].head

    def first(self, count: int) -> Iterator[Item]:
        """Some of those that wait: the highest class first, and of each tenant the first; not by what tenants got.

        Costs nothing until it is gone through, and then the same for any number of others.
        """
        lines = (line for _, each in sorted(self._classes.items(), reverse=True) for line in each.lines.values())
        return islice((item for line in lines for item in reversed(line)), count)

    def remove(self, item: Item) -> None:
        """Let something wait no more. Raises ValueError where it does not wait."""
        line_up = self._classes.get(item.priority)
        if line_up is None:
            raise ValueError("it does not wait")
        line_up.remove(item)
        self._length -= 1

    def check_integrity(self) -> None:
        """Compare the books with each other; raises IntegrityError."""
        if len(list(self)) != self._length:
            raise IntegrityError("a queue does not know how many wait in it")
        for priority, each in self._classes.items():
            each.check_integrity(priority)


class _Class(Generic[Item]):
    """A class: one line for each tenant, and a heap of the tenants.

    A tenant's place in the heap is by its counter when it was put there. As counters only grow, the first one whose
    counter is still that is the one that got least.
    """

    def __init__(self, counters: TokenCounters) -> None:
        self.lines: dict[bytes, list[Item]] = {}
        """Latest arrival first, so that the head is taken off the end."""
        self._counters = counters
        self._heap: list[tuple[int, int, bytes]] = []
        self._entries: dict[bytes, int] = {}
        """Of each tenant that waits, the number of its entry in the heap; other entries are left over."""
        self._num_entries = 0
        self._floor = 0
        self._last: bytes | None = None
        """The tenant that left the class empty."""

    def push(self, item: Item) -> None:
        line = self.lines.get(item.tenant)
        if line is None:
            self._join(item.tenant)
            self.lines[item.tenant] = [item]
        else:
            line.insert(bisect_left(line, -item.arrival, key=_place), item)

    @property
    def head(self) -> Item:
        while True:
            counter, entry, tenant = self._heap[0]
            if self._entries.get(tenant) != entry:
                heappop(self._heap)
            elif self._counters.get(tenant) > counter:
                heapreplace(self._heap, (self._counters.get(tenant), entry, tenant))
            else:
                self._floor = max(self._floor, counter)
                return self.lines[tenant][-1]

    def remove(self, item: Item) -> None:
        line = self.lines.get(item.tenant, [])
        index = bisect_left(line, -item.arrival, key=_place)
        # Completions of one prompt arrive as one.
        while index < len(line) and line[index].arrival == item.arrival and line[index] is not item:
            index += 1
        if index == len(line) or line[index] is not item:
            raise ValueError("it does not wait")
        line.pop(index)
        if not line:
            del self.lines[item.tenant], self._entries[item.tenant]
            self._last = item.tenant
            self._tidy()

    def check_integrity(self, priority: int) -> None:
        live = {tenant: counter for counter, entry, tenant in self._heap if self._entries.get(tenant) == entry}
        if not self.lines.keys() == self._entries.keys() == live.keys():
            raise IntegrityError("a tenant waits without a place among the others")
        if any(counter > max(self._counters.get(tenant), self._floor) for tenant, counter in live.items()):
            raise IntegrityError("a tenant waits for more than it was given")
        for tenant, line in self.lines.items():
            if not line or any((item.priority, item.tenant) != (priority, tenant) for item in line):
                raise IntegrityError("something waits in a line that is not its own")
            if line != sorted(line, key=_place):
                raise IntegrityError("a line is not in order of arrival")

    def _join(self, tenant: bytes) -> None:
        if self.lines:
            _ = self.head  # Brings the floor up to those that wait.
        elif self._last is not None:
            self._floor = max(self._floor, self._counters.get(self._last))
        self._counters.lift(tenant, self._floor)
        self._num_entries += 1
        self._entries[tenant] = self._num_entries
        heappush(self._heap, (self._counters.get(tenant), self._num_entries, tenant))

    def _tidy(self) -> None:
        """Drop left-over entries before they are most of the heap."""
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [each for each in self._heap if self._entries.get(each[2]) == each[1]]
            heapify(self._heap)


def _place(item: Queued) -> int:
    return -item.arrival
