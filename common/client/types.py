"""What the client gives to its caller: completions and errors.

Knows the messages of the API and of google.rpc's details. Does not know channels or calls.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from common.image.preprocessing import PatchGrid
from diptych.v1 import error_details_pb2 as details_pb
from diptych.v1 import generation_pb2 as pb

_DETAILS_KEY = "grpc-status-details-bin"
_TYPE_PREFIX = "type.googleapis.com/google.rpc."
_MAX_RETRY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts."""

    prompt_tokens: int
    """Pictures included."""
    image_tokens: int
    cached_tokens: int
    """Prompt tokens that the prefix cache held."""
    completion_tokens: int
    images_not_encoded: int
    """Pictures that a cache spared from being encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, in seconds."""

    queue_seconds: float
    encode_wait_seconds: float
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """How likely the model held a token, as natural logarithms of its own probabilities."""

    logprob: float
    """Of the token itself."""
    top: tuple[tuple[int, float], ...]
    """The likeliest token ids with theirs, likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole completion."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """"stop" or "length"."""
    usage: Usage
    timings: Timings
    grids: tuple[PatchGrid, ...]
    """Patch grid of every picture, in prompt order."""
    request_id: str
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, where `logprobs` was asked for."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """One for each token of the prompt but the first, where `prompt_logprobs` was asked for."""


class ClientError(Exception):
    """A call that did not succeed."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Describe a status; `reason` is "" and `metadata` empty where the server did not speak itself.

        `field` is the path of the request's field at fault; `retry_after` is in seconds.
        """
        super().__init__(f"{code.name}{f' ({reason})' if reason else ''}: {message}{f' [{field}]' if field else ''}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata or {}
        self.field = field
        self.retry_after = retry_after


def to_client_error(error: grpc.RpcError) -> ClientError:
    """The error that our caller sees for gRPC's own; details that cannot be read are left out."""
    # What a call raises is a Call too, also in asyncio; the stubs of grpc do not say so.
    call: grpc.Call = error  # type: ignore[assignment]
    details = _details(call)
    info = details.get("ErrorInfo", details_pb.ErrorInfo())
    bad = details.get("BadRequest", details_pb.BadRequest())
    retry = details.get("RetryInfo")
    return ClientError(
        call.code(),
        info.reason,
        call.details() or "",
        metadata=dict(info.metadata),
        field=bad.field_violations[0].field if bad.field_violations else None,
        retry_after=None if retry is None else _seconds(retry.retry_delay),
    )


def _seconds(delay: Duration) -> float:
    """A delay as a time that can be waited for, whatever the other side says."""
    return min(max(0.0, delay.seconds + delay.nanos / 1e9), _MAX_RETRY_SECONDS)


def _details(call: grpc.Call) -> dict[str, Any]:
    """The details that we have twins of, by name."""
    values = [
        value for key, value in call.trailing_metadata() or () if key == _DETAILS_KEY and isinstance(value, bytes)
    ]
    twins = {twin.DESCRIPTOR.name: twin for twin in (details_pb.ErrorInfo, details_pb.BadRequest, details_pb.RetryInfo)}
    try:
        status = details_pb.ErrorStatus.FromString(values[0])
        packed = {detail.type_url.removeprefix(_TYPE_PREFIX): detail.value for detail in status.details}
        return {name: twins[name].FromString(value) for name, value in packed.items() if name in twins}
    except (IndexError, DecodeError):
        return {}


class CompletionBuilder:
    """Puts the messages of one stream together."""

    def __init__(self) -> None:
        self._parts: dict[int, _Parts] = {}
        self._prompt = pb.PromptInfo()
        self._num_messages = 0

    def add(self, response: pb.GenerateResponse) -> None:
        """Take the next message. Raises ClientError for a gap in the stream."""
        if response.seq != self._num_messages:
            raise _incomplete()
        self._num_messages += 1
        if response.HasField("prompt"):
            self._prompt = response.prompt
        else:
            self._parts.setdefault(response.index, _Parts()).add(response)

    def build(self) -> Completion:
        """The first completion after the last message. Raises ClientError for a stream without an end."""
        return self.build_all()[0]

    def build_all(self) -> list[Completion]:
        """All completions after the last message. Raises ClientError for a stream without an end of each."""
        if not self._parts or sorted(self._parts) != list(range(len(self._parts))):
            raise _incomplete()
        return [self._parts[index].build(self._prompt) for index in range(len(self._parts))]


class _Parts:
    """What has come of one completion."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprobs] = []
        self._prompt_logprobs: list[Logprobs] = []
        self._finish: pb.Finish | None = None

    def add(self, response: pb.GenerateResponse) -> None:
        if response.HasField("delta"):
            self._texts.append(response.delta.text)
            self._token_ids.extend(response.delta.token_ids)
            self._logprobs.extend(map(_logprobs, response.delta.logprobs))
            self._prompt_logprobs.extend(map(_logprobs, response.delta.prompt_logprobs))
        elif response.HasField("finish"):
            self._finish = response.finish

    def build(self, prompt: pb.PromptInfo) -> Completion:
        if self._finish is None:
            raise _incomplete()
        usage, timings = self._finish.usage, self._finish.timings
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=pb.FinishReason.Name(self._finish.reason).removeprefix("FINISH_REASON_").lower(),
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                image_tokens=usage.image_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                images_not_encoded=usage.images_not_encoded,
            ),
            timings=Timings(
                queue_seconds=timings.queue_seconds,
                encode_wait_seconds=timings.encode_wait_seconds,
                prefill_seconds=timings.prefill_seconds,
                decode_seconds=timings.decode_seconds,
            ),
            grids=tuple(PatchGrid(height=grid.height, width=grid.width) for grid in prompt.grids),
            request_id=prompt.request_id,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
        )


def _logprobs(message: pb.Logprobs) -> Logprobs:
    return Logprobs(logprob=message.logprob, top=tuple(zip(message.top_token_ids, message.top_logprobs, strict=True)))


def _incomplete() -> ClientError:
    return ClientError(grpc.StatusCode.DATA_LOSS, "INCOMPLETE_STREAM", "The stream has a gap or no end.")
