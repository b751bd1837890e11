"""The pool decodes what it is given, survives its workers, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DiptychError, InternalError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from common.image.header import ImageLimits
from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from common.native.resizing import find_kernels
from tests.pictures import LIMITS, noise, preprocessing, save
from tests.waiting import until
from vision_service.decoding import decode_pool, worker_process
from vision_service.decoding.decode_pool import DecodePool
from vision_service.decoding.decode_worker import DecodeSettings
from vision_service.decoding.frames import parse_header
from vision_service.decoding.image import decode_image
from vision_service.decoding.worker_process import WorkerProcess

PICTURE = save(noise(20, 40))
GRID = PatchGrid(height=3, width=2)
HF = preprocessing(PreprocessingMode.HF)


@asynccontextmanager
async def pool_of(
    num_workers: int = 1,
    *,
    shape: Preprocessing = HF,
    limits: ImageLimits = LIMITS,
    max_waiting: int = 8,
    max_memory_bytes: int = 2 << 30,
    timeout: float = 10.0,
    kernels: str | None = None,
) -> AsyncIterator[DecodePool]:
    settings = DecodeSettings(
        preprocessing=shape, limits=limits, max_memory_bytes=max_memory_bytes, max_cpu_seconds=10, kernels=kernels
    )
    pool = DecodePool(settings, num_workers=num_workers, max_waiting=max_waiting, timeout=timeout)
    before = asyncio.all_tasks()
    await pool.start()
    workers = pool.worker_ids
    try:
        yield pool
    finally:
        workers += pool.worker_ids
        await pool.close()
        assert asyncio.all_tasks() == before
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


async def error_of(pool: DecodePool, image: bytes = PICTURE, grid: PatchGrid = GRID) -> DiptychError:
    with pytest.raises(DiptychError) as caught:
        await pool.decode(image, grid=grid, field="image")
    return caught.value


@pytest.mark.parametrize("mode", PreprocessingMode)
async def test_a_worker_decodes_as_its_code_does_here(mode: PreprocessingMode) -> None:
    shape = preprocessing(mode)
    expected = decode_image(PICTURE, preprocessing=shape, limits=LIMITS, field="")
    async with pool_of(shape=shape) as pool:
        for _ in range(2):
            np.testing.assert_array_equal(await pool.decode(PICTURE, grid=GRID, field="image"), expected)


async def test_a_worker_resizes_by_the_kernels_that_it_is_given_to_the_bytes_of_one_without() -> None:
    kernels = find_kernels()
    assert kernels is not None
    picture, grid = save(noise(3000, 2000), "JPEG"), PatchGrid(height=43, width=64)
    expected = decode_image(picture, preprocessing=HF, limits=LIMITS, field="")
    for given, loaded in ((str(kernels), True), (None, False), ("/no/such/kernels.so", False)):
        async with pool_of(kernels=given) as pool:
            np.testing.assert_array_equal(await pool.decode(picture, grid=grid, field="image"), expected)
            assert (kernels.name in Path(f"/proc/{pool.worker_ids[0]}/maps").read_text()) == loaded


async def test_a_worker_with_kernels_needs_no_more_memory_than_its_picture() -> None:
    picture, grid = save(noise(6000, 4000), "JPEG"), PatchGrid(height=43, width=64)
    async with pool_of(kernels=str(find_kernels()), max_memory_bytes=320 << 20) as pool:
        for _ in range(3):
            assert (await pool.decode(picture, grid=grid, field="image")).shape == (688, 1024, 3)


@pytest.mark.parametrize("with_kernels", [True, False])
async def test_a_worker_that_waits_gives_back_the_memory_of_its_last_picture(with_kernels: bool) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{pool.worker_ids[0]}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    picture, grid = save(noise(6000, 4000), "JPEG"), PatchGrid(height=43, width=64)
    async with pool_of(kernels=str(find_kernels()) if with_kernels else None) as pool:
        await pool.decode(PICTURE, grid=GRID, field="image")
        for _ in range(2):
            before = resident()
            await pool.decode(picture, grid=grid, field="image")
            assert resident() - before > 40 << 20
            await until(lambda: resident() - before < 20 << 20)  # noqa: B023 - it ends within the round


async def test_refusals_come_through_with_their_field() -> None:
    async with pool_of(limits=ImageLimits(max_bytes=10**6, max_pixels=800)) as pool:
        error = await error_of(pool, b"no picture")
        assert (error.reason, error.field) == ("IMAGE_UNDECODABLE", "image")
        error = await error_of(pool, save(noise(20, 41)))
        assert isinstance(error, InvalidArgumentError)
        assert error.metadata == {"limit": "800", "got": "820", "unit": "pixels"}
        assert (await pool.decode(PICTURE, grid=GRID, field="image")).shape == (48, 32, 3)


async def test_a_worker_that_dies_while_idle_costs_nothing() -> None:
    async with pool_of() as pool:
        (pid,) = pool.worker_ids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not pool.worker_ids)
        assert (await pool.decode(PICTURE, grid=GRID, field="image")).shape == (48, 32, 3)
        assert pool.worker_ids != [pid]


async def test_a_worker_that_is_killed_costs_one_image_and_is_replaced() -> None:
    async with pool_of() as pool:
        (pid,) = pool.worker_ids
        os.kill(pid, signal.SIGSTOP)  # So that it surely dies with the image in its hands.
        first = asyncio.create_task(error_of(pool))
        second = asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image"))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        error = await first
        assert isinstance(error, InternalError)
        assert error.reason == "IMAGE_DECODE_FAILED"
        assert (await second).shape == (48, 32, 3)


async def test_a_worker_that_hangs_costs_one_image_and_is_replaced() -> None:
    async with pool_of(timeout=0.3) as pool:
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        error = await error_of(pool)
        assert (error.reason, error.metadata["unit"]) == ("IMAGE_TOO_LARGE", "seconds")
        assert (await pool.decode(PICTURE, grid=GRID, field="image")).shape == (48, 32, 3)


async def test_a_worker_that_hangs_at_its_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    receive, num_starts = WorkerProcess._receive, 0

    async def hang_twice(worker: WorkerProcess) -> tuple[dict[str, object], bytes]:
        nonlocal num_starts
        num_starts += 1
        if num_starts <= 2:
            await asyncio.sleep(60)
        return await receive(worker)

    async with pool_of() as pool, asyncio.timeout(20):
        monkeypatch.setattr(worker_process, "_START_SECONDS", 0.2)
        monkeypatch.setattr(decode_pool, "_RESTART_PAUSE", 0.01)
        monkeypatch.setattr(WorkerProcess, "_receive", hang_twice)
        os.kill(pool.worker_ids[0], signal.SIGKILL)
        await until(lambda: not pool.worker_ids)
        waiting = asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image"))
        await until(lambda: num_starts > 2)
        monkeypatch.setattr(worker_process, "_START_SECONDS", 20.0)
        assert (await waiting).shape == (48, 32, 3)


async def test_a_picture_that_takes_too_much_memory_is_refused_and_the_worker_lives() -> None:
    bomb = save(Image.new("1", (7000, 7000)))
    async with pool_of(max_memory_bytes=256 << 20) as pool:
        workers = pool.worker_ids
        error = await error_of(pool, bomb, PatchGrid(64, 64))
        assert error.reason == "IMAGE_TOO_LARGE"
        assert (await pool.decode(PICTURE, grid=GRID, field="image")).shape == (48, 32, 3)
        assert pool.worker_ids == workers


async def test_pixels_of_another_size_than_agreed_are_refused() -> None:
    async with pool_of() as pool:
        assert (await error_of(pool, PICTURE, PatchGrid(2, 2))).reason == "IMAGE_DECODE_FAILED"


async def test_more_images_than_may_wait_are_refused_at_once() -> None:
    async with pool_of(max_waiting=2) as pool:
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        waiting = [asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image"))]
        await asyncio.sleep(0.01)
        waiting += [asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image")) for _ in range(2)]
        await asyncio.sleep(0.01)
        error = await error_of(pool)
        assert isinstance(error, ResourceExhaustedError)
        assert error.retry_after is not None
        os.kill(pool.worker_ids[0], signal.SIGCONT)
        assert [pixels.shape for pixels in await asyncio.gather(*waiting)] == [(48, 32, 3)] * 3


async def test_who_has_left_takes_nobodys_place() -> None:
    async with pool_of(max_waiting=2) as pool:
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        first = asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image"))
        await asyncio.sleep(0)  # It has come to wait,
        await until(lambda: pool.num_waiting == 0)  # and is in the worker's hands.
        for _ in range(3):
            leaving = [asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image")) for _ in range(2)]
            await until(lambda: pool.num_waiting == 2)
            assert (await error_of(pool)).reason == "DECODE_QUEUE_FULL"
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            assert pool.num_waiting == 0
        os.kill(pool.worker_ids[0], signal.SIGCONT)
        assert (await first).shape == (48, 32, 3)


@pytest.mark.parametrize(
    "answer",
    [{"reason": "MINE", "metadata": 5}, {"reason": ["x"], "metadata": [1]}, RecursionError(), {"reason": 7}, {}],
    ids=str,
)
async def test_what_a_worker_answers_never_ends_its_keeper(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object] | Exception
) -> None:
    answers = [answer]
    exchange = WorkerProcess.exchange

    async def taken_over(worker: WorkerProcess, image: bytes) -> tuple[dict[str, object], bytes]:
        if not answers:
            return await exchange(worker, image)
        given = answers.pop()
        if isinstance(given, Exception):
            raise given
        return given, b""

    monkeypatch.setattr(WorkerProcess, "exchange", taken_over)
    async with pool_of() as pool, asyncio.timeout(10):
        assert isinstance(await error_of(pool), InternalError | InvalidArgumentError)
        assert (await pool.decode(PICTURE, grid=GRID, field="image")).shape == (48, 32, 3)


def test_headers_are_objects_and_never_deep() -> None:
    assert parse_header(b'{"ready": true}') == {"ready": True}
    for header in (b"[" * 4000, b"[]", b"5", b"{", b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            parse_header(header)


async def test_a_caller_may_leave_at_any_time() -> None:
    async with pool_of() as pool:
        workers = pool.worker_ids
        tasks = [asyncio.create_task(pool.decode(PICTURE, grid=GRID, field="image")) for _ in range(6)]
        os.kill(workers[0], signal.SIGSTOP)  # Now the first is in its hands, and the others wait.
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        os.kill(workers[0], signal.SIGCONT)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 3
        assert pool.worker_ids == workers


async def test_closing_refuses_those_who_wait() -> None:
    async with pool_of() as pool:
        os.kill(pool.worker_ids[0], signal.SIGSTOP)
        errors = [asyncio.create_task(error_of(pool)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await pool.close()
        assert {type(await error) for error in errors} == {UnavailableError}
        assert isinstance(await error_of(pool), UnavailableError)


async def test_workers_see_nothing_of_the_environment_and_import_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    async with pool_of(kernels=str(find_kernels())) as pool:
        process = Path(f"/proc/{pool.worker_ids[0]}")
        assert b"secret" not in (process / "environ").read_bytes()
        assert "libtorch" not in (process / "maps").read_text()
        limits = (process / "limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max address space")).split()[3] == str(2 << 30)


async def test_workers_end_with_the_process_that_started_them() -> None:
    code = """
import asyncio, os
from tests.vision_service.decoding.test_decode_pool import pool_of
async def main():
    async with pool_of(2) as pool:
        print(*pool.worker_ids, flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
    )
    output, _ = await process.communicate()
    workers = [int(pid) for pid in output.split()]
    assert len(workers) == 2
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
