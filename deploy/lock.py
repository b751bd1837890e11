"""`make lock`: finds the hashes of every file of every version that requirements.lock pins.

Knows the pins, which people edit, and the files of hashes that `make setup` installs from: requirements.hashes for all
but torch, and for torch one of two, since its builds have different hashes and need different things besides:

    requirements-cuda.hashes   PyPI's build, for Linux with the CUDA libraries that it needs, for others without
    requirements-cpu.hashes    the CPU builds that stand in torch-cpu.sha256, as sha256sum writes them

The images are made from shorter lists in deploy/docker, without what only tests and linters need: build.hashes makes
the wheel, cpu.hashes and cuda.hashes are what it imports on either device, all that this imports included.

Hashes come from the package index through uv. Needs nothing but Python's own library and uv.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOCK: Final = ROOT / "requirements.lock"
HASHES: Final = ROOT / "requirements.hashes"
CUDA: Final = ROOT / "requirements-cuda.hashes"
CPU: Final = ROOT / "requirements-cpu.hashes"
CPU_BUILDS: Final = ROOT / "torch-cpu.sha256"
PROJECT: Final = ROOT / "pyproject.toml"
IMAGES: Final = ROOT / "deploy" / "docker"
IMAGE_EXTRAS: Final = ("structured", "tracing")
"""Those of the project's extras that are in an image."""
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
    if differing:
        return f"requirements.hashes is not of requirements.lock ({', '.join(differing)})"
    known = {**wanted, **_pins_of(CUDA)}
    for kind, direct in image_requirements().items():
        listed = {name: version.removesuffix("+cpu") for name, version in _pins_of(image_list(kind)).items()}
        other = {name for name, version in listed.items() if version != known.get(name)}
        if differing := sorted(other | set(direct) - listed.keys()):
            return f"{image_list(kind).name} is not of requirements.lock and pyproject.toml ({', '.join(differing)})"
    return None


def image_list(kind: str) -> Path:
    """The list of hashes for a step of the images: build, cpu or cuda."""
    return IMAGES / f"{kind}.hashes"


def image_requirements() -> dict[str, list[str]]:
    """What the project itself asks for in each step of the images, by normal name."""
    return {kind: [_name(each) for each in _asked_for(kind)] for kind in ("build", "cpu", "cuda")}


def write(wheels: Sequence[Path]) -> None:
    """Write the files of hashes. Raises CalledProcessError where the index does not have what is pinned."""
    _note_cpu_builds(wheels)
    version = pins(LOCK.read_text(encoding="utf-8"))["torch"]
    lock = LOCK.read_text(encoding="utf-8")
    pinned = _entries(_compile(lock, "--no-deps"))
    torch = pinned.pop("torch")
    needed = _closure(lock)
    added = {name: entry for name, entry in needed.items() if name not in pinned and name != "torch"}
    digests = (f"    --hash=sha256:{digest}" for digest in _cpu_digests(version))
    cpu = " \\\n".join([f"torch=={version}+cpu", *digests]) + "\n"
    _write(HASHES, pinned.values())
    _write(CUDA, [torch, *added.values()])
    _write(CPU, [cpu])
    everywhere = pinned | added | {"torch": torch}
    for kind in ("build", "cuda"):
        _write(image_list(kind), [everywhere[name] for name in _closure("\n".join(_asked_for(kind)))])
    only_cuda = {"torch", "triton", *added}
    listed = [pinned[name] for name in _pins_of(image_list("cuda")) if name not in only_cuda]
    _write(image_list("cpu"), [*listed, cpu])


def _pins_of(path: Path) -> Mapping[str, str]:
    return pins(path.read_text(encoding="utf-8")) if path.exists() else {}


def _entries(text: str) -> dict[str, str]:
    """The lines of each pin, by its name."""
    parts = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return {name: part for part in parts for name in pins(part)}


def _write(path: Path, entries: Iterable[str]) -> None:
    path.write_text(_HEADER + "".join(entries), encoding="utf-8")


def _asked_for(kind: str) -> list[str]:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if kind == "build":
        return list(extras["build"])
    return [*project["dependencies"], *(each for extra in IMAGE_EXTRAS for each in extras[extra])]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ ;\[]", requirement)[0]).lower()


def _closure(requirements: str) -> dict[str, str]:
    """Entries of these and of all that they need on the Linux that images are for, at the lock's versions."""
    platform = ("--python-platform", "x86_64-unknown-linux-gnu")
    return _entries(_compile(requirements, *platform, "--constraint", str(LOCK)))


def _compile(requirements: str, *flags: str) -> str:
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
        "-",
    ]
    done = subprocess.run(  # noqa: S603 - ours
        command, env=environment, check=True, input=requirements, stdout=subprocess.PIPE, text=True
    )
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
