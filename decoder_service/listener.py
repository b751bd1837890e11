"""What one request hears of the engine, on the event loop.

Knows the events. Does not know threads (see `engine_host`) or what is made of them (see `generation`).
"""

from collections.abc import Sequence
from typing import Protocol

from common.errors import DiptychError
from decoder_service.step import TokenOutput


class Listener(Protocol):
    """What one request hears, on the event loop. Times are seconds of the monotonic clock."""

    def scheduled(self, at: float) -> None:
        """The first step that works on it began."""

    def token(self, token: TokenOutput, at: float) -> None:
        """A step that ended gave a token; the last one has a finish reason."""

    def consumed(self, image_index: int) -> None:
        """The engine needs an image's features no more."""

    def wanted(self, image_indices: Sequence[int]) -> None:
        """These images' features are needed, and whatever was fetched before is void.

        Heard once when the engine has taken the request, and again each time that it has to start anew.
        """

    def failed(self, error: DiptychError) -> None:
        """The request ended with an error."""


class Nobody:
    """Stands in for a listener that is gone."""

    def scheduled(self, at: float) -> None:
        """Hear nothing."""

    def token(self, token: TokenOutput, at: float) -> None:
        """Hear nothing."""

    def consumed(self, image_index: int) -> None:
        """Hear nothing."""

    def wanted(self, image_indices: Sequence[int]) -> None:
        """Hear nothing."""

    def failed(self, error: DiptychError) -> None:
        """Hear nothing."""
