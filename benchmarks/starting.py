"""Measures how long both services take from the start of their processes to ready, and what memory they keep.

`python -m benchmarks start`: both start at the same moment, as on a fresh host; then some requests with a picture are
answered, and what stays resident is compared with weights and KV cache. For the demo model, and for one of 650 MB with
random weights, which is made before. Knows processes and the kernel's counts. Does not know how a service starts.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

import torch

from benchmarks.checkpoints import checkpoint
from benchmarks.free_port import free_port
from benchmarks.load.pair import environment
from benchmarks.load.workload import random_picture
from benchmarks.peers.processor_time import process_tree
from benchmarks.peers.protocol import ROOT
from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.layout import Part
from common.client.client import DiptychClient
from common.client.health import SERVING, health_status
from common.client.messages import chat, user_message
from decoder_service.model.run_config import make_run_config

NUM_BLOCKS, BLOCK_SIZE = 256, 16
DEADLINE_SECONDS = 300.0
_LOG = ROOT / "build/benchmarks/logs/start.log"
MB = 1_000_000
PARTS = {"vision": [Part.VISION], "decoder": [Part.DECODER, Part.PROJECTOR]}


@dataclass(frozen=True, slots=True)
class Figures:
    """What one start of one service showed."""

    seconds: float
    resident: int
    """Bytes of the service's own process after some requests"""
    with_children: int
    """The same with the processes that it started"""


def main() -> None:
    """Start both services some times with each model, and print a line a service."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for model in (ROOT / "models/demo", checkpoint("medium-pixtral")):
        rounds = [start_both(model) for _ in range(options.rounds)]
        for service in PARTS:
            found = [figures[service] for figures in rounds]
            held = held_bytes(model, service)
            seconds = [each.seconds for each in found]
            kept = median(each.resident for each in found) - held
            kept_by_all = median(each.with_children for each in found) - held
            print(
                f"{model.name:24} {service:8} ready after {median(seconds):5.2f} s "
                f"({min(seconds):.2f} to {max(seconds):.2f}); weights and KV cache {held / MB:6.0f} MB, "
                f"resident beyond {kept / MB:4.0f} MB, with the processes it started {kept_by_all / MB:4.0f} MB",
                flush=True,
            )


def start_both(model: Path) -> dict[str, Figures]:
    """One start of both services, and some requests; figures by service."""
    ports = {service: free_port() for service in PARTS}
    flags = {
        "vision": [],
        "decoder": ["--vision-addresses", f"127.0.0.1:{ports['vision']}", "--num-blocks", str(NUM_BLOCKS)],
    }
    _LOG.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(_LOG.open("ab"))
        started = time.monotonic()
        processes = {
            service: stack.enter_context(
                running([f"{service}_service", "--model", str(model), *flags[service]], port, log)
            )
            for service, port in ports.items()
        }
        ready = wait_for_both(ports, processes, started)
        ask(f"127.0.0.1:{ports['decoder']}")
        return {
            service: Figures(ready[service], resident(process.pid), sum(map(resident, process_tree(process.pid))))
            for service, process in processes.items()
        }


def wait_for_both(
    ports: dict[str, int], processes: dict[str, subprocess.Popen[bytes]], started: float
) -> dict[str, float]:
    """Seconds until each service said that it is ready. Raises TimeoutError, and RuntimeError where one has ended."""
    ready: dict[str, float] = {}
    while len(ready) < len(ports):
        for service, port in ports.items():
            if service not in ready and health_status(f"127.0.0.1:{port}", "") == SERVING:
                ready[service] = time.monotonic() - started
            if processes[service].poll() is not None:
                raise RuntimeError(
                    f"the {service} service ended with status {processes[service].returncode}; see {_LOG}"
                )
        if time.monotonic() - started > DEADLINE_SECONDS:
            raise TimeoutError(f"ready are only {sorted(ready)}")
        time.sleep(0.02)
    return ready


def ask(address: str) -> None:
    """Some questions about pictures, one after the other."""
    with DiptychClient(address) as client:
        for seed in range(8):
            question = chat([user_message("What is this?", [random_picture(128, 128, seed=seed)])])
            for _ in client.generate(question, max_tokens=16, timeout=120):
                pass


def held_bytes(model: Path, service: str) -> int:
    """Bytes of a service's weights in float32, and of its KV cache if it has one."""
    found = open_checkpoint(model)
    elements = sum(
        e.stored.num_bytes // e.stored.dtype.itemsize for part in PARTS[service] for e in found.entries(part)
    )
    weights = elements * torch.float32.itemsize
    if service == "vision":
        return weights
    config = make_run_config(
        found.text_config, dtype=torch.float32, device=torch.device("cpu"), max_seq_len=None, block_size=BLOCK_SIZE
    )
    return weights + NUM_BLOCKS * config.kv_params.bytes_per_block


def resident(pid: int) -> int:
    """Resident bytes of a process, the pages that it shares with others in equal parts."""
    found = re.search(r"^Pss:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@contextmanager
def running(arguments: list[str], port: int, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A service as a process; what it says goes to a log."""
    command = [sys.executable, "-m", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


if __name__ == "__main__":
    main()
