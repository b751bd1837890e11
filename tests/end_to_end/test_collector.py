"""Python's garbage collector, which stops every stream, does not look again at what a service has loaded."""

import subprocess
import sys

import pytest

from tests.end_to_end.services import DEMO_MODEL

PROBE = """
import gc, importlib, os, sys
import torch
from common.server.server import GrpcServer

async def report(self):
    looked_at = gc.get_objects()
    parts = [each for each in looked_at if issubclass(type(each), (torch.Tensor, torch.nn.Module))]
    print(gc.get_freeze_count(), len(looked_at), len(parts), flush=True)
    os._exit(0)

GrpcServer.start = report
if sys.argv.pop(1) == "unfrozen": gc.freeze = lambda: None
importlib.import_module(sys.argv.pop(1)).main()
"""


def counts(how: str, module: str, *flags: str) -> tuple[int, int, int]:
    """Where a service begins to listen: frozen objects, others, and how many of these are parts of a model."""
    command = [sys.executable, "-c", PROBE, how, module, "--model", str(DEMO_MODEL), "--port", "0", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)  # noqa: S603
    frozen, looked_at, parts = map(int, done.stdout.split())
    return frozen, looked_at, parts


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("vision_service.__main__", ()),
        ("decoder_service.__main__", ("--vision-addresses", "127.0.0.1:1")),
        ("diptych.local", ()),
    ],
)
def test_what_is_loaded_is_frozen_before_calls_are_taken(module: str, flags: tuple[str, ...]) -> None:
    frozen, looked_at, parts = counts("frozen", module, *flags)
    assert frozen > 100_000
    assert looked_at < 2_000
    assert parts == 0


def test_without_freezing_the_model_would_be_looked_at() -> None:
    """The negative control."""
    frozen, looked_at, parts = counts("unfrozen", "vision_service.__main__")
    assert frozen == 0
    assert looked_at > 100_000
    assert parts > 50
