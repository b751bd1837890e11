"""Who goes next: the highest class, in it the tenant that got least, of a tenant the first."""

import random
from dataclasses import dataclass
from itertools import permutations

import pytest

from decoder_service.cache.block_manager import IntegrityError
from decoder_service.scheduling.fair_queue import FairQueue
from decoder_service.scheduling.token_counters import TokenCounters
from tests.calls import num_calls


@dataclass(frozen=True)
class Item:
    arrival: int
    tenant: bytes = b""
    priority: int = 0


class Server:
    """Serves one after another, each for as many tokens as it is told."""

    def __init__(self) -> None:
        self.counters = TokenCounters()
        self.queue: FairQueue[Item] = FairQueue(self.counters)

    def push(self, *items: Item) -> None:
        for item in items:
            self.queue.push(item)
            self.queue.check_integrity()

    def serve(self, tokens: int = 1) -> Item:
        item = self.queue.head
        assert item is not None
        self.queue.remove(item)
        self.counters.charge(item.tenant, tokens)
        self.queue.check_integrity()
        return item

    def serve_all(self, tokens: int = 1) -> list[Item]:
        return [self.serve(tokens) for _ in range(len(self.queue))]


def test_one_tenants_requests_go_in_order_of_arrival_whatever_order_they_come_in() -> None:
    server = Server()
    items = [Item(arrival) for arrival in range(50)]
    server.push(*random.Random(1).sample(items, 50))
    assert server.serve_all() == items


def test_higher_classes_go_first_whoever_has_them_and_whatever_they_got() -> None:
    server = Server()
    server.counters.charge(b"a", 10**6)
    low, high = Item(0, b"b"), Item(1, b"a", priority=2)
    server.push(low, high)
    assert server.serve_all() == [high, low]


def test_tenants_take_turns_though_one_was_there_first_with_ten_times_as_much() -> None:
    server = Server()
    server.push(*(Item(arrival, b"a") for arrival in range(20)), Item(20, b"b"), Item(21, b"b"))
    assert [item.tenant for item in server.serve_all()[:5]] == [b"a", b"b", b"a", b"b", b"a"]


def test_turns_are_measured_in_tokens_and_not_in_requests() -> None:
    server = Server()
    server.push(*(Item(2 * n, b"a") for n in range(30)), *(Item(2 * n + 1, b"b") for n in range(30)))
    tokens = {b"a": 0, b"b": 0}
    for _ in range(30):
        item = server.serve(0)
        amount = 9 if item.tenant == b"a" else 3
        server.counters.charge(item.tenant, amount)
        tokens[item.tenant] += amount
    assert abs(tokens[b"a"] - tokens[b"b"]) <= 9


def test_nobody_saves_up_a_right_to_service_while_idle() -> None:
    """One that comes back is lifted to those that waited all along, and then takes turns with them."""
    server = Server()
    server.push(*(Item(arrival, b"a") for arrival in range(100)))
    for _ in range(50):
        server.serve(100)
    server.push(*(Item(100 + n, b"b") for n in range(20)))
    assert abs([item.tenant for item in server.serve_all(100)[:20]].count(b"b") - 10) <= 1


def test_nobody_saves_up_a_right_to_service_while_all_are_idle() -> None:
    server = Server()
    for arrival in range(50):
        server.push(Item(arrival, b"a"))
        server.serve(100)
    server.push(*(Item(100 + n, tenant) for n in range(20) for tenant in (b"a", b"b")))
    assert abs([item.tenant for item in server.serve_all(100)[:20]].count(b"b") - 10) <= 1


@pytest.mark.parametrize("waits_on", [True, False])
def test_nobody_saves_up_a_right_to_service_while_another_gets_much_at_once(waits_on: bool) -> None:
    server = Server()
    server.push(Item(0, b"a"))
    if waits_on:
        server.counters.charge(b"a", 1000)
    else:
        server.serve(1000)
    server.push(*(Item(1 + n, tenant) for n in range(20) for tenant in (b"b", b"a")))
    assert abs([item.tenant for item in server.serve_all(100)[:20]].count(b"b") - 10) <= 1


def test_leaving_the_queue_does_not_clear_what_was_had() -> None:
    server = Server()
    server.push(Item(0, b"a"), Item(1, b"b"), Item(2, b"b"), Item(3, b"b"))
    assert server.serve(1000).tenant == b"a"
    server.push(Item(4, b"a"))
    assert [server.serve(1).tenant for _ in range(4)] == [b"b", b"b", b"b", b"a"]


