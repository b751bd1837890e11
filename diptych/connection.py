"""How the commands that ask a decoder service reach it, and who they say they are.

Knows flags, and the variable DIPTYCH_TOKEN: a token on a command line could be read by everybody on the machine.
"""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

from common.client import DiptychClient
from common.client_tls import ChannelTls, ChannelTlsFiles

TOKEN_VARIABLE: Final = "DIPTYCH_TOKEN"  # noqa: S105 - the name of one


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("connection")
    group.add_argument("--address", required=True, metavar="HOST:PORT", help="the service")
    group.add_argument("--tls", action="store_true", help="speak TLS; --ca and --cert imply it")
    group.add_argument("--ca", type=Path, metavar="FILE", help="authorities, PEM, to trust; the system's where unset")
    group.add_argument("--cert", type=Path, metavar="FILE", help="certificate chain of one's own, PEM")
    group.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument("--server-name", default="", metavar="NAME", help="name in the service's certificate")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file that holds the bearer token; else {TOKEN_VARIABLE}"
    )


def connect(options: Namespace) -> DiptychClient:
    """A client as the flags say. Raises ValueError or OSError where their files cannot be used."""
    tls = channel_tls(options)
    return DiptychClient(
        options.address,
        credentials=None if tls is None else tls.credentials,
        server_name=options.server_name,
        token=_token(options),
    )


def channel_tls(options: Namespace) -> ChannelTls | None:
    """The credentials that the flags ask for. Raises ValueError where their files cannot be used."""
    if not (options.tls or options.ca or options.cert or options.key):
        return None
    return ChannelTlsFiles(ca=options.ca, cert=options.cert, key=options.key, server_name=options.server_name).latest()


def _token(options: Namespace) -> str | None:
    if options.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    token: str = options.token_file.read_text(encoding="utf-8").strip()
    return token
