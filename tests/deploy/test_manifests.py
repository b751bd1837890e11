"""What every rendered deployment keeps to, and that breaking it is seen."""

import copy
import re
from collections.abc import Callable, Sequence
from subprocess import CalledProcessError

import pytest

from deploy.custom_resources import rendered
from deploy.manifests import KUBERNETES, Manifest, container_of, named, of_kind, pod_labels, pod_of, render
from deploy.policy import complaints
from deploy.reachability import Pod, is_closed, may_connect
from deploy.references import scaler_queries

RENDERED = dict(rendered())
PORTS = (50051, 50052, 9090, 9091, 4317, 53)


def _pod(namespace: str, **labels: str) -> Pod:
    return Pod(namespace=namespace, labels=labels, namespace_labels={"kubernetes.io/metadata.name": namespace})


NEIGHBOURS = {
    "a client here": Pod(
        namespace="diptych",
        labels={"diptych.dev/client": "true"},
        namespace_labels={"kubernetes.io/metadata.name": "diptych"},
    ),
    "a client's namespace": Pod(namespace="shop", labels={}, namespace_labels={"diptych.dev/client": "true"}),
    "a stranger here": _pod("diptych", app="other"),
    "a stranger elsewhere": _pod("shop", app="other"),
    "prometheus": _pod("monitoring", app="prometheus"),
    "dns": Pod(
        namespace="kube-system",
        labels={"k8s-app": "kube-dns"},
        namespace_labels={"kubernetes.io/metadata.name": "kube-system"},
    ),
    "the internet": _pod("outside"),
}
ALLOWED = {
    ("a client here", "decoder", 50051),
    ("a client's namespace", "decoder", 50051),
    ("decoder", "vision", 50052),
    ("prometheus", "decoder", 9090),
    ("prometheus", "vision", 9090),
    ("decoder", "dns", 53),
}


def _connections(manifests: Sequence[Manifest]) -> set[tuple[str, str, int]]:
    """Every connection that may be opened from or to one of our pods."""
    ours = {
        one["metadata"]["name"]: Pod(
            namespace="diptych",
            labels=pod_labels(one),
            namespace_labels=named(manifests, "Namespace", "diptych")["metadata"]["labels"],
        )
        for one in of_kind(manifests, "Deployment")
    }
    everyone = NEIGHBOURS | ours
    return {
        (source, target, port)
        for source in everyone
        for target in everyone
        for port in PORTS
        if source != target
        and (source in ours or target in ours)
        and may_connect(manifests, everyone[source], everyone[target], port)
    }


@pytest.mark.parametrize("name", RENDERED)
def test_every_rendering_keeps_to_the_policy(name: str) -> None:
    assert complaints(RENDERED[name]) == []


@pytest.mark.parametrize("name", [name for name in RENDERED if not re.search("inference-pool|tracing", name)])
def test_nobody_can_reach_more_than_the_table_says(name: str) -> None:
    assert _connections(RENDERED[name]) == ALLOWED


def test_gateway_reaches_calls_and_metrics_of_decoders_only() -> None:
    manifests = RENDERED["gpu+inference-pool"]
    gateway = Pod(namespace="gateway", labels={}, namespace_labels={"diptych.dev/gateway": "true"})
    for name, ports in (("decoder", {50051, 9090}), ("vision", set())):
        pod = Pod(namespace="diptych", labels=pod_labels(named(manifests, "Deployment", name)), namespace_labels={})
        assert {port for port in PORTS if may_connect(manifests, gateway, pod, port)} == ports
    assert _connections(manifests) == ALLOWED


def test_spans_leave_for_the_collector_and_for_nothing_else() -> None:
    collector = Pod(
        namespace="monitoring",
        labels={"app.kubernetes.io/name": "opentelemetry-collector"},
        namespace_labels={"kubernetes.io/metadata.name": "monitoring"},
    )
    for name in ("gpu+tracing", "cpu-demo+tracing"):
        manifests = RENDERED[name]
        assert _connections(manifests) == ALLOWED | {("vision", "dns", 53)}
        for service in ("vision", "decoder"):
            pod = _pod("diptych", **pod_labels(named(manifests, "Deployment", service)))
            assert [port for port in PORTS if may_connect(manifests, pod, collector, port)] == [4317]
            assert not may_connect(RENDERED["gpu"], pod, collector, 4317)
            assert (
                "--otlp-endpoint=http://opentelemetry-collector.monitoring:4317"
                in container_of(named(manifests, "Deployment", service))["args"]
            )


def test_names_are_looked_up_over_both_protocols() -> None:
    decoder = _pod("diptych", **{"app.kubernetes.io/name": "decoder"})
    for pod in (decoder, NEIGHBOURS["a client here"]):
        for protocol in ("UDP", "TCP"):
            assert may_connect(RENDERED["gpu"], pod, NEIGHBOURS["dns"], 53, protocol)


