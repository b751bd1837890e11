"""Random numbers that depend on nothing but a request's seed and the place in its completion.

Knows no state: a request draws the same numbers alone, in any batch, after a preemption or on another pod.
"""

import hashlib


def uniform(*, seed: int, index: int, position: int) -> float:
    """A number in [0, 1) for a completion's seed, its index and the position of the token to draw."""
    counter = b"".join(value.to_bytes(8, "little") for value in (seed, index, position))
    digest = hashlib.blake2b(counter, digest_size=8, person=b"diptych-sampling"[:16]).digest()
    # 53 bits fill a double's mantissa, so the result never rounds up to 1.
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
