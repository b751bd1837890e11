"""Logs that blocks cannot be cleared: the first time with a traceback, then ever less often, as each step tries again.

Knows failures in a row. Does not know blocks, or who was to write there.
"""

import logging

_log = logging.getLogger(__name__)

_MOST_DIFFERENT = 8
"""Errors in a row that get a traceback each: one whose text changes every time would get one in every step."""


class FailingClears:
    """The failures of one engine."""

    def __init__(self) -> None:
        self._num_series = 0
        self._num_in_a_row = 0
        self._num_different = 0
        self._fields = {"error_type": "", "error": ""}

    def failed(self, error: Exception, num_blocks: int) -> str:
        """Note the exception, which is being handled; returns the error_id that a row of the same has in the log."""
        fields = {"error_type": type(error).__qualname__, "error": str(error)}
        is_other = fields != self._fields and self._num_different < _MOST_DIFFERENT
        if not self._num_in_a_row or is_other:
            # Another error may have another cause, so it gets a traceback of its own.
            self._num_series, self._num_in_a_row, self._fields = self._num_series + 1, 0, fields
            self._num_different += 1
        self._num_in_a_row += 1
        error_id = f"clear-{self._num_series}"
        if self._num_in_a_row == 1:
            _log.exception("clearing failed", extra={"error_id": error_id, "num_blocks": num_blocks})
        elif self._num_in_a_row.bit_count() == 1:
            extra = {"error_id": error_id, "num_failures": self._num_in_a_row, **fields}
            _log.error("clearing still fails", extra=extra)
        return error_id

    def succeeded(self) -> None:
        """Say that it works again, where it did not."""
        if self._num_in_a_row:
            extra = {"error_id": f"clear-{self._num_series}", "num_failures": self._num_in_a_row}
            _log.info("clearing works again", extra=extra)
        self._num_in_a_row = self._num_different = 0
