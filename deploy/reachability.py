"""Who may open a connection to whom, worked out from rendered NetworkPolicies.

Knows how Kubernetes adds policies up: a pod that no policy selects may do everything, any other only what some
policy allows, and a connection needs the leave of both ends. Knows label selectors by `matchLabels` alone, and no
address blocks. Does not know what should be allowed: a test states that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.manifests import Manifest, matches, of_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One end of a connection."""

    namespace: str
    labels: dict[str, str]
    namespace_labels: dict[str, str]


def may_connect(manifests: Sequence[Manifest], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether both ends' policies let `source` open a connection to `target`."""
    policies = list(of_kind(manifests, "NetworkPolicy"))
    return _allowed(policies, "Egress", end=source, peer=target, port=port, protocol=protocol) and _allowed(
        policies, "Ingress", end=target, peer=source, port=port, protocol=protocol
    )


def is_closed(manifests: Sequence[Manifest], pod: Pod) -> bool:
    """Whether some policy denies a pod by default, in both directions."""
    directions = [kind for policy in _selecting(manifests, pod) for kind in policy["spec"]["policyTypes"]]
    return {"Ingress", "Egress"} <= set(directions)


def _selecting(manifests: Sequence[Manifest], pod: Pod) -> list[Manifest]:
    return [
        policy
        for policy in of_kind(manifests, "NetworkPolicy")
        if policy["metadata"]["namespace"] == pod.namespace and matches(policy["spec"]["podSelector"], pod.labels)
    ]


def _allowed(policies: Sequence[Manifest], direction: str, *, end: Pod, peer: Pod, port: int, protocol: str) -> bool:
    mine = [policy for policy in _selecting(policies, end) if direction in policy["spec"]["policyTypes"]]
    rules = [rule for policy in mine for rule in policy["spec"].get(direction.lower(), [])]
    return not mine or any(_rule_allows(rule, direction, end, peer, port, protocol) for rule in rules)


def _rule_allows(rule: Manifest, direction: str, end: Pod, peer: Pod, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(
        entry.get("port", port) == port and entry.get("protocol", "TCP") == protocol for entry in ports
    ):
        return False
    peers = rule.get("from" if direction == "Ingress" else "to")
    return peers is None or any(_peer_matches(entry, end, peer) for entry in peers)


def _peer_matches(entry: Manifest, end: Pod, peer: Pod) -> bool:
    if "ipBlock" in entry:
        raise ValueError("address blocks are not understood")
    if "namespaceSelector" in entry:
        near = matches(entry["namespaceSelector"], peer.namespace_labels)
    else:
        near = peer.namespace == end.namespace
    return near and matches(entry.get("podSelector", {}), peer.labels)
