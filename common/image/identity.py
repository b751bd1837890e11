"""The identity of an encoded picture: equal exactly when the features must be equal.

Knows hashing. The identity stands for the features in every cache and on the wire, and is computed by both
services from what each of them has; a client's own name for a picture never enters.
"""

import hashlib
from functools import lru_cache
from typing import NewType

from common.image.preprocessing import Preprocessing

ImageHash = NewType("ImageHash", bytes)
"""SHA-256 digest, 32 bytes."""

_DOMAIN_TAG = b"diptych.image.v1"


def image_hash(
    image: bytes, *, preprocessing: Preprocessing, weights_digest: bytes, dtype: str, salt: bytes
) -> ImageHash:
    """SHA-256 over the length-prefixed tag, file bytes, preprocessing, encoder weights, dtype and salt.

    Length prefixes keep two different splits of the same bytes apart.
    """
    digest = hashlib.sha256(_prefixed(_DOMAIN_TAG) + _length(image))
    digest.update(image)
    digest.update(_encoder(preprocessing, weights_digest, dtype) + _prefixed(salt))
    return ImageHash(digest.digest())


@lru_cache(maxsize=16)
def _encoder(preprocessing: Preprocessing, weights_digest: bytes, dtype: str) -> bytes:
    """What is hashed of an encoder, the same for every picture."""
    return b"".join(map(_prefixed, (preprocessing.fingerprint(), weights_digest, dtype.encode())))


def _prefixed(part: bytes) -> bytes:
    return _length(part) + part


def _length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little")
