"""The case on one GPU: its checkpoint, what it asks of a host, what it compares, and all of it on a CPU."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from packaging.requirements import Requirement

from benchmarks.load.figures import LoadFigures, Slo, figures
from benchmarks.load.pair import environment
from benchmarks.load.records import RequestRecord
from benchmarks.one_gpu import case as case_module
from benchmarks.one_gpu.case import Case, split_cores
from benchmarks.one_gpu.checkpoint import planned_tensors, shape, shards, write_checkpoint
from benchmarks.one_gpu.command import OneGpuConfig
from benchmarks.one_gpu.comparison import Measured, compare
from benchmarks.one_gpu.packages import check_host, check_stubs, look_at, pinned, services_requirements
from benchmarks.one_gpu.starting import forget, read_rate, weights_loaded
from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.layout import Part
from tests.benchmarks.commands import results, run

CPU = torch.device("cpu")


def test_both_ways_to_run_start_and_answer(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    text = run(
        *("one-gpu", "--quick", "--device", "cpu", "--folder", str(tmp_path), "--json", str(file)),
        *("--images", "1", "--text-tokens", "5", "--output-tokens", "3", "--rates", "50", "--requests", "2"),
        *("--from-disk", "--slo-ttft", "60000"),
    )
    assert "G7, 5 tokens and 1 picture: best goodput" in text
    found = results(file)
    assert found["failures"] == []
    assert {mode: start["files_from"] for mode, start in found["starts"].items()} == {
        "pair": "disk",
        "one process": "memory",
    }
    assert all(start["weights_seconds"] > 0 and start["plain_read"] > 0 for start in found["starts"].values())
    assert [(load["mode"], load["figures"]["num_completed"]) for load in found["loads"]] == [
        ("pair", 2),
        ("one process", 2),
    ]
    assert found["comparisons"][0]["goodput_ratio"] > 0


def test_the_whole_model_is_as_large_as_the_published_one_and_in_as_many_shards() -> None:
    planned = planned_tensors(shape("12b"), CPU)
    assert sum(tensor.num_bytes for tensor in planned) == pytest.approx(25.4e9, rel=0.005)
    sizes = [sum(tensor.num_bytes for tensor in shard) for shard in shards(planned)]
    assert len(sizes) == 6
    assert max(sizes) <= 5e9
    assert sum(tensor.num_bytes for tensor in planned_tensors(shape("small"), CPU)) < 6e9


def test_a_checkpoint_in_shards_is_one_that_the_services_read(tmp_path: Path) -> None:
    config = shape("quick")
    write_checkpoint(tmp_path / "some", config, device=CPU, shard_bytes=200_000)
    write_checkpoint(tmp_path / "one", config, device=CPU)
    assert len(list((tmp_path / "some").glob("model-*-of-*.safetensors"))) > 3
    opened = [open_checkpoint(tmp_path / name) for name in ("some", "one")]
    for part in Part:
        assert opened[0].digest(part) == opened[1].digest(part)
        assert {entry.stored.dtype for entry in opened[0].entries(part)} == {torch.bfloat16}
    assert not list(tmp_path.glob("*.[0-9]*"))


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20e9))
    with pytest.raises(ValueError, match=r"has 20\.0 GB free, the checkpoint takes 25\.4"):
        write_checkpoint(tmp_path / "whole", shape("12b"), device=CPU)
    assert not list(tmp_path.iterdir())


@dataclass
class Package:
    version: str
    requires: list[str] | None = None


PACKAGES: Mapping[str, Package] = {
    "outer": Package("2.0", ["inner[more]>=1", 'elsewhere; sys_platform == "win32"', 'asked-for; extra == "other"']),
    "inner": Package("0.9", ["gone>=1", 'gone-too; extra == "more"']),
}


def test_what_packages_ask_for_is_missing_too_with_the_extras_that_they_ask_for() -> None:
    found = look_at(["outer>=2"], PACKAGES.get)
    assert found.missing == ["gone", "gone-too"]
    assert found.unfit == ["inner is 0.9, asked for is >=1"]
    whole = {**PACKAGES, "gone": Package("1"), "gone-too": Package("1")}
    assert look_at(["outer>=2"], whole.get).missing == []


def test_services_that_are_started_find_what_was_on_the_path_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packages lie that a host lacks."""
    monkeypatch.setenv("PYTHONPATH", "carried:others")
    assert environment()["PYTHONPATH"].endswith(":carried:others")
    monkeypatch.delenv("PYTHONPATH")
    assert environment()["PYTHONPATH"].endswith("build/gen")


def test_the_list_of_wheels_has_the_versions_of_the_lock_and_all_of_grpc() -> None:
    lines = [line for line in Path("benchmarks/one_gpu/wheels.txt").read_text().splitlines() if line[0] != "#"]
    names = [line.partition("==")[0] for line in lines]
    assert [line.lower().replace("_", "-") for line in pinned(names)] == lines
    asked = {Requirement(each).name.lower() for each in services_requirements()}
    assert {name for name in asked if name.startswith("grpc")} | {"protobuf", "mistral-common"} <= set(names)


def test_what_is_missing_is_named_with_the_version_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pinned(["mistral-common", "unheard-of"]) == [
        next(line for line in (Path("requirements.lock")).read_text().splitlines() if line.startswith("mistral")),
        "unheard-of",
    ]
    monkeypatch.setattr("benchmarks.one_gpu.packages.find_installed", lambda _: None)
    with pytest.raises(ValueError, match=r"^not installed here: .*grpcio==.*; see benchmarks/one_gpu/README\.md$"):
        check_host()


