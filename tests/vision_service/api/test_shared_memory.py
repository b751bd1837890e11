"""Features go through shared memory between two processes' parts, and nothing of it is left or trusted."""

import asyncio
import logging
import mmap
import os
import random
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from common.features import arena_greeting
from common.features.arena_greeting import GREETING, socket_address
from common.features.shared_memory import Region, SharedArena, map_arena
from decoder_service.vision.arena_guest import ArenaGuest, Sharing
from decoder_service.vision.arena_visit import ArenaVisit
from vision_service.api import arena_door
from vision_service.api.arena_door import ArenaDoor

SIZE = 1 << 20


@asynccontextmanager
async def door_of(size: int = SIZE) -> AsyncIterator[ArenaDoor]:
    door = ArenaDoor(SharedArena(size))
    door.start()
    try:
        yield door
    finally:
        await door.close()
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "arena door"]


async def visit_of(door: ArenaDoor) -> ArenaVisit:
    return await ArenaVisit.open(door.name)


async def is_refused(name: str) -> bool:
    try:
        (await ArenaVisit.open(name)).close()
    except (OSError, ValueError):
        return True
    return False


async def settle() -> None:
    await asyncio.sleep(0.05)


def test_regions_never_overlap_and_the_first_that_fits_is_used_again() -> None:
    arena = SharedArena(4 * 4096)
    first, second, third = (arena.take(4096) for _ in range(3))
    assert [first, second, third] == [Region(0, 4096), Region(4096, 4096), Region(8192, 4096)]
    assert arena.take(2 * 4096) is None
    assert second is not None
    arena.give(second)
    assert arena.take(5000) is None
    assert arena.take(100) == Region(4096, 100)
    assert arena.take(4096) == Region(3 * 4096, 4096)
    arena.close()


def test_whatever_is_taken_and_given_no_byte_has_two_owners() -> None:
    rng, arena, taken = random.Random(0), SharedArena(64 * 4096), list[Region]()
    for _ in range(2000):
        if taken and rng.random() < 0.5:
            arena.give(taken.pop(rng.randrange(len(taken))))
        elif region := arena.take(rng.randint(1, 9 * 4096)):
            assert region.offset >= 0
            assert region.end <= arena.size
            assert all(region.end <= other.offset or other.end <= region.offset for other in taken)
            taken.append(region)
        assert arena.bytes_taken == sum(region.size for region in taken)
    arena.close()


def test_readers_can_neither_write_nor_shrink() -> None:
    arena = SharedArena(SIZE)
    region = arena.take(8)
    assert region is not None
    arena.write(region, 0, memoryview(b"features"))
    memory = map_arena(arena.fd, size=SIZE)
    assert (bytes(memory[:8]), memory.readonly) == (b"features", True)
    with pytest.raises(PermissionError):
        mmap.mmap(arena.fd, SIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)
    with pytest.raises(ValueError, match="do not fit"):
        arena.write(region, 4, memoryview(b"more than that"))
    arena.close()
    assert bytes(memory[:8]) == b"features", "a reader keeps what it has mapped"


def test_memory_that_could_shrink_or_is_of_another_size_is_not_mapped() -> None:
    fd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    for size in (SIZE, SIZE + 1, 0):
        with pytest.raises(ValueError, match="memory"):
            map_arena(fd, size=size)
    os.close(fd)


async def test_a_lease_is_read_and_given_back() -> None:
    async with door_of() as door:
        visit = await visit_of(door)
        await settle()
        with door.lease(visit.token, 100) as lease:
            assert lease is not None
            lease.write(10, memoryview(b"rows"))
            assert bytes(visit.memory[lease.region.offset + 10 :][:4]) == b"rows"
            visit.release(lease.number + 1)  # Nobody's.
            await settle()
            assert not lease.done.is_set()
            visit.release(lease.number)
            async with asyncio.timeout(2):
                await lease.done.wait()
            assert door.bytes_taken == 100
        assert door.bytes_taken == 0
        visit.close()


async def test_strangers_and_those_for_whom_there_is_no_room_get_none() -> None:
    async with door_of() as door:
        visit = await visit_of(door)
        await settle()
        for token in (b"", b"x" * 16, visit.token[:-1]):
            with door.lease(token, 10) as lease:
                assert lease is None
        with door.lease(visit.token, SIZE) as all_of_it, door.lease(visit.token, 1) as more:
            assert all_of_it is not None
            assert more is None
        visit.close()
        await settle()
        with door.lease(visit.token, 10) as lease:
            assert lease is None, "a token ends with its reader"


