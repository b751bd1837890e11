"""How every service starts: flags, variables and a file become its settings, and are looked at before a model is.

Knows the order, and that a mistake ends the process with one line and status 2. Does not know any one service.
"""

import sys
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from common.process import tune_allocator
from common.server.config import ServerConfig
from common.server.ports import CannotListenError
from common.server.preflight import check_server
from common.server.service_loop import run_service
from common.settings.settings import Parser
from common.settings.sources import add_config_arguments, from_sources
from common.telemetry.logs import LogSettings, set_up_logging


class ServiceConfig(Protocol):
    """Settings that every service has."""

    @property
    def server(self) -> ServerConfig:
        """Where it listens, and to whom."""

    @property
    def logs(self) -> LogSettings:
        """What it writes down."""


Config = TypeVar("Config", bound=ServiceConfig)


def read_config(config_class: type[Config], *, name: str, description: str | None) -> Config:
    """The settings of `python -m NAME`, found good as far as that can be told without a model. May raise SystemExit."""
    tune_allocator()
    parser = Parser(prog=f"python -m {name}", description=description)
    add_config_arguments(parser, config_class)
    config = from_sources(config_class, parser.parse_args())
    set_up_logging(config.logs)
    try:
        check_server(config.server)
    except (ValueError, CannotListenError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        sys.exit(2 if isinstance(error, ValueError) else 1)
    return config


def run_named(service: Coroutine[Any, Any, int], *, name: str) -> int:
    """Run a service to its end; returns its exit status, 1 with one line where a port was taken meanwhile."""
    try:
        return run_service(service)
    except CannotListenError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
