"""What one request hears of the engine, on the event loop.

Knows the events. Does not know threads (see `host`) or what is made of them (see `generation`).
"""

from typing import Protocol

from common.errors import DiptychError
from decoder_service.engine.prompt_images import ImageRef
from decoder_service.engine.step import TokenOutput, WantedImages


class Listener(Protocol):
    """What one request hears, on the event loop. Times are seconds of the monotonic clock."""

    def scheduled(self, at: float) -> None:
        """The first step that works on it began."""

    def token(self, token: TokenOutput, at: float) -> None:
        """A step that ended gave a token; a completion's last one has a finish reason."""

    def consumed(self, ref: ImageRef) -> None:
        """The engine needs an image's features no more for one of the completions."""

    def wanted(self, wanted: WantedImages) -> None:
        """A completion needs these images' features, and whatever was fetched for it before is void.

        Heard once when the engine has taken the request, and again each time that a completion has to start anew.
        """

    def failed(self, error: DiptychError) -> None:
        """The request ended with an error."""


class Nobody:
    """Stands in for a listener that is gone."""

    def scheduled(self, at: float) -> None:
        """Hear nothing."""

    def token(self, token: TokenOutput, at: float) -> None:
        """Hear nothing."""

    def consumed(self, ref: ImageRef) -> None:
        """Hear nothing."""

    def wanted(self, wanted: WantedImages) -> None:
        """Hear nothing."""

    def failed(self, error: DiptychError) -> None:
        """Hear nothing."""
