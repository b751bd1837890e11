"""What is installed is what is pinned, file by file."""

import re
from pathlib import Path

import pytest

from deploy import lock

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


def test_a_pin_without_hashes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    changed = tmp_path / "requirements.lock"
    changed.write_text(lock.LOCK.read_text() + "newcomer==1.0\n")
    monkeypatch.setattr(lock, "LOCK", changed)
    assert "newcomer" in str(lock.check())