def test_this_environment_has_all_that_the_services_ask_for() -> None:
    """The negative control; and the list is not empty."""
    check_host()
    assert len(services_requirements()) > 10


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "from google.protobuf.runtime_version import *\n"
            "ValidateProtobufRuntimeVersion(Domain.PUBLIC, 99, 1, 0, '', 'x.proto')",
            r"does not run here: .*99\.1\.0",
        ),
        ("raise RuntimeError('it depends on\\n grpcio>=99')", "does not run here: it depends on grpcio>=99"),
        ("import no_such_module_of_ours", "build/gen is made by `make protos`"),
    ],
)
def test_generated_code_that_is_not_for_these_packages_says_so_in_one_line(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "newer_stub.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=words) as refused:
        check_stubs(["newer_stub"])
    assert "\n" not in str(refused.value)


def load_figures(tpot_ms: float, *, ttft: float = 0.5, num_good: int = 10) -> LoadFigures:
    """Ten requests of eleven tokens, one sent a second; those that are not good wait for a minute."""
    records = []
    for number in range(10):
        first = number + (ttft if number < num_good else 60.0)
        times = [first + place * tpot_ms / 1000 for place in range(11)]
        records.append(RequestRecord(sent_at=float(number), chunk_times=times, ended_at=times[-1], output_tokens=11))
    return figures(records, Slo(ttft=1000, tpot=100))


def measured(mode: str, rate: float, found: LoadFigures) -> Measured:
    return Measured(mode=mode, load="any", rate=rate, figures=found)


def test_goodput_is_compared_at_each_ones_best_rate_and_tpot_at_equal_rates() -> None:
    pair = [measured("pair", 1.0, load_figures(20)), measured("pair", 2.0, load_figures(40))]
    other = [
        measured("one process", 1.0, load_figures(40, num_good=5)),
        measured("one process", 2.0, load_figures(50, num_good=0)),
    ]
    (found,) = compare([*pair, *other])
    assert found.goodput_ratio == pytest.approx(pair[0].goodput / other[0].goodput)
    assert found.tpot_ratios == {1.0: pytest.approx(0.5), 2.0: pytest.approx(0.8)}


def test_a_rate_that_only_one_of_them_had_does_not_count() -> None:
    late = measured("pair", 4.0, load_figures(1, ttft=0.01))
    both = [measured("pair", 1.0, load_figures(20)), measured("one process", 1.0, load_figures(20))]
    (found,) = compare([*both, late])
    assert found.goodput_ratio == pytest.approx(1)
    assert compare([late]) == []
    nothing = replace(both[1], figures=load_figures(20, num_good=0))
    assert compare([both[0], nothing])[0].goodput_ratio is None
    at_once = replace(both[1], figures=load_figures(0))
    assert compare([both[0], at_once])[0].tpot_ratios == {}


def test_the_decoder_says_how_long_its_weights_took(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('no object\n{"message": "else"}\n{"message": "weights loaded", "gigabytes": 24.5, "seconds": 7}\n')
    assert weights_loaded(log) == (24.5, 7)
    log.write_text("[]\n")
    assert weights_loaded(log) == (None, None)


def test_files_are_read_up_to_a_limit_and_still_there_when_they_are_forgotten(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(b"x" * 1000)
    assert read_rate(files) > 0
    assert read_rate(files, most_bytes=0) == 0
    forget(files)
    assert files[0].read_bytes() == b"x" * 1000


@pytest.mark.parametrize(
    ("given", "cores", "services", "client"),
    [
        ("", [0, 1], [0, 1], [0, 1]),
        ("", [0, 1, 2, 3], [2, 3], [0, 1]),
        ("1,2", [0, 1, 2], [1, 2], [0]),
        ("0,1", [0, 1], [0, 1], [0, 1]),
    ],
)
def test_the_client_has_cores_of_its_own_where_there_are_enough(
    given: str, cores: list[int], services: list[int], client: list[int]
) -> None:
    assert split_cores(given, cores) == (services, client)


def new_case(folder: Path, **settings: object) -> Case:
    (folder / "model.safetensors").write_bytes(b"some bytes")
    return Case(OneGpuConfig(json=folder / "found.json", **settings), folder, [])  # type: ignore[arg-type]


def test_no_two_loads_have_a_text_or_a_picture_in_common(tmp_path: Path) -> None:
    """What one load has computed is in the caches of the next."""
    loads = list(new_case(tmp_path, images=("4", "1"), text_tokens=("400", "2000"), rates=("1", "2"))._load_configs())
    assert len({load.seed for load in loads}) == len(loads) == 8
    assert [(load.text_tokens, load.images, load.rate) for load in loads[:3]] == [
        ("400", "4", 1.0),
        ("400", "4", 2.0),
        ("400", "1", 1.0),
    ]


def test_a_way_to_run_that_does_not_start_is_written_down_and_the_run_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, log: Path, **__: object) -> NoReturn:
        log.write_text("first line\n" + "the GPU is gone\n" * 30)
        raise RuntimeError("the services did not start; see somewhere")

    monkeypatch.setattr(case_module, "running_pair", failing)
    monkeypatch.setattr(case_module, "_LOGS", tmp_path)
    case = new_case(tmp_path)
    case.measure("pair", (), forget_files=False)
    assert case.finish() == 1
    failures = json.loads((tmp_path / "found.json").read_text())["results"]["failures"]
    assert failures == ["pair: the services did not start; see somewhere\n" + "\n".join(["the GPU is gone"] * 30)]
