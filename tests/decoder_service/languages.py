"""Languages that completions of tiny models are kept inside, without a library."""

import ctypes

from tests.tiny_models import VOCAB_SIZE


class Pairs:
    """A language of pairs, of any token and the next one, that ends nowhere and gives up after so many tokens."""

    def __init__(self, num_left: int = 1000, first: int | None = None) -> None:
        self._num_left = num_left
        self._first = first
        """Of the pair that is begun."""
        self.has_failed = False

    def fork(self) -> "Pairs":
        return Pairs(self._num_left, self._first)

    def mask(self, address: int, num_bytes: int) -> None:
        self.has_failed = not self._num_left
        ctypes.memset(address, 0xFF if self._first is None and self._num_left else 0, num_bytes)
        if self._first is not None and self._num_left:
            place = (self._first + 1) % VOCAB_SIZE
            ctypes.memset(address + place // 8, 1 << place % 8, 1)

    def take(self, token_id: int) -> bool:
        is_right = self._first is None or token_id == (self._first + 1) % VOCAB_SIZE
        self._first = token_id if self._first is None else None
        self._num_left -= 1
        return is_right

    def forced(self) -> list[int]:
        return [] if self._first is None else [(self._first + 1) % VOCAB_SIZE]
