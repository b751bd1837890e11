"""Whether the services would take the arguments and the environment of the rendered pods.

Knows each service's own parser, and the start of its command in the Dockerfile. Does not start anything.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from common.server.config import ServerConfig
from common.settings.settings import Parser
from common.settings.sources import add_config_arguments, load
from decoder_service.config import DecoderConfig
from deploy.dockerfile import entry_point
from deploy.manifests import Manifest, container_of, container_ports, environment_of, identify, named, of_kind, pod_of
from vision_service.config import VisionConfig

CONFIGS = {"vision": VisionConfig, "decoder": DecoderConfig}
"""The settings of each service, by the name of its Deployment and its image's target."""


def settings_complaints(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every flag exists and is right, and what is set agrees with what the manifests say elsewhere."""
    for deployment in of_kind(manifests, "Deployment"):
        yield from (f"{identify(deployment)}: {words}" for words in _complaints(manifests, deployment))


def read_settings(deployment: Manifest) -> VisionConfig | DecoderConfig:
    """The settings that a Deployment's pods run with. Raises ValueError with the service's own words."""
    name = deployment["metadata"]["name"]
    parser = Parser(prog=name)
    add_config_arguments(parser, CONFIGS[name])
    complaint = StringIO()
    try:
        with redirect_stderr(complaint):
            given = parser.parse_args([*entry_point(name)[3:], *container_of(deployment)["args"]])
    except SystemExit:
        raise ValueError(complaint.getvalue().strip()) from None
    config: VisionConfig | DecoderConfig = load(CONFIGS[name], given, environment=environment_of(deployment)).config
    return config


def _complaints(manifests: Sequence[Manifest], deployment: Manifest) -> Iterator[str]:
    try:
        config = read_settings(deployment)
    except ValueError as error:
        yield str(error)
        return
    yield from _server_complaints(deployment, config.server)
    yield from _file_complaints(deployment, config)
    if isinstance(config, DecoderConfig):
        yield from _addresses(manifests, config)
        if config.server.tls.tls_cert and any(of_kind(manifests, "InferencePool")):
            yield "wants TLS, which an InferencePool does not speak"


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


def _file_complaints(deployment: Manifest, config: VisionConfig | DecoderConfig) -> Iterator[str]:
    """Files that settings name lie on a volume, or in the image."""
    server = config.server
    files = [server.tls.tls_cert, server.tls.tls_key, server.tls.tls_client_ca, server.access.auth_tokens]
    if isinstance(config, DecoderConfig):
        files += [config.vision.vision_ca, config.vision.vision_cert, config.vision.vision_key]
    places = [Path(mount["mountPath"]) for mount in container_of(deployment)["volumeMounts"]]
    for file in (*filter(None, files), config.model.model):
        if not any(file.is_relative_to(place) for place in (*places, Path("/opt/diptych"))):
            yield f"{file} is on no volume"


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
