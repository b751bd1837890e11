"""The command `python -m benchmarks`: reads the command line and hands over.

Knows subcommands. Does not know what they measure, and imports only what the one that is asked for needs.
"""

import importlib
import sys
from collections.abc import Sequence

from common.settings.settings import Parser, add_arguments, add_command

_COMMANDS = {
    "compare": ("benchmarks.compare.command", "CompareConfig", "ourselves and every installed peer in turns"),
    "load": ("benchmarks.load.command", "LoadConfig", "a load on the running pair, with latencies and goodput"),
    "service": ("benchmarks.service.command", "ServiceConfig", "what the services cost beside the engine alone"),
    "served": (
        "benchmarks.served.command",
        "ServedConfig",
        "goodput, and text beside pictures, of all in turns",
    ),
    "scheduling": (
        "benchmarks.scheduling.command",
        "SchedulingConfig",
        "what a step costs without a model, beside peers",
    ),
    "speculation": (
        "benchmarks.speculation.command",
        "SpeculationConfig",
        "what it brings to try tokens ahead, beside peers",
    ),
    "restarts": ("benchmarks.restarts.command", "RestartsConfig", "rolling restarts under load, and what callers saw"),
    "components": ("benchmarks.components.command", "ComponentsConfig", "what every part costs by itself"),
    "one-gpu": ("benchmarks.one_gpu.command", "OneGpuConfig", "both services on one GPU beside one process; starts"),
    "capacity": ("benchmarks.capacity.command", "CapacityConfig", "what a fleet needs, from measured components"),
}
_PROGRAMS = {
    "memory": ("benchmarks.loading_memory", "memory that each service needs to load its part"),
    "fairness": ("benchmarks.fair_share", "what a tenant at ten times the load does to another's first tokens"),
    "start": ("benchmarks.starting", "time until both services are ready, and the memory that they keep"),
    "refusals": ("benchmarks.refusals", "how soon full services refuse a burst"),
    "transport": ("benchmarks.transport", "one stream of features against what gRPC can do"),
    "spread": ("benchmarks.spread_vision", "where pictures go that come again, and how often caches hit"),
    "namespaces": ("benchmarks.namespaces", "pods in networks of their own, scaled and cut off; needs root"),
    "mixing": ("benchmarks.mixing", "what long prompts do to the tokens beside them, by --max-num-mixed-tokens"),
    "replicas": ("benchmarks.scale_vision", "how encoding grows with vision replicas"),
    "observing": ("benchmarks.observing", "what it costs to count a token, a request, a step and a scrape"),
    "gpu": ("benchmarks.gpu.__main__", "correctness and speed on a GPU with Pixtral-12B's shape"),
}
"""Measurements with a command line of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in _PROGRAMS:
        return _run_program(given[0], given[1:])
    parser = Parser(prog="python -m benchmarks", description="Measures Diptych, alone and beside others.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (module_name, config_name, help_text) in _COMMANDS.items():
        command = add_command(commands, name, help_text)
        if given[:1] == [name]:
            module = importlib.import_module(module_name)
            add_arguments(command, getattr(module, config_name))
            command.set_defaults(run=module.run)
    for name, (_, help_text) in _PROGRAMS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    options = parser.parse_args(given)
    status: int = options.run(options)
    return status


def _run_program(name: str, arguments: Sequence[str]) -> int:
    sys.argv[:] = [f"python -m benchmarks {name}", *arguments]
    importlib.import_module(_PROGRAMS[name][0]).main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
