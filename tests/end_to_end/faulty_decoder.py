"""The decoder service, with a device that fails as a file says: `hang`, `lost`, `memory` or `culprit`.

Everything but the fault is the real thing. Without the file, or with another word in it, nothing is wrong.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from decoder_service.__main__ import main
from decoder_service.engine.step import Launched, ScheduledBatch, StepResult
from decoder_service.model.runner import DecoderRunner
from tests.end_to_end.services import FAULT_FILE

CULPRIT_SEED = 13
"""The seed of the requests that `culprit` makes fail."""
MOST_TOKENS = 3
"""Tokens that `memory` leaves room for."""


def make_faulty(path: Path) -> None:
    """Let the runner look at the file when a batch is waited for."""
    launch = DecoderRunner.launch

    def faulty(self: DecoderRunner, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        launched = launch(self, batch, after)

        def result() -> StepResult:
            fault = path.read_text() if path.exists() else ""
            while fault == "hang" and path.exists():
                time.sleep(0.02)
            found = launched.result()  # Else the next step would be computed beside this one.
            if fault == "lost":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if fault == "memory" and batch.num_tokens > MOST_TOKENS:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if fault == "culprit" and any(each.request.sampling.seed == CULPRIT_SEED for each in batch.requests):
                raise RuntimeError("a kernel of ours is wrong")
            return found

        return replace(launched, result=result)

    DecoderRunner.launch = faulty  # type: ignore[method-assign]
    DecoderRunner.execute = lambda self, batch: faulty(self, batch).result()  # type: ignore[method-assign]


if __name__ == "__main__":
    make_faulty(Path(os.environ[FAULT_FILE]))
    main()
