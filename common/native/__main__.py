"""Builds the kernels ahead of time: `python -m common.native [LEVEL ...]`, for this processor where none is named.

Images whose file system cannot be written to run it while they are built, with DIPTYCH_NATIVE_CACHE naming a folder
that stays.
"""

import argparse
import sys

from common.native.build import NativeUnavailableError, cpu_level, default_cache, find_or_build


def main() -> None:
    """Build, say where the libraries are, and exit with 1 where that cannot be."""
    parser = argparse.ArgumentParser(prog="common.native", description=__doc__)
    parser.add_argument(
        "level", nargs="*", help="x86-64-v4, x86-64-v3 or armv8-a; this processor's where none is given"
    )
    try:
        for level in parser.parse_args().level or [cpu_level()]:
            sys.stdout.write(f"{find_or_build(default_cache(), level)}\n")
    except NativeUnavailableError as error:
        sys.exit(f"common.native: {error}")


if __name__ == "__main__":
    main()
