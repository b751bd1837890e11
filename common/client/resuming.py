"""How far a stream has come, and the request that goes on with it should it break.

Knows the messages of a stream, its deadline and which requests can be taken up. Does not know calls or addresses.
"""

import secrets
import time

import grpc

from common.client.types import ClientError
from diptych.v1 import generation_pb2 as pb

MAX_TRIES = 4
"""Calls for one stream, the first included."""
_OWN_CANCELLATIONS = ("Locally cancelled", "Channel closed")
"""How gRPC's messages begin for calls that ended on this side."""


class Progress:
    """One stream, over as many calls as it takes."""

    def __init__(self, request: pb.GenerateRequest, *, end: float | None, resumes: bool) -> None:
        """Begin with a request, which gets a seed if it needs one to be taken up and has none.

        `end` is its deadline by the monotonic clock, if it has one.
        """
        self._end = end
        self._resumes = resumes and request.sampling.n <= 1
        if self._resumes and request.sampling.temperature > 0 and not request.sampling.HasField("seed"):
            request.sampling.seed = secrets.randbits(64)
        self._request = request
        self._token_ids: list[int] = []
        self._num_characters = 0
        self._num_messages = 0
        self._num_tries = 0
        self._num_finishes = 0

    def request(self) -> pb.GenerateRequest:
        """What to ask for now: all, or what follows on what has come."""
        self._num_tries += 1
        if not self._token_ids:
            return self._request
        again = pb.GenerateRequest()
        again.CopyFrom(self._request)
        again.resume_from.token_ids.extend(self._token_ids)
        again.resume_from.num_characters = self._num_characters
        again.resume_from.num_messages = self._num_messages
        return again

    def take(self, response: pb.GenerateResponse) -> bool:
        """Note a message; false where the caller has it already, from a call that broke before the first token."""
        if response.seq < self._num_messages:
            return False
        self._num_messages += 1
        self._token_ids.extend(response.delta.token_ids)
        self._num_characters += len(response.delta.text)
        self._num_finishes += response.HasField("finish")
        return True

    def pause_after(self, error: ClientError) -> float | None:
        """Seconds after which to go on where a call failed; None where all has come before it did.

        Raises the error where it is the stream's.
        """
        if self._num_finishes >= max(1, self._request.sampling.n):
            return None
        pause = error.retry_after or 0.1 * 2.0 ** (self._num_tries - 1)
        is_late = self._end is not None and time.monotonic() + pause >= self._end
        if not self._resumes or not self._may_pass(error) or self._num_tries >= MAX_TRIES or is_late:
            raise error
        return pause

    def _may_pass(self, error: ClientError) -> bool:
        if error.code is grpc.StatusCode.CANCELLED:
            # A gRPC server that stops cancels calls that reach it at its last moment; our services never do.
            return not error.message.startswith(_OWN_CANCELLATIONS)
        if self._num_messages == 0:
            return False  # gRPC's own retries have been here.
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return True
        # The server may not know yet that the call broke which this one goes on with, or have no room just now.
        return self._num_tries > 1 and error.reason in ("REQUEST_RUNNING", "QUEUE_FULL")
