"""The command `diptych`, from its first moment on.

Knows that importing takes a while, in which somebody may already want to leave, and that gRPC would write lines of
its own. Does not know subcommands.
"""

import sys
from collections.abc import Sequence

import common.server.silent_grpc  # noqa: F401 - before gRPC is imported
from common.server.early_signals import leave_at_once, leave_by_default


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    leave_at_once()
    from diptych import commands  # Takes half a second.

    leave_by_default()
    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
