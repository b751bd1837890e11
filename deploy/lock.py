"""`make lock`: finds the hashes of every file of every version that requirements.lock pins.

Knows the pins, which people edit, and the files of hashes that `make setup` installs from: requirements.hashes for all
but torch, and for torch one of two, since its builds have different hashes and need different things besides:

    requirements-cuda.hashes   PyPI's build, for Linux with the CUDA libraries that it needs, for others without
    requirements-cpu.hashes    the CPU builds that stand in torch-cpu.sha256, as sha256sum writes them

Hashes come from the package index through uv. Needs nothing but Python's own library and uv.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOCK: Final = ROOT / "requirements.lock"
HASHES: Final = ROOT / "requirements.hashes"
CUDA: Final = ROOT / "requirements-cuda.hashes"
CPU: Final = ROOT / "requirements-cpu.hashes"
CPU_BUILDS: Final = ROOT / "torch-cpu.sha256"
_HEADER: Final = "# Written by `make lock` from requirements.lock; do not edit.\n"
_PIN: Final = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> Mapping[str, str]:
    """Versions by normal name, whether or not there are hashes beside them."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in _PIN.findall(text)}


def check() -> str | None:
    """What is wrong with the hashes; None where they are of exactly what is pinned."""
    wanted = pins(LOCK.read_text(encoding="utf-8"))
    found = {**_pins_of(HASHES), "torch": _pins_of(CUDA).get("torch")}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"requirements.hashes is not of requirements.lock ({', '.join(differing)})" if differing else None


def write(wheels: Sequence[Path]) -> None:
    """Write the files of hashes. Raises CalledProcessError where the index does not have what is pinned."""
    _note_cpu_builds(wheels)
    version = pins(LOCK.read_text(encoding="utf-8"))["torch"]
    pinned = _entries(_compile(LOCK, "--no-deps"))
    torch = pinned.pop("torch")
    needed = _entries(_compile(LOCK, "--python-platform", "x86_64-unknown-linux-gnu", "--constraint", str(LOCK)))
    added = [entry for name, entry in needed.items() if name not in pinned and name != "torch"]
    cpu = " \\\n".join([f"torch=={version}+cpu", *(f"    --hash=sha256:{digest}" for digest in _cpu_digests(version))])
    for path, entries in ((HASHES, [*pinned.values()]), (CUDA, [torch, *added]), (CPU, [cpu + "\n"])):
        path.write_text(_HEADER + "".join(entries), encoding="utf-8")


def _pins_of(path: Path) -> Mapping[str, str]:
    return pins(path.read_text(encoding="utf-8")) if path.exists() else {}


def _entries(text: str) -> dict[str, str]:
    """The lines of each pin, by its name."""
    parts = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return {name: part for part in parts for name in pins(part)}


def _compile(source: Path, *flags: str) -> str:
    environment = dict(os.environ)
    if "PIP_CERT" in environment:
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-config", "--no-annotate"]
    command += [
        "--no-header",
        "--no-strip-markers",
        "--python-version",
        "3.11",
        "--generate-hashes",
        *flags,
        str(source),
    ]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    return done.stdout


def _note_cpu_builds(folders: Sequence[Path]) -> None:
    """Add torch's CPU builds that lie in folders to those that are known."""
    known = CPU_BUILDS.read_text(encoding="utf-8") if CPU_BUILDS.exists() else ""
    for wheel in sorted(path for folder in folders for path in folder.glob("torch-*+cpu-*.whl")):
        with wheel.open("rb") as file:
            line = f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {wheel.name}\n"
        known += "" if line in known else line
    CPU_BUILDS.write_text(known, encoding="utf-8")


def _cpu_digests(version: str) -> list[str]:
    lines = (line.split() for line in CPU_BUILDS.read_text(encoding="utf-8").splitlines())
    return [digest for digest, name in lines if name.startswith(f"torch-{version}+cpu-")]


def main() -> int:
    """Check or write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the hashes are of what is pinned")
    parser.add_argument("--wheels", type=Path, action="append", default=[], help="folder of torch's CPU wheels")
    options = parser.parse_args()
    if not options.check:
        write([folder for folder in options.wheels if folder.is_dir()])
    wrong = check()
    if wrong is not None:
        sys.stderr.write(f"{wrong}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
