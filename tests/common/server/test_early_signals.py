"""Signals before anybody waits for them, in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

BOTH = (signal.SIGINT, signal.SIGTERM)
START = (
    "import os, signal\n"
    "from common.server.early_signals import leave_at_once, leave_by_default\n"
    # Whoever runs the tests may have had this signal ignored, which processes inherit.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
)


def ended(script: str) -> tuple[int, str]:
    """Exit status of a process and what it said."""
    done = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, check=False)  # noqa: S603
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", BOTH)
def test_a_process_that_is_told_to_leave_early_does_so_without_a_word(number: signal.Signals) -> None:
    assert ended(f"leave_at_once()\nos.kill(os.getpid(), {number:d})\nprint('went on')") == (128 + number, "")


def test_without_it_an_interrupt_is_a_traceback() -> None:
    status, words = ended(f"os.kill(os.getpid(), {signal.SIGINT:d})\nprint('went on')")
    assert (status, words.splitlines()[0]) == (-signal.SIGINT, "Traceback (most recent call last):")


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *_: print('heard')"])
@pytest.mark.parametrize("number", BOTH)
def test_what_somebody_has_set_stands(number: signal.Signals, handler: str) -> None:
    status, words = ended(
        f"signal.signal({number:d}, {handler})\nleave_at_once()\nleave_by_default()\n"
        f"os.kill(os.getpid(), {number:d})\nprint('went on')"
    )
    assert (status, words.splitlines()[-1]) == (0, "went on")


def test_what_is_taken_back_is_as_python_has_it() -> None:
    names = "[signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]"
    script = f"was = {names}\nleave_at_once()\nassert {names} != was\nleave_by_default()\nassert {names} == was"
    assert ended(script) == (0, "")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a namespace of processes needs root")
def test_the_first_process_of_a_container_ends_while_it_loads() -> None:
    """Linux drops a SIGTERM to such a process where nobody has asked for it."""
    script = START + "leave_at_once()\nos.kill(os.getpid(), signal.SIGTERM)\nprint(os.getpid(), 'went on')"
    alone = ["unshare", "--pid", "--fork", "--", sys.executable, "-c"]
    if shutil.which(alone[0]) is None or subprocess.run([*alone, "pass"], check=False).returncode:  # noqa: S603
        pytest.skip("no namespaces here")
    for first, expected in ((script, (143, "")), (script.replace("leave_at_once()\n", ""), (0, "1 went on\n"))):
        done = subprocess.run([*alone, first], capture_output=True, text=True, check=False)  # noqa: S603
        assert (done.returncode, done.stdout) == expected
