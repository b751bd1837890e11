"""The peers' servers: how each is started, on which twin of a checkpoint, and how it is asked.

Knows command lines. Does not know what is measured. The environments are those of `benchmarks/peers/install`.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.checkpoints import checkpoint, llama_twin, native_twin
from benchmarks.free_port import free_port
from benchmarks.peers.environments import LOGS
from benchmarks.peers.protocol import ROOT
from benchmarks.served import questions
from benchmarks.served.process import ServerProcess, running_server
from benchmarks.served.sender import Ask
from benchmarks.served.spelled_pictures import spelled_twin

MAX_TOKENS = 1024
"""Of a request, prompt and answer; our own reserves what a request may need, whatever its model's limit."""
MAX_REQUESTS = 64
"""Under way at the same time, as our decoder has it by default."""
_START_SECONDS = 600
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPeer:
    """One server."""

    name: str
    folder: str = ""
    """Of its environment, where that is not its name."""
    package: str
    """Whose version is the server's."""
    command: tuple[str, ...]
    """Below `bin` of its environment, with `{model}` and `{port}` to be filled in."""
    twin: Callable[[Path], Path]
    ask: Callable[[Path], Ask]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables, with `{cores}`, `{threads}` and its environment's `{folder}` to be filled in."""
    ready_path: str = "/health"

    def binaries(self, folder: Path) -> Path | None:
        """Where its environment's programs are; None where it is not installed."""
        own = folder / (self.folder or self.name)
        return (own / "bin").absolute() if (own / ".installed").exists() else None

    def version(self, folder: Path) -> str:
        """Its version and torch's."""
        script = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        python = str(self.binaries(folder)) + "/python"
        done = subprocess.run(  # noqa: S603
            [python, "-c", script, self.package, "torch"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @contextmanager
    def running(self, folder: Path, model: str, cores: Sequence[int]) -> Iterator[tuple[ServerProcess, Ask]]:
        """The server, ready, and how it is asked. Raises ServerError where it does not start."""
        binaries = self.binaries(folder)
        if binaries is None:
            raise ValueError(f"{self.name} is not installed")
        directory = self.twin(checkpoint(model))
        port = free_port()
        program, *arguments = (part.format(model=directory, port=port) for part in self.command)
        with running_server(
            [str(binaries / program), *arguments],
            port=port,
            cores=cores,
            environment=self._variables(binaries.parent, cores),
            log=LOGS / f"served-{self.name.replace(' ', '-')}.log",
        ) as server:
            server.wait_until_ready(self.ready_path, seconds=_START_SECONDS)
            yield server, self.ask(directory)

    def _variables(self, folder: Path, cores: Sequence[int]) -> dict[str, str]:
        known = {"cores": ",".join(map(str, cores)), "threads": len(cores), "folder": folder}
        own = {name: value.format(**known) for name, value in self.environment.items()}
        return {**_OFFLINE, **own, "PYTHONPATH": str(ROOT)}


_LIMITS = ("--max-model-len", str(MAX_TOKENS), "--max-num-seqs", str(MAX_REQUESTS))
_VLLM = (
    *("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--host", "127.0.0.1"),
    *("--port", "{port}", "--dtype", "float32", *_LIMITS),
)
"""What `vllm serve` runs; that command itself looks for a package `vllm`, and the one for CPUs has another name."""
_MISTRAL = ("--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral")
_ONE_PICTURE = ("--limit-mm-per-prompt", json.dumps({"image": 1}).replace("{", "{{").replace("}", "}}"))
_THREADS = {"OMP_NUM_THREADS": "{threads}"}
_VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # As its documentation has it: with Intel's OpenMP, and a thread on each core. Without, threads wait for each other
    # beside its own processes: 5 tokens/s in place of 700 were seen.
    "LD_PRELOAD": "{folder}/lib/libiomp5.so",
    "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
    "VLLM_NO_USAGE_STATS": "1",
}
_TRANSFORMERS = (
    *("python", "-m", "benchmarks.peers.transformers_serve", "serve", "{model}"),
    *("--host", "127.0.0.1", "--port", "{port}"),
    *("--dtype", "float32", "--device", "cpu", "--attn-implementation", "sdpa"),
)
_PAGED = (
    *("--continuous-batching", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"),
    *("--cb-num-blocks", str(MAX_REQUESTS * MAX_TOKENS // 32)),
)
TEXT_PEERS = (
    ServedPeer(
        name="vllm",
        package="vllm-cpu",
        command=_VLLM,
        twin=llama_twin,
        ask=questions.token_ids,
        environment=_VLLM_ENVIRONMENT,
    ),
    ServedPeer(
        name="max",
        package="max",
        command=(
            *("max", "serve", "--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
            *("--quantization-encoding", "float32", "--devices", "cpu"),
            *("--max-length", str(MAX_TOKENS), "--max-batch-size", str(MAX_REQUESTS)),
        ),
        twin=llama_twin,
        ask=questions.token_ids,
        environment={**_THREADS, "MAX_SERVE_DISABLE_TELEMETRY": "1", "MODULAR_TELEMETRY_ENABLED": "false"},
    ),
    ServedPeer(
        name="transformers",
        package="transformers",
        command=(*_TRANSFORMERS, *_PAGED),
        twin=llama_twin,
        ask=questions.spelled_text,
        environment=_THREADS,
    ),
)
_VLLM_PICTURES = ServedPeer(
    name="vllm",
    package="vllm-cpu",
    command=(*_VLLM, *_MISTRAL, *_ONE_PICTURE, "--skip-mm-profiling"),
    twin=native_twin,
    ask=questions.chat_of_words,
    environment=_VLLM_ENVIRONMENT,
)
PICTURE_PEERS = (
    _VLLM_PICTURES,
    ServedPeer(
        name="transformers",
        package="transformers",
        command=_TRANSFORMERS,  # It batches no requests with pictures, by itself or when asked to.
        twin=spelled_twin,
        ask=questions.spelled_chat,
        environment=_THREADS,
    ),
)
_FEW_TOKENS = "128"
INTERFERENCE_PEERS = (
    _VLLM_PICTURES,
    # As those of its users would have it who care for the gaps more than for the first tokens.
    replace(
        _VLLM_PICTURES,
        name=f"vllm {_FEW_TOKENS} tokens",
        folder="vllm",
        command=(*_VLLM_PICTURES.command, "--max-num-batched-tokens", _FEW_TOKENS),
    ),
)
