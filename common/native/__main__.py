"""Builds the kernels ahead of time: `python -m common.native [LEVEL ...]`, for this processor where none is named.

Images whose file system cannot be written to run it while they are built, with DIPTYCH_NATIVE_CACHE naming a folder
that stays.
"""

import argparse
import sys

from common.native.build import best_library, default_cache, find_or_build
from common.native.processor import LEVELS, NativeUnavailableError


def main() -> None:
    """Build, say where the libraries are, and exit with 1 where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m common.native", description=__doc__)
    parser.add_argument("level", nargs="*", help=f"{', '.join(LEVELS)}; this processor's where none is given")
    levels = parser.parse_args().level
    cache = default_cache()
    try:
        for path in [find_or_build(cache, level) for level in levels] or [best_library(cache)[0]]:
            sys.stdout.write(f"{path}\n")
    except NativeUnavailableError as error:
        sys.exit(f"common.native: {error}")


if __name__ == "__main__":
    main()
