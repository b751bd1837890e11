"""Which vision replica gets an image: the one that has it, else its own one, unless others have less to do.

Knows patches, identities and time, as its caller tells them. Does not know channels or tasks. Three rules:

- An image ranks the replicas by a hash of both (rendezvous), alike in every decoder service, so a replica that
  comes or goes moves only the images that are its own.
- An image goes to the first in its ranking whose waiting patches are at most `_BOUND` times the mean and one
  image; one that is known to have the image is preferred, and may have a batch more waiting, as it need not encode.
- Nobody gets more than `_BOUND` times the mean of what was sent lately, so a picture that all the world asks for
  is soon held by several.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.image.identity import ImageHash

_BOUND = 1.2
_IMAGE_PATCHES = 4096
"""Patches of the largest image."""
_BATCH_PATCHES = 8192
_SLACK_PATCHES = 32_768
"""About a second of a GPU's work; below it, shares are noise."""
_HALF_LIFE = 30.0
"""Seconds after which what was sent counts half."""
_MAX_REMEMBERED = 65_536
_MAX_HOLDERS = 64
"""Of one image, the latest: pods are replaced by others at new addresses, for ever."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """Patches sent to a replica, as they count at a time."""

    patches: float = 0.0
    at: float = 0.0

    def at_time(self, now: float) -> float:
        return self.patches * math.exp2((self.at - now) / _HALF_LIFE)


class VisionRouter:
    """Chooses replicas by address, and remembers what it sent and who has what."""

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self._holders: OrderedDict[ImageHash, tuple[str, ...]] = OrderedDict()

    def choose(
        self, image_hash: ImageHash, pending: Mapping[str, int], *, busy: Collection[str] = (), now: float
    ) -> str:
        """The replica for an image, of those in `pending` (address to patches waiting), which is not empty.

        Those in `busy` have other images of the same request, whose images are spread to be ready soon.
        """
        ranking = sorted(pending, key=lambda address: _rank(image_hash, address))
        sent = {address: self._sent[address].at_time(now) if address in self._sent else 0.0 for address in pending}
        sent_bound = _BOUND * sum(sent.values()) / len(sent) + _SLACK_PATCHES
        waiting_bound = _BOUND * sum(pending.values()) / len(pending) + _IMAGE_PATCHES
        holders = self._holders.get(image_hash, ())
        for candidates, bound in (
            ([address for address in ranking if address in holders], waiting_bound + _BATCH_PATCHES),
            ([address for address in ranking if address not in busy], waiting_bound),
            (ranking, waiting_bound),
        ):
            for address in candidates:
                if pending[address] <= bound and sent[address] <= sent_bound:
                    return address
        return min(ranking, key=lambda address: pending[address])

    def sent(self, address: str, *, num_patches: int, now: float) -> None:
        """Hear that an image was sent to a replica."""
        sent = self._sent.pop(address, _Sent())
        # Replicas that are gone fade away.
        self._sent = {other: each for other, each in self._sent.items() if each.at_time(now) >= 1}
        self._sent[address] = _Sent(sent.at_time(now) + num_patches, now)

    def arrived(self, image_hash: ImageHash, address: str) -> None:
        """Hear that a replica gave an image's features, so that it has them."""
        holders = self._holders.pop(image_hash, ())
        self._holders[image_hash] = holders if address in holders else (*holders, address)[-_MAX_HOLDERS:]
        if len(self._holders) > _MAX_REMEMBERED:
            self._holders.popitem(last=False)


def _rank(image_hash: ImageHash, address: str) -> bytes:
    return hashlib.sha256(image_hash + address.encode()).digest()
