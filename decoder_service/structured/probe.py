"""Tries whether a grammar compiles, in a process of its own that can be killed.

Knows the library's limits, and those that the operating system keeps. Does not know vocabularies or requests. The
library counts its work and gives up, but a single piece of that work can grow without bound (sixteen patterns that
must all match are enough), and a thread cannot be stopped. So whoever compiles a grammar has it tried here first.

Run as a module it reads a grammar from its standard input and writes what is wrong with it, or nothing. What counts is
its processor time, so that a busy machine calls nothing too complex.
"""

import asyncio
import math
import resource
import signal
import sys

from llguidance import LLMatcher, LLParserLimits

from decoder_service.structured.structure import TooComplexError

MEMORY_BYTES = 1 << 30
"""Address space of the process, the interpreter's own included."""
LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=50_000,
    verbose_errors=False,
)
"""Of memory and of work in a step: at their most some tens of milliseconds and megabytes."""


_WALL_SECONDS = 6
"""Seconds that may pass for each of processor time."""


async def probe(grammar: str, *, seconds: float) -> str | None:
    """Why a grammar does not compile; None if it does.

    Raises TooComplexError where that takes more than so many seconds of processor time, rounded up, and TimeoutError
    where the machine is too busy to give it these.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        str(math.ceil(seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_WALL_SECONDS * seconds):
            output, _ = await process.communicate(grammar.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise TooComplexError
    if process.returncode:
        return "it needs too much memory"
    return output.decode(errors="replace") or None


def main() -> None:
    """Judge what comes on standard input."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    grammar = sys.stdin.buffer.read().decode()
    sys.stdout.write(LLMatcher.validate_grammar(grammar, None, limits=LIMITS))


if __name__ == "__main__":
    main()
