"""Renders the Kubernetes manifests, the way `kubectl apply -k` would, and finds things in them.

Knows kubectl's own kustomize and the shape of the objects that the overlays hold. Does not judge them: see
`deploy.policy` and `deploy.reachability`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Manifest: TypeAlias = dict[str, Any]
"""One object, as parsed YAML."""

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"


def render(directory: Path) -> list[Manifest]:
    """All objects of a kustomization. Raises CalledProcessError with kubectl's words on standard error."""
    done = subprocess.run(  # noqa: S603
        [find_kubectl(), "kustomize", str(directory)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def render_combination(folder: Path, *, overlay: str, components: Sequence[str]) -> list[Manifest]:
    """An overlay with components on top; `folder` is an empty one that takes the kustomization."""
    kubernetes = os.path.relpath(KUBERNETES, folder.resolve())
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "diptych",
        "resources": [f"{kubernetes}/overlays/{overlay}"],
        "components": [f"{kubernetes}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder)


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> Iterator[Manifest]:
    """The objects of these kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The object of a kind and name; raises LookupError where there is none."""
    for manifest in of_kind(manifests, kind):
        if manifest["metadata"]["name"] == name:
            return manifest
    raise LookupError(f"no {kind} {name}")


def identify(manifest: Manifest) -> str:
    """How complaints call an object."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def container_of(deployment: Manifest) -> Manifest:
    """The only container of a Deployment's pods."""
    (container,) = pod_of(deployment)["containers"]
    return dict(container)


def pod_of(deployment: Manifest) -> Manifest:
    """The pod's spec of a Deployment."""
    return dict(deployment["spec"]["template"]["spec"])


def pod_labels(deployment: Manifest) -> dict[str, str]:
    """The labels of a Deployment's pods."""
    return dict(deployment["spec"]["template"]["metadata"]["labels"])


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels. Raises ValueError for operators that nothing here uses."""
    if set(selector) - {"matchLabels"}:
        raise ValueError(f"only matchLabels is understood, got {selector}")
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def environment_of(deployment: Manifest) -> dict[str, str]:
    """The variables that a Deployment sets for its container."""
    return {entry["name"]: entry["value"] for entry in container_of(deployment).get("env", [])}


def container_ports(deployment: Manifest) -> dict[str, int]:
    """The named ports of a Deployment's container."""
    return {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}


def find_kubectl() -> str:
    """The kubectl that comes with the environment, else the machine's."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        raise FileNotFoundError("kubectl is not installed; the extra `deploy` brings it")
    return found
