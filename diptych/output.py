"""What the commands print: the text of a model, whole lines, on any terminal, to readers who may leave.

Knows standard output. Does not know what is told.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.client.types import ClientError


def print_all_characters() -> None:
    """Have characters that the terminal's encoding lacks printed as escapes, which is no reason to end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """Text without the control characters by which a model's answer could command the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


@contextmanager
def whole_lines() -> Iterator[Callable[[str], None]]:
    """What prints parts of a text as they come. Where an error ends it, its line is ended before anybody tells."""
    last = ""

    def show(text: str) -> None:
        nonlocal last
        last = text or last
        print(visible(text), end="", flush=True)

    try:
        yield show
    except (ClientError, KeyboardInterrupt):
        if last and not last.endswith("\n"):
            print(flush=True)
        raise


def forget_output() -> None:
    """Drop what could not be printed: Python would try, and complain, once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
