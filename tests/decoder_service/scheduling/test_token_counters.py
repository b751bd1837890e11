"""What each tenant was given, and whose sums are forgotten."""

from decoder_service.scheduling.token_counters import MAX_TENANTS, TokenCounters, cost


def test_counters_of_names_that_come_no_more_are_forgotten() -> None:
    counters = TokenCounters()
    for n in range(MAX_TENANTS + 5):
        counters.charge(b"%d" % n, 7)
    assert counters.get(b"0") == 0
    assert counters.get(b"%d" % MAX_TENANTS) == 7


def test_a_counter_is_kept_while_there_is_room_for_it_or_its_tenant_comes_again() -> None:
    counters = TokenCounters()
    for n in range(MAX_TENANTS):
        counters.charge(b"%d" % n, 7)
    counters.charge(b"0", 7)
    counters.charge(b"new", 7)
    assert [counters.get(tenant) for tenant in (b"0", b"1", b"2", b"new")] == [14, 0, 7, 7]


def test_output_tokens_count_twice() -> None:
    assert cost(0, 10, num_prompt_tokens=10) == 10
    assert cost(8, 12, num_prompt_tokens=10) == 2 + 2 * 2
    assert cost(12, 13, num_prompt_tokens=10) == 2
