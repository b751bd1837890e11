"""What nobody has room for is refused before it is read; everything else is let pass."""

import logging
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from common.errors import ResourceExhaustedError
from decoder_service.api.doorkeeper import Doorkeeper
from decoder_service.engine.admission import Admission, AdmissionLimits
from decoder_service.telemetry.request_metrics import RequestMetrics

SERVICE = "/diptych.v1.GenerationService"
LIMITS = AdmissionLimits(max_requests=2, max_waiting_tokens=100, max_picture_bytes=1000)


@pytest.mark.parametrize("places", [[(1, 0), (1, 0)], [(100, 0)]])
@pytest.mark.parametrize("method", ["Generate", "Tokenize"])
def test_a_full_queue_refuses_whatever_is_asked_for(
    places: list[tuple[int, int]], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    admission = Admission(LIMITS)
    doorkeeper = Doorkeeper(admission, RequestMetrics(registry))
    with ExitStack() as held, caplog.at_level(logging.INFO):
        for num_tokens, picture_bytes in places:
            doorkeeper.check(f"{SERVICE}/{method}")
            held.enter_context(admission.place(num_tokens=num_tokens, picture_bytes=picture_bytes))
        doorkeeper.check(f"{SERVICE}/GetModelInfo")
        doorkeeper.check("/grpc.health.v1.Health/Check")
        assert not caplog.records
        with pytest.raises(ResourceExhaustedError) as raised:
            doorkeeper.check(f"{SERVICE}/{method}")
    assert (raised.value.reason, raised.value.retry_after) == ("QUEUE_FULL", 1.0)
    doorkeeper.check(f"{SERVICE}/{method}")
    (record,) = caplog.records
    assert (record.message, record.levelno) == ("call refused", logging.INFO)
    assert (vars(record)["reason"], vars(record)["method"]) == ("QUEUE_FULL", f"{SERVICE}/{method}")
    refused = registry.get_sample_value("diptych_admission_rejections_total", {"reason": "QUEUE_FULL"})
    assert refused == (method == "Generate")


def test_one_that_waits_alone_with_more_tokens_than_may_wait_refuses_the_next(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(LIMITS)
    doorkeeper = Doorkeeper(admission, RequestMetrics(CollectorRegistry()))
    with admission.place(num_tokens=5000, picture_bytes=0) as place:
        with pytest.raises(ResourceExhaustedError):
            doorkeeper.check(f"{SERVICE}/Generate")
        place.begun()
        doorkeeper.check(f"{SERVICE}/Generate")


def test_a_burst_on_a_full_queue_is_counted_whole_and_told_in_ten_lines_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seconds = [0.0]
    registry = CollectorRegistry()
    admission = Admission(LIMITS)
    doorkeeper = Doorkeeper(admission, RequestMetrics(registry), clock=lambda: seconds[-1])
    with caplog.at_level(logging.INFO), admission.place(num_tokens=100, picture_bytes=0):
        for second in (0.5, 2.0):
            seconds.append(second)
            for _ in range(500):
                with pytest.raises(ResourceExhaustedError):
                    doorkeeper.check(f"{SERVICE}/Generate")
    assert registry.get_sample_value("diptych_admission_rejections_total", {"reason": "QUEUE_FULL"}) == 1000
    assert [vars(record).get("left_out") for record in caplog.records] == [None] * 10 + [490] + [None] * 9
