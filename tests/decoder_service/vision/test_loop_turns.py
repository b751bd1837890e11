"""However much work arrives at once, others on the event loop get their turn after each piece."""

import asyncio

from decoder_service.vision.loop_turns import LoopTurns


async def test_one_piece_is_done_in_each_turn_and_in_order() -> None:
    turns, turn_of_loop = LoopTurns(), 0
    asked: list[int] = []
    order: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal turn_of_loop
        while len(order) < 15:
            turn_of_loop += 1
            await asyncio.sleep(0)

    async def work(name: int) -> None:
        for _ in range(3):
            asked.append(name)
            await turns.take()
            order.append((name, turn_of_loop))

    await asyncio.gather(count(), *(work(name) for name in range(5)))
    assert [name for name, _ in order] == asked
    assert len({turn for _, turn in order}) == 15, "two pieces in one turn"
    assert turn_of_loop < 25, "turns were wasted"


async def test_one_who_is_alone_gets_a_turn_for_each_piece_too() -> None:
    turns, done = LoopTurns(), 0

    async def work() -> None:
        nonlocal done
        for _ in range(20):
            await turns.take()
            done += 1

    working, most = asyncio.create_task(work()), 0
    while not working.done():
        before = done
        await asyncio.sleep(0)
        most = max(most, done - before)
    assert done == 20
    assert most == 1


async def test_who_leaves_while_waiting_holds_up_nobody() -> None:
    turns = LoopTurns()
    await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting[1:])


async def test_what_has_come_for_many_at_once_goes_on_one_in_a_turn() -> None:
    turns, loop, went_on = LoopTurns(), asyncio.get_running_loop(), 0
    coming = [loop.create_future() for _ in range(5)]

    async def wait(number: int) -> int:
        nonlocal went_on
        found: int = await coming[number]
        went_on += 1
        return found

    async def in_turn(number: int) -> int:
        return await turns.go_on(wait(number))

    working = [asyncio.create_task(in_turn(number)) for number in range(5)]
    await asyncio.sleep(0)
    for number, each in enumerate(coming):
        each.set_result(number)
    most = 0
    while went_on < 5:
        before = went_on
        await asyncio.sleep(0)
        most = max(most, went_on - before)
    assert most == 1
    assert await asyncio.gather(*working) == list(range(5))


async def test_who_leaves_before_a_turn_has_what_came_taken_and_nothing_more() -> None:
    turns, loop = LoopTurns(), asyncio.get_running_loop()
    coming, taken = loop.create_future(), 0

    async def read() -> None:
        nonlocal taken
        await coming
        taken += 1
        await asyncio.sleep(60)
        taken += 1

    async def in_turn() -> None:
        await turns.go_on(read())

    working = asyncio.create_task(in_turn())
    await asyncio.sleep(0)
    coming.set_result(None)
    await turns.take()  # Before the reader, which has to wait for its own.
    await asyncio.sleep(0)
    assert taken == 0
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    assert taken == 1


async def test_who_leaves_while_nothing_has_come_ends_the_work() -> None:
    turns, coming = LoopTurns(), asyncio.get_running_loop().create_future()
    ended = False

    async def read() -> None:
        nonlocal ended
        try:
            await coming
        finally:
            ended = True

    async def in_turn() -> None:
        await turns.go_on(read())

    working = asyncio.create_task(in_turn())
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait({working})
    assert (working.cancelled(), coming.cancelled(), ended) == (True, True, True)


async def test_what_went_wrong_is_told_to_the_work() -> None:
    turns, coming = LoopTurns(), asyncio.get_running_loop().create_future()

    async def read() -> str:
        try:
            await coming
        except ValueError as error:
            return str(error)
        return ""

    async def in_turn() -> str:
        return await turns.go_on(read())

    working = asyncio.create_task(in_turn())
    await asyncio.sleep(0)
    coming.set_exception(ValueError("lost"))
    assert await working == "lost"
