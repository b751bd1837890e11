"""How the commands that ask a service reach it, and who they say they are.

Knows flags, and the variable DIPTYCH_TOKEN: a token on a command line could be read by everybody on the machine.
"""

import os
import re
from argparse import ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from common.client.client import DiptychClient
from common.client.tls import ChannelTls, ChannelTlsFiles
from common.client.types import ClientError
from diptych.flags import read_text, target

TOKEN_VARIABLE: Final = "DIPTYCH_TOKEN"  # noqa: S105 - the name of one
_TOKEN: Final = re.compile("[!-~]+")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("connection")
    group.add_argument("--address", type=target, required=True, metavar="HOST:PORT", help="the service")
    add_tls_arguments(group)
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file that holds the bearer token; else {TOKEN_VARIABLE}"
    )


def add_tls_arguments(parser: _ActionsContainer) -> None:
    """Add the flags of TLS alone."""
    parser.add_argument("--tls", action="store_true", help="speak TLS; --ca and --cert imply it")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authorities, PEM, to trust; the system's where unset")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="certificate chain of one's own, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument("--server-name", default="", metavar="NAME", help="name in the service's certificate")


@contextmanager
def connect(options: Namespace) -> Iterator[DiptychClient]:
    """A client as the flags say. Raises ValueError where their files cannot be used.

    A ClientError from within gets a hint where the flags may be to blame.
    """
    tls = channel_tls(options)
    client = DiptychClient(
        options.address,
        credentials=None if tls is None else tls.credentials,
        server_name=options.server_name,
        token=token(options),
    )
    with client:
        try:
            yield client
        except ClientError as error:
            words = hint(options, error.code, error.message)
            if not words:
                raise
            raise ClientError(error.code, error.reason, error.message + words) from error


def open_channel(options: Namespace) -> grpc.Channel:
    """A bare channel as the flags say. Raises ValueError where their files cannot be used."""
    tls = channel_tls(options)
    channel_options = (("grpc.enable_http_proxy", 0), *(tls.options if tls else ()))
    if tls is None:
        return grpc.insecure_channel(options.address, channel_options)
    return grpc.secure_channel(options.address, tls.credentials, channel_options)


def hint(options: Namespace, code: grpc.StatusCode, message: str | None) -> str:
    """What to try where a call failed as calls in plain text to a port with TLS do; else empty."""
    is_cut_off = any(words in (message or "") for words in ("Socket closed", "Connection reset"))
    if code is not grpc.StatusCode.UNAVAILABLE or not is_cut_off or channel_tls(options) is not None:
        return ""
    return " (the port may want TLS: --tls or --ca)"


def channel_tls(options: Namespace) -> ChannelTls | None:
    """The credentials that the flags ask for. Raises ValueError where their files cannot be used."""
    if not wants_tls(options):
        return None
    return ChannelTlsFiles(ca=options.ca, cert=options.cert, key=options.key, server_name=options.server_name).latest()


def wants_tls(options: Namespace) -> bool:
    """Whether one of the flags asks for TLS."""
    return bool(options.tls or options.ca or options.cert or options.key)


def token(options: Namespace) -> str | None:
    """The bearer token of the flags or the variable. Raises ValueError for one that cannot be sent."""
    path: Path | None = options.token_file
    source, text = (
        (TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")) if path is None else (str(path), read_text(path).strip())
    )
    if path is None and not text:
        return None
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{source}: a token is printable ASCII without blanks or line breaks")
    return text
