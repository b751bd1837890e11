"""Calls against real servers with every service of the API; who may call what is asked of each method."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from common.calls.observer import Context
from common.errors import DiptychError, PermissionDeniedError, ResourceExhaustedError, UnauthenticatedError
from common.security.access import AccessSettings, Gate
from common.security.principal import current_principal, token_charge
from common.security.refusal_log import MAX_LINES_PER_SECOND
from common.security.token_file import hash_token
from common.server.config import ServerConfig
from common.server.server import GrpcServer
from diptych.v1 import generation_pb2 as pb
from diptych.v1 import generation_pb2_grpc, vision_pb2, vision_pb2_grpc
from tests.common.calls.error_info import info_of
from tests.fake_generation import FakeGeneration

FILES = (pb.DESCRIPTOR, vision_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
SERVICES = [service for file in FILES for service in file.services_by_name.values()]
METHODS = [method for service in SERVICES for method in service.methods]
EXEMPT = "grpc.health.v1.Health"


class Everything(FakeGeneration):
    """Notes who called."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.GetModelInfoResponse:
        self.callers.append(current_principal().name)
        return await super().GetModelInfo(request, context)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        token_charge()(len(request.text.text))
        return await super().Tokenize(request, context)


class NoVision(vision_pb2_grpc.VisionServiceServicer):
    """Has the methods, and does nothing in them."""

    async def Encode(self, request: object, context: object) -> AsyncIterator[vision_pb2.EncodeResponse]:
        yield vision_pb2.EncodeResponse()

    async def GetModelInfo(self, request: object, context: object) -> vision_pb2.VisionServiceGetModelInfoResponse:
        return vision_pb2.VisionServiceGetModelInfoResponse()

    async def GetLoad(self, request: object, context: object) -> vision_pb2.GetLoadResponse:
        return vision_pb2.GetLoadResponse()


@asynccontextmanager
async def serving(**access: Any) -> AsyncIterator[tuple[Everything, str]]:  # noqa: ANN401
    """A server of all services of the API, reflection included."""
    config = ServerConfig(port=0, grace_seconds=0.0, reflection=True, access=AccessSettings(**access))
    server = GrpcServer(config, registry=CollectorRegistry(), service_names=[service.full_name for service in SERVICES])
    servicer = Everything()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
    vision_pb2_grpc.add_VisionServiceServicer_to_server(NoVision(), server.grpc)
    port = await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def call(address: str, path: str, *, bearer: str | None = None, body: bytes = b"", **metadata: str) -> bytes:
    """One call of whatever kind with one message; the first answer."""
    headers = [*metadata.items(), *([("authorization", f"Bearer {bearer}")] if bearer else [])]
    async with grpc.aio.insecure_channel(address) as channel:
        # As a client would: one message goes out with the call, and only a stream's may come after the answer.
        is_stream = "ServerReflection" in path
        method: Any = channel.stream_stream(path) if is_stream else channel.unary_stream(path)
        answers = method(iter([body]) if is_stream else body, metadata=headers, timeout=10)
        try:
            first: bytes = await answers.read()
            return first
        finally:
            answers.cancel()


async def refusal(address: str, path: str, **options: Any) -> tuple[str, str]:  # noqa: ANN401
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(address, path, **options)
    return raised.value.code().name, info_of(raised.value).reason


def path_of(method: Any) -> str:  # noqa: ANN401 - as protobuf has it
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(
        f"{hash_token('good').hex()} alice\n"
        f"{hash_token('old').hex()} bob expires=2020-01-01\n"
        f"{hash_token('narrow').hex()} carol methods=GetModelInfo\n"
    )
    return path


def test_the_descriptors_name_every_service_that_there_is() -> None:
    protos = Path(__file__).parents[3] / "protos"
    declared = {
        line.split()[1] for path in protos.rglob("*.proto") for line in path.read_text().splitlines()
        if line.startswith("service ")
    }  # fmt: skip
    assert declared == {service.name for service in SERVICES if service.full_name.startswith("diptych")}


async def test_every_method_but_healths_is_closed_to_callers_without_a_token(tokens: Path) -> None:
    async with serving(auth_tokens=tokens) as (_, address):
        for method in METHODS:
            if method.containing_service.full_name == EXEMPT:
                assert await call(address, path_of(method)), method.full_name
                continue
            for token, reason in ((None, "TOKEN_MISSING"), ("bad", "TOKEN_INVALID"), ("old", "TOKEN_EXPIRED")):
                answer = await refusal(address, path_of(method), bearer=token)
                assert answer == ("UNAUTHENTICATED", reason), method.full_name


async def test_every_method_is_open_to_a_good_token(tokens: Path) -> None:
    """The negative control of the test above: what refuses is the token, not the method."""
    async with serving(auth_tokens=tokens) as (_, address):
        for method in METHODS:
            codes = [grpc.StatusCode.OK]
            try:
                await call(address, path_of(method), bearer="good")
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
            assert codes[-1].name not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), method.full_name


