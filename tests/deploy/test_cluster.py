"""What the pod that calls a cluster is allowed, and what is made of what it saw."""

import json
import subprocess
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from common.client.client import AsyncDiptychClient
from deploy import cluster_caller, try_cluster
from deploy.cluster import Cluster, caller_pod
from deploy.custom_resources import rendered
from deploy.manifests import named, pod_labels
from deploy.policy import pod_security
from deploy.reachability import Pod, may_connect
from tests.fake_generation import FakeGeneration, running

POD = caller_pod("image", {"ADDRESS": "dns:///decoder:50051"}, "decoder-tls")


class Recorded(Cluster):
    """A cluster whose callers saw this."""

    def __init__(self, calls: Sequence[dict[str, Any]]) -> None:
        super().__init__(["kubectl"])
        self._calls = calls

    def do(self, *words: str, given: str | None = None) -> str:
        return "".join(f"{json.dumps(call)}\n" for call in self._calls)


def call(at: float, error: str = "") -> dict[str, Any]:
    return {"at": at, "seconds": 1.0, "tokens": 48, "pause": 0.1, "error": error}


def test_the_caller_is_admitted_where_only_restricted_pods_are() -> None:
    assert list(pod_security({"kind": "Deployment", "spec": {"template": POD}})) == []


def test_the_caller_reaches_decoders_and_no_vision() -> None:
    manifests = dict(rendered())["cpu-demo"]
    here = {"kubernetes.io/metadata.name": "diptych"}
    caller = Pod(namespace="diptych", labels=POD["metadata"]["labels"], namespace_labels=here)
    for name, port, allowed in (("decoder", 50051, True), ("vision", 50052, False)):
        pod = Pod(namespace="diptych", labels=pod_labels(named(manifests, "Deployment", name)), namespace_labels=here)
        assert may_connect(manifests, caller, pod, port) is allowed


async def test_a_whole_stream_is_no_error_and_a_short_one_is() -> None:
    async with running(FakeGeneration()) as (_, address), AsyncDiptychClient(address) as client:
        data = cluster_caller.picture(Random(1))
        whole, short = [await cluster_caller.one_call(client, data, count) for count in (2, 3)]
    assert (whole["tokens"], whole["error"]) == (2, "")
    assert short["error"] == "2 tokens, an end"


async def test_the_status_of_a_failed_call_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_caller, "_QUESTION", "FailedPreconditionError")
    async with running(FakeGeneration()) as (_, address), AsyncDiptychClient(address) as client:
        failed = await cluster_caller.one_call(client, cluster_caller.picture(Random(1)), 2)
    assert failed["error"] == "FAILED_PRECONDITION (SOME_REASON): Some text. [sampling.top_p]"


def test_pictures_differ() -> None:
    source = Random(1)
    assert cluster_caller.picture(source) != cluster_caller.picture(source)


@pytest.mark.parametrize(
    ("calls", "faults"),
    [
        ([call(2e10)], 0),
        ([call(2e10), call(2e10, "UNAVAILABLE"), call(2e10, "UNAVAILABLE")], 2),
        ([call(1.0, "before the change")], 1),
        ([], 1),
    ],
    ids=["all answered", "two failed", "none in time", "none at all"],
)
def test_each_failed_call_counts_and_so_does_silence(
    calls: list[dict[str, Any]], faults: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(try_cluster, "_AFTER_SECONDS", 0)
    assert try_cluster.under_load(Recorded(calls), "nothing", lambda _: "") == faults


def test_a_broken_promise_counts_without_a_failed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(try_cluster, "_AFTER_SECONDS", 0)
    assert try_cluster.under_load(Recorded([call(2e10)]), "nothing", lambda _: "BROKEN: it") == 1


def test_kubectls_complaint_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        Cluster(["false"]).do("get", "pods")


class Growing(Cluster):
    """A cluster whose new pods are ready at once, and get pictures when they were asked so many times."""

    def __init__(self, num_asked: int) -> None:
        super().__init__(["kubectl"])
        self._pods = {"old"}
        self._left = {"new": num_asked, "newer": num_asked}

    def do(self, *words: str, given: str | None = None) -> str:
        self._pods = self._pods | set(self._left)
        return ""

    def ready_pods(self, service: str) -> set[str]:
        return self._pods

    def num_encoded(self, pod: str) -> float:
        self._left[pod] -= 1
        return 0.0 if self._left[pod] >= 0 else 3.0


def test_new_pods_that_get_pictures_in_time_are_as_promised() -> None:
    assert try_cluster.more_vision(60)(Growing(2)).startswith("in use ")


def test_new_pods_that_get_them_late_or_never_are_not() -> None:
    assert try_cluster.more_vision(0)(Growing(2)).startswith("BROKEN")
    assert try_cluster.more_vision(1e-3)(Growing(10**9)) in {
        f"BROKEN: {pod} gets no pictures" for pod in ("new", "newer")
    }
