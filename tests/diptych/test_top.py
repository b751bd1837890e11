"""`diptych top`, over a server that shows what it is told to, and one that is not there."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from common.security.tls import MetricsTls, TlsSettings
from common.server.metrics_server import MetricsServer
from diptych.cli import main
from diptych.scrape import Scrape, scrape
from diptych.top_frame import frame
from tests.certificates import Authority


@contextmanager
def endpoint(*pages: bytes) -> Iterator[str]:
    """Shows one page after the other, then the last one for ever."""
    left = list(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def decoder_pages() -> tuple[bytes, bytes]:
    """Between them 100 tokens were generated, and one first token came within 250 ms and one within 1 s."""
    registry = CollectorRegistry()
    Gauge("diptych_num_requests_running", "x", registry=registry).set(3)
    Gauge("diptych_num_requests_waiting", "x", registry=registry).set(2)
    Gauge("diptych_kv_blocks", "x", registry=registry).set(200)
    Gauge("diptych_kv_blocks_free", "x", registry=registry).set(50)
    tokens = Counter("diptych_generation_tokens", "x", registry=registry)
    first = Histogram("diptych_time_to_first_token_seconds", "x", buckets=(0.25, 1.0), registry=registry)
    tokens.inc(1000)
    first.observe(100.0)
    before = generate_latest(registry)
    tokens.inc(100)
    first.observe(0.2)
    first.observe(0.7)
    return before, generate_latest(registry)


def test_rates_and_quantiles_are_those_between_two_looks() -> None:
    with endpoint(*decoder_pages()) as address:
        before, now = (scrape(address, timeout=5) for _ in range(2))
    now = Scrape(at=before.at + 2.0, samples=now.samples)
    assert now.quantile("diptych_time_to_first_token_seconds", 0.5, before) == 0.25
    assert now.quantile("diptych_time_to_first_token_seconds", 0.95, before) == 1.0
    text = "\n".join(frame({address: (before, now)}, {}))
    assert "running 3" in text
    assert "waiting 2" in text
    assert "generated 50.0/s" in text
    assert "first 250/1000 ms" in text
    assert re.search(r"KV cache   \[#{15}\.{5}\]  75%", text)


def test_a_counter_that_begins_anew_shows_no_negative_rate() -> None:
    sample = ("diptych_generation_tokens_total", frozenset[tuple[str, str]]())
    before, now = Scrape(at=0.0, samples={sample: 500.0}), Scrape(at=1.0, samples={sample: 20.0})
    assert "generated 20.0/s" in "\n".join(frame({"d": (before, now)}, {}))


def test_tries_are_shown_of_a_decoder_that_tries_tokens() -> None:
    def look(tried: float, accepted: float) -> Scrape:
        counts = {"draft": tried, "accepted": accepted}
        samples = {
            (f"diptych_spec_decode_num_{kind}_tokens_total", frozenset[tuple[str, str]]()): count
            for kind, count in counts.items()
        }
        return Scrape(at=tried, samples=samples)

    assert "tries      1.0 tokens/s  right 75%" in "\n".join(frame({"d": (look(8, 4), look(16, 10))}, {}))
    assert "tries" not in "\n".join(frame({"d": (look(0, 0), look(0, 0))}, {}))


def test_an_endpoint_that_is_down_is_named_and_the_other_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(*decoder_pages()) as address:
        status = main(["top", "--once", "--interval", "0.05", "--decoder", address, "--vision", "127.0.0.1:9"])
    text = capsys.readouterr().out
    assert status == 0
    assert "running 3" in text
    assert re.search(r"^vision   127\.0\.0\.1:9  DOWN: ", text, re.MULTILINE)
    assert "\x1b" not in text


@pytest.mark.parametrize("page", [b"", b"<html>", b"\xff\xfe", b"diptych_x nonsense\n"])
def test_nonsense_is_down_or_empty_and_never_an_error(page: bytes) -> None:
    with endpoint(page) as address:
        looked = scrape(address, timeout=5)
    assert looked.problem is not None or not looked.samples
    assert frame({address: (looked, looked)}, {address: (looked, looked)})


def test_what_speaks_no_http_is_told_without_its_bytes() -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\0\0\x06\x04\xff\n\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        looked = scrape(f"127.0.0.1:{listener.getsockname()[1]}", timeout=5)
        thread.join()
    assert looked.problem == "speaks no HTTP"


def test_nobody_answers_is_a_failure_of_the_command() -> None:
    assert main(["top", "--once", "--interval", "0.01", "--decoder", "127.0.0.1:9", "--vision", ""]) == 1


@pytest.mark.parametrize(
    "flags", [("--decoder", "", "--vision", ""), *(("--interval", value) for value in ("0", "nan", "inf", "soon"))]
)
def test_wrong_flags_are_told_in_one_line(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["top", "--once", *flags])
    except SystemExit as ended:
        status = ended.code
    errors = capsys.readouterr().err
    assert (status, errors.count("\n")) == (2, 1)
    assert flags[0] in errors


def test_a_port_that_does_not_speak_http_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    """As the one for calls, which is easily taken for the one of the metrics."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        flags = ("--interval", "0.01", "--decoder", f"127.0.0.1:{port}", "--vision", "no such host")
        assert main(["top", "--once", *flags]) == 1
    finally:
        server.stop(None).wait()
    text = capsys.readouterr().out
    assert len(re.findall("DOWN: .", text)) == 2
    assert text.count("\n") == 3
    assert text.replace("\n", "").isprintable()  # Whatever it sends does not command the terminal.


def test_files_are_not_read_through_an_address() -> None:
    assert scrape("file:///etc/passwd", timeout=1).problem is not None


def test_endpoints_that_ask_for_certificates_are_read_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    server, own = authority.leaf("server", names=["DNS:decoder.here"]), authority.leaf("own", names=["DNS:me"])
    tls = MetricsTls(TlsSettings(tls_cert=server.cert, tls_key=server.key, metrics_client_ca=authority.ca))
    registry = CollectorRegistry()
    Gauge("diptych_num_requests_running", "x", registry=registry).set(3)
    metrics = MetricsServer(registry, tls=tls)
    metrics.start("127.0.0.1", 0)

    def top(*flags: object) -> tuple[int, str]:
        address = f"127.0.0.1:{metrics.port}"
        arguments = ["top", "--once", "--interval", "0.01", "--decoder", address, "--vision", "", *map(str, flags)]
        return main(arguments), capsys.readouterr().out

    trust, name = ("--ca", authority.ca), ("--server-name", "decoder.here")
    try:
        status, text = top(*trust, "--cert", own.cert, "--key", own.key, *name)
        assert (status, "running 3" in text) == (0, True)
        for flags in ((), trust + name, ("--cert", own.cert, "--key", own.key, *trust)):
            status, text = top(*flags)
            assert (status, "DOWN" in text) == (1, True)
        assert top(*trust, "--cert", own.cert)[0] == 2
    finally:
        metrics.stop()
