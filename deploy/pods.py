"""Starts the pods of rendered manifests as processes of this machine, each on a loopback address of its own.

Knows how a manifest becomes a command: the image's entry point and environment, the manifest's arguments and
environment, its user, its bounded /tmp, its read-only root, the addresses behind a headless Service's name. Needs root
on Linux for the last four. Does not know what the services do.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.dockerfile import entry_point, image_environment, read_stages
from deploy.manifests import Manifest, container_of, environment_of, of_kind, pod_of

_CONFINE = Path(__file__).with_name("confine.sh")
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod's process, and what its manifest says of it."""

    deployment: Manifest
    address: str
    process: "subprocess.Popen[bytes]"

    @property
    def service(self) -> str:
        """The name of its Deployment."""
        return str(self.deployment["metadata"]["name"])

    def stop(self) -> int:
        """Ask it to end, as a kubelet would; returns the exit status. Raises TimeoutExpired."""
        self.process.terminate()
        return self.process.wait(_STOP_SECONDS)


def plan_addresses(manifests: Sequence[Manifest]) -> list[tuple[Manifest, str]]:
    """Each pod that the manifests ask for, with an address; the callees before their callers."""
    deployments = sorted(of_kind(manifests, "Deployment"), key=lambda one: str(one["metadata"]["name"]), reverse=True)
    return [
        (deployment, f"127.{deployments.index(deployment) + 1}.0.{number + 1}")
        for deployment in deployments
        for number in range(deployment["spec"]["replicas"])
    ]


@contextmanager
def running(
    manifests: Sequence[Manifest], images: Mapping[str, Path], folder: Path, *, secrets: Path | None = None
) -> Iterator[list[RunningPod]]:
    """The pods, started; all are ended on leaving.

    `images` are the root folders of the images by service, `secrets` holds a folder of files for each Secret.
    """
    plan = plan_addresses(manifests)
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{address} {deployment['metadata']['name']}\n" for deployment, address in plan))
    with ExitStack() as stack:
        pods = []
        for deployment, address in plan:
            image = images[deployment["metadata"]["name"]]
            mounted = _mount_secrets(deployment, secrets, folder / f"secrets-{address}")
            confined = is_confining()
            words = (
                _confined(deployment, image, hosts, mounted) if confined else _plain(deployment, image, plan, mounted)
            )
            process = subprocess.Popen(  # noqa: S603
                [*words, f"--host={address}"], env=_environment(deployment, image), cwd=folder
            )
            stack.callback(_end, process)
            pods.append(RunningPod(deployment, address, process))
        yield pods


def is_confining() -> bool:
    """Whether processes are confined as their manifests say; else they only get command and environment."""
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))


def _mount_secrets(deployment: Manifest, secrets: Path | None, root: Path) -> Path:
    """A folder like a root in which a pod's Secrets lie where it mounts them, below /opt."""
    (root / "opt").mkdir(parents=True)
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(deployment)["volumeMounts"]}
    for volume in pod_of(deployment)["volumes"]:
        if "secret" in volume and secrets is not None:
            shutil.copytree(secrets / volume["secret"]["secretName"], root / mounts[volume["name"]].lstrip("/"))
    return root


def _confined(deployment: Manifest, image: Path, hosts: Path, mounted: Path) -> list[str]:
    pod = pod_of(deployment)
    (tmp,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "tmp")
    size = tmp["sizeLimit"].removesuffix("i").lower()
    keep = (sys.base_prefix, sysconfig.get_path("purelib"))
    return [
        *("unshare", "--mount", "--propagation", "private", "--", str(_CONFINE)),
        *(str(image), str(hosts), str(mounted), size, str(pod["securityContext"]["runAsUser"]), *keep, "--"),
        *_command(deployment),
    ]


def _plain(deployment: Manifest, image: Path, plan: Sequence[tuple[Manifest, str]], mounted: Path) -> list[str]:
    """Without a name space the image lies elsewhere, and names lead nowhere."""

    def addresses(found: "re.Match[str]") -> str:
        return ",".join(f"{address}:{found[2]}" for one, address in plan if one["metadata"]["name"] == found[1])

    words = [re.sub(r"dns:///(\w+):(\d+)", addresses, word) for word in _command(deployment)]
    words = [word.replace("/opt/diptych", f"{image}/opt/diptych") for word in words]
    return [re.sub("=(/opt/)", rf"={mounted}\1", word) for word in words]


def _command(deployment: Manifest) -> list[str]:
    program, *words = entry_point(deployment["metadata"]["name"])
    return [f"/opt/diptych/bin/{program}", *words, *map(str, container_of(deployment)["args"])]


def _environment(deployment: Manifest, image: Path) -> dict[str, str]:
    outer = {"PATH": os.environ["PATH"]}
    made = image_environment(read_stages(), deployment["metadata"]["name"], outer) | environment_of(deployment)
    return made if is_confining() else made | {"PATH": f"{image}{made['PATH']}"}


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
