"""Both services with certificates and tokens, as they would run where nobody is trusted."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from benchmarks.free_port import free_port
from common.client.client import DiptychClient
from common.client.messages import raw_text, user_message
from common.client.types import ClientError, to_client_error
from common.security.token_file import hash_token
from diptych.v1 import generation_pb2 as pb
from diptych.v1 import vision_pb2, vision_pb2_grpc
from diptych.v1.generation_pb2_grpc import GenerationServiceStub
from tests.certificates import Authority, Leaf
from tests.end_to_end.services import ROOT, Service, decoder_service, vision_service
from training.scores import held_out

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""Makes the caller's library take no more than a few messages before it is asked for them."""
NAMES = ("DNS:localhost", "DNS:vision", "IP:127.0.0.1")


@dataclass
class Pair:
    """The services, and what it takes to reach them."""

    vision: Service
    decoder: Service
    authority: Authority
    tls: Path
    """Folder of the vision service's and the decoder's certificates, which they follow."""
    health_port: int

    def client(self, *, token: str | None = "secret") -> DiptychClient:  # noqa: S107 - no real one
        credentials = grpc.ssl_channel_credentials(self.authority.ca.read_bytes())
        return DiptychClient(self.decoder.address, credentials=credentials, server_name="localhost", token=token)


