"""How long the event loop stands still while pictures' features arrive at once, as the decoder service has them.

Knows the decoder service's own store of features, which gives each picture its memory. Does not know where features
come from, or how they are sent.
"""

import asyncio
import statistics
from collections.abc import Sequence

from benchmarks.loop_stalls import Stall, worst_stall
from decoder_service.cache.feature_store import FeatureStore, Lease, PromptImage
from decoder_service.vision.image_encoder import ImageEncoder

LIMIT = 10.0
"""Milliseconds that the loop may work at a stretch."""
_NEW = 4
"""Times for which features come into memory that nobody has used: for 8 pictures of 42 MB 1.7 GB, with that before."""
_AGAIN = 12
"""Times for which they come into memory that others had."""


async def report_stalls(megabytes: int, encoder: ImageEncoder, pictures: Sequence[PromptImage], how: str) -> bool:
    """Have pictures arrive at once, several times; returns whether the event loop went on well enough.

    Judged by the loop's own work: the rest of a stall is time that the machine gave to others.
    """
    store = FeatureStore(encoder, budget_bytes=(_NEW + 1) * sum(each.spec.num_bytes for each in pictures))
    held: list[Lease] = []
    await _arrive(store, pictures, held)
    new = [await worst_stall(_arrive(store, pictures, held)) for _ in range(_NEW)]
    again = []
    for _ in range(_AGAIN):
        while held:
            held.pop().release()
        again.append(await worst_stall(_arrive(store, pictures, held)))
    idle = [await worst_stall(asyncio.sleep(0.1)) for _ in range(_AGAIN)]
    _print(f"{megabytes:3} MB  {len(pictures)} at once{how}, new memory", new)
    _print(f"{megabytes:3} MB  {len(pictures)} at once{how}, used memory", again)
    _print(f"{megabytes:3} MB  idle", idle)
    return max(stall.own for stall in (*new, *again)) <= LIMIT


async def _arrive(store: FeatureStore, pictures: Sequence[PromptImage], held: list[Lease]) -> None:
    """Wait until all are there, and hold them; whoever asks next gets them sent anew."""
    await asyncio.gather(*(_arrive_one(store, each, held) for each in pictures))
    store.forget(pictures)


async def _arrive_one(store: FeatureStore, picture: PromptImage, held: list[Lease]) -> None:
    request_id = picture.spec.image_hash.hex()
    leases: list[Lease] = []
    await store.lease([picture], salt=b"", request_id=request_id, take=lambda _, lease: leases.append(lease))
    held += leases
    await leases[0].arrived()


def _print(what: str, stalls: Sequence[Stall]) -> None:
    walls, own = [stall.wall for stall in stalls], [stall.own for stall in stalls]
    print(
        f"{what}: worst stall {statistics.median_low(walls):.1f} ms ({min(walls):.1f} to {max(walls):.1f}); "
        f"the loop's own work at a stretch {statistics.median_low(own):.1f} ms, at most {max(own):.1f}"
    )
