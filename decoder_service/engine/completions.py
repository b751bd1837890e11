"""Which completions run or wait, by the name of their request.

Knows names and indices. Does not know blocks or order (see `scheduler`).
"""

from decoder_service.engine.request import Request


class Completions:
    """A request is here as long as any of its completions has not ended."""

    def __init__(self) -> None:
        self._by_request: dict[str, list[Request]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_request

    def add(self, completion: Request) -> None:
        """Let a completion be found."""
        self._by_request.setdefault(completion.request_id, []).append(completion)

    def remove(self, completion: Request) -> None:
        """Forget a completion that has ended."""
        others = self._by_request[completion.request_id]
        others.remove(completion)
        if not others:
            del self._by_request[completion.request_id]

    def of(self, request_id: str) -> list[Request]:
        """Those of a request, in order; none where it is unknown or has ended."""
        return list(self._by_request.get(request_id, ()))

    def find(self, request_id: str, index: int) -> Request | None:
        """One of them; None where it is unknown or has ended."""
        return next((each for each in self.of(request_id) if each.index == index), None)

    def all(self) -> list[Request]:
        """Those of all requests."""
        return [each for completions in self._by_request.values() for each in completions]
