"""The checker finds every kind of wrong history; without that, its silence would say nothing."""

from collections.abc import Callable, Sequence

import pytest

from benchmarks.restarts.history import StreamRecord, judge
from diptych.v1 import generation_pb2 as pb

Messages = list[pb.GenerateResponse]


def decode(token_ids: Sequence[int]) -> str:
    return "".join(chr(token_id) for token_id in token_ids)


def stream(*tokens: int, text: str | None = None) -> StreamRecord:
    messages = [pb.GenerateResponse(seq=0, prompt=pb.PromptInfo(request_id="r"))]
    for token in tokens:
        messages.append(pb.GenerateResponse(seq=len(messages), delta=pb.Delta(text=chr(token), token_ids=[token])))
    if text is not None:
        messages[-1].delta.text = text
    messages.append(pb.GenerateResponse(seq=len(messages), finish=pb.Finish()))
    return StreamRecord(prompt=0, messages=messages)


ORACLE = [stream(65, 66, 67)]


def test_a_right_history_is_right() -> None:
    verdict = judge([stream(65, 66, 67), stream(65, 66, 67)], ORACLE, decode)
    assert verdict.is_right
    assert (verdict.num_streams, verdict.num_tokens) == (2, 6)


def twice(messages: Messages) -> None:
    messages.insert(2, messages[1])


def swap(messages: Messages) -> None:
    messages[1], messages[2] = messages[2], messages[1]


def end_twice(messages: Messages) -> None:
    messages.append(pb.GenerateResponse(seq=len(messages), finish=pb.Finish()))


def skip(messages: Messages) -> None:
    del messages[2]


def cut(messages: Messages) -> None:
    del messages[-1]


def other_token(messages: Messages) -> None:
    messages[2].delta.token_ids[0] = 90


def other_text(messages: Messages) -> None:
    messages[2].delta.text = "Z"


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (twice, "duplicated"),
        (swap, "duplicated"),
        (end_twice, "duplicated"),
        (skip, "duplicated"),
        (cut, "lost"),
        (list.clear, "lost"),
        (other_token, "differing"),
        (other_text, "differing"),
    ],
)
def test_every_wrong_stream_is_found(wrong: Callable[[Messages], None], kind: str) -> None:
    bad = stream(65, 66, 67)
    wrong(bad.messages)
    verdict = judge([stream(65, 66, 67), bad], ORACLE, decode)
    assert len(getattr(verdict, kind)) == 1
    assert not verdict.is_right


def test_a_stream_that_ends_with_an_error_is_lost_even_if_it_is_whole() -> None:
    bad = stream(65, 66, 67)
    bad.error = "UNAVAILABLE"
    assert len(judge([bad], ORACLE, decode).lost) == 1


def test_text_that_is_not_of_its_tokens_is_found_even_where_the_oracle_agrees() -> None:
    bad = stream(65, 66, 67, text="?")
    assert len(judge([bad], [bad], decode).differing) == 1
