"""What a child writes is passed on whatever it is, so that it never waits for its parent."""

import asyncio
import os
import sys

import pytest

from diptych.child import Child, ChildError


async def run(script: str) -> None:
    """Run a child to its end."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = await Child.start("child", ["-c", script], environment=environment)
    try:
        async with asyncio.timeout(30):
            with pytest.raises(ChildError, match="the child ended with status 7"):
                await child.exited()
    finally:
        await child.stop(1)


async def test_a_line_of_any_length_is_passed_on_and_so_is_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    # More than its pipe and the reader's buffer hold together.
    await run("import sys; print('x' * 3_000_000); print('the last line', end='', flush=True); sys.exit(7)")
    written = capsys.readouterr().err
    assert written == "x" * 3_000_000 + "\nthe last line"


async def test_a_child_goes_on_where_nobody_takes_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    await run("import sys\nfor _ in range(9): print('x' * 100_000, flush=True)\nsys.exit(7)")
