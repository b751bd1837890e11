"""What is counted of requests and of steps.

Knows metric names, buckets and labels. Does not know when something happens: `request_watch` says so for requests,
the engine's host for steps. Everything that has labels is looked up here, once. The names are vLLM's after
the prefix, see docs/metrics.md.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from common.calls.reasons import ReasonCounter
from common.telemetry.tally import Tally

_UP_TO_A_MINUTE: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0)
_UP_TO_FIVE_MINUTES: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
_PER_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_TOKENS: Final = tuple(float(2**power) for power in range(17))
_IMAGES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)

OUTCOMES: Final = ("stop", "length", "abort", "deadline", "error")
"""How a request that is not refused can end."""


class RequestMetrics:
    """Histograms and counters of the requests of one process."""

    def __init__(self, registry: CollectorRegistry, *, adapters: Iterable[str] = ()) -> None:
        """Register them; `adapters` are the names that requests may ask for."""

        def seconds(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"diptych_{name}_seconds", help_, buckets=buckets, registry=registry)

        def amounts(name: str, help_: str, buckets: tuple[float, ...] = _TOKENS) -> Histogram:
            return Histogram(f"diptych_{name}", help_, buckets=buckets, registry=registry)

        def count(name: str, help_: str) -> Counter:
            return Counter(f"diptych_{name}", help_, registry=registry)

        self.time_to_first_token = seconds(
            "time_to_first_token", "From the request's arrival to its first token.", _UP_TO_A_MINUTE
        )
        self.time_per_output_token = seconds(
            "request_time_per_output_token", "Mean time of a request's tokens after the first.", _PER_TOKEN
        )
        self.latency = seconds("e2e_request_latency", "From arrival to the last token.", _UP_TO_FIVE_MINUTES)
        self.prepare = seconds("request_prepare_time", "Parsing, templates, tokens and image headers.", _UP_TO_A_MINUTE)
        self.encode_wait = seconds(
            "request_encode_wait", "Waiting for the features of the first image, of requests that need some.",
            _UP_TO_A_MINUTE,
        )  # fmt: skip
        self.queue = seconds("request_queue_time", "Waiting for the first step, but not for images.", _UP_TO_A_MINUTE)
        self.prefill = seconds("request_prefill_time", "From the first step to the first token.", _UP_TO_A_MINUTE)
        self.decode = seconds("request_decode_time", "From the first token to the last.", _UP_TO_FIVE_MINUTES)
        self.request_prompt_tokens = amounts("request_prompt_tokens", "Tokens of a request's prompt.")
        self.request_generation_tokens = amounts("request_generation_tokens", "Tokens generated for a request.")
        self.request_images = amounts("request_images", "Images of a request.", _IMAGES)
        self.prompt_tokens = count("prompt_tokens", "Tokens of the prompts of finished requests.")
        self.prompt_tokens_cached = count("prompt_tokens_cached", "Those that the prefix cache held.")
        finished = Counter(
            "diptych_request_success",
            "Requests that ended and were not refused, by how.",
            ["finished_reason"],
            registry=registry,
        )
        self.finished = {outcome: finished.labels(outcome) for outcome in OUTCOMES}
        by_adapter = Counter(
            "diptych_adapter_requests",
            "Requests that asked for an adapter, by its name.",
            ["adapter"],
            registry=registry,
        )
        self.adapters = {name: by_adapter.labels(name) for name in adapters}
        self.refused = ReasonCounter(
            "diptych_admission_rejections",
            "Requests that were refused.",
            registry=registry,
            expected=(
                "QUEUE_FULL",
                "VISION_UNAVAILABLE",
                "MODEL_MISMATCH",
                "ENGINE_STOPPED",
                "PROMPT_TOO_LONG",
                "IMAGE_UNDECODABLE",
                "ENCODER_QUEUE_FULL",
                "DEVICE_MEMORY",
            ),
        )
        self.failed = ReasonCounter(
            "diptych_request_failures",
            "Requests that failed for a reason of ours.",
            registry=registry,
            expected=(
                "STEP_FAILED",
                "NUMERIC_ERROR",
                "VISION_UNAVAILABLE",
                "EMBED_CORRUPT",
                "EMBED_INVALID",
                "INTERNAL",
            ),
        )
        self.inter_token_latency = Tally(
            "diptych_inter_token_latency_seconds",
            "Between two tokens of a request, those of one step counted once.",
            bounds=_PER_TOKEN,
        )
        registry.register(self.inter_token_latency)


class StepMetrics:
    """Histograms and counters of the engine's steps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tokens = Tally("diptych_iteration_tokens", "Tokens that a step computed.", bounds=_TOKENS)
        self._seconds = Tally("diptych_iteration_seconds", "Duration of a step.", bounds=_PER_TOKEN)
        self._generated = Counter("diptych_generation_tokens", "Tokens generated.", registry=registry)
        registry.register(self._tokens)
        registry.register(self._seconds)

    def observe(self, num_tokens: int, num_generated: int, seconds: float) -> None:
        """Count a step; called by one thread."""
        self._tokens.observe(num_tokens)
        self._seconds.observe(seconds)
        self._generated.inc(num_generated)
