"""What SIGINT and SIGTERM do before anybody waits for them.

Importing takes a while and loading minutes, and an exception would come out of whichever module is half imported. The
first process of a container is worse off: Linux drops signals whose handling it has not asked for, so a pod that loads
would be waited for until it is killed.
"""

import os
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final

_DEFAULTS: Final[Mapping[signal.Signals, Callable[[int, FrameType | None], Any] | signal.Handlers]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
_SHELL_BASE: Final = 128
"""What shells add to a signal's number for an exit status."""


def leave_at_once() -> None:
    """End this process without a word at SIGINT and SIGTERM.

    A handler that somebody has set stands, and so does being ignored, as the interrupts of a shell's background jobs.
    """
    for number, default in _DEFAULTS.items():
        if signal.getsignal(number) == default:
            signal.signal(number, _leave)


def leave_by_default() -> None:
    """Take that back: SIGINT raises KeyboardInterrupt again."""
    for number, default in _DEFAULTS.items():
        if signal.getsignal(number) is _leave:
            signal.signal(number, default)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_SHELL_BASE + number)