async def test_another_user_is_turned_away_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    async with door_of() as door:
        with monkeypatch.context() as other:
            other.setattr(arena_door, "is_same_user", lambda connection: False)
            assert await is_refused(door.name)
        with monkeypatch.context() as other:
            other.setattr("decoder_service.vision.arena_visit.is_same_user", lambda connection: False)
            assert await is_refused(door.name)
    left, right = socket.socketpair()
    assert arena_greeting.is_same_user(left)
    monkeypatch.setattr(os, "geteuid", lambda: -2)
    assert not arena_greeting.is_same_user(left)
    for end in (left, right):
        end.close()


@pytest.mark.parametrize("name", ["", "diptych-", "../../etc/passwd", "diptych-" + "0" * 32 + "\0", "x" * 40])
async def test_names_that_are_none_are_not_followed(name: str) -> None:
    assert await is_refused(name)
    with pytest.raises(ValueError, match="malformed"):
        socket_address(name)


async def test_a_lying_door_is_left_alone() -> None:
    """Sizes that are not the memory's, no descriptor, a pipe in its place, half a greeting."""
    arena, name = SharedArena(SIZE), arena_greeting.new_name()
    pipe = os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_address(name))
    listener.listen()
    for message, fds in (
        (GREETING.pack(b"t" * 16, SIZE * 2), [arena.fd]),
        (GREETING.pack(b"t" * 16, 2**63), [arena.fd]),
        (GREETING.pack(b"t" * 16, SIZE), []),
        (GREETING.pack(b"t" * 16, SIZE), [pipe[0]]),
        (b"half", [arena.fd]),
    ):
        opening = asyncio.create_task(is_refused(name))
        connection, _ = await asyncio.to_thread(listener.accept)
        socket.send_fds(connection, [message], fds)
        assert await opening
        connection.close()
    listener.close()
    arena.close()
    for end in pipe:
        os.close(end)


async def test_a_new_name_is_a_new_process_and_none_is_none() -> None:
    async with door_of() as first, door_of() as second:
        guest = ArenaGuest("vision:50052", wants_memory=True)
        await guest.meet(first.name)
        before = guest.visit
        await guest.meet(first.name)
        assert guest.visit is before is not None
        await guest.meet(second.name)
        assert guest.visit is not before
        await guest.meet("")
        assert guest.visit is None
        unwilling = ArenaGuest("vision:50052", wants_memory=False)
        await unwilling.meet(first.name)
        assert unwilling.visit is None


async def test_a_lost_connection_is_made_again_when_the_name_is_heard_again() -> None:
    async with door_of() as door:
        guest = ArenaGuest("vision:50052", wants_memory=True)
        await guest.meet(door.name)
        lost = guest.visit
        assert lost is not None
        lost.close()  # As it does itself where a word does not get through.
        await settle()
        await guest.meet(door.name)
        assert guest.visit is not None
        assert guest.visit is not lost
        with door.lease(lost.token, 10) as old, door.lease(guest.visit.token, 10) as new:
            assert old is None
            assert new is not None
        guest.leave()


async def test_memory_of_a_service_that_was_left_is_unmapped_once_nobody_reads_it() -> None:
    async with door_of() as door:
        guest = ArenaGuest("vision:50052", wants_memory=True)
        await guest.meet(door.name)
        assert guest.visit is not None
        reader, owner = guest.visit.memory[:100], guest.visit.memory.obj
        assert isinstance(owner, np.ndarray)
        mapping: object = owner.base
        assert isinstance(mapping, mmap.mmap)
        del owner
        guest.leave()
        await settle()
        assert bytes(reader) == bytes(100)
        assert len(mapping) == SIZE, "it is still there"
        del reader
        async with asyncio.timeout(5):
            while not mapping.closed:
                await asyncio.sleep(0.01)


