"""Which engines there are, and which of them are installed.

Knows names, modules and folders. Does not know how to install them (see `install` beside this file) or what they do.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.peers.protocol import ROOT, Worker

LOGS = ROOT / "build/benchmarks/logs"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # As its documentation has it: with Intel's OpenMP, and a thread on each core. Without, threads of its server wait
    # for each other: 5 tokens/s in place of 700 were seen.
    "LD_PRELOAD": "{folder}/lib/libiomp5.so",
    "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables for `variables` to fill in."""
MAX = {"MAX_SERVE_DISABLE_TELEMETRY": "1", "MODULAR_TELEMETRY_ENABLED": "false"}
# One process, so that its processor time and ours mean the same; it is pinned already, and no faster where it binds its
# threads besides.
_VLLM = VLLM | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One engine that can be asked over `protocol`."""

    name: str
    module: str
    folder: str | None = None
    """Its environment's folder; None for ours."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables, with what `variables` fills in."""
    wants_llama: bool = False
    """Whether it runs the twin of a checkpoint only, see `checkpoints.llama_twin`."""
    wants_native: bool = False
    """Whether it runs the twin in Mistral's own format, see `checkpoints.native_twin`."""
    dtype: str = "float32"
    """Type of weights and activations, which it is told when it loads."""

    def python(self, folder: Path) -> Path | None:
        """Its interpreter below the folder of environments; None where it is not installed."""
        if self.folder is None:
            return Path(sys.executable)
        is_whole = (folder / self.folder / ".installed").exists()
        return (folder / self.folder / "bin/python").absolute() if is_whole else None

    def start(self, folder: Path, cores: Sequence[int]) -> Worker:
        """Start its process on these cores; it must be installed."""
        python = self.python(folder)
        if python is None:
            raise ValueError(f"{self.name} is not installed")
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{self.module.rpartition('.')[2]}-{self.dtype}-{len(cores)}.log"
        return Worker(
            python,
            self.module,
            cores=cores,
            environment=variables(self.environment, cores, folder / (self.folder or "")),
            log=log,
            extra_paths=[] if self.folder else [str(ROOT / "build/gen")],
        )


def variables(own: Mapping[str, str], cores: Sequence[int], folder: Path) -> dict[str, str]:
    """An engine's environment variables: no network, a thread on each core, and its own.

    In these `{cores}` stands for the cores with commas, `{folder}` for the folder of what it is installed in.
    """
    known = {"cores": ",".join(map(str, cores)), "folder": folder.absolute()}
    return _OFFLINE | {"OMP_NUM_THREADS": str(len(cores))} | {name: each.format(**known) for name, each in own.items()}


def _in_bfloat16(peers: Sequence[Peer]) -> list[Peer]:
    """The same as engines of their own, in the type that their users get of a checkpoint in bfloat16."""
    return [replace(peer, name=f"{peer.name} bfloat16", dtype="bfloat16") for peer in peers]


OURS = Peer(name="diptych", module="benchmarks.peers.ours")
_TEXT_PEERS = (
    Peer(name="transformers", module="benchmarks.peers.transformers_generate", folder="transformers"),
    Peer(name="transformers paged", module="benchmarks.peers.transformers_paged", folder="transformers"),
    Peer(name="llama.cpp", module="benchmarks.peers.llama_cpp", folder="llamacpp"),
    Peer(name="vllm", module="benchmarks.peers.vllm", folder="vllm", environment=_VLLM),
)
_MAX = Peer(
    name="max",
    module="benchmarks.peers.max",
    folder="max",
    environment=MAX,
    wants_llama=True,
)
# Not MAX, which refuses bfloat16 on a CPU.
TEXT_PEERS = (*_TEXT_PEERS, _MAX, *_in_bfloat16(_TEXT_PEERS))
CEILINGS = Peer(name="ceilings", module="benchmarks.ceilings")
OURS_VISION = Peer(name="diptych", module="benchmarks.peers.ours_vision")
_VISION_PEERS = (
    Peer(name="transformers", module="benchmarks.peers.transformers_vision", folder="transformers"),
    Peer(name="vllm", module="benchmarks.peers.vllm_vision", folder="vllm", environment=_VLLM, wants_native=True),
)
VISION_PEERS = (*_VISION_PEERS, *_in_bfloat16(_VISION_PEERS))
OURS_SCHEDULING = Peer(name="diptych", module="benchmarks.peers.ours_scheduling")
SCHEDULING_PEERS = (
    Peer(name="vllm", module="benchmarks.peers.vllm_scheduling", folder="vllm", environment=_VLLM),
    Peer(name="transformers paged", module="benchmarks.peers.transformers_scheduling", folder="transformers"),
)
SPECULATING_PEERS = tuple(peer for peer in _TEXT_PEERS if peer.name == "vllm")
"""Those that can be told to try tokens ahead, see `load` of their modules."""
