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


async def test_a_few_pieces_may_be_done_in_one_turn_and_no_more() -> None:
    turns, done = LoopTurns(at_once=3), 0

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
    assert most == 3


async def test_who_leaves_while_waiting_holds_up_nobody() -> None:
    turns = LoopTurns()
    await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting[1:])
