"""`diptych up` with small programs in place of the services; they are found first, in the working directory."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.model.cores import num_cores
from diptych.models import demo_model
from diptych.up import reserved_ports, share_cores
from diptych.up_config import parse_devices, parse_dtypes
from tests.processes import is_running

SERVICE = """
import asyncio, json, os, sys, time
from pathlib import Path
from tests.fake_generation import serve
name, flags = sys.argv[0].split("/")[-2], sys.argv[1:]
with open("started.jsonl", "a") as file:
    print(json.dumps([name, os.getpid(), flags, os.environ["OMP_NUM_THREADS"], list(os.environ)]), file=file)
if Path(name + ".fails").exists():
    print("the service says why", file=sys.stderr)
    sys.exit(3)
while Path(name + ".loads").exists():
    time.sleep(0.05)
port = int(flags[flags.index("--port") + 1])
health = int(flags[flags.index("--health-port") + 1]) if "--health-port" in flags else None
asyncio.run(serve(port=port, health_port=health, grace_seconds=5))
with open("ended", "a") as file:
    print(name, file=file)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("vision_service", "decoder_service"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text(SERVICE)
    return tmp_path


@contextmanager
def run_up(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'build' / 'gen'}"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "diptych.cli", "up", "--port", "0", *flags]
    with subprocess.Popen(  # noqa: S603
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready ")
    return line.split()[1]


def started(folder: Path) -> list[list[str]]:
    return sorted(json.loads(line) for line in (folder / "started.jsonl").read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_decoder_before_the_vision_services_and_ends_with_0(
    folder: Path, number: signal.Signals
) -> None:
    with run_up(folder, "--vision-replicas", "2") as process:
        ready_address(process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
    assert output == ""
    assert (folder / "ended").read_text().split() == ["decoder_service", "vision_service", "vision_service"]
    assert not any(is_running(int(row[1])) for row in started(folder))


def test_the_services_are_told_of_each_other_and_of_their_share(folder: Path) -> None:
    choices = ["--device", "vision=cuda:0,decoder=cuda:1", "--dtype", "decoder=bfloat16"]
    choices += ["--verify-checksums", "--deterministic"]
    with run_up(folder, "--vision-replicas", "2", *choices) as process:
        address = ready_address(process)
        rows = started(folder)
    flags = {row[1]: row[2] for row in rows}
    decoder, *visions = ([*flags[row[1]]] for row in rows)
    assert [row[0] for row in rows] == ["decoder_service", "vision_service", "vision_service"]
    ports = sorted(vision[vision.index("--port") + 1] for vision in visions)
    addresses = decoder[decoder.index("--vision-addresses") + 1].split(",")
    assert sorted(addresses) == [f"127.0.0.1:{port}" for port in ports]
    assert address not in addresses
    assert "--reflection" in decoder
    assert decoder[decoder.index("--device") + 1] == "cuda:1"
    assert all(vision[vision.index("--device") + 1] == "cuda:0" for vision in visions)
    assert decoder[decoder.index("--dtype") + 1] == "bfloat16"
    assert all("--dtype" not in vision for vision in visions)
    assert all("--verify-checksums" in flags for flags in (decoder, *visions))
    assert all("--deterministic" in flags for flags in (decoder, *visions))
    assert all(int(row[3]) >= 1 for row in rows)


@pytest.mark.parametrize("which", ["vision_service", "decoder_service"])
def test_a_service_that_ends_early_ends_the_command_with_one_line(folder: Path, which: str) -> None:
    (folder / f"{which}.fails").touch()
    with run_up(folder) as process:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 1
    assert output == ""
    lines = [line for line in errors.splitlines() if line.startswith("diptych up: ")]
    assert lines == [f"diptych up: the {which.replace('_', ' ')}{' 1' * (which[0] == 'v')} ended with status 3"]
    assert "the service says why" in errors
    assert not any(is_running(int(row[1])) for row in started(folder))


def test_a_service_that_ends_early_is_told_of_while_another_one_still_loads(folder: Path) -> None:
    (folder / "vision_service.loads").touch()
    (folder / "decoder_service.fails").touch()
    with run_up(folder) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
    assert errors.splitlines()[-1] == "diptych up: the decoder service ended with status 3"


def test_a_service_that_dies_later_ends_the_command_with_one_line(folder: Path) -> None:
    with run_up(folder) as process:
        ready_address(process)
        vision = next(row for row in started(folder) if row[0] == "vision_service")
        os.kill(int(vision[1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
    assert "diptych up: the vision service 1 was killed by SIGKILL\n" in errors
    assert not any(is_running(int(row[1])) for row in started(folder))


def test_services_die_with_a_killed_command(folder: Path) -> None:
    with run_up(folder) as process:
        ready_address(process)
        process.kill()
        process.wait()
        end = time.monotonic() + 10
        while any(is_running(int(row[1])) for row in started(folder)):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_services_that_are_not_ready_in_time_end_the_command(folder: Path) -> None:
    (folder / "decoder_service" / "__main__.py").write_text("import time; time.sleep(60)")
    with run_up(folder, "--start-seconds", "3") as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
    assert "diptych up: the services were not ready in time\n" in errors


def test_a_model_without_pictures_gets_no_vision_service(folder: Path) -> None:
    text_config = json.loads((demo_model() / "config.json").read_text())["text_config"]
    model = folder / "text"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**text_config, "model_type": "mistral"}))
    (model / "model.safetensors").touch()
    with run_up(folder, "--model", str(model)) as process:
        ready_address(process)
        ((name, _, flags, threads, _),) = started(folder)
    assert name == "decoder_service"
    assert int(threads) == num_cores()
    assert "--vision-addresses" not in flags


def test_a_model_that_is_none_is_one_line_and_status_2(folder: Path) -> None:
    with run_up(folder, "--model", str(folder / "nowhere")) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
    assert errors.startswith("diptych up: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("replicas", [0, 1, 2, 5])
def test_threads_never_outnumber_the_cores_where_there_is_one_for_each(cores: int, replicas: int) -> None:
    vision, decoder = share_cores(cores, replicas)
    assert vision >= 1
    assert decoder >= 1
    assert replicas * vision + decoder <= max(cores, replicas + 1)
    assert replicas * vision + decoder >= min(cores, replicas + 1)


def test_devices_are_given_once_or_by_role() -> None:
    assert parse_devices(None) == {}
    assert parse_devices("cuda") == {"vision": "cuda", "decoder": "cuda"}
    assert parse_devices("vision=cuda:0, decoder=cuda:1") == {"vision": "cuda:0", "decoder": "cuda:1"}
    for wrong in ("eye=cuda", "vision=cuda,cpu", "vision=cuda,vision=cpu"):
        with pytest.raises(ValueError, match="--device must be"):
            parse_devices(wrong)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--metrics-port", "65535"), "--metrics-port 65535 needs 1 more ports behind it"),
        (
            ("--port", "50065", "--metrics-port", "50064"),
            "--port 50065 is a metrics port, too: --metrics-port 50064 takes 2 from there on",
        ),
        (
            ("--port", "50065", "--metrics-port", "50065", "--local-vision"),
            "--port 50065 is a metrics port, too: --metrics-port 50065 takes 1 from there on",
        ),
        (("--host", ""), "--host '' names no address; 0.0.0.0 is every interface"),
        (("--device", "tpu"), "--device 'tpu' is not supported; use cpu, cuda or cuda:N"),
        (("--device", "vision=tpu"), "--device 'tpu' is not supported; use cpu, cuda or cuda:N"),
    ],
)
def test_what_no_service_could_take_is_one_line_before_any_is_started(
    folder: Path, flags: tuple[str, ...], words: str
) -> None:
    with run_up(folder, *flags) as process:
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (2, f"diptych up: {words}\n")
    assert not (folder / "started.jsonl").exists()


@pytest.mark.parametrize(
    ("vision", "decoder", "flags", "words"),
    [
        (50064, 50064, (), "v.yaml: metrics_port 50064 is that of d.yaml, too"),
        (50064, None, ("--port", "50064"), "v.yaml: metrics_port 50064 is that of --port, too"),
        (None, 50064, ("--port", "50064"), "d.yaml: metrics_port 50064 is that of --port, too"),
        (
            50064,
            None,
            ("--vision-replicas", "2"),
            "v.yaml: metrics_port 50064 is one for 2 services; use --metrics-port",
        ),
    ],
)
def test_a_port_of_a_file_that_somebody_else_has_is_one_line_before_any_is_started(
    folder: Path, vision: int | None, decoder: int | None, flags: tuple[str, ...], words: str
) -> None:
    files = ("--vision-config", "v.yaml", "--decoder-config", "d.yaml")
    for name, port in (("v.yaml", vision), ("d.yaml", decoder)):
        (folder / name).write_text("" if port is None else f"server:\n  metrics_port: {port}\n")
    with run_up(folder, *files, *flags) as process:
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (2, f"diptych up: {words}\n")
    # A flag goes before the files, and gives each service its own.
    with run_up(folder, *files, *flags, "--port", "0", "--metrics-port", "0") as process:
        ready_address(process)


def test_reserved_ports_differ() -> None:
    with reserved_ports(8) as ports:
        assert len(set(ports)) == 8


def test_types_are_given_once_or_by_role() -> None:
    assert parse_dtypes(None) == {}
    assert parse_dtypes("float32") == {"vision": "float32", "decoder": "float32"}
    assert parse_dtypes("vision=auto, decoder=bfloat16") == {"vision": "auto", "decoder": "bfloat16"}
    for wrong in ("eye=auto", "int8", "vision=auto,decoder=x"):
        with pytest.raises(ValueError, match="--dtype must be"):
            parse_dtypes(wrong)


def test_a_taken_port_is_one_line_before_anything_is_started(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags in (["--port", str(port)], ["--metrics-port", str(port - 1)]):
            with run_up(folder, *flags) as process:
                _, errors = process.communicate(timeout=120)
            assert process.returncode == 1
            assert errors.startswith(f"diptych up: cannot listen on 127.0.0.1:{port}")
            assert errors.count("\n") == 1
    assert not (folder / "started.jsonl").exists()


def test_each_service_gets_its_own_file_and_none_of_our_variables(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_VISION_REPLICAS", "2")
    monkeypatch.setenv("DIPTYCH_NATIVE_CACHE", str(folder))
    with run_up(folder, "--vision-config", "v.yaml", "--decoder-config", "d.yaml") as process:
        ready_address(process)
        rows = started(folder)
    files = [(row[0], row[2][row[2].index("--config") + 1]) for row in rows]
    assert files == [("decoder_service", "d.yaml"), ("vision_service", "v.yaml"), ("vision_service", "v.yaml")]
    ports = [row[2][row[2].index("--health-port") + 1] for row in rows]
    assert len(set(ports)) == 3
    assert {name for row in rows for name in row[4] if name.startswith("DIPTYCH_")} == {"DIPTYCH_NATIVE_CACHE"}


def test_local_vision_is_one_process_with_both_devices(folder: Path) -> None:
    (folder / "diptych").mkdir()
    (folder / "diptych" / "local.py").write_text(SERVICE.replace('sys.argv[0].split("/")[-2]', '"local"'))
    with run_up(folder, "--local-vision", "--device", "vision=cuda:1,decoder=cuda:0", "--dtype", "bfloat16") as process:
        ready_address(process)
        ((name, _, flags, threads, _),) = started(folder)
    assert name == "local"
    assert "--vision-addresses" not in flags
    pairs = dict(itertools.pairwise(flags))
    assert (pairs["--device"], pairs["--vision-device"]) == ("cuda:0", "cuda:1")
    assert (pairs["--dtype"], pairs["--vision-dtype"]) == ("bfloat16", "bfloat16")
    assert int(threads) == num_cores()


def test_local_vision_and_vision_replicas_exclude_each_other(folder: Path) -> None:
    with run_up(folder, "--local-vision", "--vision-replicas", "2") as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
    assert "--local-vision" in errors
