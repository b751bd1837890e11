"""What holds for every test."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch is imported, also by the services that tests start: tiny products gain nothing from a second
# thread, and on cores with other work every parallel region waits for the slowest one, ten times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels for CUDA run on the GPU where there is one, and in Triton's interpreter elsewhere. That is decided when triton
# is first imported, by whichever test comes first.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in every run, so that a red run can be repeated; PROPERTY_OPERATIONS, which asks for a
# longer hunt, also asks for new ones.
settings.register_profile("repeatable", derandomize=True)
if "PROPERTY_OPERATIONS" not in os.environ:
    settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def idle(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no blocks, features, threads, processes or files are left, and with asyncio no task.

    A test that breaks the books to see that this is noticed says so with the marker `breaks_the_books`.
    """
    if request.node.get_closest_marker("breaks_the_books"):
        yield
        return
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_is_left")
    from tests.idle import leaves_nothing  # Not before the variables above are set.

    caplog: pytest.LogCaptureFixture = request.getfixturevalue("caplog")
    with leaves_nothing():
        yield
        caplog.get_records("call").clear()  # Tracebacks that were logged refer to features.


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """No task goes on when a test that has an event loop is over."""
    yield
    for _ in range(100):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left: {tasks}")
