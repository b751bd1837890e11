"""Runs the Dockerfile's commands in clean folders, for machines where no engine can build: `make image-steps`.

Knows how to stand in for an engine: each stage gets a folder of its own with what it COPYs, and paths of the image
are rewritten to lie in that folder. The interpreter is this machine's, in a clean environment. Debian's packages are
only looked up. Does not know what the commands do.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.dockerfile import DOCKERFILE, Instruction, Stage, image_environment, lineage, read_stages

CONTEXT = DOCKERFILE.parents[2]
_IMAGE_PATHS = ("/src", "/wheels", "/kernels", "/ours", "/opt/diptych", "/var/lib/apt")
_DOWNLOADS = re.compile(r"(?<=&& )python -m pip \S+ \S+ install --require-hashes .*|(?<=^)apt-get .*")


class Builder:
    """Builds stages in a folder, each at most once."""

    def __init__(self, folder: Path, *, arguments: Mapping[str, str], borrow: bool = False) -> None:
        """With `borrow`, what would be downloaded is taken from the running environment instead."""
        self._folder = folder
        self._arguments = dict(arguments)
        self._borrow = borrow
        self._stages = read_stages(arguments)

    def build(self, name: str) -> Path:
        """The root folder of a stage, after its last instruction. Raises CalledProcessError where a command fails."""
        root = self._folder / name
        if root.exists():
            return root
        stage = self._stages[name]
        if stage.parent in self._stages:
            _copy(self.build(stage.parent), root)
        elif stage.parent != "scratch":
            subprocess.run([sys.executable, "-m", "venv", str(root / "usr/local")], check=True)  # noqa: S603
        root.mkdir(exist_ok=True)
        place = root
        for step in stage.instructions:
            if step.word == "WORKDIR":
                place = root / step.text.lstrip("/")
                place.mkdir(parents=True, exist_ok=True)
            elif step.word == "COPY":
                self._copy_step(step, root, place)
            elif step.word == "RUN":
                self._run_step(step, stage, root, place)
        return root

    def _copy_step(self, step: Instruction, root: Path, place: Path) -> None:
        words = step.text.split()
        source = CONTEXT
        if words[0].startswith("--from="):
            source = self.build(words.pop(0).removeprefix("--from="))
        *origins, goal = words
        target = root / goal.lstrip("/") if goal.startswith("/") else place / goal
        for origin in origins:
            found = source / origin.lstrip("/")
            into = target / found.name if len(origins) > 1 or goal.endswith("./") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            if source == CONTEXT and found.is_dir():
                shutil.copytree(found, into, ignore=_ignored)
            else:
                _copy(found, into)

    def _run_step(self, step: Instruction, stage: Stage, root: Path, place: Path) -> None:
        command = step.text
        if self._borrow:
            command = _DOWNLOADS.sub("true", command)
        sys.stdout.write(f"{stage.name}: {command}\n")
        sys.stdout.flush()
        subprocess.run(  # noqa: S603
            ["/bin/sh", "-ec", self._rewrite(command, root)],
            cwd=place,
            env=self._environment(stage, root),
            check=True,
        )
        if command != step.text and "venv" in command:
            _lend_packages(next((root / "opt/diptych/lib").glob("python*/site-packages")))

    def _environment(self, stage: Stage, root: Path) -> dict[str, str]:
        shims = self._folder / "shims"
        shims.mkdir(exist_ok=True)
        # What Debian would install is worked out and not installed, from the lists that are there: this machine is not
        # the image.
        (shims / "apt-get").write_text('#!/bin/sh\n[ "$1" = update ] || exec /usr/bin/apt-get --simulate "$@"\n')
        (shims / "apt-get").chmod(0o755)
        outer = {name: os.environ[name] for name in ("HOME", "PIP_INDEX_URL", "PIP_CONFIG_FILE") if name in os.environ}
        outer |= self._arguments | {"PATH": f"{shims}:{root}/usr/local/bin:/usr/bin:/bin"}
        for ancestor in lineage(self._stages, stage.name):
            for step in ancestor.instructions:
                if step.word == "ARG":
                    name, _, default = step.text.partition("=")
                    outer.setdefault(name, default)
        made = image_environment(self._stages, stage.name, outer)
        return {name: self._rewrite(value, root) for name, value in made.items()}

    def _rewrite(self, text: str, root: Path) -> str:
        for path in _IMAGE_PATHS:
            text = re.sub(rf"(?<![\w./-]){re.escape(path)}(?=[/\s\"':]|$)", f"{root}{path}", text)
        return text


def _lend_packages(target: Path) -> None:
    """Link what the running environment has installed, but for ourselves, into another environment."""
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.search("diptych|__pycache__", package.name) and not (target / package.name).exists():
            (target / package.name).symlink_to(package)


def _ignored(folder: str, names: list[str]) -> set[str]:
    """What .dockerignore keeps out of the context."""
    lines = (CONTEXT / ".dockerignore").read_text(encoding="utf-8").split()
    inside = Path(folder).relative_to(CONTEXT)
    return {
        name
        for name in names
        if any(
            fnmatch.fnmatch(str(inside / name), line) or fnmatch.fnmatch(f"/{inside / name}", line) for line in lines
        )
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, into a folder that may be there, sharing the contents of files; links stay links."""
    subprocess.run(["cp", "-alT", str(source), str(target)], check=True)  # noqa: S603, S607


def main() -> None:
    """Run all commands of both targets for a device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cpu-index", help="package index for torch's CPU build; PyTorch's own where not given")
    given = parser.parse_args()
    arguments = {"DEVICE": given.device}
    if given.cpu_index is not None:
        arguments["CPU_INDEX"] = given.cpu_index
    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder), arguments=arguments)
        for target in ("vision", "decoder"):
            builder.build(target)
    sys.stdout.write("every command ran\n")


if __name__ == "__main__":
    main()
