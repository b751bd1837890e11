"""`diptych token`: a new bearer token, and the line by which services know it.

Knows how tokens are drawn. Keeps none: the token is printed once, its hash goes into the file of `--auth-tokens`.
"""

import secrets
import sys
from argparse import ArgumentParser, Namespace

from common.security.token_file import hash_token, is_name

_TOKEN_BYTES = 32


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych token`."""
    parser.add_argument("name", metavar="NAME", help="whose token it is")


def run(options: Namespace) -> int:
    """Print the token to standard output, and its line to standard error; returns the exit status."""
    if not is_name(options.name):
        sys.stderr.write("diptych token: a name is 1 to 128 letters, digits and . _ : / @ + -\n")
        return 2
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    print(token)
    sys.stderr.write(f"{hash_token(token).hex()} {options.name}\n")
    return 0
