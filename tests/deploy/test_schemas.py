"""Everything rendered is what Kubernetes and the operators define, and a typing error in it is seen."""

import copy
import json
from collections.abc import Iterator

import pytest
from kubernetes_validate.utils import ValidationError, validate

from deploy.custom_resources import complaints, is_custom, own_schemas, rendered, schemas_of_definitions
from deploy.manifests import Manifest, named

VERSIONS = ("1.30", "1.34", "1.35", "1.36", "1.37")
"""The oldest one that knows all that we ask for, and those that are maintained."""

RENDERED = dict(rendered())
DIFFERENT = {json.dumps(one, sort_keys=True): one for manifests in RENDERED.values() for one in manifests}


def _objects(*, custom: bool) -> Iterator[Manifest]:
    """Every different object once: the overlays share most of them."""
    return (one for one in DIFFERENT.values() if is_custom(one) == custom)


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_defines(version: str) -> None:
    for manifest in _objects(custom=False):
        assert validate(manifest, version, strict=True) == version


def test_custom_resources_are_what_their_definitions_say() -> None:
    schemas = own_schemas()
    found = list(_objects(custom=True))
    assert {one["kind"] for one in found} == {kind for _, kind in schemas}
    assert [words for one in found for words in complaints(one, schemas)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinesProbe"), {}),
        ("Deployment", ("spec", "template", "spec", "containers", 0, "livenessProbe", "grpc", "port"), "grpc"),
        ("Service", ("spec", "ports", 0, "port"), "many"),
        ("NetworkPolicy", ("spec", "policyType"), ["Ingress"]),
        ("PodDisruptionBudget", ("spec", "maxUnavailible"), 1),
    ],
)
def test_a_typing_error_in_an_object_is_seen(kind: str, path: tuple[str | int, ...], value: object) -> None:
    for version in VERSIONS:
        with pytest.raises(ValidationError):
            validate(_with(named(RENDERED["gpu"], kind, "decoder"), path, value), version, strict=True)


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("PodMonitor", "vision", ("spec", "podMetricsEndpoints", 0, "intervall"), "15s"),
        ("PodMonitor", "vision", ("spec", "podMetricsEndpoints", 0, "interval"), "soon"),
        ("ScaledObject", "vision", ("spec", "triggers", 0, "metadata", "threshold"), 4),
        ("ScaledObject", "vision", ("spec", "triggers", 0, "metadata", "metricName"), "x"),
        ("ScaledObject", "vision", ("spec", "fallback", "behavior"), "none"),
        ("ScaledObject", "vision", ("spec", "minReplicas"), 2),
        ("PrometheusRule", "diptych", ("spec", "groups", 0, "rules", 0, "expression"), "up"),
        ("PrometheusRule", "diptych", ("spec", "groups", 0, "rules", 0, "for"), "a while"),
        ("InferencePool", "diptych", ("spec", "appProtocol"), "grpc"),
        ("InferencePool", "diptych", ("spec", "endpointPickerRef", "port", "number"), 0),
        ("InferencePool", "diptych", ("spec", "targetPortNumber"), 50051),
    ],
)
def test_a_typing_error_in_a_custom_resource_is_seen(
    kind: str, name: str, path: tuple[str | int, ...], value: object
) -> None:
    where = "gpu+inference-pool" if kind == "InferencePool" else "production"
    assert list(complaints(_with(named(RENDERED[where], kind, name), path, value), own_schemas()))


def test_a_clusters_own_definition_is_made_strict() -> None:
    """What a cluster would drop without a word is an error, and a free-form part stays free."""
    definition = {
        "spec": {
            "group": "example.org",
            "names": {"kind": "Thing"},
            "versions": [
                {
                    "name": "v1",
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                                "free": {"type": "object", "additionalProperties": {"type": "string"}},
                            },
                        }
                    },
                }
            ],
        }
    }
    schemas = schemas_of_definitions([definition])
    thing: Manifest = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": {"size": 1}}
    assert not list(complaints({**thing, "free": {"any": "thing"}}, schemas))
    assert list(complaints({**thing, "spec": {"size": 1, "sise": 2}}, schemas))
    assert list(complaints({**thing, "spec": {"size": "1"}}, schemas))
    with pytest.raises(LookupError):
        list(complaints({**thing, "kind": "Other"}, schemas))


def _with(manifest: Manifest, path: tuple[str | int, ...], value: object) -> Manifest:
    made = copy.deepcopy(manifest)
    *above, last = path
    place = made
    for step in above:
        place = place[step]  # type: ignore[index]
    place[last] = value  # type: ignore[index]
    return made
