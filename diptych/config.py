"""`diptych config`: checks the settings of a service as it would, and shows them.

Knows the services' configs, not their code: nothing is loaded, opened or listened on, so that settings can be checked
on a machine that has neither the model nor the device.
"""

import argparse
import os
import sys
from argparse import ArgumentParser, Namespace
from typing import Any, Final

from common.settings.printing import to_yaml
from common.settings.settings import Parser
from common.settings.sources import add_config_arguments, load
from common.settings.values import SettingError
from diptych.up_config import UpConfig

_SERVICES: Final = ("vision", "decoder", "up")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of `diptych config`."""
    parser.add_argument("--print", action="store_true", help="show all settings, and where each comes from")
    parser.add_argument("service", choices=_SERVICES, help="whose settings; up is the command")
    parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="...", help="flags as the service takes them")


def run(options: Namespace) -> int:
    """Check, and print where asked for; returns the exit status."""
    config_class = _config_class(options.service)
    parser = Parser(
        prog=f"diptych config {options.service}",
        description="Check settings as the service would, one by one and against each other. Neither the model nor any "
        "other file that they name is opened: what is wrong there only a start tells, before it loads weights.",
    )
    parser.add_argument("--print", action="store_true", default=options.print, help="show all settings")
    add_config_arguments(parser, config_class)
    given = parser.parse_args(options.flags)
    try:
        loaded = load(config_class, given, environment=os.environ)
    except SettingError as error:
        parser.error(str(error))
    if given.print:
        sys.stdout.write(to_yaml(loaded))
    return 0


def _config_class(service: str) -> type[Any]:
    # Imported late: the other commands need neither service.
    if service == "up":
        return UpConfig
    if service == "vision":
        from vision_service.config import VisionConfig

        return VisionConfig
    from decoder_service.config import DecoderConfig

    return DecoderConfig
