import os
from pathlib import Path

import pytest
import torch

from common.model.cores import num_cores, num_threads
from common.model.settings import ComputeChoice, ModelSettings
from common.native import opening


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (None, 8),
        ("max 100000", 8),
        ("800000 100000", 8),
        ("1600000 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("", 8),
    ],
)
def test_a_container_computes_on_no_more_cores_than_it_has_time_of(
    quota: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if quota is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    assert num_cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("-1", "100000", 8), ("200000", "100000", 2), ("50000", "100000", 1), ("200000", None, 8), ("x", "100000", 8)],
)
def test_a_container_of_older_control_groups_says_it_in_other_files(
    quota: str, period: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "sys/fs/cgroup/cpu").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    if period is not None:
        (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text(period + "\n")
    assert num_cores(tmp_path) == expected


def test_there_is_a_core() -> None:
    assert num_cores() >= 1


@pytest.mark.parametrize(
    ("given", "expected"), [("3", 3), ("5,2", 5), (" 4 ", 4), ("", None), ("0", None), ("x", None)]
)
def test_threads_are_as_many_as_is_said_or_as_there_are_cores(
    given: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert num_threads() == (num_cores() if expected is None else expected)


@pytest.mark.parametrize(("asked", "there", "expected"), [(None, 1, 1), (None, 8, 2), (3, 1, 3)])
def test_a_service_computes_with_no_more_threads_than_there_are_cores_unless_told(
    asked: int | None, there: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "num_threads", lambda: there)
    settings = ModelSettings(model=Path("model"), threads=asked, compute=ComputeChoice.TORCH)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        opening.choose_library(settings, device=torch.device("cpu"), dtype=torch.float32)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
