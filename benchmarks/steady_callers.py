"""Callers that ask about one new picture after the other, while something happens to the services.

Knows what is asked, and counts answers and errors. Does not know what happens.
"""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from benchmarks.fake_vision import picture
from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError


class SteadyCallers:
    """Some threads that share a client."""

    def __init__(self, client: DiptychClient, *, count: int) -> None:
        self.num_done = 0
        self.errors: list[ClientError] = []
        self._client = client
        self._count = count
        self._numbers = itertools.count()
        self._stopping = Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask while inside."""
        with ThreadPoolExecutor(max_workers=self._count) as threads:
            callers = [threads.submit(self._ask) for _ in range(self._count)]
            try:
                yield
            finally:
                self._stopping.set()
            for caller in callers:
                caller.result()

    def _ask(self) -> None:
        while not self._stopping.is_set():
            question = user_message("?", [picture(next(self._numbers), side=64)])
            try:
                self._client.complete([question], timeout=30, max_tokens=2, ignore_eos=True)
                self.num_done += 1
            except ClientError as error:
                self.errors.append(error)
            time.sleep(0.02)
