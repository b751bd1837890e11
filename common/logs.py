"""Sets up logging: lines for people on a terminal, JSON objects elsewhere; always to standard error.

Knows how a record is written. Does not know what happened: callers name the event in the message and put
values into `extra`. Never log prompts, completions or pixels; hashes, sizes and counts tell enough. Whatever
comes in is escaped and cut, so that no value can fake a line or fill a disk.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_MAX_CHARS = 1000
_MAX_TRACEBACK_CHARS = 8000
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up_logging(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send the records of all loggers, from `level` on, to a stream; standard error where none is given."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if stream.isatty() else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("mistral_common").setLevel(logging.WARNING)  # It tells at length what it loads.


class HumanFormatter(logging.Formatter):
    """`12:00:00 INFO vision_service.main: message key=value`, a traceback indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        fields = "".join(f" {key}={_cut(str(value))}" for key, value in _extra(record).items())
        line = f"{_time(record):%H:%M:%S} {record.levelname} {record.name}: {_cut(record.getMessage())}{fields}"
        if record.exc_info:
            traceback = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARS:]
            line += "".join(f"\n    {_escape(row)}" for row in traceback.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One object in one line: time, level, logger, message, then the extra values, then a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        entry: dict[str, object] = {
            "time": _time(record).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        for key, value in _extra(record).items():
            plain = isinstance(value, bool | int | float) or value is None
            entry[key] = value if plain else _cut(str(value))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARS:]
        return json.dumps(entry)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _cut(text: str) -> str:
    escaped = _escape(text[:_MAX_CHARS])
    return escaped if len(text) <= _MAX_CHARS else f"{escaped}... ({len(text)} characters)"


def _escape(text: str) -> str:
    # A newline would start a line of its own, and an escape character would command the terminal.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
