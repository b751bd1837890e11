"""Runs the decoder service as a process: `python -m decoder_service --model DIR --vision-addresses HOST:PORT,...`."""

import common.server.silent_grpc  # noqa: F401 - before gRPC is imported
from common.server.early_signals import leave_at_once

if __name__ == "__main__":
    leave_at_once()

# isort: split
import sys

from common.server.start import read_config, run_named
from decoder_service.config import DecoderConfig


def main() -> None:
    """Parse flags, load, serve; a wrong setting or checkpoint ends it with one line and status 2."""
    config = read_config(
        DecoderConfig,
        name="decoder_service",
        description="Generates text from prompts and image features, over gRPC.",
    )
    try:
        # Imported late: torch takes seconds, and a wrong flag should not.
        from decoder_service.service import DecoderService

        service = DecoderService(config)
    except ValueError as error:
        sys.stderr.write(f"decoder_service: {error}\n")
        sys.exit(2)
    sys.exit(run_named(service.run(), name="decoder_service"))


if __name__ == "__main__":
    main()
