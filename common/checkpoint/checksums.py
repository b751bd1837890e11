"""Checks the files of a checkpoint against a manifest, beside the loading of the same files.

Knows SHA-256 and the format of sha256sum: `<64 hex digits>  <name>` a line. Does not know what is in the files.
A bit that flipped inside of a weight can be seen in no other way.
"""

import hashlib
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from common.checkpoint.files import CheckpointError, one_line

MANIFEST_NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](\S.*)")
_MAX_MANIFEST_BYTES = 16 << 20
_READ_BYTES = 4 << 20


class ChecksumCheck:
    """A check that runs on a thread of its own, from the start to `finish`."""

    def __init__(self, directory: Path, names: Collection[str]) -> None:
        """Start to check the named files. Raises CheckpointError where the manifest does not list them all."""
        expected = read_manifest(directory)
        for name in sorted(names):
            if name not in expected:
                raise CheckpointError(f"{MANIFEST_NAME}: {name} is not listed")
        self._error: CheckpointError | None = None
        self._todo = [(directory / name, expected[name]) for name in sorted(names)]
        # A daemon, so that a service which fails for another reason does not first read 25 GB to the end.
        self._thread = threading.Thread(target=self._run, name="checksums", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the end. Raises CheckpointError naming the first file that differs."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for path, expected in self._todo:
                if file_digest(path) != expected:
                    raise CheckpointError(f"{path.name}: its SHA-256 is not the one in {MANIFEST_NAME}")
        except CheckpointError as error:
            self._error = error


def read_manifest(directory: Path) -> Mapping[str, str]:
    """Digest in hexadecimal by file name. Raises CheckpointError for a line that is none of sha256sum's."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{MANIFEST_NAME}: larger than {_MAX_MANIFEST_BYTES} bytes")
        lines = data.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{MANIFEST_NAME}: cannot be read: {one_line(error)}") from error
    digests: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(f"{MANIFEST_NAME}: line {number} is not a SHA-256 and a name")
        digest, name = match[1].lower(), match[2].removeprefix("./")
        if digests.setdefault(name, digest) != digest:
            raise CheckpointError(f"{MANIFEST_NAME}: line {number} names {name[:100]} again")
    return digests


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CheckpointError where it cannot be read."""
    digest = hashlib.sha256()
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])  # without the interpreter's lock, so loading goes on
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {one_line(error)}") from error
    return digest.hexdigest()
