"""Makes matchers of the languages that callers ask for, and keeps the latest ones.

Knows time, sizes and who waits for what. Does not know grammars (see `grammar_matcher`). It lives on the event loop:
a language is tried in a process that is killed when its time is up, then compiled on a thread, never the engine's.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from common.errors import InvalidArgumentError, ResourceExhaustedError
from decoder_service.structured.structure import Matcher, Structure, TooComplexError

MAX_SECONDS = 5.0
"""Time for trying a language."""
MAX_KEPT = 128
"""Languages that are kept, some hundred kilobytes each."""
MAX_AT_ONCE = 2
MAX_WAITING = 32
"""Languages that are compiled or wait for it."""
MAX_REASON_LENGTH = 300


class Grammars(Protocol):
    """What knows grammars."""

    async def try_out(self, structure: Structure, *, seconds: float) -> str | None:
        """Why a language does not compile, or None. Raises ValueError, TooComplexError, or TimeoutError if too busy."""
        ...

    def compile(self, structure: Structure) -> Matcher:
        """Where a completion begins. Raises ValueError."""
        ...


class StructureCompiler:
    """Compiles each language once, however many ask for it at once."""

    def __init__(self, load: Callable[[], Grammars], *, max_kept: int = MAX_KEPT, seconds: float = MAX_SECONDS) -> None:
        """Take what makes the grammars, which may take its time: it is called on the thread when first needed."""
        self._load = load
        self._max_kept = max_kept
        self._seconds = seconds
        self._grammars: Grammars | None = None
        self._kept: OrderedDict[Structure, Matcher] = OrderedDict()
        self._under_way: dict[Structure, asyncio.Task[Matcher]] = {}
        self._turn = asyncio.Semaphore(MAX_AT_ONCE)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self.num_compiled = 0

    async def matcher(self, structure: Structure) -> Matcher:
        """A matcher of its own for a completion in this language.

        Raises InvalidArgumentError STRUCTURE_INVALID or STRUCTURE_TOO_COMPLEX with the field at fault, and
        ResourceExhaustedError where too many languages wait to be compiled.
        """
        kept = self._kept.get(structure)
        if kept is None:
            # Shielded: others may wait for the same one, and it is kept when it is done.
            kept = await asyncio.shield(self._under_way.get(structure) or self._begin(structure))
        else:
            self._kept.move_to_end(structure)
        return kept.fork()

    async def close(self) -> None:
        """Stop what is under way."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    def _begin(self, structure: Structure) -> asyncio.Task[Matcher]:
        if len(self._under_way) >= MAX_WAITING:
            raise ResourceExhaustedError(
                "STRUCTURES_WAITING",
                "too many structures wait to be compiled",
                field=structure.field,
                metadata={"limit": MAX_WAITING},
                retry_after=1.0,
            )
        task = asyncio.create_task(self._make(structure))
        self._under_way[structure] = task
        task.add_done_callback(lambda _: self._ended(structure, task))
        return task

    def _ended(self, structure: Structure, task: asyncio.Task[Matcher]) -> None:
        del self._under_way[structure]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[structure] = task.result()
        while len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)

    async def _make(self, structure: Structure) -> Matcher:
        loop = asyncio.get_running_loop()
        async with self._turn:
            self.num_compiled += 1
            grammars = await loop.run_in_executor(self._thread, self._loaded)
            try:
                reason = await grammars.try_out(structure, seconds=self._seconds)
                if reason is None:
                    return await loop.run_in_executor(self._thread, grammars.compile, structure)
            except ValueError as error:
                reason = str(error)
            except TimeoutError:
                raise ResourceExhaustedError(
                    "STRUCTURES_WAITING",
                    "the machine is too busy to compile structures",
                    field=structure.field,
                    retry_after=1.0,
                ) from None
            except TooComplexError:
                raise InvalidArgumentError(
                    "STRUCTURE_TOO_COMPLEX",
                    f"it does not compile within {self._seconds:g} seconds of processor time",
                    field=structure.field,
                    metadata={"limit": self._seconds},
                ) from None
            raise _invalid(structure, reason)

    def _loaded(self) -> Grammars:
        """What makes the grammars; asked for on the one thread alone, so that it is made once."""
        if self._grammars is None:
            self._grammars = self._load()
        return self._grammars


def not_installed(structure: Structure) -> InvalidArgumentError:
    """The refusal of structured output where nothing is installed that knows grammars."""
    return InvalidArgumentError(
        "UNSUPPORTED_FIELD",
        "this server was installed without the extra `structured`",
        field=structure.field,
        metadata={"extra": "structured"},
    )


def _invalid(structure: Structure, reason: str) -> InvalidArgumentError:
    # The reason quotes the source, which may be long and hold anything.
    line = " ".join(reason.split())
    text = "".join(character for character in line[:MAX_REASON_LENGTH] if character.isprintable())
    return InvalidArgumentError("STRUCTURE_INVALID", f"it does not compile: {text}", field=structure.field)
