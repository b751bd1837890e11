"""The command `diptych`, from its first moment on.

Knows that importing takes a while, in which somebody may already want to leave. Does not know subcommands.
"""

import os
import signal
import sys
from collections.abc import Sequence

_INTERRUPTED = 130
"""Exit status, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    # An exception would come out of whichever module is half imported.
    leaves_at_once = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if leaves_at_once:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from diptych import commands  # Takes half a second.

    if leaves_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