def put(folder: Path, name: str, leaf: Leaf) -> None:
    """Replace a certificate and its key, one after the other."""
    for source, kind in ((leaf.cert, "crt"), (leaf.key, "key")):
        new = folder / f"{name}.{kind}.new"
        new.write_bytes(source.read_bytes())
        new.replace(folder / f"{name}.{kind}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    tls = tmp_path_factory.mktemp("tls")
    authority = Authority(tls / "authority")
    (tls / "ca.crt").write_bytes(authority.ca.read_bytes())
    (tls / "tokens").write_text(f"{hash_token('secret').hex()} alice\n{hash_token('other').hex()} bob\n")
    put(tls, "vision", authority.leaf("vision", names=NAMES))
    put(tls, "decoder", authority.leaf("decoder", names=[*NAMES, "URI:spiffe://here/decoder"]))
    health_port = free_port()
    with ExitStack() as stack:
        vision = stack.enter_context(
            vision_service(
                *("--tls-cert", f"{tls}/vision.crt", "--tls-key", f"{tls}/vision.key"),
                *("--tls-client-ca", f"{tls}/ca.crt", "--allowed-clients", "spiffe://here/decoder"),
            )
        )
        decoder = stack.enter_context(
            decoder_service(
                *("--tls-cert", f"{tls}/decoder.crt", "--tls-key", f"{tls}/decoder.key"),
                *("--auth-tokens", f"{tls}/tokens", "--health-port", str(health_port)),
                *("--vision-ca", f"{tls}/ca.crt", "--vision-cert", f"{tls}/decoder.crt"),
                *("--vision-key", f"{tls}/decoder.key", "--vision-server-name", "vision"),
                vision=vision.address,
            )
        )
        replace(decoder, address=f"127.0.0.1:{health_port}").wait_serving()
        yield Pair(vision, decoder, authority, tls, health_port)


def ask_about_a_picture(client: DiptychClient, index: int) -> str:
    example = held_out("shapes", 7, index)
    return client.complete([user_message(example.turns[0].question, example.png_images)], timeout=30).text


def test_a_caller_with_a_token_gets_an_answer_about_a_picture(pair: Pair) -> None:
    with pair.client() as client:
        assert ask_about_a_picture(client, 3)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_caller_without_one_gets_nothing(pair: Pair, token: str | None) -> None:
    with pair.client(token=token) as client, pytest.raises(ClientError) as raised:
        client.complete(raw_text("circle"), timeout=10)
    assert raised.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_a_caller_finds_nothing_that_another_has_cached(pair: Pair) -> None:
    prompt = raw_text("red circle blue square " * 12)

    def cached(token: str, salt: bytes) -> int:
        with pair.client(token=token) as client:
            return client.complete(prompt, max_tokens=1, cache_salt=salt, timeout=30).usage.cached_tokens

    assert cached("secret", b"") == 0
    assert cached("secret", b"") > 0
    assert cached("other", b"") == 0
    assert cached("other", b"ours") == 0
    assert cached("secret", b"ours") > 0


def test_a_request_sent_twice_is_told_from_another_of_its_name_and_from_another_callers(pair: Pair) -> None:
    """The first is open for certain: nobody reads it, so that it is paused long before its last token."""
    credentials = grpc.ssl_channel_credentials(pair.authority.ca.read_bytes())
    options = [*SMALL_WINDOW, ("grpc.ssl_target_name_override", "localhost")]
    sampling = pb.SamplingParams(max_tokens=2500, ignore_eos=True)
    request = pb.GenerateRequest(request_id="mine", text=pb.RawText(text="red"), sampling=sampling)
    with grpc.secure_channel(pair.decoder.address, credentials, options) as channel:
        stub = GenerationServiceStub(channel)

        def send(token: str, *, max_tokens: int) -> Iterator[pb.GenerateResponse]:
            request.sampling.max_tokens = max_tokens
            return stub.Generate(request, timeout=60, metadata=(("authorization", f"Bearer {token}"),))

        def refusal(*, max_tokens: int) -> tuple[grpc.StatusCode, str | None]:
            with pytest.raises(grpc.RpcError) as raised:
                list(send("secret", max_tokens=max_tokens))
            error = to_client_error(raised.value)
            return error.code, error.reason

        first = send("secret", max_tokens=2500)
        next(first)
        assert refusal(max_tokens=2500) == (grpc.StatusCode.ABORTED, "REQUEST_RUNNING")
        assert refusal(max_tokens=5) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_EXISTS")
        assert list(send("other", max_tokens=5))[-1].HasField("finish"), "another caller's name is another"
        assert list(first)[-1].HasField("finish"), "the first one goes on to its end"
        assert list(send("secret", max_tokens=5))[-1].HasField("finish"), "and its name is free then"


def test_nobody_but_a_decoder_reaches_vision(pair: Pair) -> None:
    """Also not who has a certificate of the same authority."""

    def code(leaf: Leaf | None) -> grpc.StatusCode:
        keys = (leaf.key.read_bytes(), leaf.cert.read_bytes()) if leaf else (None, None)
        credentials = grpc.ssl_channel_credentials(pair.authority.ca.read_bytes(), *keys)
        with grpc.secure_channel(pair.vision.address, credentials) as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            with pytest.raises(grpc.RpcError) as raised:
                list(stub.Encode(vision_pb2.EncodeRequest(image=b"x"), timeout=10))
            call: grpc.Call = raised.value  # type: ignore[assignment]
            return call.code()

    assert code(None) is grpc.StatusCode.UNAVAILABLE
    assert code(pair.authority.leaf("other", names=["DNS:someone"])) is grpc.StatusCode.PERMISSION_DENIED
    assert code(pair.authority.leaf("good", names=["URI:spiffe://here/decoder"])) is grpc.StatusCode.INVALID_ARGUMENT


def test_all_certificates_are_renewed_under_load_and_no_request_fails(pair: Pair) -> None:
    """The old authority is replaced by a new one in three steps: trust both, renew, trust the new one alone."""
    stop = threading.Event()
    failures: list[ClientError] = []
    answers: list[str] = []

    def load(number: int) -> None:
        # Its own connection stays through it all; what is replaced is for connections that come later.
        with pair.client() as client:
            while not stop.is_set():
                try:
                    answers.append(ask_about_a_picture(client, number + len(answers)))
                except ClientError as error:
                    failures.append(error)

    threads = [threading.Thread(target=load, args=(100 * number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    other = Authority(pair.tls / "other", "other")
    both = pair.authority.ca.read_bytes() + other.ca.read_bytes()

    def renew() -> None:
        put(pair.tls, "vision", other.leaf("vision", names=NAMES))
        put(pair.tls, "decoder", other.leaf("decoder", names=[*NAMES, "URI:spiffe://here/decoder"]))

    steps: list[Callable[[], None]] = [
        lambda: _replace(pair.tls / "ca.crt", both),
        renew,
        lambda: _replace(pair.tls / "ca.crt", other.ca.read_bytes()),
    ]
    for step in steps:
        time.sleep(0.5)
        step()
        # Longer than the decoder looks away from its files.
        time.sleep(3.5)
    before = len(answers)
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(answers) > before
    with pair.client() as client, pytest.raises(ClientError):
        client.get_model_info(timeout=5)
    pair.authority = other
    with pair.client() as client:
        assert ask_about_a_picture(client, 5)


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def test_the_command_speaks_tls_and_sends_its_token(pair: Pair) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}", "DIPTYCH_TOKEN": "secret"}

    def diptych(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - ours
            [sys.executable, "-m", "diptych.cli", *arguments, "--ca", str(pair.authority.ca)],
            env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip

    assert "vocabulary size" in diptych("info", "--address", pair.decoder.address).stdout
    assert diptych("generate", "--address", pair.decoder.address, "--raw", "red", "--max-tokens", "4").returncode == 0
    healthy = diptych("health", "--address", pair.decoder.address)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    del environment["DIPTYCH_TOKEN"]
    refused = diptych("info", "--address", pair.decoder.address)
    assert (refused.returncode, refused.stderr[:33]) == (1, "UNAUTHENTICATED (TOKEN_MISSING): ")
