from pathlib import Path

import pytest
import torch

from common.model.devices import find_device, find_dtype, free_bytes, free_host_bytes
from common.model.settings import DtypeChoice, ModelSettings
from common.settings.settings import read
from common.settings.values import SettingError


def test_auto_is_bfloat16_on_cuda_and_float32_on_a_cpu() -> None:
    assert find_dtype(DtypeChoice.AUTO, torch.device("cuda:1")) is torch.bfloat16
    assert find_dtype(DtypeChoice.AUTO, torch.device("cpu")) is torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_stated_type_holds_on_every_device(name: str, device: str) -> None:
    assert find_dtype(DtypeChoice(name), torch.device(device)) is getattr(torch, name)


def test_devices_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "'cuda:2' is not here: 2 CUDA devices were found"),
        *((name, "is not a device; use cpu, cuda or cuda:N") for name in ("gpu", "", "cuda:x", "cuda:-1", "cpu:cuda")),
        *((name, "is not supported; use cpu, cuda or cuda:N") for name in ("meta", "mps", "xpu:0")),
    ],
)
def test_other_devices_are_refused_by_name(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        find_device(name)


def test_each_service_takes_its_own_device_and_type() -> None:
    settings = read(ModelSettings, {"model": "m", "device": "cuda:3", "dtype": "float16", "verify_checksums": "true"})
    assert (settings.device, settings.dtype, settings.verify_checksums) == ("cuda:3", DtypeChoice.FLOAT16, True)
    with pytest.raises(SettingError, match="--dtype must be one of auto, float32, bfloat16, float16"):
        read(ModelSettings, {"model": "m", "dtype": "int8"})


def test_what_torch_keeps_on_a_gpu_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"free": 10, "kept": 5}

    def empty_cache() -> None:
        memory.update(free=memory["free"] + memory["kept"], kept=0)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 20))
    assert free_bytes(torch.device("cuda")) == 15


def machine(root: Path, **group: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal:  16 kB\nMemAvailable:  8 kB\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, content in group.items():
        (root / f"sys/fs/cgroup/memory.{name}").write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("group", "free"),
    [
        ({}, 8192),
        ({"max": "max", "current": "9999", "stat": "anon 1"}, 8192),
        ({"max": "5000", "current": "3000", "stat": "anon 3000"}, 2000),
        ({"max": "5000", "current": "4900", "stat": "anon 900\ninactive_file 3000\nactive_file 1000"}, 4100),
        ({"max": "50000", "current": "0", "stat": "anon 0"}, 8192),
    ],
)
def test_free_memory_is_the_machines_or_the_containers_without_its_file_cache(
    group: dict[str, str], free: int, tmp_path: Path
) -> None:
    assert free_host_bytes(machine(tmp_path, **group)) == free


@pytest.mark.parametrize(("limit", "free"), [("5000", 4100), ("9223372036854771712", 8192)])
def test_free_memory_is_the_containers_of_older_control_groups_too(limit: str, free: int, tmp_path: Path) -> None:
    root = machine(tmp_path)
    (root / "sys/fs/cgroup/memory").mkdir()
    stat = "cache 5000\ninactive_file 3000\nactive_file 1000\ntotal_inactive_file 3000"
    for name, content in {"limit_in_bytes": limit, "usage_in_bytes": "4900", "stat": stat}.items():
        (root / f"sys/fs/cgroup/memory/memory.{name}").write_text(content + "\n")
    assert free_host_bytes(root) == free


def test_this_machine_has_some() -> None:
    assert free_host_bytes(Path("/")) > 2**20
