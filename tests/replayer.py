"""Stands for what records graphs where there is no GPU."""

from common.model.graph_recorder import Run


class Replayer:
    """Stands for recorded graphs: the work is done again, on whatever its tensors hold now."""

    def __init__(self) -> None:
        self.num_runs = 0

    def record(self, work: Run) -> Run:
        work()

        def run() -> None:
            self.num_runs += 1
            work()

        return run
