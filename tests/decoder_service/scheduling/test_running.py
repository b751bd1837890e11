"""Who gives way: whatever runs, the cheapest, and never in turns."""

from hypothesis import given
from hypothesis import strategies as st

from decoder_service.engine.request import Request
from decoder_service.scheduling.running import RunningRequests
from tests.decoder_service.engine_fakes import make_request

kinds = st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([b"a", b"b", b"c"]), st.booleans())
"""Class, tenant, and whether its reader is behind."""


def running(given: list[tuple[int, bytes, bool]]) -> tuple[RunningRequests, list[Request]]:
    """Requests in order of arrival, which are noted last first."""
    requests = []
    for arrival, (priority, tenant, is_paused) in enumerate(given):
        request = make_request(f"r{arrival}", 3, arrival=arrival, priority=priority, tenant=tenant)
        request.is_paused = is_paused
        requests.append(request)
    found = RunningRequests()
    for request in reversed(requests):
        found.add(request)
    found.check_integrity()
    return found, requests


@given(st.lists(kinds, min_size=1, max_size=12))
def test_the_latest_of_the_lowest_class_gives_way_and_before_it_who_cannot_use_its_blocks(
    given: list[tuple[int, bytes, bool]],
) -> None:
    found, requests = running(given)
    candidates = [each for each in requests if each.is_paused] or requests
    lowest = min(each.priority for each in candidates)
    assert found.victim() is [each for each in candidates if each.priority == lowest][-1]


@given(st.lists(kinds, max_size=12), kinds)
def test_who_gives_way_to_a_waiting_request_is_of_a_lower_class_or_of_a_tenant_that_keeps_more(
    given: list[tuple[int, bytes, bool]], waiting: tuple[int, bytes, bool]
) -> None:
    found, requests = running(given)
    priority, tenant, _ = waiting
    request = make_request("new", 3, arrival=len(requests), priority=priority, tenant=tenant)
    victims = found.victims_for(request)
    assert len(set(victims)) == len(victims)
    shares = dict.fromkeys((b"a", b"b", b"c"), 0)
    for each in requests:
        shares[each.tenant] += 1
    for victim in victims:
        assert victim.priority <= priority or victim.is_paused
        if victim.priority == priority and not victim.is_paused:
            assert victim.tenant != tenant
            assert shares[victim.tenant] - 1 > shares[tenant]
        shares[victim.tenant] -= 1
        if victim.priority == priority and not victim.is_paused:
            assert any(each.tenant == victim.tenant for each in requests if each not in victims), "its last is taken"


@given(st.lists(kinds, min_size=1, max_size=12), kinds)
def test_a_request_that_gave_way_for_fairness_takes_no_place_back(
    given: list[tuple[int, bytes, bool]], waiting: tuple[int, bytes, bool]
) -> None:
    found, requests = running([(0, tenant, False) for _, tenant, _ in given])
    request = make_request("new", 3, arrival=len(requests), tenant=waiting[1])
    for victim in found.victims_for(request)[:1]:
        found.remove(victim)
        found.add(request)
        assert request not in found.victims_for(victim)
