"""Turns the engine on a thread of its own and carries messages between it and the event loop.

Knows threads. Does not know policy, tensors or gRPC. Calls into the engine travel as commands and run
between steps; what a step put out travels back in one piece and is told to the requests' listeners on the
event loop. So the engine needs no lock, and the event loop never waits for a step.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from common.errors import AlreadyExistsError, DiptychError, InternalError, UnavailableError
from decoder_service.engine.calls import EngineCalls, settle, stopped
from decoder_service.engine.engine import Engine
from decoder_service.engine.listener import Listener, Nobody
from decoder_service.engine.listeners import Listeners
from decoder_service.engine.prompt_images import Features, ImageRef
from decoder_service.engine.request import Request
from decoder_service.engine.stats import EngineStats
from decoder_service.engine.step import WantedImages

_log = logging.getLogger(__name__)

_Command = Callable[[Engine], None]


class EngineHost:
    """Owns the engine's thread. Everything but the thread's own loop is called on the event loop."""

    def __init__(
        self, engine: Engine, *, on_fatal: Callable[[], None], on_step: Callable[[int, int, float], None] | None = None
    ) -> None:
        """Take an engine; `on_fatal` is called on the event loop should the thread die.

        `on_step` is called in the engine's thread after each step that computed something, with the number of
        tokens that it computed, the number that it generated, and its duration in seconds.
        """
        self._engine = engine
        self._on_fatal = on_fatal
        self._on_step = on_step
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._listeners = Listeners()
        self._calls = EngineCalls()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_alive = False
        self._busy_since: float | None = None

    @property
    def stats(self) -> EngineStats:
        """The engine's figures; read beside a running step, so they may be of two moments."""
        return self._engine.stats()

    def count_owned_blocks(self, *, patience: float) -> tuple[EngineStats, int] | None:
        """The figures between two steps, and how many blocks the requests own; may be called by any thread.

        None where the engine is busy with one step for longer than `patience` seconds, or has stopped.
        """
        answer: queue.SimpleQueue[tuple[EngineStats, int]] = queue.SimpleQueue()
        self._commands.put(lambda engine: answer.put((engine.stats(), engine.count_owned_blocks())))
        with suppress(queue.Empty):
            return answer.get(timeout=patience)
        return None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, as far as is known."""
        return self._is_alive

    @property
    def busy_since(self) -> float | None:
        """When the thread began what it is at, a step or a command, by the monotonic clock; None while it waits."""
        return self._busy_since

    @property
    def num_requests(self) -> int:
        """Requests that were submitted and that the engine has not let go of."""
        return len(self._listeners)

    def start(self) -> None:
        """Start the thread; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._is_alive = True
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step that it is in."""
        self._is_alive = False
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        self._calls.fail()

    async def submit(self, request: Request, listener: Listener) -> None:
        """Hand a request to the engine; `listener` hears of it from then on. Raises what `Engine.submit` raises.

        `abort` must follow if the request does not end by itself, also where this call is cancelled.
        """
        if not self._is_alive:
            raise stopped()
        if request.request_id in self._listeners:
            raise AlreadyExistsError("REQUEST_EXISTS", "a request with this request_id is running", field="request_id")
        # Before the engine knows it: its first step may be told before this coroutine runs again.
        self._listeners.add(request.request_id, listener)

        def command(engine: Engine) -> None:
            # Told from here, so that it is heard before anything that a step says of the request.
            self._tell(self._listeners.want, WantedImages(request.request_id, engine.submit(request)))

        try:
            await self._call(command)
        except DiptychError:
            self._listeners.forget(request.request_id, listener)
            raise

    def features_arrived(self, ref: ImageRef, features: Features, *, fetch: int) -> None:
        """Hand over features of a completion's `fetch`th fetch, counted from 1; those of an earlier one are void."""
        name, image = ref.request_id, ref.image_index
        self._commands.put(
            lambda engine: _ignore(engine.features_arrived(name, image, features, index=ref.index, fetch=fetch))
        )

    def pause(self, request_id: str) -> None:
        """Have nothing more of a request computed until it is resumed."""
        self._commands.put(lambda engine: engine.set_paused(request_id, paused=True))

    def resume(self, request_id: str) -> None:
        """Have a request computed again."""
        self._commands.put(lambda engine: engine.set_paused(request_id, paused=False))

    def fail(self, request_id: str, error: DiptychError) -> None:
        """End a request with an error, which its listener hears."""
        self._commands.put(lambda engine: _ignore(engine.fail(request_id, error)))

    def end(self, request_id: str, index: int, *, then: Callable[[], None]) -> None:
        """End one completion; `then` is called when the engine has let go of all that it held. The others go on."""

        def command(engine: Engine) -> None:
            engine.end(request_id, index)
            self._tell(then)

        self._commands.put(command)

    async def abort(self, request_id: str, listener: Listener) -> None:
        """End a listener's request, if it still runs, and wait until the engine has let go of all that it held."""
        if not self._listeners.hears(request_id, listener):
            return
        # Whatever the step under way says of the request, nobody else of its name may hear it: the name is not
        # free before the engine has forgotten the request, also if this call is cancelled.
        nobody = Nobody()
        self._listeners.add(request_id, nobody)

        def command(engine: Engine) -> None:
            engine.abort(request_id)
            self._tell(self._listeners.forget, request_id, nobody)

        await self._call(command)

    async def _call(self, command: _Command) -> None:
        """Run a command on the engine's thread and wait for it, or for its error."""
        if not self._is_alive:
            raise stopped()
        done = self._calls.begin()

        def answered(engine: Engine) -> None:
            try:
                command(engine)
            except DiptychError as error:
                self._tell(settle, done, error)
            except Exception:
                _log.exception("a call into the engine failed")
                self._tell(settle, done, InternalError("ENGINE_FAILED", "the engine failed on this request"))
            else:
                self._tell(settle, done, None)

        self._commands.put(answered)
        await done

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._busy_since = started_at = time.monotonic()
                    output = self._engine.step()
                    ended_at = time.monotonic()
                    self._tell(self._listeners.publish, output, started_at, ended_at)
                    if self._on_step is not None and self._engine.num_batched_tokens:
                        self._on_step(self._engine.num_batched_tokens, len(output.tokens), ended_at - started_at)
        except BaseException:
            # Whatever ended the thread, nobody may go on waiting for it.
            _log.exception("the engine's thread died")
            self._tell(self._die)
        finally:
            self._busy_since = None

    def _take_commands(self) -> bool:
        """Run the commands that wait, and wait for one if there is nothing to compute; false at the end."""
        while not (self._engine.has_work and self._commands.empty()):
            self._busy_since = None
            command = self._commands.get()
            self._busy_since = time.monotonic()
            if command is None:
                return False
            command(self._engine)
        return True

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _die(self) -> None:
        self._is_alive = False
        self._listeners.fail(UnavailableError("ENGINE_DIED", "this replica no longer runs the model"))
        self._calls.fail()
        self._on_fatal()


def _ignore(_: object) -> None:
    """Drop a result: the features named in it are the request's own fetch's to release."""
