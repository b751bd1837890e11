"""A peer that is a script in our own environment, written where it is started."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import Peer
from benchmarks.peers.protocol import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted(Peer):
    """Answers over the protocol as the script says."""

    module: str = "scripted"
    script: str

    def python(self, folder: Path) -> Path | None:
        return Path(sys.executable)

    def start(self, folder: Path, cores: Sequence[int]) -> Worker:
        (folder / f"{self.module}.py").write_text(self.script)
        log = folder / f"{self.name}.log"
        python = Path(sys.executable)
        return Worker(python, self.module, cores=cores, environment={}, log=log, extra_paths=[str(folder)])
