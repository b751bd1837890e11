"""Names become addresses, again and again, and an outage of names changes nothing."""

import asyncio
from contextlib import suppress

import pytest

from decoder_service.vision.resolver import VisionResolver, look_up, name_of_all


@pytest.mark.parametrize(
    "target", ["vision", "vision:", ":1", "vision:0", "vision:65536", "dns:///vision", "dns://a:1"]
)
def test_a_target_without_host_or_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"--vision-addresses: .* is not HOST:PORT or dns:///NAME:PORT"):
        VisionResolver([target])


def test_the_last_port_there_is_is_one() -> None:
    assert VisionResolver(["a:65535"]).addresses == ["a:65535"]


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        (["dns:///vision:1"], "vision"),
        (["dns:///vision:1", "dns:///vision:2"], "vision"),
        (["dns:///a:1", "dns:///b:1"], ""),
        (["dns:///a:1", "a:1"], ""),
        (["a:1"], ""),
        ([], ""),
    ],
)
def test_only_replicas_that_are_all_found_by_one_name_have_it_in_their_certificates(
    targets: list[str], name: str
) -> None:
    assert name_of_all(targets) == name


async def test_the_system_finds_this_machine() -> None:
    assert "127.0.0.1:50052" in await look_up("localhost", 50052)
    assert await look_up("::1", 7) == ["[::1]:7"]
    with pytest.raises(OSError, match=r"."):
        await look_up("no-such-name.invalid", 7)
    with pytest.raises(UnicodeError):
        await look_up("no..name", 7)


async def test_fixed_addresses_are_known_at_once_and_need_no_look_up() -> None:
    resolver = VisionResolver(["b:1", "a:1", "b:1"])
    await resolver.run(lambda: pytest.fail("nothing can change"))
    assert resolver.addresses == ["b:1", "a:1"]


async def test_changes_are_told_and_failures_are_not() -> None:
    failures: list[Exception] = [OSError("down"), TimeoutError(), UnicodeError("label empty or too long")]
    answers: list[list[str] | Exception] = [["x:1"], ["x:1"], *failures, [], ["y:1", "x:1"], ["a:9", "y:1"]]
    seen: list[list[str]] = []
    done = asyncio.Event()

    async def lookup(host: str, port: int) -> list[str]:
        if not answers:
            done.set()
            await asyncio.sleep(60)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    resolver = VisionResolver(["a:9", "dns:///vision:1"], lookup=lookup, every=0.0)
    task = asyncio.create_task(resolver.run(lambda: seen.append(resolver.addresses)))
    await done.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert seen == [["a:9", "x:1"], ["a:9", "x:1", "y:1"], ["a:9", "y:1"]]


@pytest.mark.parametrize(
    "target", ["::1:50052", "[::1:50052", "::1]:50052", "dns:///::1:7", "a:²", "a:٣", "a:-1", "a b:1"]
)
def test_an_address_that_could_be_read_in_two_ways_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"--vision-addresses: .* is not HOST:PORT or dns:///NAME:PORT"):
        VisionResolver([target])


async def test_an_address_of_version_six_is_in_brackets_and_is_asked_for_without_them() -> None:
    assert VisionResolver(["[::1]:50052"]).addresses == ["[::1]:50052"]
    resolver = VisionResolver(["dns:///[::1]:50052"], every=0.0)
    task = asyncio.create_task(resolver.run(lambda: None))
    async with asyncio.timeout(5):
        while not resolver.addresses:
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert resolver.addresses == ["[::1]:50052"]


async def test_a_name_service_that_says_nothing_is_asked_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder_service.vision.resolver._LONGEST", 0.01)
    gate, num_asked, seen = asyncio.Event(), 0, asyncio.Event()

    async def lookup(host: str, port: int) -> list[str]:
        nonlocal num_asked
        num_asked += 1
        # As a thread that asks the system: nobody can call it back.
        await asyncio.shield(asyncio.ensure_future(gate.wait()))
        return [f"{host}:{port}"]

    resolver = VisionResolver(["dns:///a:1"], lookup=lookup, every=0.0)
    task = asyncio.create_task(resolver.run(seen.set))
    await asyncio.sleep(0.2)
    assert num_asked == 1
    gate.set()
    async with asyncio.timeout(5):
        await seen.wait()
    assert resolver.addresses == ["a:1"]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_between_two_look_ups_there_is_a_pause() -> None:
    asked: list[str] = []

    async def lookup(host: str, port: int) -> list[str]:
        asked.append(host)
        return [f"{host}:{port}"]

    task = asyncio.create_task(VisionResolver(["dns:///a:1"], lookup=lookup, every=60.0).run(lambda: None))
    for _ in range(100):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert asked == ["a"]


async def test_a_name_that_nobody_answers_for_holds_up_no_other_one_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("decoder_service.vision.resolver._LONGEST", 0.01)

    async def lookup(host: str, port: int) -> list[str]:
        if host == "silent":
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                raise OSError("too late")
        return [f"{host}:{port}"]

    resolver, seen = VisionResolver(["dns:///silent:1", "dns:///b:1"], lookup=lookup, every=60.0), asyncio.Event()
    task = asyncio.create_task(resolver.run(seen.set))
    async with asyncio.timeout(5):
        await seen.wait()
    assert resolver.addresses == ["b:1"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
