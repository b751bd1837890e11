"""Who hears what of which request.

Knows names and what a step puts out. Does not know threads or the engine. Used on the event loop alone.
"""

from common.errors import DiptychError
from decoder_service.engine.listener import Listener, Nobody
from decoder_service.engine.step import StepOutput, WantedImages


class Listeners:
    """The listener of each request that the engine has; one that is gone hears nothing."""

    def __init__(self) -> None:
        self._by_name: dict[str, Listener] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_name

    def hears(self, request_id: str, listener: Listener) -> bool:
        """Whether it is this one that hears of a request."""
        return self._by_name.get(request_id) is listener

    def add(self, request_id: str, listener: Listener) -> None:
        """Have a request told to a listener, in place of another one where there is one."""
        self._by_name[request_id] = listener

    def forget(self, request_id: str, listener: Listener) -> None:
        """Tell nobody of a request any more, if this is who hears of it."""
        if self._by_name.get(request_id) is listener:
            del self._by_name[request_id]

    def fail(self, error: DiptychError) -> None:
        """End all requests with an error."""
        listeners, self._by_name = self._by_name, {}
        for listener in listeners.values():
            listener.failed(error)

    def want(self, wanted: WantedImages) -> None:
        """Tell which images a completion needs."""
        self._by_name.get(wanted.request_id, _NOBODY).wanted(wanted)

    def publish(self, output: StepOutput, started_at: float, ended_at: float) -> None:
        """Tell what a step put out that took from one time to the other; who hears a last token hears no more."""
        listeners = self._by_name
        for request_id in output.first_scheduled:
            listeners.get(request_id, _NOBODY).scheduled(started_at)
        for ref in output.consumed:
            listeners.get(ref.request_id, _NOBODY).consumed(ref)
        for wanted in output.wanted:
            self.want(wanted)
        for token in output.tokens:
            find = listeners.pop if token.is_last else listeners.get
            find(token.request_id, _NOBODY).token(token, ended_at)
        for request_id, error in output.failed:
            listeners.pop(request_id, _NOBODY).failed(error)


_NOBODY: Listener = Nobody()
