"""What must hold for every rendered deployment, as rules that name what is wrong.

Knows the pods' security, probes, resources and ends, and that objects which speak of each other agree. Does not know
schemas (kubernetes-validate does) or who may talk to whom (see `deploy.reachability`).
"""

import tomllib
from collections.abc import Callable, Iterator, Sequence

from common.server.health import LIVENESS, READINESS, STARTUP
from deploy.dockerfile import image_environment, read_stages
from deploy.manifests import ROOT, Manifest, container_of, container_ports, identify, of_kind, pod_of
from deploy.references import reference_complaints, scaler_complaints, selector_complaints
from deploy.service_settings import settings_complaints

DeploymentRule = Callable[[Manifest], Iterator[str]]
Rule = Callable[[Sequence[Manifest]], Iterator[str]]
_PRE_STOP_MARGIN_SECONDS = 35
"""Names are cached for 30 s at most, where CoreDNS has its usual settings, and decoders look every three seconds."""
_FROZEN_SECONDS = 30
"""The longest that a pod which fails its liveness probe may take to end."""
_CLUSTER_SCOPED = ("Namespace",)
_HOME = image_environment(read_stages(), "decoder", {})["HOME"]
"""Of the image's user; its root cannot be written."""


def complaints(manifests: Sequence[Manifest]) -> list[str]:
    """All that is wrong; nothing where all is well."""
    deployments = list(of_kind(manifests, "Deployment"))
    return [
        *(f"{identify(each)}: {words}" for rule in DEPLOYMENT_RULES for each in deployments for words in rule(each)),
        *(complaint for rule in RULES for complaint in rule(manifests)),
    ]


def pod_security(deployment: Manifest) -> Iterator[str]:
    """The restricted Pod Security Standard, and a root file system that nobody writes."""
    pod = pod_of(deployment)
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "pods may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "pods get a token for the cluster's API"
    if pod.get("enableServiceLinks") is not False:
        yield "a Service called diptych would set variables that look like settings"
    if any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")):
        yield "pods share a namespace with the host"
    yield from _volume_complaints(pod)
    yield from _container_security(container_of(deployment))


def resources(deployment: Manifest) -> Iterator[str]:
    """Every pod says what it needs, and cannot take more memory than it said."""
    limits = container_of(deployment).get("resources", {}).get("limits", {})
    requests = container_of(deployment).get("resources", {}).get("requests", {})
    for resource in ("cpu", "memory"):
        if resource not in limits or resource not in requests:
            yield f"no request and limit of {resource}"
    if limits.get("memory") != requests.get("memory"):
        yield "memory over the request may be taken away again"


def probes(deployment: Manifest) -> Iterator[str]:
    """All three probes are there, and each asks for the health name that means it."""
    wanted = {"startupProbe": STARTUP, "readinessProbe": READINESS, "livenessProbe": LIVENESS}
    container, ports = container_of(deployment), container_ports(deployment)
    for kind, service in wanted.items():
        check = container.get(kind, {}).get("grpc")
        if check is None:
            yield f"no {kind}"
        elif check.get("service", "") != service:
            yield f"{kind} asks for {check.get('service', '')!r} and not {service!r}"
        elif check["port"] not in ports.values():
            yield f"{kind} asks at port {check['port']}, which is none of the container's"


def endings(deployment: Manifest) -> Iterator[str]:
    """A pod is told to stop early enough, and a slow start is no failure."""
    container, pod = container_of(deployment), pod_of(deployment)
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pause < _PRE_STOP_MARGIN_SECONDS:
        yield "callers do not hear of the end before the port closes"
    start = container.get("startupProbe", {})
    budget = start.get("periodSeconds", 10) * start.get("failureThreshold", 3)
    if deployment["spec"].get("progressDeadlineSeconds", 600) <= budget:
        yield "a rollout is given up while a pod may still load"
    if pod.get("terminationGracePeriodSeconds", 30) <= pause:
        yield "it is killed before it was told to stop"
    frozen = container.get("livenessProbe", {}).get("terminationGracePeriodSeconds")
    if frozen is None or frozen > _FROZEN_SECONDS:
        yield "a pod that stands still is waited for like one that drains"


def images(deployment: Manifest) -> Iterator[str]:
    """Images are named by this version or by a digest, never by what is latest."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    image = container_of(deployment)["image"]
    if "@sha256:" not in image and not image.endswith(f":{version}"):
        yield f"image {image} is not of version {version}"


def namespaces(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Everything lies in one namespace, which holds pods to the restricted standard."""
    (namespace, *others) = of_kind(manifests, "Namespace")
    if others:
        yield "more than one namespace"
    if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce the restricted standard"
    for manifest in manifests:
        if manifest["kind"] not in _CLUSTER_SCOPED:
            where = manifest["metadata"].get("namespace")
            if where != namespace["metadata"]["name"]:
                yield f"{identify(manifest)}: lies in namespace {where}"


DEPLOYMENT_RULES: tuple[DeploymentRule, ...] = (pod_security, resources, probes, endings, images)
RULES: tuple[Rule, ...] = (
    namespaces,
    settings_complaints,
    selector_complaints,
    reference_complaints,
    scaler_complaints,
)


def _container_security(container: Manifest) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "the container may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "the container keeps capabilities"


def _volume_complaints(pod: Manifest) -> Iterator[str]:
    mounts = {mount["name"]: mount for container in pod["containers"] for mount in container["volumeMounts"]}
    scratch = [volume["name"] for volume in pod.get("volumes", []) if "emptyDir" in volume]
    if [mounts[name]["mountPath"] for name in scratch if name in mounts] != [_HOME]:
        yield f"{_HOME}, where caches and temporary files go, cannot be written, or more than that can"
    for volume in pod.get("volumes", []):
        if volume["name"] not in mounts:
            yield f"volume {volume['name']} is not mounted"
        elif "emptyDir" in volume:
            if "sizeLimit" not in volume["emptyDir"]:
                yield f"volume {volume['name']} may fill the node"
        elif not {"persistentVolumeClaim", "image", "secret", "configMap", "projected"} & set(volume):
            yield f"volume {volume['name']} is of a kind that the standard refuses"
        elif mounts[volume["name"]].get("readOnly") is not True:
            yield f"volume {volume['name']} can be written"
