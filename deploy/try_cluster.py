"""Changes an installed overlay under load, on a cluster: `python -m deploy.try_cluster --image DECODER_IMAGE`.

A pod asks about new pictures all the time, while pods are added, taken away, deleted, evicted and replaced: no call
may fail, and a new vision pod must soon be in use. Needs kubectl with a context that may do all this, and a cluster
with room for four vision pods and three decoders. Pause what scales the services by itself first. The numbers of pods
are put back at the end.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from deploy.cluster import Cluster
from deploy.manifests import find_kubectl

Change = Callable[[Cluster], str]
"""Changes something, and says what there was to see; what begins with BROKEN was a promise."""

_SERVICES = ("vision", "decoder")
_NEW, _PATIENCE = 2, 10
_AFTER_SECONDS = 10
"""Seconds of load after each change, in which late consequences show."""


def main() -> None:
    """Try everything; ends with status 1 where a call failed or a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubectl", default="", help="kubectl with flags, such as 'kubectl --context here'")
    parser.add_argument("--namespace", default="diptych", help="where the overlay is installed")
    parser.add_argument("--image", required=True, help="the decoder's image, for the pod that calls")
    parser.add_argument("--address", default="dns:///decoder:50051", help="whom it calls")
    parser.add_argument("--callers", type=int, default=4, help="calls under way at any time")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--used-within", type=float, default=10, help="seconds; more where the cluster caches names")
    parser.add_argument("--authority", default="", metavar="SECRET", help="with the component tls: has its ca.crt")
    parser.add_argument(
        "--token-file", type=Path, help="with the component tokens: a token made for this, and no other"
    )
    given = parser.parse_args()
    cluster = Cluster([*(shlex.split(given.kubectl) or [find_kubectl()]), "--namespace", given.namespace])
    environment = {"ADDRESS": given.address, "CALLERS": str(given.callers), "TOKENS": str(given.tokens)}
    if given.token_file:
        environment["TOKEN"] = given.token_file.read_text(encoding="utf-8").strip()
    before = {service: cluster.replicas(service) for service in _SERVICES}
    try:
        cluster.scale("decoder", 2)
        cluster.scale("vision", 1)
        with cluster.calling(given.image, environment, given.authority):
            faults = sum(under_load(cluster, name, change) for name, change in _changes(given.used_within).items())
    finally:
        for service, count in before.items():
            cluster.scale(service, count)
    sys.exit(bool(faults))


def under_load(cluster: Cluster, name: str, change: Change) -> int:
    """Make a change, print what callers saw of it, and return how much of it was wrong."""
    started = time.time()
    said = change(cluster)
    time.sleep(_AFTER_SECONDS)
    calls = cluster.calls_since(started)
    failed = [call["error"] for call in calls if call["error"]]
    times = f"{median(call['seconds'] for call in calls):.2f} s each" if calls else "nothing was answered"
    _say(f"{name}: {said + '; ' if said else ''}{len(calls)} calls, {times}, {len(failed)} failed")
    for error in sorted(set(failed)):
        _say(f"  {failed.count(error)} x {error}")
    return len(failed) + (not calls) + said.startswith("BROKEN")


def more_vision(within: float) -> Change:
    """From one pod to three; each new one must get pictures soon after it is ready."""

    def change(cluster: Cluster) -> str:
        old = cluster.ready_pods("vision")
        cluster.do("scale", "deployment/vision", "--replicas=3")
        ready: dict[str, float] = {}
        used: dict[str, float] = {}
        while len(used) < _NEW:
            now = time.monotonic()
            for pod in cluster.ready_pods("vision") - old - set(used):
                ready.setdefault(pod, now)
                if cluster.num_encoded(pod):
                    used[pod] = time.monotonic() - ready[pod]
                elif now - ready[pod] > _PATIENCE * within:
                    return f"BROKEN: {pod} gets no pictures"
        said = "in use " + ", ".join(f"{seconds:.1f}" for seconds in used.values()) + " s after they were ready"
        return said if max(used.values()) <= within else f"BROKEN: {said}"

    return change


def _fewer_vision(cluster: Cluster) -> str:
    cluster.scale("vision", 1)
    return ""


def _delete(service: str) -> Change:
    """Delete one pod of two, and wait until there are two again."""

    def change(cluster: Cluster) -> str:
        cluster.scale(service, 2)
        cluster.do("delete", "pod", min(cluster.ready_pods(service)), "--wait=true")
        cluster.wait(service)
        return ""

    return change


def _evict(service: str) -> Change:
    """Evict two pods of two, as for a node that goes; the second has to wait for the first one's successor."""

    def change(cluster: Cluster) -> str:
        cluster.scale(service, 2)
        first, second = sorted(cluster.ready_pods(service))
        if not cluster.evict(first):
            return "BROKEN: no pod may be evicted"
        if cluster.evict(second):
            return "BROKEN: both pods may be evicted at once"
        started = time.monotonic()
        while not cluster.evict(second):
            time.sleep(1)
        waited = time.monotonic() - started
        cluster.wait(service)
        return f"the second had to wait for {waited:.0f} s"

    return change


def _restart(service: str) -> Change:
    """Replace every pod."""

    def change(cluster: Cluster) -> str:
        cluster.do("rollout", "restart", f"deployment/{service}")
        cluster.wait(service)
        return ""

    return change


def _changes(within: float) -> dict[str, Change]:
    """All changes, by name, in their order."""
    return {
        "vision 1 to 3": more_vision(within),
        "vision 3 to 1": _fewer_vision,
        **{f"{service} deleted": _delete(service) for service in _SERVICES},
        **{f"{service} evicted": _evict(service) for service in _SERVICES},
        **{f"{service} restarted": _restart(service) for service in _SERVICES},
    }


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
