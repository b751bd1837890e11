"""Places for image features in memory: lent, there again once nobody refers to them, and lent anew.

Knows sizes and how many bytes there may be. Does not know whose features they are, or who has to wait (see
`feature_store`). For new memory the system makes pages, 0.2 ms for a megabyte, and it takes some of that to give
them back.
"""

from collections import OrderedDict, deque

from common.features.feature_memory import give_back, lend, reserve


class FeaturePlaces:
    """Lends places on the event loop; they come back from any thread."""

    def __init__(self, *, budget_bytes: int) -> None:
        """Keep what is not lent where all together are at most `budget_bytes`."""
        self._budget_bytes = budget_bytes
        self._bytes_lent = 0
        self._bytes_kept = 0
        self._kept: OrderedDict[int, list[memoryview]] = OrderedDict()
        """By size; the size that was wanted or came back last is the last."""
        # Whoever refers to a place last lets go of it anywhere, also inside of these methods: so without a lock.
        self._returned: deque[memoryview] = deque()

    @property
    def bytes_lent(self) -> int:
        """Bytes of places that somebody refers to."""
        self._take_back()
        return self._bytes_lent

    @property
    def bytes_kept(self) -> int:
        """Bytes of places that nobody refers to; with those that are lent they stay within the budget."""
        self._take_back()
        return self._bytes_kept

    def take(self, num_bytes: int) -> memoryview:
        """A place with anything in it, lent until nobody refers to it or to a part of it. Raises MemoryError.

        One of another size is not cut or filled in part: all bytes that are there count.
        """
        self._take_back()
        memory = self._pick(num_bytes)
        if memory is None:
            self._make_room(num_bytes)
            memory = reserve(num_bytes)
        self._bytes_lent += num_bytes
        return lend(memory, then=self._returned.append)

    def _take_back(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._bytes_lent -= memory.nbytes
            self._bytes_kept += memory.nbytes
            self._kept.setdefault(memory.nbytes, []).append(memory)
            self._kept.move_to_end(memory.nbytes)
        self._make_room(0)  # Who accounts for them may have counted one as gone before its last reader was.

    def _pick(self, num_bytes: int) -> memoryview | None:
        """A place of that size, the one that came back last, which is the likeliest in the caches."""
        same_size = self._kept.get(num_bytes)
        if same_size is None:
            return None
        memory = same_size.pop()
        self._bytes_kept -= num_bytes
        self._kept.move_to_end(num_bytes)
        if not same_size:
            del self._kept[num_bytes]
        return memory

    def _make_room(self, num_bytes: int) -> None:
        """Give back places of the sizes that were not wanted for longest, until another one fits into the budget."""
        while self._kept and self._bytes_lent + self._bytes_kept + num_bytes > self._budget_bytes:
            memory = self._pick(next(iter(self._kept)))
            if memory is not None:
                give_back(memory)