async def test_memory_that_cannot_be_had_is_told_once_and_tried_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[str] = []
    clock = [0.0]

    async def refuse(name: str) -> ArenaVisit:
        tries.append(name)
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(ArenaVisit, "open", refuse)
    guest = ArenaGuest("vision:50052", wants_memory=True, clock=lambda: clock[-1])
    seen = [guest.sharing]
    for name in ("first", "second", "second"):
        for _ in range(10):
            await guest.meet(name)
    assert tries == ["first"] * 3 + ["second"] * 3
    for now in (59.0, 61.0, 62.0, 122.0):
        clock.append(now)
        await guest.meet("second")
    assert tries[6:] == ["second"] * 2
    seen.append(guest.sharing)
    told = [(vars(record)["address"], vars(record)["reason"]) for record in caplog.records]
    assert told == [("vision:50052", "ConnectionRefusedError('nobody listens')")] * 2, "once for each name"
    for _ in range(5):
        await guest.meet("")
    assert len(tries) == 8
    assert [*seen, guest.sharing] == [None, Sharing.OUT_OF_REACH, None]


async def test_memory_that_was_out_of_reach_is_used_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = [0.0]
    async with door_of() as door:
        guest = ArenaGuest("vision:50052", wants_memory=True, clock=lambda: clock[-1])
        with monkeypatch.context() as other:
            other.setattr(arena_door, "is_same_user", lambda connection: False)
            for _ in range(4):
                await guest.meet(door.name)
        await guest.meet(door.name)
        seen = [guest.sharing]
        clock.append(61.0)
        await guest.meet(door.name)
        assert [*seen, guest.sharing] == [Sharing.OUT_OF_REACH, Sharing.MAPPED]
        guest.leave()
    told = [record.message for record in caplog.records if record.name.endswith("arena_guest")]
    assert [message.split(";")[0] for message in told] == [
        "shared memory is out of reach", "shared memory is in reach again",
    ]  # fmt: skip


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_who_leaves_before_the_greeting_holds_nothing(is_cancelled: bool) -> None:
    arena, name = SharedArena(SIZE), arena_greeting.new_name()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_address(name))
    listener.listen()
    guest = ArenaGuest("vision:50052", wants_memory=True)
    meeting = asyncio.create_task(guest.meet(name))
    connection, _ = await asyncio.to_thread(listener.accept)
    guest.leave()
    if is_cancelled:
        meeting.cancel()
    else:
        socket.send_fds(connection, [GREETING.pack(b"t" * 16, SIZE)], [arena.fd])
    await asyncio.gather(meeting, return_exceptions=True)
    connection.settimeout(5)
    assert connection.recv(1) == b"", "the other end is closed"
    assert guest.visit is None
    for end in (connection, listener):
        end.close()
    arena.close()


READER = """
import asyncio, sys, time
from decoder_service.vision.arena_visit import ArenaVisit
visit = asyncio.run(ArenaVisit.open(sys.argv[1]))
print(visit.token.hex(), flush=True)
time.sleep(60)
"""
OWNER = """
import asyncio
from common.features.shared_memory import SharedArena
from vision_service.api.arena_door import ArenaDoor
async def main():
    door = ArenaDoor(SharedArena(1 << 20))
    door.start()
    print(door.name, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@asynccontextmanager
async def process_of(program: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_killed_reader_frees_its_leases() -> None:
    async with door_of() as door, process_of(READER, door.name) as (process, token):
        await settle()
        with door.lease(bytes.fromhex(token), 100) as lease:
            assert lease is not None
            process.kill()
            async with asyncio.timeout(5):
                await lease.done.wait()
        assert door.bytes_taken == 0


async def test_nothing_is_left_of_a_killed_owner_and_its_reader_reads_on() -> None:
    async with process_of(OWNER) as (process, name):
        visit = await ArenaVisit.open(name)
        assert visit is not None
        process.kill()
        await process.wait()
        assert bytes(visit.memory[-8:]) == bytes(8)
        assert await is_refused(name)
        visit.release(1)
        visit.close()


async def test_a_door_without_a_free_descriptor_is_deaf_for_a_while_and_hears_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accept, num_tries = ArenaDoor._accept, 0

    def count(door: ArenaDoor, listener: socket.socket) -> None:
        nonlocal num_tries
        num_tries += 1
        accept(door, listener)

    monkeypatch.setattr(arena_door, "_DEAF_SECONDS", 0.2)
    monkeypatch.setattr(ArenaDoor, "_accept", count)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with door_of() as door:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reader:
            try:
                # No number of a descriptor is below this limit, so that none is free.
                resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
                reader.connect(socket_address(door.name))
                await asyncio.sleep(0.5)
                assert 2 <= num_tries <= 4
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await asyncio.sleep(0.3)
            reader.setblocking(False)
            assert len(reader.recv(100)) == GREETING.size
