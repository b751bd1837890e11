"""From when to when certificates are valid, read out of their PEM text.

Knows as much of X.509 as leads to the dates (RFC 5280, section 4.1). Does not judge a certificate: whoever loads it has
done so. Python's own `ssl` tells dates only of authorities and of peers.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import NamedTuple

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END ", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_FIELDS_BEFORE_DATES = 3
"""Serial number, algorithm and issuer; the version before them may be missing."""


class CertificateDates(NamedTuple):
    """Unix times, in seconds."""

    not_after: float
    not_before: float


def first_to_expire(pem: bytes) -> CertificateDates | None:
    """The dates of the certificate in a chain that ends first; None where there is none. Raises ValueError."""
    try:
        found = [_dates(base64.b64decode(text)) for text in _PEM.findall(pem)]
    except (IndexError, binascii.Error) as error:
        raise ValueError("a certificate is malformed") from error
    return min(found, default=None)


def _dates(der: bytes) -> CertificateDates:
    _, place, _ = _element(der, 0, expected=_SEQUENCE)
    _, place, _ = _element(der, place, expected=_SEQUENCE)
    tag, _, end = _element(der, place)
    if tag == _VERSION:
        place = end
    for _ in range(_FIELDS_BEFORE_DATES):
        _, _, place = _element(der, place)
    _, place, _ = _element(der, place, expected=_SEQUENCE)
    not_before, place = _time(der, place)
    not_after, _ = _time(der, place)
    return CertificateDates(not_after=not_after, not_before=not_before)


def _element(der: bytes, place: int, *, expected: int | None = None) -> tuple[int, int, int]:
    """Tag, begin and end of what an element at a place holds. Raises IndexError, and ValueError for another tag."""
    tag, length, begin = der[place], der[place + 1], place + 2
    if expected is not None and tag != expected:
        raise ValueError("a certificate is malformed")
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[place + 2 : begin], "big")
    return tag, begin, begin + length


def _time(der: bytes, place: int) -> tuple[float, int]:
    """A date, and the place after it."""
    tag, begin, end = _element(der, place)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a certificate is malformed")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp(), end
