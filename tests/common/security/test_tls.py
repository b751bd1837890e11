"""Real handshakes with certificates that openssl makes."""

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest

from common.security.access import AccessSettings
from common.security.key_files import KeyFiles
from common.security.tls import TlsSettings
from tests.certificates import Authority, Leaf
from tests.fake_generation import NAME, FakeGeneration, running

LOCAL = ("DNS:localhost", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server_leaf(authority: Authority) -> Leaf:
    return authority.leaf("server", names=LOCAL)


@pytest.fixture(scope="module")
def decoder_leaf(authority: Authority) -> Leaf:
    return authority.leaf("decoder", names=["DNS:decoder", "URI:spiffe://here/decoder"])


async def ask(port: int, credentials: grpc.ChannelCredentials | None, *, host: str = "localhost") -> None:
    """One call over a connection of its own."""
    address = f"{host}:{port}"
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channel = (
        grpc.aio.secure_channel(address, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(address, options)
    )
    async with channel:
        method: Any = channel.unary_unary(f"/{NAME}/GetModelInfo")
        await method(b"", timeout=10)


async def fails(port: int, credentials: grpc.ChannelCredentials | None, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ask(port, credentials, **options)
    return raised.value.code().name


def trusting(authority: Authority, leaf: Leaf | None = None) -> grpc.ChannelCredentials:
    if leaf is None:
        return grpc.ssl_channel_credentials(authority.ca.read_bytes())
    return grpc.ssl_channel_credentials(authority.ca.read_bytes(), leaf.key.read_bytes(), leaf.cert.read_bytes())


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_only_those_who_trust_the_authority_and_find_the_name_get_through(
    authority: Authority, server_leaf: Leaf, tmp_path: Path
) -> None:
    tls = TlsSettings(tls_cert=server_leaf.cert, tls_key=server_leaf.key)
    async with running(FakeGeneration(), tls=tls) as (_, address):
        port = port_of(address)
        await ask(port, trusting(authority))
        assert await fails(port, None) == "UNAVAILABLE"
        assert await fails(port, trusting(Authority(tmp_path, "stranger"))) == "UNAVAILABLE"
        assert await fails(port, trusting(authority), host="ip6-localhost.invalid") == "UNAVAILABLE"


@pytest.mark.parametrize(("names", "days"), [(("DNS:elsewhere",), 1), (LOCAL, -1)], ids=["wrong name", "expired"])
async def test_a_server_of_another_name_or_of_yesterday_is_not_believed(
    authority: Authority, names: tuple[str, ...], days: int
) -> None:
    leaf = authority.leaf("wrong", names=names, days=days)
    async with running(FakeGeneration(), tls=TlsSettings(tls_cert=leaf.cert, tls_key=leaf.key)) as (_, address):
        assert await fails(port_of(address), trusting(authority)) == "UNAVAILABLE"


async def test_callers_need_a_certificate_of_the_authority_and_an_allowed_name(
    authority: Authority, server_leaf: Leaf, decoder_leaf: Leaf, tmp_path: Path
) -> None:
    tls = TlsSettings(tls_cert=server_leaf.cert, tls_key=server_leaf.key, tls_client_ca=authority.ca)
    access = AccessSettings(allowed_clients=("spiffe://here/decoder", "decoder"))
    stranger = Authority(tmp_path, "stranger").leaf("decoder", names=["URI:spiffe://here/decoder"])
    async with running(FakeGeneration(), tls=tls, access=access) as (_, address):
        port = port_of(address)
        await ask(port, trusting(authority, decoder_leaf))
        assert await fails(port, trusting(authority)) == "UNAVAILABLE"
        assert await fails(port, trusting(authority, stranger)) == "UNAVAILABLE"
        late = authority.leaf("late", names=["URI:spiffe://here/decoder"], days=-1)
        assert await fails(port, trusting(authority, late)) == "UNAVAILABLE"
        other = authority.leaf("other", names=["DNS:someone"], common_name="decoder")
        assert await fails(port, trusting(authority, other)) == "PERMISSION_DENIED"


async def test_new_certificates_are_used_without_a_restart_and_no_call_is_dropped(
    authority: Authority, tmp_path: Path
) -> None:
    """Files are replaced one after the other, as renewal does; a stream runs on through it."""
    other = Authority(tmp_path / "other", "other")
    first, second = authority.leaf("first", names=LOCAL), other.leaf("second", names=LOCAL)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(first.cert.read_bytes())
    key.write_bytes(first.key.read_bytes())
    async with running(FakeGeneration(), tls=TlsSettings(tls_cert=cert, tls_key=key)) as (_, address):
        port = port_of(address)
        async with grpc.aio.secure_channel(f"localhost:{port}", trusting(authority)) as channel:
            call: Any = channel.unary_unary(f"/{NAME}/GetModelInfo")
            await call(b"")
            cert.write_bytes(second.cert.read_bytes())
            # The key does not fit yet: the old pair stays in use.
            await ask(port, trusting(authority))
            key.write_bytes(second.key.read_bytes())
            await asyncio.gather(*(ask(port, trusting(other)) for _ in range(5)))
            assert await fails(port, trusting(authority)) == "UNAVAILABLE"
            await call(b"")


async def test_the_health_port_is_plain_where_all_others_are_not(authority: Authority, server_leaf: Leaf) -> None:
    tls = TlsSettings(tls_cert=server_leaf.cert, tls_key=server_leaf.key, tls_client_ca=authority.ca)
    async with (
        running(FakeGeneration(), tls=tls, health_port=0) as (server, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as channel,
    ):
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=5)
        other: Any = channel.unary_unary(f"/{NAME}/GetModelInfo")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await other(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def scrape(port: int | None, context: ssl.SSLContext | None) -> str:
    with urlopen(f"http{'s' if context else ''}://localhost:{port}/metrics", timeout=5, context=context) as page:  # noqa: S310
        text: str = page.read().decode()
        return text


def reader(authority: Authority, leaf: Leaf | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.ca))
    if leaf:
        context.load_cert_chain(leaf.cert, leaf.key)
    return context


async def test_metrics_need_a_certificate_too_and_follow_their_files(
    authority: Authority, decoder_leaf: Leaf, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "other")
    first, second = authority.leaf("first", names=LOCAL), other.leaf("second", names=LOCAL)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(first.cert.read_bytes())
    key.write_bytes(first.key.read_bytes())
    tls = TlsSettings(tls_cert=cert, tls_key=key, metrics_client_ca=authority.ca)
    async with running(FakeGeneration(), tls=tls, metrics_port=0) as (server, _):
        read: Callable[[ssl.SSLContext | None], Any] = lambda context: asyncio.to_thread(  # noqa: E731
            scrape, server.metrics_port, context
        )
        assert "grpc_server" in await read(reader(authority, decoder_leaf))
        for context in (None, reader(authority), reader(other, decoder_leaf)):
            with pytest.raises(OSError):  # noqa: PT011 - whatever the handshake ends with
                await read(context)
        cert.write_bytes(second.cert.read_bytes())
        key.write_bytes(second.key.read_bytes())
        assert "grpc_server" in await read(reader(other, decoder_leaf))


async def test_a_reader_who_says_nothing_keeps_nobody_waiting(authority: Authority, server_leaf: Leaf) -> None:
    tls = TlsSettings(tls_cert=server_leaf.cert, tls_key=server_leaf.key)
    async with running(FakeGeneration(), tls=tls, metrics_port=0) as (server, _):
        silent = [await asyncio.open_connection("127.0.0.1", server.metrics_port) for _ in range(8)]
        assert "grpc_server" in await asyncio.to_thread(scrape, server.metrics_port, reader(authority))
        for _, writer in silent:
            writer.close()


def test_files_that_cannot_be_used_are_told_of_once_however_often_they_are_asked_for(
    authority: Authority, server_leaf: Leaf, decoder_leaf: Leaf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(server_leaf.cert.read_bytes())
    key.write_bytes(server_leaf.key.read_bytes())
    files = KeyFiles(cert=cert, key=key)
    for _ in range(2):
        used = files.latest()
        key.write_bytes(decoder_leaf.key.read_bytes())
        for _ in range(5):
            assert files.latest() is used
        key.unlink()
        for _ in range(5):
            assert files.latest() is used
        key.write_bytes(server_leaf.key.read_bytes())
        assert files.latest() == used
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["new certificates cannot be used yet"] * 4


def test_files_that_do_not_fit_are_one_line(authority: Authority, server_leaf: Leaf, decoder_leaf: Leaf) -> None:
    for cert, key, ca in (
        (server_leaf.cert, decoder_leaf.key, None),
        (server_leaf.cert, server_leaf.cert, None),
        (Path("nowhere"), server_leaf.key, None),
        (server_leaf.cert, server_leaf.key, server_leaf.key),
    ):
        with pytest.raises(ValueError, match=r"server\.|nowhere") as raised:
            KeyFiles(cert=cert, key=key, ca=ca)
        assert "\n" not in str(raised.value)


def test_files_that_did_not_change_are_the_same_keys(server_leaf: Leaf) -> None:
    files = KeyFiles(cert=server_leaf.cert, key=server_leaf.key)
    assert files.latest() is files.latest()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_cert": Path("a")}, "--tls-cert and --tls-key go together"),
        ({"tls_key": Path("a")}, "--tls-cert and --tls-key go together"),
        ({"tls_client_ca": Path("a")}, "--tls-client-ca needs --tls-cert"),
        ({"metrics_client_ca": Path("a")}, "--metrics-client-ca needs --tls-cert"),
    ],
)
def test_halves_of_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TlsSettings(**settings)


BROKEN_HANDSHAKE = """
import asyncio, importlib, sys
module, cert, key = sys.argv[1:]
importlib.import_module(module)
from pathlib import Path
import grpc

async def main():
    server = grpc.aio.server()
    pair = Path(key).read_bytes(), Path(cert).read_bytes()
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\\r\\n\\r\\n")
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await server.stop(None)

asyncio.run(main())
"""


@pytest.mark.parametrize("module", ["decoder_service.__main__", "vision_service.__main__", "diptych.local"])
def test_a_broken_handshake_writes_nothing_among_the_records(module: str, server_leaf: Leaf) -> None:
    def errors(**environment: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
        return subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", BROKEN_HANDSHAKE, module, str(server_leaf.cert), str(server_leaf.key)],
            env={**inherited, **environment}, check=True, capture_output=True, text=True,
        ).stderr  # fmt: skip

    assert errors() == ""
    if module.startswith("vision"):
        assert "Handshake failed" in errors(GRPC_VERBOSITY="INFO"), "what the user asks for stands"
