"""What tracing costs where it is off, and what it says where it cannot be on; spans are tested end to end."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.telemetry.spans import SpanKind, Tracer
from common.telemetry.trace_context import TraceContext
from common.telemetry.tracing import TracingSettings, make_tracer

ROOT = Path(__file__).parents[3]
PATHS = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'build/gen')!r}]\n"
WALL = """
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError(f"{name} is behind the wall")
sys.meta_path.insert(0, Wall())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PATHS + script], capture_output=True, text=True, check=False)  # noqa: S603


def test_services_and_client_import_nothing_of_opentelemetry_and_work_without_it() -> None:
    modules = ("decoder_service.service", "vision_service.service", "common.client.client", "diptych.commands")
    done = run(
        WALL
        + "".join(f"import {module}\n" for module in modules)
        + "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_an_endpoint_without_the_extra_is_told_in_one_line() -> None:
    script = WALL + (
        "from common.telemetry.tracing import TracingSettings, make_tracer\n"
        "try:\n    make_tracer(TracingSettings(otlp_endpoint='http://x:1'), service_name='s')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = run(script)
    assert "pip install diptych[tracing]" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_what_records_nothing_passes_the_callers_context_on() -> None:
    context = TraceContext("ab" * 16, "cd" * 8, sampled=True)
    span = make_tracer(TracingSettings(), service_name="s").start("call", parent=context, kind=SpanKind.SERVER)
    assert span.start("inner", kind=SpanKind.CLIENT).context == context
    assert Tracer().start("call", parent=None, kind=SpanKind.SERVER).context is None


@pytest.mark.parametrize(("sampled", "ratio"), [(True, 0.0), (False, 1.0)])
def test_a_recorded_span_goes_into_the_callers_trace_and_keeps_its_decision(sampled: bool, ratio: float) -> None:
    settings = TracingSettings(otlp_endpoint="http://127.0.0.1:9", trace_sample_ratio=ratio)
    tracer = make_tracer(settings, service_name="s")
    parent = TraceContext("ab" * 16, "cd" * 8, sampled=sampled)
    span = tracer.start("call", parent=parent, kind=SpanKind.SERVER)
    assert span.context is not None
    assert (span.context.trace_id, span.context.sampled) == (parent.trace_id, sampled)
    assert span.context.span_id != parent.span_id
    tracer.close()
