"""Which images the waiting requests still need.

Knows what the prefix cache covers of a request. Does not know how images come, or whose turn it is (see `scheduler`).
"""

from decoder_service.cache.prefix_cache import PrefixCache
from decoder_service.engine.request import Request
from decoder_service.engine.step import StepOutput
from decoder_service.scheduling.waiting import WaitingRequests


class ImageWishes:
    """Asks for images, in a step's output."""

    def __init__(self, waiting: WaitingRequests, prefix_cache: PrefixCache) -> None:
        self._waiting = waiting
        self._prefix_cache = prefix_cache

    def take_back(self, output: StepOutput) -> None:
        """Queue the requests that have just begun to wait, and ask for the images that no remembered block covers."""
        for request in self._waiting.take_changed():
            output.consumed.extend(request.release_features(request.num_prompt_tokens))
            if request.is_paused:
                output.want(request, ())
            else:
                self._prefix_cache.find(request)
                output.want(request, request.uncovered_images)
                self._waiting.add(request)

    def wait_on(self, request: Request, output: StepOutput) -> None:
        """Send a request whose turn has come back to wait, as the prefix cache no longer covers its images."""
        if not set(request.uncovered_images) <= set(request.wanted_images):
            request.num_cached_tokens = 0
            output.consumed.extend(request.release_features(request.num_prompt_tokens))
            output.want(request, request.uncovered_images)
        self._waiting.add(request)
