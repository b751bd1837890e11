"""Whether the services would take the arguments and the environment of the rendered pods.

Knows each service's own parser, and the start of its command in the Dockerfile. Does not start anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO

from common.server_config import ServerConfig
from common.settings import Parser, add_arguments, from_arguments
from decoder_service.config import DecoderConfig
from deploy.dockerfile import entry_point
from deploy.manifests import Manifest, container_of, container_ports, identify, named, of_kind, pod_of
from vision_service.config import VisionConfig

CONFIGS = {"vision": VisionConfig, "decoder": DecoderConfig}
"""The settings of each service, by the name of its Deployment and its image's target."""


def settings_complaints(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every flag exists and is right, and what is set agrees with what the manifests say elsewhere."""
    for deployment in of_kind(manifests, "Deployment"):
        try:
            config = read_settings(deployment)
        except ValueError as error:
            yield f"{identify(deployment)}: {error}"
            continue
        yield from (f"{identify(deployment)}: {words}" for words in _server_complaints(deployment, config.server))
        if isinstance(config, DecoderConfig):
            yield from (f"{identify(deployment)}: {words}" for words in _addresses(manifests, config))


def read_settings(deployment: Manifest) -> VisionConfig | DecoderConfig:
    """The settings that a Deployment's pods run with. Raises ValueError with the service's own words."""
    name = deployment["metadata"]["name"]
    parser = Parser(prog=name)
    add_arguments(parser, CONFIGS[name])
    words = [*entry_point(name)[3:], *container_of(deployment)["args"]]
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            config: VisionConfig | DecoderConfig = from_arguments(CONFIGS[name], parser.parse_args(words))
            return config
    except SystemExit:
        raise ValueError(complaint.getvalue().strip()) from None


def _server_complaints(deployment: Manifest, server: ServerConfig) -> Iterator[str]:
    ports = container_ports(deployment)
    for name, port in (("grpc", server.port), ("metrics", server.metrics_port), ("health", server.health_port)):
        if ports.get(name) != port:
            yield f"its port {name} is {port}, the manifest says {ports.get(name)}"
    if server.reflection:
        yield "reflection is on"
    pause = container_of(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod_of(deployment)["terminationGracePeriodSeconds"] < pause + server.linger_seconds + server.grace_seconds + 5:
        yield f"it is killed within its grace of {server.grace_seconds} s"


def _addresses(manifests: Sequence[Manifest], config: DecoderConfig) -> Iterator[str]:
    for address in config.vision_addresses:
        host, _, port = address.removeprefix("dns:///").rpartition(":")
        try:
            service = named(manifests, "Service", host)
        except LookupError:
            yield f"there is no Service {host}"
            continue
        if service["spec"].get("clusterIP") != "None":
            yield f"Service {host} hides the pods' addresses"
        if int(port) not in {entry["port"] for entry in service["spec"]["ports"]}:
            yield f"Service {host} has no port {port}"
    if config.server.grace_seconds < config.requests.max_seconds:
        yield f"requests of {config.requests.max_seconds} s are cut by a grace of {config.server.grace_seconds} s"
