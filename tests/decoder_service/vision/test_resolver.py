"""Names become addresses, again and again, and an outage of names changes nothing."""

import asyncio
from contextlib import suppress

import pytest

from decoder_service.vision.resolver import VisionResolver, look_up


@pytest.mark.parametrize(
    "target", ["vision", "vision:", ":1", "vision:0", "vision:65536", "dns:///vision", "dns://a:1"]
)
def test_a_target_without_host_or_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"--vision-addresses: .* is not HOST:PORT or dns:///NAME:PORT"):
        VisionResolver([target])


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
