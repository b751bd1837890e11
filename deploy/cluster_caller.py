"""Asks about pictures in a closed loop, from a pod of a cluster, and prints a line of JSON for each call.

Sent to the pod as text by `deploy.try_cluster`, so it uses nothing but what the decoder's image holds. Its environment
says what to do: ADDRESS, CALLERS, TOKENS of an answer, and where they are needed TOKEN and AUTHORITY, a file in PEM.
Every picture is a new one, so each call needs the vision service.
"""

import asyncio
import io
import json
import os
import random
import sys
import time
from contextlib import aclosing
from pathlib import Path

import grpc
from PIL import Image

from common.client.client import AsyncDiptychClient
from common.client.messages import user_message
from common.client.types import ClientError

_SIDE = 64
_QUESTION = "What is this?"


def picture(random_bytes: random.Random) -> bytes:
    """A PNG of noise, which no cache has seen."""
    made = io.BytesIO()
    Image.frombytes("RGB", (_SIDE, _SIDE), random_bytes.randbytes(3 * _SIDE * _SIDE)).save(made, "PNG")
    return made.getvalue()


async def one_call(client: AsyncDiptychClient, data: bytes, num_tokens: int) -> dict[str, float | int | str]:
    """Ask and read to the end. Gives the time of day, seconds, tokens, the longest pause, and what went wrong or ''."""
    began, started = time.time(), time.monotonic()
    last, pause, tokens, error, ended = started, 0.0, 0, "", False
    message = user_message(_QUESTION, [data])
    try:
        stream = client.generate([message], max_tokens=num_tokens, ignore_eos=True, timeout=120)
        async with aclosing(stream):
            async for response in stream:
                now = time.monotonic()
                last, pause = now, max(pause, now - last)
                tokens += len(response.delta.token_ids)
                ended = ended or response.HasField("finish")
    except ClientError as failure:
        error = f"{failure}"
    if not error and not (ended and tokens == num_tokens):
        error = f"{tokens} tokens, {'an' if ended else 'no'} end"
    return {"at": began, "seconds": time.monotonic() - started, "tokens": tokens, "pause": pause, "error": error}


async def caller(number: int) -> None:
    """One caller, with a connection of its own, for as long as the process lives."""
    source = random.Random(time.time_ns() + number)  # noqa: S311 - pictures, not secrets
    authority = os.environ.get("AUTHORITY")
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes()) if authority else None
    token, num_tokens = os.environ.get("TOKEN"), int(os.environ["TOKENS"])
    async with AsyncDiptychClient(os.environ["ADDRESS"], credentials=credentials, token=token) as client:
        while True:
            sys.stdout.write(json.dumps(await one_call(client, picture(source), num_tokens)) + "\n")
            sys.stdout.flush()


async def main() -> None:
    """All callers at once."""
    await asyncio.gather(*(caller(number) for number in range(int(os.environ["CALLERS"]))))


if __name__ == "__main__":
    asyncio.run(main())
