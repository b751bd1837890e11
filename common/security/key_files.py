"""A certificate with its key, and the authorities to trust, in files that are replaced while we run.

Knows files and which of their states belong together. Does not know who uses them. Whatever renews certificates
replaces files in place or swaps a link, one after the other, so a state in which key and certificate do not fit
is passed over until they do.
"""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from common.security.file_stamp import Stamp, file_stamp

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """PEM texts that belong together; what was not asked for is empty."""

    cert: bytes
    key: bytes
    ca: bytes


class KeyFiles:
    """The newest whole state of up to three files; may be shared between threads."""

    def __init__(self, *, cert: Path | None = None, key: Path | None = None, ca: Path | None = None) -> None:
        """Read the files. Raises ValueError, in one line, where they are not there or do not fit."""
        self._cert, self._key, self._ca = cert, key, ca
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._keys = self._read()
        self._complaint = ""

    def latest(self) -> Keys:
        """The files as they are, or as they last were when they fitted; the same object until something changes."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    keys = self._read()
                    # Read while they were being replaced: the next call looks again.
                    if self._look() == stamp:
                        self._stamp, self._keys, self._complaint = stamp, keys, ""
                        _log.info("certificates were read again", extra={"cert": self._cert, "ca": self._ca})
            except ValueError as error:
                self._complain(str(error))
            return self._keys

    def _complain(self, error: str) -> None:
        # Once for each text: anybody who can reach a port makes us look at the files, as often as the network allows.
        if error != self._complaint:
            self._complaint = error
            _log.warning("new certificates cannot be used yet", extra={"error": error})

    def _look(self) -> list[Stamp]:
        try:
            return [file_stamp(path) for path in (self._cert, self._key, self._ca) if path is not None]
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from None

    def _read(self) -> Keys:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._cert is not None:
            try:
                context.load_cert_chain(self._cert, self._key, password=lambda: "")
            except (OSError, ValueError) as error:
                raise ValueError(f"{self._cert} and {self._key} are no certificate and its key: {error}") from None
        ca = _bytes(self._ca)
        if self._ca is not None:
            try:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise ValueError(f"{self._ca} holds no certificates: {error}") from None
        return Keys(cert=_bytes(self._cert), key=_bytes(self._key), ca=ca)


def _bytes(path: Path | None) -> bytes:
    if path is None:
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
