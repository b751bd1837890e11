"""Images go where they are, work goes where there is least, by simulation on a virtual clock."""

import heapq
import itertools
import random
from collections import Counter, OrderedDict

import pytest

from common.image.identity import ImageHash
from decoder_service.vision.router import VisionRouter

PATCHES_PER_SECOND = 100_000.0
"""Of one replica's encoder."""


class Lru:
    """A cache that holds so many patches."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self.images: OrderedDict[int, int] = OrderedDict()

    def has(self, image: int) -> bool:
        if image in self.images:
            self.images.move_to_end(image)
            return True
        return False

    def keep(self, image: int, num_patches: int) -> None:
        if image not in self.images:
            self.images[image] = num_patches
            self.held += num_patches
            while self.held > self.size:
                self.held -= self.images.popitem(last=False)[1]


class Replica:
    """One encoder, first come first served, behind its cache. A hit costs no encoding."""

    def __init__(self, cache_size: int) -> None:
        self.cache = Lru(cache_size)
        self.free_at = 0.0
        self.pending = 0
        self.served = 0
        self.encoded = 0
        self.hits = 0
        self.under_way: dict[int, float] = {}


class Simulation:
    """Decoder services with a router each, over the same replicas; what others wait for is learnt every second."""

    def __init__(self, *, replicas: int, cache_size: int, decoders: int = 1) -> None:
        self.replicas = {f"10.0.0.{index}:50052": Replica(cache_size) for index in range(replicas)}
        self.routers = [VisionRouter() for _ in range(decoders)]
        self.own: list[Counter[str]] = [Counter() for _ in range(decoders)]
        self.others: list[Counter[str]] = [Counter() for _ in range(decoders)]
        self.ends: list[tuple[float, int, str, int, int, int]] = []
        self.order = itertools.count()
        self.asked_at = 0.0

    def run(self, requests: list[tuple[float, int, int]]) -> None:
        """Requests are (time, image, patches), in the order of their times."""
        for number, (now, image, num_patches) in enumerate(requests):
            self._end_until(now)
            self._ask_loads(now)
            decoder = number % len(self.routers)
            self._send(now, image, num_patches, decoder)
        self._end_until(float("inf"))

    def _ask_loads(self, now: float) -> None:
        if now - self.asked_at >= 1.0:
            self.asked_at = now
            for own, others in zip(self.own, self.others, strict=True):
                for address, replica in self.replicas.items():
                    others[address] = max(0, replica.pending - own[address])

    def _send(self, now: float, image: int, num_patches: int, decoder: int) -> None:
        router, own, others = self.routers[decoder], self.own[decoder], self.others[decoder]
        pending = {address: own[address] + others[address] for address in self.replicas}
        address = router.choose(_hash(image), pending, now=now)
        router.sent(address, num_patches=num_patches, now=now)
        replica = self.replicas[address]
        replica.served += num_patches
        own[address] += num_patches
        end = now + 0.005
        if replica.cache.has(image):
            replica.hits += 1
        elif image in replica.under_way:
            replica.hits += 1
            end = replica.under_way[image]
        else:
            replica.free_at = end = max(now, replica.free_at) + num_patches / PATCHES_PER_SECOND
            replica.encoded += num_patches
            replica.under_way[image] = end
            replica.pending += num_patches
        heapq.heappush(self.ends, (end, next(self.order), address, image, num_patches, decoder))

    def _end_until(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            _, _, address, image, num_patches, decoder = heapq.heappop(self.ends)
            replica = self.replicas[address]
            self.own[decoder][address] -= num_patches
            self.routers[decoder].arrived(_hash(image), address)
            if replica.under_way.pop(image, None) is not None:
                replica.pending -= num_patches
            replica.cache.keep(image, num_patches)

    @property
    def hit_rate(self) -> float:
        return sum(replica.hits for replica in self.replicas.values()) / next(self.order)

    @property
    def busiest(self) -> float:
        """The most that one replica served, in means."""
        served = [replica.served for replica in self.replicas.values()]
        return max(served) / (sum(served) / len(served))

    @property
    def busiest_encoder(self) -> float:
        encoded = [replica.encoded for replica in self.replicas.values()]
        return max(encoded) / (sum(encoded) / len(encoded))


def zipf_requests(
    *, seed: int, images: int, count: int, rate: float, exponent: float = 1.0
) -> list[tuple[float, int, int]]:
    """Popular and rare images of 256 to 4096 patches, at random times."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) ** exponent for rank in range(images)]
    sizes = [rng.choice([256, 1024, 2048, 4096]) for _ in range(images)]
    now, requests = 0.0, []
    for image in rng.choices(range(images), weights, k=count):
        now += rng.expovariate(rate)
        requests.append((now, image, sizes[image]))
    return requests


