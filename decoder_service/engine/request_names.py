"""The names of the requests that are open.

Knows names and a digest of what was asked under each. Does not know who called: names come with their caller.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import AbortedError, AlreadyExistsError


class RequestNames:
    """Each name belongs to one open request."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}
        self._leaving: dict[str, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._digests)

    @contextmanager
    def held(self, name: str, digest: bytes) -> Iterator[None]:
        """Hold a name while a request is open, with a digest of the request.

        Raises AbortedError where the same request is open under it, and AlreadyExistsError where another one is: a
        caller that only sent its request twice must be able to tell.
        """
        known = self._digests.get(name)
        if known == digest:
            raise AbortedError("REQUEST_RUNNING", "this request is running already", field="request_id")
        if known is not None:
            raise AlreadyExistsError(
                "REQUEST_EXISTS", "another request with this request_id is running", field="request_id"
            )
        self._digests[name] = digest
        try:
            yield
        finally:
            del self._digests[name]
            if name in self._leaving:
                self._leaving.pop(name).set()

    def leave(self, name: str) -> None:
        """Note that the call of a name's request is over, so that the name is soon free."""
        if name in self._digests:
            self._leaving.setdefault(name, asyncio.Event())

    def is_leaving(self, name: str) -> bool:
        """Whether a name is held by a request whose call is over."""
        return name in self._leaving

    async def left(self, name: str) -> None:
        """Wait while a name is held by a request whose call is over."""
        while self.is_leaving(name):
            await self._leaving[name].wait()
