"""Network namespaces joined by a bridge, one for each pod, as a cluster's network joins pods.

Knows namespaces, links and the name server's address. Does not know what runs in a pod. Needs root and iproute2.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = "10.99.0.2"
"""Address of the name server that every pod asks."""
_NEW_NETWORK = 0x40000000


def ip(*arguments: str) -> None:
    """Run `ip`. Raises RuntimeError with its words."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """A namespace with a bridge, which this process enters, and one namespace for each pod."""

    def __init__(self) -> None:
        self._prefix = f"dpt{os.getpid()}"
        self._made: list[str] = []
        self._add("bridge")
        with Path(f"/var/run/netns/{self._prefix}-bridge").open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
                raise RuntimeError(os.strerror(ctypes.get_errno()))
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", "10.99.0.1/24", "dev", "br0")
        ip("link", "set", "br0", "up")

    def add_pod(self, pod: str, address: str) -> None:
        """Make a pod's namespace, which asks our name server."""
        namespace = self._add(pod)
        settings = Path("/etc/netns") / namespace
        settings.mkdir(parents=True)
        (settings / "resolv.conf").write_text(f"nameserver {NAMES}\noptions timeout:1 attempts:2\n")
        ip("link", "add", pod, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", pod, "master", "br0", "up")
        for command in (
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            ip("-n", namespace, *command)

    def start(self, pod: str, *arguments: str) -> "subprocess.Popen[str]":
        """Run Python in a pod and wait for its first line."""
        command = ["ip", "netns", "exec", f"{self._prefix}-{pod}", sys.executable, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"{pod} did not start")
        return process

    def cut(self, pod: str, *, joined: bool) -> None:
        """Take a pod off the bridge without a word to anybody, or join it again."""
        ip("link", "set", pod, "up" if joined else "down")

    def close(self) -> None:
        """Take everything down."""
        for namespace in self._made:
            with contextlib.suppress(RuntimeError):
                ip("netns", "del", namespace)
            shutil.rmtree(Path("/etc/netns") / namespace, ignore_errors=True)

    def _add(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        ip("netns", "add", namespace)
        self._made.append(namespace)
        return namespace
