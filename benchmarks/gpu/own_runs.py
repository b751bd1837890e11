"""Takes what the process of our own cases finds, and starts another for what is left where it ends early.

Knows lines. Does not know what a case does, nor how a process is started: who asks brings that. A case that loses the
device, hangs or ends its process costs its own figures and no other's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.report import Reporting, Row

RunProcess = Callable[[Sequence[str]], Iterable[Row]]
"""The lines of a process that runs these cases; where it came to no good end, the last one says why: `not run`."""


def run_own(names: Sequence[str], run_process: RunProcess, report: Reporting, own: OwnFigures) -> list[str]:
    """Run these cases; returns those that failed."""
    left, failed = list(names), []
    while left:
        reason = "its process ended before it was over"
        for line in run_process(left):
            if "table" in line:
                report.add(str(line["table"]), [cast("Row", line["row"])])
            elif "over" in line:
                own.take(cast("Row", line["figures"]))
                left.remove(str(line["over"]))
                failed += [str(line["over"])] if line["failed"] else []
            else:
                reason = str(line.get("not run", ""))
        # Where a process says that its device is lost, it does so between two cases.
        if left and reason:
            report.add(f"{left[0]} failed", [{"error": reason}])
            failed.append(left.pop(0))
    return failed
