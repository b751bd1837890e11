"""Values of flags, and how one that cannot be used is complained of.

Knows numbers, files and texts. Does not know what they are for.
"""

import math
import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Final

from common.client.places import LONGEST_SECONDS
from common.server.ports import LAST_PORT

_SCHEME: Final = re.compile(r"dns:(//[^/\s]*/)?|ipv[46]:")
_PLACE: Final = re.compile(r"(\[[^][/\s]*:[^][/\s]*]|[^][:/,\s]+):([0-9]{1,5})")
"""An address of IPv6 stands in brackets, or its end would be taken for a port."""


def seconds(text: str) -> float:
    """A time over 0 that clocks can add. Raises ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= LONGEST_SECONDS:
        raise ArgumentTypeError(f"must be a number of seconds over 0, at most {LONGEST_SECONDS:g}, got {text!r}")
    return value


def count(text: str) -> int:
    """A whole number from 1 on that fits the contract's 32 bits. Raises ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32):
        raise ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A whole number of the contract's 64 bits. Raises ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 64):
        raise ArgumentTypeError(f"must be a whole number from 0 to 2^64 - 1, got {text!r}")
    return int(text)


def target(text: str) -> str:
    """Where a service listens, as gRPC takes it. Raises ArgumentTypeError for what can be none."""
    if text.startswith(("unix:", "unix-abstract:")):
        return text
    if text.startswith(("http://", "https://")):
        raise ArgumentTypeError(f"must be HOST:PORT, without http://, got {text!r}")
    # gRPC takes 443 where there is no port, and of one that is too large the lower 16 bits.
    scheme = match[0] if (match := _SCHEME.match(text)) else ""
    rest = text.removeprefix(scheme)
    places = [_PLACE.fullmatch(place) for place in (rest.split(",") if scheme.startswith("ipv") else [rest])]
    if not all(place and int(place[2]) <= LAST_PORT for place in places):
        raise ArgumentTypeError(f"must be HOST:PORT, [IPV6]:PORT, dns:///NAME:PORT or unix:PATH, got {text!r}")
    return text


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError with the path for one that cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(complaint(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {complaint(error)}") from error


def complaint(error: Exception) -> str:
    """What is wrong with a file or a text, in one line, with the path where there is one."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:40]!a}: this text is not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 from byte {error.start} on"
    return " ".join(str(error).split())
