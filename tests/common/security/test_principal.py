import asyncio
from contextlib import suppress

from common.security.principal import ANONYMOUS, Principal, acting_for, current_principal, token_charge


def test_an_anonymous_callers_salt_is_the_requests_own() -> None:
    assert ANONYMOUS.cache_salt(b"") == b""
    assert ANONYMOUS.cache_salt(b"x" * 64) == b"x" * 64


def test_known_callers_share_only_by_a_salt_that_both_give() -> None:
    alice, bob = Principal("alice"), Principal("bob")
    assert alice.cache_salt(b"") not in (b"", bob.cache_salt(b""))
    assert alice.cache_salt(b"") == Principal("alice").cache_salt(b"")
    assert alice.cache_salt(b"ours") == bob.cache_salt(b"ours")


def test_nobody_reaches_anothers_own_salt_by_giving_it() -> None:
    alice, bob = Principal("alice"), Principal("bob")
    for guess in (b"alice", alice.cache_salt(b""), b"name\0alice"):
        assert bob.cache_salt(guess) != alice.cache_salt(b"")


def test_a_salt_fits_into_the_wires_limit() -> None:
    assert len(Principal("spiffe://" + "x" * 200).cache_salt(b"")) <= 64


def test_who_acted_before_acts_again_when_a_call_has_ended_or_failed() -> None:
    alice = Principal("alice")
    with acting_for(alice):
        with suppress(ZeroDivisionError), acting_for(Principal("bob")):
            raise ZeroDivisionError
        assert current_principal() is alice
    assert current_principal() is ANONYMOUS


async def test_each_task_has_its_own_caller() -> None:
    charged: list[tuple[str, int]] = []

    async def call(name: str) -> str:
        with acting_for(Principal(name), lambda count: charged.append((name, count))):
            await asyncio.sleep(0)
            token_charge()(len(name))
            await asyncio.sleep(0)
            return current_principal().name

    assert list(await asyncio.gather(call("a"), call("bb"))) == ["a", "bb"]
    assert charged == [("a", 1), ("bb", 2)]
    assert current_principal() is ANONYMOUS
    token_charge()(1)
