"""The file that says which bearer tokens there are: their SHA-256 hashes, never the tokens themselves.

Knows lines and hashes, and when the file has changed. Does not know calls. A line is

    HASH NAME [expires=YYYY-MM-DD] [methods=Generate,...] [max-open-calls=N] [calls-per-minute=N] [tokens-per-minute=N]

with HASH in hexadecimal and the day of expiry, in UTC, the first on which the token is refused; `#` begins a comment.
Two lines may have the same name, so that a token can be replaced without a gap.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common.security.file_stamp import Stamp, file_stamp
from common.security.quota import Limits

_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the file of tokens."""
_NAME: Final = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}")
_LIMITS: Final = {
    "max-open-calls": "max_open_calls",
    "calls-per-minute": "calls_per_minute",
    "tokens-per-minute": "tokens_per_minute",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """One token, by its hash."""

    digest: bytes
    name: str
    limits: Limits
    expires: datetime | None = None
    methods: frozenset[str] | None = None
    """Names of the methods that it opens; None for all."""


def hash_token(token: str) -> bytes:
    """What stands in the file for a token, before it is written in hexadecimal."""
    return hashlib.sha256(token.encode()).digest()


def is_name(name: str) -> bool:
    """Whether a caller can be called that."""
    return _NAME.fullmatch(name) is not None


def find_token(entries: Sequence[TokenEntry], token: str) -> TokenEntry | None:
    """The entry of a token. Takes as long for one entry as for another, and for none."""
    digest = hash_token(token)
    found = None
    for entry in entries:
        if hmac.compare_digest(entry.digest, digest):
            found = entry
    return found


class TokenFile:
    """The tokens of a file, which is read again when it has changed."""

    def __init__(self, path: Path, defaults: Limits) -> None:
        """Read the file, whose lines may set limits other than `defaults`. Raises ValueError, in one line."""
        self._path = path
        self._defaults = defaults
        self._stamp = self._look()
        self._looked_at = -_LOOK_EVERY
        self._entries = read_token_file(path, defaults)

    def entries(self, now: float) -> tuple[TokenEntry, ...]:
        """The tokens of now, a time of the monotonic clock; after a fault in the file those before it."""
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at = now
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
        return self._entries

    def _read(self) -> None:
        try:
            self._entries = read_token_file(self._path, self._defaults)
            _log.info("tokens were read again", extra={"num_tokens": len(self._entries)})
        except ValueError as error:
            # Callers whose tokens were good a moment ago must not be locked out by a faulty file.
            _log.error("the new file of tokens cannot be used", extra={"error": str(error)})

    def _look(self) -> Stamp | None:
        try:
            return file_stamp(self._path)
        except OSError:
            return None


def read_token_file(path: Path, defaults: Limits) -> tuple[TokenEntry, ...]:
    """All entries. Raises ValueError that names file and line, and nothing that the line holds."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not a text'}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        try:
            if words:
                entries.append(_entry(words, defaults))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if len({entry.digest for entry in entries}) != len(entries):
        raise ValueError(f"{path}: the same token stands in two lines")
    if len({(entry.name, entry.limits) for entry in entries}) != len({entry.name for entry in entries}):
        raise ValueError(f"{path}: lines of the same name have different limits")
    return tuple(entries)


def _entry(words: Sequence[str], defaults: Limits) -> TokenEntry:
    if len(words) < 2 or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
        raise ValueError("a line begins with a SHA-256 hash in hexadecimal and a name")
    if not is_name(words[1]):
        raise ValueError("a name is 1 to 128 letters, digits and . _ : / @ + -")
    entry = TokenEntry(digest=bytes.fromhex(words[0]), name=words[1], limits=defaults)
    for word in words[2:]:
        key, _, value = word.partition("=")
        if key in _LIMITS:
            entry = replace(entry, limits=entry.limits._replace(**{_LIMITS[key]: _number(key, value)}))
        elif key == "expires":
            entry = replace(entry, expires=_day(value))
        elif key == "methods" and value:
            entry = replace(entry, methods=frozenset(value.split(",")))
        else:
            raise ValueError(f"what follows the name is none of expires=, methods=, {', '.join(_LIMITS)}=")
    return entry


def _number(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{key} must be a whole number of at least 1")
    return int(value)


def _day(value: str) -> datetime:
    try:
        return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("expires must be a day such as 2027-01-31") from None
