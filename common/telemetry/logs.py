"""Sets up logging: lines for people on a terminal, JSON objects elsewhere; always to standard error.

Knows how a record is written, and that what is told while a call is handled carries its request id and trace id.
Does not know what happened: callers name the event in the message and put values into `extra`. Never log prompts,
completions or pixels; hashes, sizes and counts tell enough. Whatever comes in is escaped and cut, so that no value
can fake a line or fill a disk.
"""

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TextIO

from common.calls.call import current_call
from common.settings.settings import setting

_MAX_CHARS = 1000
_MAX_TRACEBACK_CHARS = 8000
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(Enum):
    """How records are written."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is told, and how."""

    log_level: str = setting("info", choices=("debug", "info", "warning", "error"), help="least level that is logged")
    log_format: LogFormat = setting(LogFormat.AUTO, help="auto is text on a terminal and JSON elsewhere")


def set_up_logging(settings: LogSettings | None = None, *, stream: TextIO | None = None) -> None:
    """Send the records of all loggers to a stream; standard error where none is given."""
    settings, stream = settings or LogSettings(), stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_text = settings.log_format is LogFormat.TEXT or (settings.log_format is LogFormat.AUTO and stream.isatty())
    handler.setFormatter(HumanFormatter() if is_text else JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("mistral_common").setLevel(logging.WARNING)  # It tells at length what it loads.


class HumanFormatter(logging.Formatter):
    """`12:00:00 INFO vision_service.service: message key=value`, a traceback indented below."""

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
            # What is told besides takes nobody's place.
            entry[f"{key}_" if key in entry else key] = value if plain else _cut(str(value))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARS:]
        return json.dumps(entry)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    call = current_call()
    ids = {"request_id": call.request_id, "trace_id": call.trace_id}
    extra = {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}
    return {key: value for key, value in ids.items() if value} | extra


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _cut(text: str) -> str:
    escaped = _escape(text[:_MAX_CHARS])
    return escaped if len(text) <= _MAX_CHARS else f"{escaped}... ({len(text)} characters)"


def _escape(text: str) -> str:
    # A newline would start a line of its own, and an escape character would command the terminal.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
