"""How long the event loop stands still while pictures' features arrive at once, and while they are let go of.

Knows the decoder service's own store of features, which gives each picture its memory. Does not know where features
come from, or how they are sent.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence

from benchmarks.loop_stalls import Stall, worst_stall
from decoder_service.cache.feature_store import FeatureStore, Lease, PromptImage
from decoder_service.vision.client import VisionClient
from decoder_service.vision.image_encoder import ImageEncoder

LIMIT = 10.0
"""Milliseconds that the loop may work at a stretch."""
_NEW = 4
"""Times for which features come into memory that nobody has used: for 8 pictures of 42 MB 1.7 GB, with that before."""
_AGAIN = 12
"""Times for which they come into memory that others had."""
_UNDER_WAY = 0.02
"""Seconds after which those who leave early do: the first chunks of some have come."""


async def report_stalls(megabytes: int, encoder: ImageEncoder, pictures: Sequence[PromptImage], how: str) -> bool:
    """Have pictures arrive at once and go, several times; returns whether the event loop went on well enough.

    Judged by the loop's own work: the rest of a stall is time that the machine gave to others.
    """
    crowd = _Crowd(encoder, pictures)
    await crowd.arrive()
    new = [await worst_stall(crowd.arrive()) for _ in range(_NEW)]
    await crowd.leave()
    found: dict[str, list[Stall]] = {"used memory": [], "let go of": [], "by a thread": [], "before they are there": []}
    for _ in range(_AGAIN):
        found["used memory"].append(await worst_stall(crowd.arrive()))
        found["let go of"].append(await worst_stall(crowd.leave()))
        await crowd.arrive()
        found["by a thread"].append(await worst_stall(crowd.leave_to_a_thread()))
        found["before they are there"].append(await worst_stall(crowd.leave_early()))
    idle = [await worst_stall(asyncio.sleep(0.1)) for _ in range(_AGAIN)]
    for what, stalls in {"new memory": new, **found, "idle": idle}.items():
        _print(f"{megabytes:3} MB  {len(pictures)} at once{how}, {what}", stalls)
    await _report_times(megabytes, encoder, pictures, how)
    return max(stall.own for stalls in (new, *found.values()) for stall in stalls) <= LIMIT


async def report_leaving(megabytes: int, client: VisionClient, how: str) -> bool:
    """Close a client, who has then received all that it will; returns whether the event loop went on well enough."""
    stall = await worst_stall(client.close())
    _print(f"{megabytes:3} MB  client closed{how}", [stall])
    return stall.own <= LIMIT


async def _report_times(megabytes: int, encoder: ImageEncoder, pictures: Sequence[PromptImage], how: str) -> None:
    """Tell how long one picture alone takes to be there."""
    crowd = _Crowd(encoder, pictures)
    for memory in ("new", "used"):
        times = []
        for picture in pictures:
            begin = time.perf_counter()
            await crowd.arrive([picture])
            times.append(1e3 * (time.perf_counter() - begin))
        await crowd.leave()
        middle, least, most = statistics.median(times), min(times), max(times)
        print(f"{megabytes:3} MB  one{how}, {memory} memory: there after {middle:.1f} ms ({least:.1f} to {most:.1f})")


class _Crowd:
    """Pictures whose features come together, and go together."""

    def __init__(self, encoder: ImageEncoder, pictures: Sequence[PromptImage]) -> None:
        self._pictures = pictures
        self._store = FeatureStore(encoder, budget_bytes=(_NEW + 1) * sum(each.spec.num_bytes for each in pictures))
        self._held: list[Lease] = []

    async def arrive(self, pictures: Sequence[PromptImage] = ()) -> None:
        """Wait until these are there, by default all, and hold them; whoever asks next gets them sent anew."""
        await asyncio.gather(*[lease.arrived() for lease in await self._ask(pictures or self._pictures)])

    async def leave(self) -> None:
        """Let go of all in one turn of the loop, as where requests end, fail, or give way to others."""
        while self._held:
            self._held.pop().release()

    async def leave_to_a_thread(self) -> None:
        """Let go of all, the last hold on each being a thread's, as the engine's thread has."""
        features = [lease.entry.features for lease in self._held]
        await self.leave()
        await asyncio.to_thread(features.clear)

    async def leave_early(self) -> None:
        """Let go of all while they are on their way, as where callers leave."""
        await self._ask(self._pictures)
        await asyncio.sleep(_UNDER_WAY)
        await self.leave()

    async def _ask(self, pictures: Sequence[PromptImage]) -> list[Lease]:
        leases: list[Lease] = []
        for each in pictures:
            request_id = each.spec.image_hash.hex()
            await self._store.lease([each], salt=b"", request_id=request_id, take=lambda _, lease: leases.append(lease))
        self._store.forget(pictures)
        self._held += leases
        return leases


def _print(what: str, stalls: Sequence[Stall]) -> None:
    walls, own = [stall.wall for stall in stalls], [stall.own for stall in stalls]
    late, over = (sum(each > LIMIT for each in figures) for figures in (walls, own))
    print(
        f"{what}: {statistics.median_low(walls):.1f} ms late, at most {max(walls):.1f}, {late} of {len(stalls)} over "
        f"{LIMIT:.0f}; the loop's own work at a stretch {statistics.median_low(own):.1f} ms, at most {max(own):.1f}, "
        f"{over} over"
    )
