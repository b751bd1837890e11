"""A name server for one name, as a cluster has for a headless service: `python -m benchmarks.name_server`.

Knows as much of DNS as a resolver asks: one question, addresses of version 4. What it answers stands in a file, one
address a line, read for every question.
"""

import socket
import struct
import sys
from pathlib import Path

_HEADER = struct.Struct(">HHHHHH")
_ANSWER = struct.Struct(">HHHIH4s")
_TYPE_A = 1
_NAME_IN_QUESTION = 0xC00C
_SECONDS = 1


def answer(question: bytes, addresses: list[str]) -> bytes:
    """The reply to a question: all addresses where it is for those of version 4, else none."""
    number, _, count, _, _, _ = _HEADER.unpack_from(question)
    end = question.index(b"\0", _HEADER.size) + 5
    kind = int.from_bytes(question[end - 4 : end - 2], "big")
    found = addresses if kind == _TYPE_A else []
    records = b"".join(
        _ANSWER.pack(_NAME_IN_QUESTION, _TYPE_A, 1, _SECONDS, 4, socket.inet_aton(address)) for address in found
    )
    return _HEADER.pack(number, 0x8580, count, len(found), 0, 0) + question[_HEADER.size : end] + records


def main() -> None:
    """Answer until killed; takes the address to listen on and the file."""
    host, path = sys.argv[1], Path(sys.argv[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((host, 53))
        print("ready", flush=True)
        while True:
            question, caller = service.recvfrom(512)
            service.sendto(answer(question, path.read_text(encoding="ascii").split()), caller)


if __name__ == "__main__":
    main()
