"""Whether one more request is let in.

Knows how much is open and how much waits. Does not know what requests hold, or when their turn comes.

Requests are bounded in number, and those that wait also in tokens, as it is tokens and not requests that take time.
What counts is the most that a request may come to, its prompt once and `max_tokens` for each of its completions: most
end sooner, but nobody knows before which ones do, and a token of a completion takes longer than one of a prompt.
Pictures are kept until their request ends, because a preempted request needs them again, so their bytes are bounded
too. The tokens of a prompt are known only once it is laid out; until then a guess counts, so that a burst
is refused at once and not after it was laid out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import InvalidArgumentError, ResourceExhaustedError

RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much may be open."""

    max_requests: int
    """Requests that run or wait."""
    max_waiting_tokens: int
    """Tokens that those that wait may come to; one that waits alone may have more."""
    max_picture_bytes: int
    """Bytes of the pictures of all that are open."""


class Place:
    """What one open request counts for."""

    def __init__(self, admission: "Admission", *, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._admission = admission

    def laid_out(self, num_tokens: int) -> None:
        """Count what it may come to instead of the guess. Raises ResourceExhaustedError where that is too much."""
        self._admission.num_waiting_tokens -= self.num_tokens
        self.num_tokens = 0
        self._admission.check_tokens(num_tokens)
        self.num_tokens = num_tokens
        self._admission.num_waiting_tokens += num_tokens

    def begun(self) -> None:
        """Count the tokens no more: the request was worked on."""
        self._admission.num_waiting_tokens -= self.num_tokens
        self.num_tokens = 0


class Admission:
    """Gives out places, and refuses at once where there is none."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.num_requests = 0
        self.num_waiting_tokens = 0
        self.picture_bytes = 0
        self._limits = limits

    @contextmanager
    def place(self, *, num_tokens: int, picture_bytes: int) -> Iterator[Place]:
        """A place for one request, with a guess at its tokens, until it ends.

        Raises ResourceExhaustedError QUEUE_FULL, and InvalidArgumentError where no waiting would help.
        """
        limits = self._limits
        if picture_bytes > limits.max_picture_bytes:
            raise InvalidArgumentError(
                "IMAGES_TOO_LARGE",
                f"the pictures have {picture_bytes} bytes together, {limits.max_picture_bytes} is the most",
                metadata={"limit": limits.max_picture_bytes, "got": picture_bytes},
            )
        self.check_open()
        if self.picture_bytes + picture_bytes > limits.max_picture_bytes:
            raise _full("too many pictures are open", limits.max_picture_bytes, "bytes of pictures")
        self.check_tokens(num_tokens)
        place = Place(self, num_tokens=num_tokens)
        self.num_requests += 1
        self.num_waiting_tokens += num_tokens
        self.picture_bytes += picture_bytes
        try:
            yield place
        finally:
            place.begun()
            self.num_requests -= 1
            self.picture_bytes -= picture_bytes

    def check_open(self) -> None:
        """Raise ResourceExhaustedError where no request at all is let in now, whatever it asks for."""
        if self.num_requests >= self._limits.max_requests:
            raise _full("too many requests are open", self._limits.max_requests, "requests")
        self.check_tokens(1)

    def check_tokens(self, num_tokens: int) -> None:
        """Raise ResourceExhaustedError where so many more tokens are too many to wait."""
        if self.num_waiting_tokens and self.num_waiting_tokens + num_tokens > self._limits.max_waiting_tokens:
            raise _full("too many tokens are waiting", self._limits.max_waiting_tokens, "tokens")


def _full(message: str, limit: int, unit: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "QUEUE_FULL", message, metadata={"limit": limit, "unit": unit}, retry_after=RETRY_SECONDS
    )
