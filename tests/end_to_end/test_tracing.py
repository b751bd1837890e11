"""One trace over both processes, as a receiver of OTLP over gRPC gets it from them."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider

from common.client.client import DiptychClient
from common.client.messages import user_message
from common.client.types import ClientError
from tests import pictures
from tests.end_to_end.services import Service, decoder_service, vision_service

QUESTION = "Which colour has the submarine?"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what is exported to it: spans by their id, with the name of the service that sent them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: dict[bytes, tuple[str, Span]] = {}
        self.raw = b""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ANN401
        with self._lock:
            self.raw += request.SerializeToString()
            for resource in request.resource_spans:
                names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self._spans[span.span_id] = (names["service.name"], span)
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: int) -> dict[bytes, tuple[str, Span]]:
        with self._lock:
            return {
                key: value
                for key, value in self._spans.items()
                if int.from_bytes(value[1].trace_id) == trace_id
            }  # fmt: skip

    def wait_for(self, trace_id: int, num_spans: int) -> dict[bytes, tuple[str, Span]]:
        end = time.monotonic() + 20
        while len(found := self.of(trace_id)) < num_spans:
            assert time.monotonic() < end, f"only {[span.name for _, span in found.values()]} arrived"
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, str]]:
    servicer, server = Receiver(), grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="module")
def pair(receiver: tuple[Receiver, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Any]]:
    """Both services, which trace only the calls that come with a trace, and the folder of their logs."""
    flags = ("--otlp-endpoint", receiver[1], "--trace-sample-ratio", "0.0", "--log-format", "json")
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with (
            vision_service(*flags, "--log-level", "debug", log=logs / "vision") as vision,
            decoder_service(
                *flags, "--log-level", "debug", "--num-blocks", "128", vision=vision.address, log=logs / "decoder"
            ) as decoder,
        ):
            decoder.wait_serving()
            yield decoder, logs


@pytest.fixture
def root() -> Iterator[tuple[Any, int]]:
    """A span of the application that calls, whose provider exports nothing, and its trace."""
    provider = TracerProvider()
    with provider.get_tracer("application").start_as_current_span("application") as span:
        yield span, span.get_span_context().trace_id


def tree(spans: dict[bytes, tuple[str, Span]], parent: bytes) -> dict[str, Any]:
    """Names of spans inside each other, with the service; siblings in order of their start."""
    inside = sorted(
        (item for item in spans.values() if item[1].parent_span_id == parent), key=lambda i: i[1].start_time_unix_nano
    )
    return {f"{service} {span.name}": tree(spans, span.span_id) for service, span in inside}


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in span.attributes}


def test_one_trace_leads_from_the_callers_span_through_both_services(
    pair: tuple[Service, Any], receiver: tuple[Receiver, str], root: tuple[Any, int]
) -> None:
    decoder, logs = pair
    with DiptychClient(decoder.address) as client:
        done = client.complete(
            [user_message(QUESTION, [pictures.save(pictures.noise(96, 64, seed=91))])], max_tokens=5, timeout=30,
            request_id="traced-1",
        )  # fmt: skip
    spans = receiver[0].wait_for(root[1], 12)
    (server,) = [s for _, s in spans.values() if s.name == "diptych.v1.GenerationService/Generate"]
    # What the decoder was told as its parent was the client's span, which nobody exported here.
    assert server.parent_span_id not in spans
    vision, service = "diptych-vision", "diptych-decoder"
    stages = tree(spans, server.span_id)
    encode: dict[str, Any] = {
        f"{vision} diptych.v1.VisionService/Encode": {
            f"{vision} {s}": {} for s in ("preprocess", "queue", "forward", "transfer")
        }
    }
    assert stages == {
        f"{service} prepare": {},
        f"{service} diptych.v1.VisionService/Encode": encode,
        f"{service} encode wait": {},
        f"{service} queue": {},
        f"{service} prefill": {},
        f"{service} decode": {},
    }
    told = attributes(server)
    assert (told["gen_ai.operation.name"], told["gen_ai.response.id"]) == ("chat", "traced-1")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (
        done.usage.prompt_tokens, done.usage.completion_tokens,
    )  # fmt: skip
    assert told["gen_ai.request.max_tokens"] == 5
    assert told["rpc.response.status_code"] == "OK"
    for _, span in spans.values():
        # The stages lie inside the whole, but for the clocks' grain.
        assert span.start_time_unix_nano >= server.start_time_unix_nano - 5_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert QUESTION.encode() not in receiver[0].raw
    lines = {
        name: [json.loads(line) for line in (logs / name).read_text().splitlines()] for name in ("decoder", "vision")
    }
    trace_id = f"{root[1]:032x}"
    for name in ("decoder", "vision"):
        assert {"traced-1"} == {line["request_id"] for line in lines[name] if line.get("trace_id") == trace_id}, name


def test_a_refused_call_is_a_failed_span(
    pair: tuple[Service, Any], receiver: tuple[Receiver, str], root: tuple[Any, int]
) -> None:
    with DiptychClient(pair[0].address) as client, pytest.raises(ClientError):
        client.complete([user_message("x" * 400_000)], timeout=30)
    ((_, span),) = receiver[0].wait_for(root[1], 1).values()
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "INVALID_ARGUMENT"


def test_a_caller_that_is_not_sampled_leaves_no_spans_though_its_trace_is_in_the_logs(
    pair: tuple[Service, Any], receiver: tuple[Receiver, str]
) -> None:
    decoder, logs = pair
    context = trace.SpanContext(0xAB, 0xCD, is_remote=False, trace_flags=trace.TraceFlags(0))
    with trace.use_span(trace.NonRecordingSpan(context)), DiptychClient(decoder.address) as client:
        client.complete([user_message("Hello?")], max_tokens=2, timeout=30, request_id="unsampled")
    time.sleep(0.5)
    assert receiver[0].of(0xAB) == {}
    assert f"{0xAB:032x}" in (logs / "decoder").read_text()


def test_every_request_is_one_line_and_nothing_of_what_was_said_is_in_the_logs(pair: tuple[Service, Any]) -> None:
    decoder, logs = pair
    names = ["plain-1", "plain-2"]
    with DiptychClient(decoder.address) as client:
        said = [
            client.complete([user_message(QUESTION)], max_tokens=12, timeout=30, request_id=name).text for name in names
        ]
    picture = pictures.save(pictures.noise(80, 80, seed=93))
    with DiptychClient(decoder.address) as client:
        client.complete([user_message(QUESTION, [picture])], max_tokens=2, timeout=30)
        with pytest.raises(ClientError):
            client.complete([user_message(QUESTION, [picture[:1500]])], max_tokens=2, timeout=30)
    texts = {name: (logs / name).read_text() for name in ("decoder", "vision")}
    ends = [json.loads(line) for line in texts["decoder"].splitlines() if '"request finished"' in line]
    for name in names:
        (end,) = [end for end in ends if end.get("request_id") == name]
        assert (end["outcome"], end["level"]) == ("length", "INFO") or end["outcome"] == "stop"
        assert {"prompt_tokens", "completion_tokens", "seconds", "queue_seconds", "decode_seconds"} <= end.keys()
    forbidden = [
        QUESTION,
        "submarine",
        *(text for text in said if len(text) > 3),
        str(picture[:40])[2:-1],
        picture.hex()[:60],
    ]
    for text in texts.values():
        for words in forbidden:
            assert words not in text
            assert json.dumps(words)[1:-1] not in text