def test_new_names_cannot_keep_an_old_tenant_waiting() -> None:
    """A caller that takes a new name for each request gets in line behind those that wait."""
    server = Server()
    server.push(Item(0, b"old"))
    for n in range(1, 20):
        server.push(Item(n, b"new %d" % n))
    assert server.serve(5).tenant == b"old"


def test_any_item_may_leave_at_any_time_and_only_once() -> None:
    draw = random.Random(2)
    server = Server()
    waiting: list[Item] = []
    for arrival in range(2000):
        if waiting and draw.random() < 0.5:
            item = waiting.pop(draw.randrange(len(waiting)))
            server.queue.remove(item)
            with pytest.raises(ValueError, match="does not wait"):
                server.queue.remove(item)
        else:
            waiting.append(Item(arrival, b"%d" % draw.randrange(5), draw.randrange(3)))
            server.push(waiting[-1])
        if waiting:
            head = server.queue.head
            assert head in waiting
            assert head is not None
            assert head.priority == max(item.priority for item in waiting)
            server.counters.charge(b"%d" % draw.randrange(5), draw.randrange(9))
        server.queue.check_integrity()
        assert set(server.queue) == set(waiting)
        assert len(server.queue) == len(waiting)
    for item in waiting:
        server.queue.remove(item)
    assert server.queue.head is None


def test_those_that_arrive_as_one_leave_one_by_one_whoever_of_them_is_first() -> None:
    """Completions of one prompt."""
    for order in permutations(range(3)):
        server = Server()
        items = [Item(1) for _ in range(3)]
        server.push(Item(0), *items, Item(2))
        with pytest.raises(ValueError, match="does not wait"):
            server.queue.remove(Item(0))
        for index in order:
            server.queue.remove(items[index])
            server.queue.check_integrity()
            assert not any(item is items[index] for item in server.queue)
            with pytest.raises(ValueError, match="does not wait"):
                server.queue.remove(items[index])
        assert [item.arrival for item in server.serve_all()] == [0, 2]


def test_tenants_that_left_are_not_kept_though_those_that_stay_got_less() -> None:
    server = Server()
    server.push(Item(0, b"first"), Item(1, b"second"))
    for n in range(2, 500):
        server.counters.charge(b"%d" % n, 1000 + n)
        item = Item(n, b"%d" % n)
        server.push(item)
        server.queue.remove(item)
    assert len(server.queue._classes[0]._heap) < 50
    assert [item.tenant for item in server.serve_all()] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("length", "how many"),
        ("place", "without a place"),
        ("counter", "more than it was given"),
        ("class", "not its own"),
        ("tenant", "not its own"),
        ("order", "order of arrival"),
    ],
)
def test_books_that_contradict_each_other_are_found(wrong: str, told: str) -> None:
    server = Server()
    server.push(Item(0, b"a"), Item(1, b"a"), Item(2, b"b"))
    own = server.queue._classes[0]
    match wrong:
        case "length":
            server.queue._length += 1
        case "place":
            del own._entries[b"b"]
        case "counter":
            own._heap = [(1, entry, tenant) for _, entry, tenant in own._heap]
        case "class":
            server.queue._classes[1] = server.queue._classes.pop(0)
        case "tenant":
            own.lines[b"a"][1:] = own.lines[b"b"]
        case "order":
            own.lines[b"a"].reverse()
    with pytest.raises(IntegrityError, match=told):
        server.queue.check_integrity()


def test_the_first_few_are_of_the_highest_class_and_of_a_tenant_those_that_came_first() -> None:
    server = Server()
    items = [Item(arrival, b"%d" % (arrival % 2), priority=arrival % 3) for arrival in range(30)]
    server.push(*random.Random(1).sample(items, 30))
    few = list(server.queue.first(13))
    assert [item.priority for item in few] == [2] * 10 + [1] * 3
    for tenant in (b"0", b"1"):
        line = [item for item in few if item.priority == 2 and item.tenant == tenant]
        assert line == [item for item in items if item.priority == 2 and item.tenant == tenant]
    assert few[10:] == [item for item in items if item.priority == 1 and item.tenant == few[10].tenant][:3]
    assert set(server.queue.first(99)) == set(items)
    assert list(server.queue.first(0)) == []


def test_thousands_of_tenants_cost_a_look_at_the_head_no_more_than_ten() -> None:
    def calls(num_tenants: int) -> int:
        server = Server()
        server.push(*(Item(n, b"%d" % n) for n in range(num_tenants)))
        server.counters.charge(b"0", 5)
        return num_calls(lambda: server.queue.head)

    assert calls(10) == calls(3000) > 0
