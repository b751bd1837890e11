"""Makes the Python stubs of the protos in build/gen; run as a script, or by the build as its hook.

Knows where the protos lie, how protoc is called and what a wheel carries besides the packages.
Does not know what the protos say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "build" / "gen"
DEMO = ROOT / "models" / "demo"


class StubHook(BuildHookInterface[Any]):
    """The build hook: makes the stubs, and lists what goes into a wheel from outside the packages."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Runs before each build; an editable install finds the stubs and the model where they lie."""
        generate()
        if version != "editable":
            build_data["force_include"][str(STUBS / "diptych")] = "diptych"
            build_data["force_include"][str(DEMO)] = "diptych/models/demo"


def generate() -> None:
    """Replaces build/gen by the stubs of all protos."""
    STUBS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STUBS.parent) as folder:
        fresh = Path(folder) / "gen"
        fresh.mkdir()
        _run_protoc(fresh)
        if STUBS.exists():
            STUBS.rename(Path(folder) / "stale")
        fresh.rename(STUBS)


def _run_protoc(out: Path) -> None:
    sources = [str(path.relative_to(PROTOS)) for path in sorted(PROTOS.rglob("*.proto"))]
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"),
        *(f"--plugin={name}={_plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *(f"--python_out={out}", f"--grpc_python_out={out}"),
        *(f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"),
        *sources,
    ]
    subprocess.run(command, check=True)  # noqa: S603 - the command is made of this file's constants


def _plugin(name: str) -> str:
    """Finds a protoc plugin beside the interpreter, whose environment need not be active, or on the path."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; it comes with mypy-protobuf")
    return found


if __name__ == "__main__":
    generate()
