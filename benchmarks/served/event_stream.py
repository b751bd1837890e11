"""One streamed answer over HTTP: a POST of JSON to this host, and the events that come back.

Knows HTTP/1.1 and server-sent events as far as such an answer needs them. Does not know what events say. It is written
over asyncio's streams, as the caller shares its cores with what is measured and a library's layers cost it more than
the few lines here.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

_HOST = "127.0.0.1"
_LIMIT = 1 << 20
"""Bytes of the longest line of a header."""


class StreamError(Exception):
    """An answer that is no whole stream of events; the reason is one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def events(port: int, path: str, body: bytes) -> AsyncGenerator[Mapping[str, Any], None]:
    """The events of the answer, as they come. Raises StreamError where it is refused or ends before its end."""
    try:
        reader, writer = await asyncio.open_connection(_HOST, port, limit=_LIMIT)
    except OSError as error:
        raise StreamError(f"no connection: {error.strerror}") from None
    try:
        writer.write(_head(path, len(body)) + body)
        async for line in _lines(_content(reader)):
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield json.loads(line[5:])
    except (asyncio.IncompleteReadError, OSError, ValueError) as error:
        raise StreamError(f"the answer broke off or cannot be read: {type(error).__name__}") from None
    finally:
        writer.close()


def _head(path: str, length: int) -> bytes:
    fields = f"Host: {_HOST}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


async def _content(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The answer's body piece by piece, without the frames of its transfer. Raises StreamError of a refusal."""
    status = (await reader.readuntil(b"\r\n")).split(maxsplit=2)
    fields: dict[bytes, bytes] = {}
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip().lower()
    if status[1] != b"200":
        raise StreamError(f"status {status[1].decode(errors='replace')}")
    if fields.get(b"transfer-encoding") != b"chunked":
        # Without a length the answer ends with the connection, and none of these servers gives a stream a length.
        while piece := await reader.read(1 << 16):
            yield piece
        return
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines as soon as each is whole, however the pieces divide them."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
