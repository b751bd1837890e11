"""What is counted of a picture by the end of it, whatever that was."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from common.errors import InternalError, InvalidArgumentError, ResourceExhaustedError
from common.features.features import EncodeTimings
from vision_service.telemetry.image_metrics import STATUSES, ImageMetrics


def statuses(registry: CollectorRegistry) -> dict[str, float]:
    found = {
        status: registry.get_sample_value("diptych_vision_requests_total", {"status": status}) for status in STATUSES
    }
    return {status: count for status, count in found.items() if count}


def test_a_picture_that_was_sent_is_counted_in_every_stage() -> None:
    registry = CollectorRegistry()
    metrics = ImageMetrics(registry, max_batch_patches=100)
    with metrics.watching() as watch:
        watch.encoded(EncodeTimings(queue=0.2, preprocess=0.3, encode=0.4))
        watch.sent(4096)
    with metrics.watching() as watch:
        watch.encoded(None)  # It was there: nothing waited, nothing was decoded.
        watch.sent(1000)
    metrics.batch_encoded(2, 50, 0.4)
    values = {
        "queue_wait_seconds_sum": 0.2, "queue_wait_seconds_count": 1, "preprocess_seconds_sum": 0.3,
        "transfer_seconds_count": 2, "request_e2e_latency_seconds_count": 2, "wire_bytes_total": 5096,
        "model_forward_seconds_sum": 0.4, "images_per_batch_sum": 2, "batch_fill_ratio_sum": 0.5,
        "patches_encoded_total": 50,
    }  # fmt: skip
    assert {name: registry.get_sample_value(f"diptych_vision_{name}") for name in values} == pytest.approx(values)
    assert statuses(registry) == {"ok": 2}


@pytest.mark.parametrize(
    ("error", "status", "counter"),
    [
        (ResourceExhaustedError("ENCODER_QUEUE_FULL", "x"), "rejected", "admission_rejections"),
        (InvalidArgumentError("IMAGE_UNDECODABLE", "x"), "invalid", "request_failures"),
        (InternalError("ENCODE_FAILED", "x"), "failed", "request_failures"),
        (ValueError("x"), "failed", "request_failures"),
        (asyncio.CancelledError(), "cancelled", None),
        (GeneratorExit(), "cancelled", None),
    ],
)
def test_a_picture_that_was_not_sent_is_counted_where_it_belongs(
    error: BaseException, status: str, counter: str | None
) -> None:
    registry = CollectorRegistry()
    metrics = ImageMetrics(registry, max_batch_patches=100)

    def run() -> None:
        with metrics.watching():
            raise error

    with pytest.raises(type(error)):
        run()
    assert statuses(registry) == {status: 1}
    if counter is not None:
        labels = {"reason": getattr(error, "reason", "INTERNAL")}
        assert registry.get_sample_value(f"diptych_vision_{counter}_total", labels) == 1
