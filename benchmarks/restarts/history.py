"""What callers saw of a service that was restarted under them, and whether it was what they had to see.

Knows streams and an oracle: the same prompts, answered while nothing was restarted. Does not know processes. After
etcd's and Jepsen's checkers: record everything, judge afterwards, and keep what is wrong to look at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diptych.v1 import generation_pb2 as pb


@dataclass(slots=True)
class StreamRecord:
    """One stream as its caller saw it."""

    prompt: int
    """Index of the prompt."""
    messages: list[pb.GenerateResponse] = field(default_factory=list)
    error: str | None = None
    """Status that it ended with; None for OK."""

    @property
    def token_ids(self) -> list[int]:
        """All tokens, in the order in which they came."""
        return [token for message in self.messages for token in message.delta.token_ids]

    @property
    def text(self) -> str:
        """All text."""
        return "".join(message.delta.text for message in self.messages)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a history."""

    num_streams: int
    num_tokens: int
    lost: tuple[str, ...]
    """Streams without an end, or that ended with an error, each with what happened."""
    duplicated: tuple[str, ...]
    """Messages that came twice or out of their place, and second ends."""
    differing: tuple[str, ...]
    """Streams whose tokens are not the oracle's, or whose text is not that of their tokens."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.differing)


Decode = Callable[[Sequence[int]], str]


def judge(history: Sequence[StreamRecord], oracle: Sequence[StreamRecord], decode: Decode) -> Verdict:
    """Hold streams against the oracle's stream of the same prompt.

    Each must have messages without a gap, a prompt first, exactly one end, and the oracle's tokens, whose text
    `decode` knows.
    """
    lost, duplicated, differing = [], [], []
    for number, stream in enumerate(history):
        name = f"stream {number} (prompt {stream.prompt})"
        kinds = [message.WhichOneof("event") for message in stream.messages]
        if stream.error is not None or kinds[-1:] != ["finish"]:
            lost.append(f"{name}: {stream.error or 'no end'} after {len(stream.token_ids)} tokens")
            continue
        places = [message.seq for message in stream.messages]
        if places != list(range(len(places))) or kinds.count("finish") > 1 or kinds.count("prompt") != 1:
            duplicated.append(f"{name}: {places}, {kinds}")
        expected = oracle[stream.prompt]
        if stream.token_ids != expected.token_ids or stream.text != expected.text:
            differing.append(f"{name}: {stream.token_ids} is not {expected.token_ids}")
        elif stream.text != decode(stream.token_ids):
            differing.append(f"{name}: {stream.text!r} is not the text of {stream.token_ids}")
    return Verdict(
        num_streams=len(history),
        num_tokens=sum(len(stream.token_ids) for stream in history),
        lost=tuple(lost),
        duplicated=tuple(duplicated),
        differing=tuple(differing),
    )
