"""The messages of a stream: numbered without gaps, and none too large."""

from array import array

from decoder_service.api.replies import Replies
from decoder_service.prompt.prompt import Prompt
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.text.resumption import Resumption
from decoder_service.text.text_stream import TextPiece


def prompt_of(num_tokens: int) -> Prompt:
    return Prompt(token_ids=(1,) * num_tokens, placeholders=(), images=())


def test_logprobs_of_a_long_prompt_come_in_order_and_in_messages_of_a_bounded_size() -> None:
    prompt = [Logprobs(-float(i), array("I", [i, 2**17]), array("f", [-0.5, -float(i)])) for i in range(5000)]
    piece = TextPiece(text="a", token_ids=[7], logprobs=[Logprobs(-1.5)], prompt_logprobs=prompt)
    deltas = list(Replies("r", prompt_of(5001)).deltas(piece))
    assert [response.seq for response in deltas] == list(range(len(deltas)))
    assert all(response.ByteSize() < 400_000 for response in deltas)
    told = [each for response in deltas for each in response.delta.prompt_logprobs]
    assert [each.logprob for each in told] == [each.logprob for each in prompt]
    assert list(told[4321].top_token_ids) == [4321, 2**17]
    assert list(told[4321].top_logprobs) == [-0.5, -4321.0]
    # The tokens come behind, in a message of their own.
    assert not deltas[-1].delta.prompt_logprobs
    assert (deltas[-1].delta.text, list(deltas[-1].delta.token_ids)) == ("a", [7])
    assert [each.logprob for each in deltas[-1].delta.logprobs] == [-1.5]
    assert not any(response.delta.token_ids for response in deltas[:-1])


def test_a_piece_without_logprobs_is_one_message() -> None:
    (response,) = Replies("r", prompt_of(1)).deltas(TextPiece(text="a", token_ids=[7], logprobs=[]))
    assert not response.delta.logprobs


def test_what_a_broken_call_had_brought_is_not_among_the_tokens_of_this_one() -> None:
    piece = TextPiece(text="ab", token_ids=[7, 8], logprobs=[])
    replies = Replies("r", prompt_of(1), resumption=Resumption(token_ids=(1, 2, 3), num_characters=0, num_messages=2))
    for index in (0, 1):
        _ = list(replies.deltas(piece, index=index))
    assert [replies.num_new_tokens(index) for index in (0, 1)] == [2, 2]
    assert replies.num_completion_tokens == 7


def test_a_piece_that_adds_nothing_is_a_delta_still() -> None:
    (response,) = Replies("r", prompt_of(1)).deltas(TextPiece(text="", token_ids=[], logprobs=[]))
    assert response.WhichOneof("event") == "delta"
