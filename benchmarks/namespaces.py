"""Both services in network namespaces of their own, as pods have them: `python -m benchmarks.namespaces`.

Needs the right to make namespaces (root) and Debian's iproute2, and says so where it has not got them. A bridge joins
the namespaces, a small name server stands for a headless service, and callers ask about new pictures all the time
while the vision service is scaled 1 to 4 to 1, one pod is cut off and joined again, and the name is found nowhere for
a while. No caller may see an error. Everything is taken down again at the end.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchmarks.fake_vision import picture
from benchmarks.pod_network import NAMES, Network
from benchmarks.steady_callers import SteadyCallers
from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError
from diptych.models import demo_model

NAME = "vision-headless.demo.test"
DECODER = "10.99.0.10"


class Pods:
    """The vision pods, and what the name server says of them."""

    def __init__(self, network: Network, names: Path) -> None:
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._network = network
        self._names = names
        self._numbers = itertools.count(1)

    def scale(self, count: int) -> None:
        """Start pods that are named once they listen, or stop the youngest as a cluster does."""
        while len(self.running) < count:
            number = next(self._numbers)
            pod, address = f"v{number}", f"10.99.0.{20 + number}"
            self._network.add_pod(pod, address)
            flags = ("--model", str(demo_model()), "--host", "0.0.0.0", "--port", "50052", "--metrics-port", "9090")  # noqa: S104
            self.running[pod] = self._network.start(pod, "-m", "vision_service", *flags)
            self.publish()
        while len(self.running) > count:
            pod, process = self.running.popitem()
            self.publish()
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                raise RuntimeError(f"{pod} ended with status {process.returncode}")

    def publish(self, *, nobody: bool = False) -> None:
        """Let the name server know."""
        lines = [] if nobody else [f"10.99.0.{20 + int(pod[1:])}\n" for pod in self.running]
        fresh = self._names.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.replace(self._names)

    def encoded(self, pod: str) -> float:
        """Pictures that a pod has encoded."""
        url = f"http://10.99.0.{20 + int(pod[1:])}:9090/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("diptych_vision_images_encoded_total ")))


def until(condition: Callable[[], bool], *, seconds: float = 60) -> float:
    """Wait for something; returns how long it took. Raises RuntimeError where it does not come."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise RuntimeError("waited in vain")
        time.sleep(0.05)
    return time.monotonic() - begin


def story(pods: Pods, network: Network, load: SteadyCallers) -> None:
    """What happens to the pods."""

    def tell(what: str) -> None:
        print(f"{what}: {load.num_done} answers, {len(load.errors)} errors so far", flush=True)

    until(lambda: load.num_done > 5)
    tell("one pod")
    pods.scale(4)
    took = until(lambda: all(pods.encoded(pod) > 0 for pod in pods.running))
    tell(f"four pods, the last one in use {took:.1f} s after it was named")
    cut = list(pods.running)[1]
    before = load.num_done
    network.cut(cut, joined=False)
    time.sleep(10)
    tell(f"{cut} was cut off for 10 s, {load.num_done - before} answers meanwhile")
    network.cut(cut, joined=True)
    encoded = pods.encoded(cut)
    took = until(lambda: pods.encoded(cut) > encoded)
    tell(f"{cut} is joined again, in use after {took:.1f} s")
    pods.publish(nobody=True)
    before = load.num_done
    time.sleep(8)
    tell(f"the name was found nowhere for 8 s, {load.num_done - before} answers meanwhile")
    pods.publish()
    pods.scale(1)
    before = load.num_done
    until(lambda: load.num_done > before + 5)
    tell("one pod again")


def run(network: Network, folder: Path) -> int:
    """Start everything, tell the story; returns the exit status."""
    names = folder / "names"
    names.touch()
    pods, others = Pods(network, names), []
    try:
        network.add_pod("names", NAMES)
        network.add_pod("decoder", DECODER)
        others.append(network.start("names", "-m", "benchmarks.name_server", NAMES, str(names)))
        pods.scale(1)
        flags = ("--model", str(demo_model()), "--host", "0.0.0.0", "--vision-addresses", f"dns:///{NAME}:50052")  # noqa: S104
        others.append(network.start("decoder", "-m", "decoder_service", *flags))
        with DiptychClient(f"{DECODER}:50051") as client:
            until(lambda: _answers(client))
            load = SteadyCallers(client, count=2)
            with load.running():
                story(pods, network, load)
        for error in load.errors:
            print(f"error: {error}")
        print(f"{load.num_done} answers, {len(load.errors)} errors")
        return 1 if load.errors else 0
    finally:
        for process in [*others, *pods.running.values()]:
            process.kill()
            process.wait()


def _answers(client: DiptychClient) -> bool:
    try:
        client.complete([user_message("?", [picture(10**6, side=64)])], timeout=30, max_tokens=1, ignore_eos=True)
    except ClientError:
        return False
    return True


def main() -> None:
    """Run, or say that it may not."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        sys.stderr.write("namespaces: needs root and the command ip (Debian: iproute2); nothing was run\n")
        sys.exit(3)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        network = Network()
    except (RuntimeError, OSError) as error:
        sys.stderr.write(f"namespaces: this machine gives no right to make them: {error}; nothing was run\n")
        sys.exit(3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(run(network, Path(folder)))
    finally:
        network.close()


if __name__ == "__main__":
    main()