async def test_a_token_for_some_methods_opens_no_others(tokens: Path) -> None:
    async with serving(auth_tokens=tokens) as (servicer, address):
        assert await call(address, "/diptych.v1.GenerationService/GetModelInfo", bearer="narrow")
        for name in ("Generate", "Tokenize"):
            answer = await refusal(address, f"/diptych.v1.GenerationService/{name}", bearer="narrow")
            assert answer == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")
        assert servicer.callers == ["carol"]


async def test_a_body_is_not_even_received_from_a_stranger(tokens: Path) -> None:
    """A client that never sends its message is answered all the same, so nobody waited for one."""
    path = "/diptych.v1.GenerationService/Tokenize"
    async with serving(auth_tokens=tokens) as (_, address), grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.stream_stream(path)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await method(timeout=5).read()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("value", ["good", "Basic good", "Bearer", "Bearer  "])
async def test_other_schemes_are_no_token(tokens: Path, value: str) -> None:
    async with serving(auth_tokens=tokens) as (_, address):
        answer = await refusal(address, "/diptych.v1.GenerationService/GetModelInfo", authorization=value)
    assert answer == ("UNAUTHENTICATED", "TOKEN_MISSING")


async def test_without_authentication_everybody_is_nobody() -> None:
    async with serving() as (servicer, address):
        await call(address, "/diptych.v1.GenerationService/GetModelInfo", bearer="whatever")
    assert servicer.callers == [""]


async def test_limits_of_a_caller_are_answered_with_the_time_to_wait(tokens: Path) -> None:
    path = "/diptych.v1.GenerationService/Tokenize"
    body = pb.TokenizeRequest(text=pb.RawText(text="0123456789" * 10)).SerializeToString()
    async with serving(auth_tokens=tokens, tokens_per_minute=60) as (_, address):
        await call(address, path, bearer="good", body=body)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(address, path, bearer="good", body=body)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(raised.value).reason == "CALLER_TOKENS_PER_MINUTE"
        trailers: Mapping[str, Any] = dict(raised.value.trailing_metadata() or ())
        assert 30_000 < int(trailers["grpc-retry-pushback-ms"]) <= 41_000
        assert await call(address, "/grpc.health.v1.Health/Check", bearer="good")
        assert await refusal(address, path, bearer="narrow") == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")


class Call:
    """What the gate sees of a call."""

    def __init__(
        self, token: str | None = None, *names: bytes, context: Mapping[str, list[bytes]] | None = None
    ) -> None:
        self._token = token
        self._context = context or ({"peer_dns": list(names)} if names else {})

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._context

    def invocation_metadata(self) -> Iterator[tuple[str, str]]:
        if self._token is not None:
            yield "authorization", f"Bearer {self._token}"


