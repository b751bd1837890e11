import io
import json
import logging
from collections.abc import Iterator

import pytest

from common.calls.call import Call, current_call, handling
from common.telemetry.logs import LogFormat, LogSettings, set_up_logging
from common.telemetry.spans import Span
from common.telemetry.trace_context import TraceContext


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    raise ValueError("first\nsecond \x1b[31m")


def log_failure() -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger("part").exception("it failed", extra={"error_id": "e1"})


def test_elsewhere_than_on_a_terminal_every_record_is_one_json_object() -> None:
    stream = io.StringIO()
    set_up_logging(LogSettings(), stream=stream)
    logging.getLogger("part").info("done\nINFO forged", extra={"count": 3, "request_id": "a\x1b[2Jb"})
    log_failure()
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["count"]) == ("INFO", "part", 3)
    assert first["message"] == "done\\nINFO forged"
    assert first["request_id"] == "a\\x1b[2Jb"
    assert second["error_id"] == "e1"
    assert "in fail" in second["traceback"]


def test_a_value_takes_the_place_of_nothing_that_every_record_has() -> None:
    stream = io.StringIO()
    set_up_logging(LogSettings(), stream=stream)
    logging.getLogger("part").warning("done", extra={"level": "high", "logger": "mine", "time": 3})
    record = json.loads(stream.getvalue())
    assert (record["level"], record["logger"], record["message"]) == ("WARNING", "part", "done")
    assert (record["level_"], record["logger_"], record["time_"]) == ("high", "mine", 3)


def test_on_a_terminal_no_value_can_fake_a_line_or_command_the_terminal() -> None:
    stream = Terminal()
    set_up_logging(LogSettings(), stream=stream)
    logging.getLogger("part").info("done\nINFO forged", extra={"request_id": "a\x1b[2Jb\u2028c"})
    log_failure()
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("INFO part: done\\nINFO forged request_id=a\\x1b[2Jb\\u2028c")
    assert lines[1].endswith("ERROR part: it failed error_id=e1")
    assert all(line.startswith("    ") for line in lines[2:])
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_long_values_are_cut(stream: io.StringIO) -> None:
    set_up_logging(LogSettings(), stream=stream)
    logging.getLogger("part").info("x" * 10**6, extra={"request_id": "y" * 10**6})
    assert len(stream.getvalue()) < 3000
    assert "(1000000 characters)" in stream.getvalue()


def test_records_below_the_level_are_dropped() -> None:
    stream = io.StringIO()
    set_up_logging(LogSettings(log_level="warning"), stream=stream)
    logging.getLogger("part").info("quiet")
    logging.getLogger("part").warning("loud")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_what_libraries_tell_at_length_is_dropped() -> None:
    stream = io.StringIO()
    set_up_logging(LogSettings(), stream=stream)
    logging.getLogger("mistral_common.tokens").info("adding special tokens")
    logging.getLogger("mistral_common.tokens").warning("a broken file")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["a broken file"]


def test_what_is_told_while_a_call_is_handled_names_request_and_trace() -> None:
    stream = io.StringIO()
    set_up_logging(LogSettings(), stream=stream)
    call = Call(Span(TraceContext("ab" * 16, "cd" * 8, sampled=True)))
    with handling(call):
        logging.getLogger("part").info("before it has a name")
        call.request_id = "r1"
        logging.getLogger("part").info("with a name", extra={"count": 1})
    logging.getLogger("part").info("afterwards")
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first.get("request_id"), first["trace_id"]) == (None, "ab" * 16)
    assert (second["request_id"], second["trace_id"], second["count"]) == ("r1", "ab" * 16, 1)
    assert not {"request_id", "trace_id"} & third.keys()


def test_a_name_that_is_given_outside_of_any_call_stays_with_nobody() -> None:
    current_call().request_id = "r1"
    assert current_call().request_id == ""


def test_the_format_can_be_chosen() -> None:
    stream = Terminal()
    set_up_logging(LogSettings(log_format=LogFormat.JSON), stream=stream)
    logging.getLogger("part").info("told")
    assert json.loads(stream.getvalue())["message"] == "told"
