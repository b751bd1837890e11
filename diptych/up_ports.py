"""The ports that the user of `diptych up` has chosen, by flags or in the services' files.

Knows which services there will be, and that no two may have one port. Does not know who else has taken it.
"""

from collections.abc import Iterator
from pathlib import Path

from common.server.ports import LAST_PORT
from diptych.up_config import UpConfig


def chosen_ports(config: UpConfig, *, replicas: int) -> Iterator[tuple[int, str]]:
    """Each port, and the first word of the setting that names it; with so many vision replicas.

    Raises ValueError where they would go beyond the last one that there is, or one would be taken twice.
    """
    metrics = range(config.metrics_port, config.metrics_port + replicas + 1) if config.metrics_port else range(0)
    if metrics.stop > LAST_PORT + 1:
        raise ValueError(f"--metrics-port {config.metrics_port} needs {replicas} more ports behind it")
    if config.port in metrics:
        taken = f"--metrics-port {metrics.start} takes {len(metrics)} from there on"
        raise ValueError(f"--port {config.port} is a metrics port, too: {taken}")
    yield config.port, ""
    for port in metrics:
        yield port, "metrics"
    if config.metrics_port is None:
        for port in _in_files(config, replicas):
            yield port, "metrics"


def _in_files(config: UpConfig, replicas: int) -> Iterator[int]:
    """Metrics ports that the files name; all their other ports are given by flags, which go before files."""
    takers = {config.port: "--port"}
    for file, num_services in ((config.decoder_config, 1), (config.vision_config, replicas)):
        port = _metrics_port(file) if file is not None else None
        if not port or not num_services:
            continue
        if num_services > 1:
            raise ValueError(f"{file}: metrics_port {port} is one for {num_services} services; use --metrics-port")
        if port in takers:
            raise ValueError(f"{file}: metrics_port {port} is that of {takers[port]}, too")
        takers[port] = str(file)
        yield port


def _metrics_port(file: Path) -> int | None:
    # Imported late, as by whoever reads all of such a file: that is the service, which says what is wrong with it.
    import yaml

    try:
        port = yaml.safe_load(file.read_text(encoding="utf-8"))["server"]["metrics_port"]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    return port if type(port) is int and 0 < port <= LAST_PORT else None
