"""A cluster behind kubectl: its pods, their numbers, and a pod that calls the service all the time.

Knows kubectl and the names in the manifests. Does not judge: see `deploy.try_cluster`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_CALLER: Final = "diptych-caller"
_SOURCE: Final = Path(__file__).with_name("cluster_caller.py")
_WAIT: Final = "--timeout=900s"
_ENCODED: Final = """
import ssl, urllib.request
for scheme in ("http", "https"):
    try:
        url, context = scheme + "://127.0.0.1:9090/metrics", ssl._create_unverified_context()
        lines = urllib.request.urlopen(url, context=context, timeout=5).read().decode().splitlines()
        print([line.split()[1] for line in lines if line.startswith("diptych_vision_images_encoded_total")][0])
        break
    except OSError:
        pass
"""

Call = Mapping[str, Any]
"""What `deploy.cluster_caller` says of one call."""


class Cluster:
    """kubectl, in the namespace of the services."""

    def __init__(self, kubectl: Sequence[str]) -> None:
        """Take the command, with the flags that every use of it gets."""
        self._kubectl = list(kubectl)

    def do(self, *words: str, given: str | None = None) -> str:
        """Run kubectl with these words; returns what it prints. Raises CalledProcessError, its complaint shown."""
        done = self._run(words, given)
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return done.stdout

    def ready_pods(self, service: str) -> set[str]:
        """The names of the pods that are ready and stay."""
        listed = json.loads(self.do("get", "pods", "-o", "json", "-l", f"app.kubernetes.io/name={service}"))
        return {
            pod["metadata"]["name"]
            for pod in listed["items"]
            if "deletionTimestamp" not in pod["metadata"]
            for condition in pod["status"].get("conditions", [])
            if condition["type"] == "Ready" and condition["status"] == "True"
        }

    def replicas(self, service: str) -> int:
        """How many pods are asked for."""
        return int(self.do("get", f"deployment/{service}", "-o", "jsonpath={.spec.replicas}"))

    def scale(self, service: str, count: int) -> None:
        """Ask for so many pods, and wait until they are there."""
        self.do("scale", f"deployment/{service}", f"--replicas={count}")
        self.wait(service)

    def wait(self, service: str) -> None:
        """Wait until all pods that are asked for are there and new."""
        self.do("rollout", "status", f"deployment/{service}", _WAIT)

    def evict(self, pod: str) -> bool:
        """Ask for a pod's end as `kubectl drain` does; False where the disruption budget is used up."""
        namespace = self.do("get", f"pod/{pod}", "-o", "jsonpath={.metadata.namespace}")
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        done = self._run(["create", "--raw", path, "-f", "-"], json.dumps(body))
        if done.returncode and "disruption budget" not in done.stderr:
            raise AssertionError(f"{pod} was not evicted: {done.stderr}")
        return done.returncode == 0

    def num_encoded(self, pod: str) -> float:
        """Pictures that a vision pod has encoded since it started; 0 where it does not say."""
        done = self._run(["exec", pod, "--", "python", "-c", _ENCODED], None)
        return float(done.stdout.strip() or 0)

    @contextmanager
    def calling(self, image: str, environment: Mapping[str, str], authority: str) -> Iterator[None]:
        """A pod that calls all the time; `authority` is a Secret with the services' `ca.crt`, or nothing."""
        self.do("delete", "pod", _CALLER, "--ignore-not-found", _WAIT)
        self.do("create", "-f", "-", given=json.dumps(caller_pod(image, environment, authority)))
        try:
            self.do("wait", "--for=condition=Ready", f"pod/{_CALLER}", _WAIT)
            while not self.calls_since(0):
                time.sleep(1)
            yield
        finally:
            self.do("delete", "pod", _CALLER, "--grace-period=1", _WAIT)

    def calls_since(self, moment: float) -> list[Call]:
        """The calls that ended after a time of day, in seconds."""
        lines = self.do("logs", _CALLER).splitlines()
        sys.stderr.writelines(f"{line}\n" for line in lines if not line.startswith("{"))
        calls = [json.loads(line) for line in lines if line.startswith("{")]
        return [call for call in calls if call["at"] + call["seconds"] > moment]

    def _run(self, words: Sequence[str], given: str | None) -> "subprocess.CompletedProcess[str]":
        command = [*self._kubectl, *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603


def caller_pod(image: str, environment: Mapping[str, str], authority: str) -> dict[str, Any]:
    """A pod that the namespace admits and whose calls the network policies let through."""
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - the pod's
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}]
    if authority:
        mounts.append({"name": "authority", "mountPath": "/opt/authority", "readOnly": True})
        items = [{"key": "ca.crt", "path": "ca.crt"}]
        volumes.append({"name": "authority", "secret": {"secretName": authority, "items": items}})
        environment = {**environment, "AUTHORITY": "/opt/authority/ca.crt"}
    container = {
        "name": "caller",
        "image": image,
        "command": ["python", "-c", _SOURCE.read_text(encoding="utf-8")],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
    }
    metadata = {"name": _CALLER, "labels": {"diptych.dev/client": "true"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