@pytest.mark.parametrize("decoders", [1, 4])
@pytest.mark.parametrize("rate", [20.0, 150.0])
def test_three_caches_hit_nearly_as_often_as_one_of_their_size(rate: float, decoders: int) -> None:
    requests = zipf_requests(seed=3, images=400, count=8000, rate=rate)
    size = 130_000
    """A third of all that is asked for, together."""
    one = Simulation(replicas=1, cache_size=3 * size)
    one.run(requests)
    three = Simulation(replicas=3, cache_size=size, decoders=decoders)
    three.run(requests)
    assert 0.3 < one.hit_rate < 0.95
    assert three.hit_rate > 0.95 * one.hit_rate


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("decoders", [1, 4])
def test_the_busiest_replica_has_little_more_than_the_mean(exponent: float, decoders: int) -> None:
    requests = zipf_requests(seed=5, images=400, count=8000, rate=200.0, exponent=exponent)
    simulation = Simulation(replicas=3, cache_size=10**6, decoders=decoders)
    simulation.run(requests)
    assert simulation.busiest <= 1.3


def test_new_images_keep_all_encoders_busy() -> None:
    requests = zipf_requests(seed=7, images=10**5, count=3000, rate=120.0, exponent=0.0)
    simulation = Simulation(replicas=3, cache_size=10**6)
    simulation.run(requests)
    assert simulation.busiest_encoder <= 1.05
    end = max(replica.free_at for replica in simulation.replicas.values())
    work = sum(patches for _, _, patches in requests) / PATCHES_PER_SECOND / 3
    assert end < 1.1 * max(work, requests[-1][0])


THREE = ("10.0.0.1:50052", "10.0.0.2:50052", "10.0.0.3:50052")


@pytest.mark.parametrize("image", range(10))
def test_the_images_of_one_request_go_to_several_as_long_as_there_are_some_without_any(image: int) -> None:
    router, pending, busy = VisionRouter(), dict.fromkeys(THREE, 0), list[str]()
    for _ in THREE:
        busy.append(router.choose(_hash(image), pending, busy=busy, now=0.0))
    assert sorted(busy) == list(THREE)
    assert router.choose(_hash(image), pending, busy=busy, now=0.0) == busy[0], "its own one"


@pytest.mark.parametrize("idle", THREE)
def test_where_everybody_has_too_much_of_something_the_one_with_least_waiting_gets_it(idle: str) -> None:
    router = VisionRouter()
    router.sent(idle, num_patches=10**6, now=0.0)
    pending = {address: 0 if address == idle else 10**5 for address in THREE}
    for image in range(10):
        assert router.choose(_hash(image), pending, now=0.0) == idle


@pytest.mark.parametrize("image", range(10))
def test_a_holder_is_remembered_however_often_another_one_gives_the_image(image: int) -> None:
    router = VisionRouter()
    router.arrived(_hash(image), THREE[0])
    for _ in range(1000):
        router.arrived(_hash(image), THREE[1])
    assert router.choose(_hash(image), {THREE[0]: 0, THREE[2]: 0}, now=0.0) == THREE[0]


def test_of_too_many_images_those_are_forgotten_that_came_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder_service.vision.router._MAX_REMEMBERED", 3)
    router = VisionRouter()
    for image in (0, 1, 2, 0, 3):
        router.arrived(_hash(image), THREE[0])
    assert list(router._holders) == [_hash(image) for image in (2, 0, 3)]


def test_what_was_sent_long_ago_to_replicas_that_are_gone_is_forgotten() -> None:
    router = VisionRouter()
    for minute in range(100):
        router.sent(f"10.0.0.{minute}:50052", num_patches=4096, now=60.0 * minute)
    assert list(router._sent) == [f"10.0.0.{minute}:50052" for minute in range(93, 100)]


def _hash(image: int) -> ImageHash:
    return ImageHash(image.to_bytes(32, "big"))


def test_addresses_that_come_and_go_are_not_remembered_without_end() -> None:
    """A deployment that is replaced again and again has each picture at ever new addresses."""
    router, image = VisionRouter(), _hash(1)
    addresses = [f"10.0.{number // 256}.{number % 256}:50052" for number in range(1000)]
    for address in addresses:
        router.arrived(image, address)
    assert len(router._holders[image]) < 100
    pending = dict.fromkeys(addresses, 0)
    assert router.choose(image, pending, now=0.0) in addresses[-100:], "and of the latest ones all"
