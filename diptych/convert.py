"""`diptych convert`: a checkpoint in the other format.

Knows the command's flags. Does not know formats (see `common.checkpoint.convert`).
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from common.checkpoint.files import CheckpointFormat
from diptych.flags import complaint


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych convert`."""
    parser.add_argument("source", type=Path, metavar="SOURCE", help="checkpoint directory")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="directory to write; new or empty")
    parser.add_argument("--to", required=True, choices=[each.value for each in CheckpointFormat], help="its format")


def run(options: Namespace) -> int:
    """Convert; returns the exit status."""
    # Imported late: it needs torch, and the other commands do not.
    from common.checkpoint.convert import convert_checkpoint

    try:
        convert_checkpoint(options.source, options.destination, CheckpointFormat(options.to))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"diptych convert: {complaint(error)}\n")
        return 1
    return 0
