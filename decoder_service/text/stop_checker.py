"""Finds stop texts in a growing text, and never lets a part of one out.

Knows characters. Does not know tokens. The text runs through an automaton (Aho and Corasick's) whose state is
the longest end of the text so far that begins some stop text. That end is exactly what must be held back: any
stop text still to come starts inside it. Each character costs constant time, so a completion costs linear time
however the stop texts overlap.

    stop texts "###" and "\\n\\nUser":     text   a b \\n # # c \\n \\n U s e r
                                       held   0 0  1 1 2 0  1  2 3 4 5 -> stop
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Checked(NamedTuple):
    """What may be told after a piece of text."""

    text: str
    """Text that is certain not to be part of a stop text."""
    stop: str | None
    """The stop text that ended the completion, or None."""


class StopChecker:
    """The stop texts of one completion.

    The stop text that is complete first wins, and of several that are complete at once the longest, so the
    result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop texts, none of them empty."""
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._stop: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._fallback = [0] * len(self._next)
        self._link()
        self._state = 0
        self._held = ""
        self._stopped: str | None = None
        self.looks_for_nothing = len(self._next) == 1
        """Whether there is no stop text, so that whatever is fed may be told."""

    def feed(self, text: str) -> Checked:
        """Add text; returns what may be told. Once a stop text was found there is nothing more to tell."""
        if self._stopped is not None:
            return Checked("", self._stopped)
        if self.looks_for_nothing:
            return Checked(text, None)
        known = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            self._state = self._step(self._state, character)
            stop = self._stop[self._state]
            if stop is not None:
                self._stopped, self._held = stop, ""
                return Checked(known[: end - len(stop)], stop)
        certain = len(known) - self._depth[self._state]
        self._held = known[certain:]
        return Checked(known[:certain], None)

    def flush(self) -> str:
        """End the text; returns what was held back for a stop text that never came."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._stop.append(None)
            state = self._next[state][character]
        self._stop[state] = stop

    def _link(self) -> None:
        """Give each state the one of its longest shorter end; short ones first, as the others build on them."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            if self._stop[state] is None:
                self._stop[state] = self._stop[self._fallback[state]]
            for character, child in self._next[state].items():
                self._fallback[child] = self._step(self._fallback[state], character)
                queue.append(child)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(character, 0)
