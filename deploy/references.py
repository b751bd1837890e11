"""Whether objects that name each other agree: selectors and labels, ports, scalers and their targets.

Knows which field of which kind refers to what. Does not know the services.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from deploy.manifests import Manifest, container_ports, identify, matches, named, of_kind, pod_labels

_MIN_SCALE_DOWN_SECONDS: Final = 300
_SELECTING: Final = ("Service", "PodDisruptionBudget", "PodMonitor", "InferencePool")


def selector_complaints(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every selector takes the pods of exactly one Deployment, and each Deployment has what it needs."""
    deployments = list(of_kind(manifests, "Deployment"))
    for deployment in deployments:
        if not matches(deployment["spec"]["selector"], pod_labels(deployment)):
            yield f"{identify(deployment)}: does not select its own pods"
        for spread in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            if not matches(spread["labelSelector"], pod_labels(deployment)):
                yield f"{identify(deployment)}: spreads the pods of another"
        for kind in ("Service", "PodDisruptionBudget"):
            if not any(deployment in _selected(deployments, other) for other in of_kind(manifests, kind)):
                yield f"{identify(deployment)}: no {kind}"
    for manifest in of_kind(manifests, *_SELECTING):
        if len(_selected(deployments, manifest)) != 1:
            yield f"{identify(manifest)}: selects the pods of {len(_selected(deployments, manifest))} Deployments"


def reference_complaints(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Ports that objects name are ports of the pods they select."""
    deployments = list(of_kind(manifests, "Deployment"))
    for manifest in of_kind(manifests, *_SELECTING, "NetworkPolicy"):
        for deployment in _selected(deployments, manifest):
            ports = container_ports(deployment)
            for port in _named_ports(manifest):
                if port not in {*ports, *ports.values()}:
                    yield f"{identify(manifest)}: {identify(deployment)} has no port {port}"


def scaler_complaints(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A scaler's target exists, is not also scaled by a number or by another, and shrinks slowly."""
    targets = []
    for scaler in of_kind(manifests, "ScaledObject", "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        targets.append(target)
        try:
            deployment = named(manifests, "Deployment", target)
        except LookupError:
            yield f"{identify(scaler)}: there is no Deployment {target}"
            continue
        if "replicas" in deployment["spec"]:
            yield f"{identify(scaler)}: {identify(deployment)} states a number of pods too"
        yield from (f"{identify(scaler)}: {words}" for words in _bounds_complaints(scaler))
        for query in scaler_queries(scaler):
            spaces = re.findall(r'namespace="([^"]*)"', query)
            if spaces and set(spaces) != {scaler["metadata"]["namespace"]}:
                yield f"{identify(scaler)}: reads the figures of namespace {spaces}"
    for target in sorted(set(targets)):
        if targets.count(target) > 1:
            yield f"{target} has more than one scaler"


def scaler_queries(scaler: Manifest) -> list[str]:
    """What a scaler asks Prometheus or the metrics API for."""
    if scaler["kind"] == "ScaledObject":
        return [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"]]
    return [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]


def _bounds_complaints(scaler: Manifest) -> Iterator[str]:
    spec = scaler["spec"]
    keda = scaler["kind"] == "ScaledObject"
    least, most = ("minReplicaCount", "maxReplicaCount") if keda else ("minReplicas", "maxReplicas")
    if not 2 <= spec[least] < spec[most]:
        yield f"scales from {spec[least]} to {spec[most]}"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] if keda else spec["behavior"]
    if behavior["scaleDown"]["stabilizationWindowSeconds"] < _MIN_SCALE_DOWN_SECONDS:
        yield "shrinks faster than a pod starts"


def _selected(deployments: Sequence[Manifest], manifest: Manifest) -> list[Manifest]:
    spec = manifest["spec"]
    selector = spec["podSelector"] if manifest["kind"] == "NetworkPolicy" else spec["selector"]
    if manifest["kind"] == "Service":
        selector = {"matchLabels": selector}
    return [deployment for deployment in deployments if matches(selector, pod_labels(deployment))]


def _named_ports(manifest: Manifest) -> list[str | int]:
    spec = manifest["spec"]
    return [
        *(port["targetPort"] for port in spec.get("ports", [])),
        *(endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])),
        *(port["number"] for port in spec.get("targetPorts", [])),
        *(entry["port"] for rule in spec.get("ingress", []) for entry in rule["ports"]),
    ]
