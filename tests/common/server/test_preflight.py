import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.process import raise_descriptor_limit
from common.security.access import AccessSettings
from common.security.tls import TlsSettings
from common.server.config import ServerConfig
from common.server.ports import CannotListenError
from common.server.preflight import check_server

ROOT = Path(__file__).parents[3]
IN_USE = "the port is in use; choose another with"


@pytest.mark.parametrize("which", ["port", "health_port", "metrics_port"])
def test_a_taken_port_is_one_line(which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListenError) as raised:
            check_server(ServerConfig(**{"port": 0, which: port}))
    assert f"cannot listen on 127.0.0.1:{port}" in str(raised.value)
    assert f"{IN_USE} --{which.replace('_', '-')}" in str(raised.value)


def test_files_that_cannot_be_used_are_known_before_the_model_is_loaded(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for config in (
        ServerConfig(port=0, tls=TlsSettings(tls_cert=nowhere, tls_key=nowhere)),
        ServerConfig(port=0, access=AccessSettings(auth_tokens=nowhere)),
    ):
        with pytest.raises(ValueError, match="nowhere: No such file"):
            check_server(config)


def test_connections_and_descriptors_fit_together() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        check_server(ServerConfig(port=0, max_connections=1000))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1256
        assert raise_descriptor_limit(10) >= 1256
        if hard != resource.RLIM_INFINITY and hard < (1 << 20):
            with pytest.raises(ValueError, match="--max-connections 1048576 needs"):
                check_server(ServerConfig(port=0, max_connections=1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("service", ["vision_service", "decoder_service"])
def test_a_service_says_so_before_it_needs_a_model(service: str) -> None:
    """The model does not exist, yet what is said is about the port."""

    def said(*flags: str) -> tuple[int, str]:
        command: Sequence[str] = [sys.executable, "-m", service, "--model", "nowhere", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        return done.returncode, done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert said("--port", str(port)) == (1, f"{service}: cannot listen on 127.0.0.1:{port}: {IN_USE} --port\n")
    assert said("--port", "0", "--host", "no.such.host") == (
        1,
        f"{service}: cannot listen on no.such.host:0: --host is no address of this machine\n",
    )
    assert said("--prot", "0") == (2, f"{service}: unrecognized arguments: --prot 0\n")
    wrong = f"{service}: --port must be a whole number from 0 to 65535, got 'x'\n"
    assert said("--port", "x") == (2, wrong)
    status, line = said("--port", "0", "--auth-tokens", "nofile")
    assert (status, line) == (2, f"{service}: nofile: No such file or directory\n")