def test_pods_that_we_do_not_know_are_closed_too() -> None:
    """The negative control: without the default policy they are open."""
    stranger = NEIGHBOURS["a stranger here"]
    assert is_closed(RENDERED["gpu"], stranger)
    rest = [one for one in RENDERED["gpu"] if one["metadata"]["name"] != "default-deny"]
    assert not is_closed(rest, stranger)
    assert may_connect(rest, stranger, NEIGHBOURS["dns"], 53)


def test_each_service_is_scaled_by_its_own_figures() -> None:
    wanted = {
        "vision": {"diptych_vision_pending_patches"},
        "decoder": {"diptych_num_requests_waiting", "diptych_kv_cache_usage_perc"},
    }
    for name in ("production", "gpu+keda", "cpu-demo+hpa"):
        for scaler in of_kind(RENDERED[name], "ScaledObject", "HorizontalPodAutoscaler"):
            queries = scaler_queries(scaler)
            metrics = {metric for metric in wanted[scaler["metadata"]["name"]] if any(metric in q for q in queries)}
            assert metrics == wanted[scaler["metadata"]["name"]]
            assert len(queries) == len(metrics)


def test_both_autoscalers_at_once_are_refused() -> None:
    hpa, keda = RENDERED["gpu+hpa"], RENDERED["gpu+keda"]
    both = [*hpa, *of_kind(keda, "ScaledObject")]
    assert complaints(both) == ["decoder has more than one scaler", "vision has more than one scaler"]


def test_tls_behind_an_inference_gateway_is_refused() -> None:
    pool = of_kind(RENDERED["gpu+inference-pool"], "InferencePool")
    found = complaints([*RENDERED["gpu+tls"], *pool])
    assert found == ["Deployment decoder: wants TLS, which an InferencePool does not speak"]


def test_production_is_the_gpu_overlay_and_more() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in RENDERED["production"]}
    assert {(one["kind"], one["metadata"]["name"]) for one in RENDERED["gpu"]} < names
    model = next(
        v for v in pod_of(named(RENDERED["production"], "Deployment", "decoder"))["volumes"] if "tmp" not in v["name"]
    )
    assert model["persistentVolumeClaim"] == {"claimName": "pixtral", "readOnly": True}


def test_a_broken_kustomization_is_an_error() -> None:
    with pytest.raises(CalledProcessError):
        render(KUBERNETES / "nothing-here")


Break = Callable[[list[Manifest]], object]


def _decoder(manifests: list[Manifest]) -> Manifest:
    return named(manifests, "Deployment", "decoder")