class Clock:
    """Time that stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


PATH = "/diptych.v1.VisionService/Encode"


def admitted(gate: Gate, call: Call) -> str:
    with gate.admit(PATH, call):
        return current_principal().name


def refused(gate: Gate, call: Call) -> DiptychError:
    with pytest.raises(DiptychError) as raised:
        admitted(gate, call)
    return raised.value


@pytest.mark.parametrize(
    ("context", "name"),
    [
        ({"peer_dns": [b"decoder.ns"], "x509_common_name": [b"someone"]}, "decoder.ns"),
        ({"peer_dns": [b"other"], "peer_uri": [b"spiffe://here/decoder"]}, "spiffe://here/decoder"),
        ({"x509_common_name": [b"decoder.ns"]}, "decoder.ns"),
        ({"peer_dns": [b"other"], "x509_common_name": [b"decoder.ns"]}, None),
        ({"peer_dns": [b"decoder.ns.evil"]}, None),
        ({"peer_dns": [b"*.ns"]}, None),
        ({"x509_common_name": [b""]}, None),
        ({}, None),
    ],
)
def test_only_names_that_are_allowed_get_in(context: dict[str, list[bytes]], name: str | None) -> None:
    settings = AccessSettings(allowed_clients=("decoder.ns", "spiffe://here/decoder"))
    gate = Gate(settings, verifies_clients=True)
    if name is None:
        error = refused(gate, Call(context=context))
        assert isinstance(error, PermissionDeniedError)
        assert error.reason == "CALLER_NOT_ALLOWED"
    else:
        assert admitted(gate, Call(context=context)) == name


def test_a_certificate_does_not_spare_the_token(tokens: Path) -> None:
    gate = Gate(AccessSettings(auth_tokens=tokens, allowed_clients=("decoder",)), verifies_clients=True)
    assert admitted(gate, Call("good", b"decoder")) == "alice"
    assert isinstance(refused(gate, Call(None, b"decoder")), UnauthenticatedError)
    assert isinstance(refused(gate, Call("good", b"other")), PermissionDeniedError)


def test_new_tokens_count_within_a_second_and_broken_files_change_nothing(tokens: Path) -> None:
    clock = Clock()
    gate = Gate(AccessSettings(auth_tokens=tokens), verifies_clients=False, clock=clock)
    assert admitted(gate, Call("good")) == "alice"

    def replace(text: str) -> None:
        new = tokens.with_suffix(".new")
        new.write_text(text)
        os.replace(new, tokens)  # noqa: PTH105 - as whatever mounts secrets does
        clock.now += 1.0

    replace(f"{hash_token('new').hex()} dora\n")
    assert admitted(gate, Call("new")) == "dora"
    assert isinstance(refused(gate, Call("good")), UnauthenticatedError)
    replace("rubbish\n")
    assert admitted(gate, Call("new")) == "dora"
    tokens.unlink()
    clock.now += 1.0
    assert admitted(gate, Call("new")) == "dora"


def test_a_token_is_good_until_its_day_comes(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{hash_token('t').hex()} a expires=2027-01-31\n")
    for day, good in ((30, True), (31, False)):
        gate = Gate(
            AccessSettings(auth_tokens=path), verifies_clients=False,
            today=lambda day=day: datetime(2027, 1, day, 12, tzinfo=UTC),  # type: ignore[misc]
        )  # fmt: skip
        if good:
            assert admitted(gate, Call("t")) == "a"
        else:
            assert refused(gate, Call("t")).reason == "TOKEN_EXPIRED"


def test_limits_are_each_callers_own_and_follow_the_file(tokens: Path) -> None:
    clock = Clock()
    gate = Gate(AccessSettings(auth_tokens=tokens, calls_per_minute=1), verifies_clients=False, clock=clock)
    tokens.write_text(tokens.read_text() + f"{hash_token('dora').hex()} dora calls-per-minute=2\n")
    clock.now += 1.0
    admitted(gate, Call("good"))
    assert isinstance(refused(gate, Call("good")), ResourceExhaustedError)
    for _ in range(2):
        admitted(gate, Call("dora"))
    assert isinstance(refused(gate, Call("dora")), ResourceExhaustedError)


async def test_concurrent_calls_know_their_own_callers(tokens: Path) -> None:
    async with serving(auth_tokens=tokens) as (servicer, address):
        path = "/diptych.v1.GenerationService/GetModelInfo"
        await asyncio.gather(*(call(address, path, bearer=token) for token in ["good", "narrow"] * 20))
    assert sorted(servicer.callers) == ["alice"] * 20 + ["carol"] * 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"access": AccessSettings(allowed_clients=("a",))}, "--allowed-clients needs --tls-client-ca"),
        ({"access": AccessSettings(max_open_calls=1)}, "limits for each caller need --auth-tokens or --tls-client-ca"),
        ({"port": 9, "metrics_port": 9}, "must differ"),
    ],
)
def test_settings_that_would_protect_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerConfig(**settings)


def test_a_refused_call_is_logged_with_method_status_and_name_and_never_its_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tokens"
    path.write_text(
        f"{hash_token('old').hex()} olga expires=2020-01-31\n"
        f"{hash_token('narrow').hex()} nora methods=GetModelInfo\n"
        f"{hash_token('busy').hex()} bert calls-per-minute=1\n"
    )
    gate = Gate(AccessSettings(auth_tokens=path), verifies_clients=False, clock=Clock())
    admitted(gate, Call("busy"))
    assert not caplog.records, "only refusals are logged"
    for token in ("guessed", "old", "narrow", "busy"):
        refused(gate, Call(token))
    told = [(vars(record).get("caller"), vars(record)["status"], vars(record)["reason"]) for record in caplog.records]
    assert told == [
        (None, "UNAUTHENTICATED", "TOKEN_INVALID"),
        ("olga", "UNAUTHENTICATED", "TOKEN_EXPIRED"),
        ("nora", "PERMISSION_DENIED", "METHOD_NOT_ALLOWED"),
        ("bert", "RESOURCE_EXHAUSTED", "CALLER_CALLS_PER_MINUTE"),
    ]
    assert {vars(record)["method"] for record in caplog.records} == {PATH}
    assert not any(token in repr(vars(record)) for record in caplog.records for token in ("guessed", "narrow", "busy"))


def test_a_flood_of_refused_calls_is_counted_and_does_not_fill_the_log(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    gate = Gate(AccessSettings(auth_tokens=tokens), verifies_clients=False, clock=clock)
    for _ in range(1000):
        refused(gate, Call("guessed"))
    assert len(caplog.records) == MAX_LINES_PER_SECOND
    clock.now += 1.0
    refused(gate, Call("guessed"))
    refused(gate, Call("guessed"))
    assert [vars(record).get("left_out") for record in caplog.records[-2:]] == [1000 - MAX_LINES_PER_SECOND, None]


def test_an_error_of_a_call_that_was_let_in_is_no_refusal(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(AccessSettings(auth_tokens=tokens), verifies_clients=False)
    with pytest.raises(ResourceExhaustedError), gate.admit(PATH, Call("good")):
        raise ResourceExhaustedError("QUEUE_FULL", "x")
    assert not caplog.records
