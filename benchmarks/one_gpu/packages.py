"""Whether this interpreter has what the services import: for hosts where nothing of ours is installed.

Knows pyproject.toml, requirements.lock and package metadata. `python -m benchmarks.one_gpu.packages` prints what is
missing here, one `NAME==VERSION` a line, as pip takes it.
"""

import importlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from packaging.requirements import Requirement

from benchmarks.peers.protocol import ROOT

_STUBS = ("diptych.v1.generation_pb2_grpc", "diptych.v1.vision_pb2_grpc")
_WHOLE = ("tokenizers", "torch")
"""Not looked into: torch came with what it needs, and the one package that tokenizers asks for is to fetch files."""
_README = "benchmarks/one_gpu/README.md"


class Installed(Protocol):
    """What is known of a package, as `importlib.metadata.Distribution` has it."""

    @property
    def version(self) -> str:
        """Its version."""
        ...

    @property
    def requires(self) -> list[str] | None:
        """What it asks for."""
        ...


Find = Callable[[str], Installed | None]
"""The package of a name; None where it is not installed."""


@dataclass(slots=True)
class Found:
    """What a walk over packages and what they ask for has shown."""

    missing: list[str] = field(default_factory=list)
    """Names"""
    unfit: list[str] = field(default_factory=list)
    """Packages of another version than somebody asks for, each as a sentence"""


def check_host() -> list[str]:
    """Sentences about versions that nobody has tried. Raises ValueError, in one line, where the services cannot run."""
    found = look_at(services_requirements(), find_installed)
    if found.missing:
        raise ValueError(f"not installed here: {', '.join(pinned(found.missing))}; see {_README}")
    check_stubs()
    return found.unfit


def look_at(wanted: Sequence[str], find: Find) -> Found:
    """Walk over requirements, and over those of what is installed; each package once for each of its extras."""
    found, seen = Found(), set()
    todo = [(Requirement(each), "") for each in wanted]
    while todo:
        requirement, extra = todo.pop()
        name = requirement.name.lower().replace("_", "-")
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        package = find(name)
        if package is None:
            found.missing += [] if name in found.missing else [name]
            continue
        if not requirement.specifier.contains(package.version, prereleases=True):
            found.unfit.append(f"{name} is {package.version}, asked for is {requirement.specifier}")
        for each in {"", *requirement.extras}:
            if (name, each) not in seen and name not in _WHOLE:
                seen.add((name, each))
                todo += [(Requirement(text), each) for text in package.requires or ()]
    found.missing.sort()
    return found


def check_stubs(modules: Sequence[str] = _STUBS) -> None:
    """Raise ValueError, in one line, where the generated code is not here or not for these packages."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{error}: build/gen is made by `make protos` and must be on PYTHONPATH") from error
        except Exception as error:  # It says of itself which grpcio and which protobuf it needs, each in its own way.
            raise ValueError(f"the code in build/gen does not run here: {' '.join(str(error).split())}") from error


def services_requirements() -> list[str]:
    """What pyproject.toml has the services ask for, and what the load generator does besides."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    shown = [each for each in project["optional-dependencies"]["bench"] if each.startswith("tqdm")]
    return [*project["dependencies"], *shown]


def pinned(names: Sequence[str]) -> list[str]:
    """`NAME==VERSION` of each, of the versions that requirements.lock has."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    versions = {name.lower().replace("_", "-"): line for line, name in re.findall(r"^(([\w.-]+)==\S+)", lock, re.M)}
    return [versions.get(name, name) for name in names]


def find_installed(name: str) -> Installed | None:
    """See `Find`."""
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print what is missing, and say on standard error what is of another version."""
    found = look_at(services_requirements(), find_installed)
    sys.stdout.write("".join(f"{each}\n" for each in pinned(found.missing)))
    sys.stderr.write("".join(f"{each}\n" for each in found.unfit))


if __name__ == "__main__":
    main()
