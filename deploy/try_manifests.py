"""Runs an overlay's pods as processes of this machine and asks them something: `python -m deploy.try_manifests`.

Knows what a kubelet, a caller and a Prometheus would do: probe as the manifest says, call, scrape, and end the pods.
Needs no cluster and no image: the Dockerfile's commands are run in a folder, with dependencies taken from the running
environment. As root, pods run as the manifest's user, on a read-only root, in a network of their own.
"""

import argparse
import fcntl
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from random import Random

import grpc

from common.client.client import DiptychClient
from common.client.health import SERVING, health_status
from common.client.messages import user_message
from deploy.image_steps import Builder
from deploy.manifests import (
    KUBERNETES,
    Manifest,
    container_of,
    container_ports,
    named,
    pod_of,
    render,
    render_combination,
)
from deploy.pods import RunningPod, is_confining, running
from training.tasks import sample

_START_SECONDS = 120
_QUESTIONS = 4
TARGETS = ("vision", "decoder")


def main() -> None:
    """Build, start, ask, scrape, stop; ends with a traceback and status 1 where anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overlay", default="cpu-demo", help="one that needs no GPU and whose model the image holds")
    parser.add_argument("--secrets", type=Path, help="folder with a folder for each Secret; a second run then has TLS")
    parser.add_argument("--images", type=Path, help="folder in which the images' stages were built before")
    given = parser.parse_args()
    if given.images is not None:
        _try_all(given.overlay, given.images, given.secrets)
        return
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder), arguments={"DEVICE": "cpu"}, borrow=True)
        for target in TARGETS:
            builder.build(target)
        # What builds needs the network; what runs gets one of its own, with nothing on it.
        apart = ["unshare", "--net", "--"] if is_confining() else []
        words = [sys.executable, "-m", "deploy.try_manifests", *sys.argv[1:], f"--images={folder}"]
        sys.exit(subprocess.run([*apart, *words], check=False).returncode)  # noqa: S603


def _try_all(overlay: str, images: Path, secrets: Path | None) -> None:
    if is_confining():
        _raise_loopback()
    roots = {target: images / target for target in TARGETS}
    with tempfile.TemporaryDirectory(dir=images) as folder:
        try_pods(render(KUBERNETES / "overlays" / overlay), roots, Path(folder))
    if secrets is not None:
        with tempfile.TemporaryDirectory(dir=images) as folder:
            manifests = render_combination(Path(folder), overlay=overlay, components=["monitoring", "tls", "tokens"])
            try_pods(manifests, roots, Path(folder), secrets=secrets)


def try_pods(
    manifests: Sequence[Manifest], images: dict[str, Path], folder: Path, *, secrets: Path | None = None
) -> None:
    """Run one overlay's pods through a short life. Raises AssertionError."""
    with running(manifests, images, folder, secrets=secrets) as pods:
        for pod in pods:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                wait_for_probe(pod, probe)
            if is_confining():
                check_confinement(pod)
            _say(f"{pod.service} at {pod.address} passes its probes")
        (decoder,) = [pod for pod in pods if pod.service == "decoder"]
        right = sum(ask(decoder, seed, secrets) for seed in range(_QUESTIONS))
        _say(f"{right} of {_QUESTIONS} answers about pictures are right")
        if right < _QUESTIONS - 1:
            raise AssertionError("the demo model reads numbers better than that")
        texts = {pod.address: scrape(pod, manifests, secrets) for pod in pods}
        if not re.search('diptych_compute_info{implementation="native', texts[decoder.address]):
            raise AssertionError("the image's kernels are not used")
        served = {name for text in texts.values() for name in re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)}
        _say(f"{len(served)} metrics are served")
        if missing := wanted_metrics() - served:
            raise AssertionError(f"scalers and pickers ask for metrics that nobody serves: {sorted(missing)}")
        for pod in reversed(pods):
            if status := pod.stop():
                raise AssertionError(f"{pod.service} at {pod.address} ended with {status}")
        how = "confined" if is_confining() else "not confined: only root can"
        _say(f"all ended with 0{' under TLS' if secrets else ''}; {how}")


def wait_for_probe(pod: RunningPod, kind: str) -> None:
    """Ask as a kubelet would, until the answer is SERVING. Raises AssertionError."""
    probe = container_of(pod.deployment)[kind]["grpc"]
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and pod.process.poll() is None:
        if health_status(f"{pod.address}:{probe['port']}", probe.get("service", "")) == SERVING:
            return
        time.sleep(0.1)
    raise AssertionError(f"{pod.service} at {pod.address} did not pass its {kind}")


def check_confinement(pod: RunningPod) -> None:
    """Look at the process from outside: its user, its capabilities, what it can write. Raises AssertionError."""
    process = Path("/proc") / str(pod.process.pid)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    user = str(pod_of(pod.deployment)["securityContext"]["runAsUser"])
    found = (set(status["Uid"].split()), set(status["Gid"].split()), int(status["CapEff"], 16), status["NoNewPrivs"])
    if found != ({user}, {user}, 0, "1"):
        raise AssertionError(f"{pod.service} at {pod.address} runs with {found}")
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    writable = {mount[4] for mount in mounts if mount[5].split(",")[0] == "rw"}
    if "/tmp" not in writable or {"/", "/opt", "/opt/diptych"} & writable:  # noqa: S108 - the pod's
        raise AssertionError(f"{pod.service} at {pod.address} can write {sorted(writable)}")


def ask(decoder: RunningPod, seed: int, secrets: Path | None) -> bool:
    """Ask which number a fresh picture shows; tells whether the answer is right. Raises ClientError."""
    address = f"{decoder.address}:{container_ports(decoder.deployment)['grpc']}"
    example = sample("number", Random(seed))  # noqa: S311 - pictures, not secrets
    credentials, token = None, None
    if secrets is not None:
        credentials = grpc.ssl_channel_credentials((secrets / "decoder-tls" / "ca.crt").read_bytes())
        token = (secrets / "token").read_text(encoding="utf-8")
    with DiptychClient(address, credentials=credentials, token=token) as client:
        message = user_message(example.turns[0].question, example.png_images)
        return client.complete([message], max_tokens=16, timeout=60).text.strip() == example.turns[0].answer


def scrape(pod: RunningPod, manifests: Sequence[Manifest], secrets: Path | None) -> str:
    """What a pod serves on its port `metrics`, read as its PodMonitor says."""
    connection = HTTPConnection(pod.address, container_ports(pod.deployment)["metrics"], timeout=10)
    connection.connect()
    if secrets is not None:
        tls = named(manifests, "PodMonitor", pod.service)["spec"]["podMetricsEndpoints"][0]["tlsConfig"]
        authority = secrets / tls["ca"]["secret"]["name"] / tls["ca"]["secret"]["key"]
        context = ssl.create_default_context(cafile=str(authority))
        connection.sock = context.wrap_socket(connection.sock, server_hostname=tls["serverName"])
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def wanted_metrics() -> set[str]:
    """Every metric of ours that a component's scaler or picker names."""
    texts = [path.read_text(encoding="utf-8") for path in (KUBERNETES / "components").rglob("*.yaml")]
    return {name for text in texts for name in re.findall(r"\bdiptych_\w+", text)}


def _raise_loopback() -> None:
    """Switch on the only interface of a new network namespace."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
