"""Starts the two services as processes, the way pods do, and looks into them from outside."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.free_port import free_port
from common.client.health import NOT_SERVING, SERVING, health_status
from diptych.v1 import vision_pb2, vision_pb2_grpc

FAULT_FILE = "TEST_FAULT_FILE"
"""Environment variable with the path of what `faulty_decoder` reads."""
ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "models/demo"
START_SECONDS = 60


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[str]
    address: str
    metrics_port: int

    def stop(self) -> int:
        """Ask it to end, and give its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """End it without asking."""
        self.process.kill()
        self.process.wait(timeout=10)

    def metrics(self, accept: str = "text/plain") -> str:
        """The page of all metrics, in a format."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as page:
            text: str = page.read().decode()
        return text

    def metric(self, name: str) -> float:
        """Value of a metric without labels."""
        found = re.search(rf"^{name} (\S+)$", self.metrics(), re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def wait_serving(self, name: str = "readiness", *, serving: bool = True) -> None:
        """Wait until a health name says so."""
        wanted = SERVING if serving else NOT_SERVING
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if health_status(self.address, name) == wanted:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} did not become {wanted}")


@contextmanager
def vision_service(*flags: str, model: Path = DEMO_MODEL, port: int = 0, log: Path | None = None) -> Iterator[Service]:
    """A vision service that listens, with metrics."""
    with _service("vision_service", *flags, model=model, port=port, log=log) as service:
        yield service


@contextmanager
def decoder_service(
    *flags: str,
    vision: str | None,
    model: Path = DEMO_MODEL,
    log: Path | None = None,
    module: str = "decoder_service",
) -> Iterator[Service]:
    """A decoder service that listens, with metrics."""
    addresses = ("--vision-addresses", vision) if vision else ()
    with _service(module, *addresses, *flags, model=model, log=log) as service:
        yield service


@contextmanager
def faulty_decoder_service(fault_file: Path, *flags: str) -> Iterator[Service]:
    """A decoder service whose device fails as the file says, see `faulty_decoder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FAULT_FILE, str(fault_file))
        with decoder_service(*flags, vision="127.0.0.1:1", module="tests.end_to_end.faulty_decoder") as service:
            yield service


@contextmanager
def local_service(*flags: str, model: Path = DEMO_MODEL) -> Iterator[Service]:
    """A decoder service with the encoder in its process, with metrics."""
    with _service("diptych.local", *flags, model=model) as service:
        yield service


def assert_idle(decoder: Service, vision: Service | None = None) -> None:
    """Wait for the idle state: every block free, nothing running or waiting, no feature bytes, no patches."""
    end = time.monotonic() + 10
    while (state := _state(decoder, vision)) != (0, 0, 0, 0, 0):
        assert time.monotonic() < end, f"not idle: waiting, running, used blocks, feature bytes, patches = {state}"
        time.sleep(0.05)


def _state(decoder: Service, vision: Service | None) -> tuple[float, ...]:
    used = decoder.metric("diptych_kv_blocks") - decoder.metric("diptych_kv_blocks_free")
    patches = 0
    if vision is not None and vision.process.poll() is None:
        with grpc.insecure_channel(vision.address) as channel:
            load = vision_pb2_grpc.VisionServiceStub(channel).GetLoad(vision_pb2.GetLoadRequest(), timeout=10)
            patches = load.pending_patches + load.pending_images
    return (
        decoder.metric("diptych_num_requests_waiting"),
        decoder.metric("diptych_num_requests_running"),
        used,
        decoder.metric("diptych_image_feature_bytes"),
        patches,
    )


@contextmanager
def _service(module: str, *flags: str, model: Path, port: int = 0, log: Path | None = None) -> Iterator[Service]:
    """A service; its log goes to a file where one is given."""
    metrics_port = free_port()
    ports = ("--port", str(port), "--metrics-port", str(metrics_port))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}", "OMP_NUM_THREADS": "1"}
    with nullcontext() if log is None else log.open("w") as stderr:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module, "--model", str(model), *ports, *flags],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line.startswith("listening "), f"{module} did not start: {line!r}"
        yield Service(process=process, address=line.split()[1], metrics_port=metrics_port)
    finally:
        stop_in_time(process)
        if process.stdout:
            process.stdout.close()


def stop_in_time(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, and end it where it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
