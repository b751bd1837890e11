"""The subcommands of `diptych`: reads the command line and hands over.

Knows exit statuses: 0 done, 1 refused or failed, 2 wrongly asked. Does not know what the subcommands do.
"""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Sequence

from common.client.types import ClientError
from common.settings.settings import Parser, add_command
from common.settings.sources import add_config_arguments, from_sources
from diptych import config, convert, generate, health, info, token, top
from diptych.flags import complaint
from diptych.output import forget_output, print_all_characters
from diptych.up import up
from diptych.up_config import UpConfig


def run(arguments: Sequence[str] | None) -> int:
    """Run the command and return its exit status."""
    print_all_characters()
    parser = Parser(prog="diptych", description="Serves Pixtral as two services joined by gRPC, and asks them.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    up_parser = add_command(commands, "up", "run both services on this machine")
    add_config_arguments(up_parser, UpConfig)
    up_parser.set_defaults(run=_up)
    for name, module, words in (
        ("generate", generate, "ask a question, with or without pictures"),
        ("info", info, "show what is served, and within which limits"),
        ("health", health, "ask whether a service is ready"),
        ("config", config, "check settings by themselves, and show them"),
        ("token", token, "draw a bearer token"),
        ("top", top, "watch a running pair by its metrics"),
        ("convert", convert, "write a checkpoint in the other format"),
    ):
        command = add_command(commands, name, words)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return _run(parser.parse_args(arguments))


def _run(options: Namespace) -> int:
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except ClientError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        forget_output()
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"diptych: {complaint(error)}\n")
        return 1
    return status


def _up(options: Namespace) -> int:
    advice = "those of the services go into the files of --decoder-config and --vision-config"
    return asyncio.run(up(from_sources(UpConfig, options, advice=advice)))