def _spec(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = _decoder(manifests)["spec"]["template"]["spec"]
    return spec


def _container(manifests: list[Manifest]) -> Manifest:
    container: Manifest = _spec(manifests)["containers"][0]
    return container


def _service(manifests: list[Manifest], name: str) -> Manifest:
    spec: Manifest = named(manifests, "Service", name)["spec"]
    return spec


def _scaler(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = named(manifests, "ScaledObject", "vision")["spec"]
    return spec


BREAKS: dict[str, Break] = {
    "may run as root": lambda m: _spec(m)["securityContext"].pop("runAsNonRoot"),
    "no seccomp profile": lambda m: _spec(m)["securityContext"].pop("seccompProfile"),
    "a token for the cluster's API": lambda m: _spec(m).pop("automountServiceAccountToken"),
    "variables that look like settings": lambda m: _spec(m).update(enableServiceLinks=True),
    "is on no volume": lambda m: _container(m)["args"].append("--tls-client-ca=/etc/ca.crt"),
    "DIPTYCH_PROT is no setting": lambda m: _container(m).update(env=[{"name": "DIPTYCH_PROT", "value": "1"}]),
    "a namespace with the host": lambda m: _spec(m).update(hostNetwork=True),
    "more than that can": lambda m: _container(m)["volumeMounts"][0].update(mountPath="/opt/diptych"),
    "cannot be written, or": lambda m: _container(m)["volumeMounts"][0].update(mountPath="/var"),
    "may fill the node": lambda m: _spec(m)["volumes"][0]["emptyDir"].clear(),
    "a kind that the standard refuses": lambda m: (
        _spec(m)["volumes"][1].update({"persistentVolumeClaim": None, "hostPath": {"path": "/"}})
        or _spec(m)["volumes"][1].pop("persistentVolumeClaim")
    ),
    "volume model can be written": lambda m: _container(m)["volumeMounts"][1].pop("readOnly"),
    "gain privileges": lambda m: _container(m)["securityContext"].pop("allowPrivilegeEscalation"),
    "root file system can be written": lambda m: _container(m)["securityContext"].update(readOnlyRootFilesystem=False),
    "keeps capabilities": lambda m: _container(m)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "limit of memory": lambda m: _container(m)["resources"]["limits"].pop("memory"),
    "memory over the request": lambda m: _container(m)["resources"]["requests"].update(memory="1Gi"),
    "no livenessProbe": lambda m: _container(m).pop("livenessProbe"),
    "asks for '' and not 'readiness'": lambda m: _container(m)["readinessProbe"]["grpc"].pop("service"),
    "asks for 'liveness' and not 'startup'": lambda m: _container(m)["startupProbe"]["grpc"].update(service="liveness"),
    "none of the container's": lambda m: _container(m)["startupProbe"]["grpc"].update(port=1),
    "before the port closes": lambda m: _container(m)["lifecycle"]["preStop"]["sleep"].update(seconds=30),
    "while a pod may still load": lambda m: _decoder(m)["spec"].pop("progressDeadlineSeconds"),
    "stands still is waited for": lambda m: _container(m)["livenessProbe"].pop("terminationGracePeriodSeconds"),
    "killed within its grace": lambda m: _spec(m).update(terminationGracePeriodSeconds=300),
    "is not of version": lambda m: _container(m).update(image="diptych-decoder:latest"),
    "does not enforce": lambda m: named(m, "Namespace", "diptych")["metadata"]["labels"].clear(),
    "lies in namespace None": lambda m: named(m, "Service", "vision")["metadata"].pop("namespace"),
    "--no-such-flag": lambda m: _container(m)["args"].append("--no-such-flag=1"),
    "must be a number": lambda m: _container(m)["args"].append("--grace-seconds=soon"),
    "reflection is on": lambda m: _container(m)["args"].append("--reflection"),
    "its port grpc is 1234": lambda m: _container(m)["args"].append("--port=1234"),
    "its port metrics is 9090": lambda m: _container(m)["ports"][1].update(containerPort=9091),
    "no Service vison": lambda m: _container(m)["args"].append("--vision-addresses=dns:///vison:50052"),
    "has no port 50053": lambda m: _container(m)["args"].append("--vision-addresses=dns:///vision:50053"),
    "hides the pods' addresses": lambda m: _service(m, "vision").pop("clusterIP"),
    "are cut by a grace": lambda m: _container(m)["args"].append("--max-seconds=331"),
    "does not select its own pods": lambda m: _decoder(m)["spec"]["selector"]["matchLabels"].update(x="y"),
    "spreads the pods of another": lambda m: _spec(m)["topologySpreadConstraints"][0]["labelSelector"].update(
        matchLabels={"app.kubernetes.io/name": "vision"}
    ),
    "no PodDisruptionBudget": lambda m: m.remove(named(m, "PodDisruptionBudget", "decoder")),
    "selects the pods of 0 Deployments": lambda m: _service(m, "generation")["selector"].update(x="y"),
    "selects the pods of 2 Deployments": lambda m: named(m, "PodMonitor", "vision")["spec"]["selector"].clear(),
    "has no port grcp": lambda m: _service(m, "decoder")["ports"][0].update(targetPort="grcp"),
    "NetworkPolicy vision: Deployment vision has no port 1": lambda m: named(m, "NetworkPolicy", "vision")["spec"][
        "ingress"
    ][0]["ports"][0].update(port=1),
    "there is no Deployment visions": lambda m: _scaler(m)["scaleTargetRef"].update(name="visions"),
    "states a number of pods too": lambda m: named(m, "Deployment", "vision")["spec"].update(replicas=3),
    "scales from 1 to 8": lambda m: _scaler(m).update(minReplicaCount=1),
    "shrinks faster": lambda m: _scaler(m)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"].update(
        stabilizationWindowSeconds=0
    ),
    "reads the figures of namespace": lambda m: _scaler(m)["triggers"][0]["metadata"].update(
        query='sum(x{namespace="default"})'
    ),
}


@pytest.mark.parametrize("words", BREAKS)
def test_breaking_a_rule_is_seen(words: str) -> None:
    """The negative controls, one for each thing that the policy says."""
    manifests = copy.deepcopy(RENDERED["production"])
    BREAKS[words](manifests)
    assert [one for one in complaints(manifests) if words in one], complaints(manifests)


def test_flags_of_both_services_are_read_by_their_own_parsers() -> None:
    manifests = copy.deepcopy(RENDERED["cpu-demo"])
    container_of(named(manifests, "Deployment", "vision"))["args"].append("--num-blocks=4")
    assert [one for one in complaints(manifests) if "Deployment vision: " in one and "--num-blocks" in one]
