import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from common import errors
from common.client.client import AsyncDiptychClient, DiptychClient
from common.client.messages import ChatMessage, GenerateOptions, Prompt, chat, raw_text, token_ids, user_message
from common.client.types import ClientError, Completion
from common.errors import DiptychError
from common.image.preprocessing import PatchGrid
from tests.fake_generation import HIDDEN, FakeGeneration, running
from tests.waiting import until

CONCRETE = [value for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "code")]


@pytest.fixture
async def service() -> AsyncIterator[tuple[FakeGeneration, str]]:
    servicer = FakeGeneration()
    async with running(servicer) as (_, address):
        yield servicer, address


Complete = Callable[..., Any]


@pytest.fixture(params=["threads", "asyncio"])
def complete(request: pytest.FixtureRequest) -> Complete:
    """`complete` of either client, to be awaited."""

    async def in_thread(address: str, prompt: Prompt, **options: Any) -> Completion:  # noqa: ANN401
        def call() -> Completion:
            with DiptychClient(address, token="t0k3n") as client:  # noqa: S106 - no real one
                return client.complete(prompt, **options)

        return await asyncio.to_thread(call)

    async def in_loop(address: str, prompt: Prompt, **options: Any) -> Completion:  # noqa: ANN401
        async with AsyncDiptychClient(address, token="t0k3n") as client:  # noqa: S106 - no real one
            return await client.complete(prompt, **options)

    return in_thread if request.param == "threads" else in_loop


async def test_a_completion_is_the_whole_stream(service: tuple[FakeGeneration, str], complete: Complete) -> None:
    completion = await complete(service[1], raw_text("x some words"))
    assert completion.text == "some words "
    assert completion.token_ids == (4, 5)
    assert completion.finish_reason == "length"
    assert completion.grids == (PatchGrid(height=2, width=3),)
    assert (completion.usage.image_tokens, completion.usage.completion_tokens) == (3, 2)
    assert (completion.timings.queue_seconds, completion.timings.decode_seconds) == (0.5, 1.5)
    assert completion.request_id == "r1"


@pytest.mark.parametrize("error_class", CONCRETE, ids=lambda error_class: error_class.__name__)
@pytest.mark.parametrize("prefix", ["", "late "])
async def test_every_error_of_a_server_arrives_whole(
    service: tuple[FakeGeneration, str], complete: Complete, error_class: type[DiptychError], prefix: str
) -> None:
    with pytest.raises(ClientError) as raised:
        await complete(service[1], raw_text(f"{prefix}{error_class.__name__}"))
    error = raised.value
    assert (error.code.name, error.reason, error.message) == (error_class.code.name, "SOME_REASON", "Some text.")
    assert (error.field, error.retry_after) == ("sampling.top_p", 0.25)
    assert error.metadata.items() >= {"limit": "1", "got": "2"}.items()


@pytest.mark.parametrize("prefix", ["", "late "])
async def test_a_bug_of_a_server_arrives_without_its_text(
    service: tuple[FakeGeneration, str], complete: Complete, prefix: str
) -> None:
    with pytest.raises(ClientError) as raised:
        await complete(service[1], raw_text(f"{prefix}bug"))
    assert raised.value.code == grpc.StatusCode.INTERNAL
    assert raised.value.metadata["error_id"]
    assert HIDDEN not in repr(raised.value)


async def test_a_call_that_found_nobody_ready_is_repeated(
    service: tuple[FakeGeneration, str], complete: Complete
) -> None:
    assert (await complete(service[1], raw_text("flaky yes"))).text == "yes "
    assert service[0].num_attempts == 3


async def test_a_call_that_has_begun_to_answer_is_not_repeated(
    service: tuple[FakeGeneration, str], complete: Complete
) -> None:
    with pytest.raises(ClientError):
        await complete(service[1], raw_text("x some UnavailableError"), n=2)
    assert service[0].num_attempts == 1


async def test_a_stream_that_breaks_goes_on_in_a_few_more_calls_with_what_has_come(
    service: tuple[FakeGeneration, str], complete: Complete
) -> None:
    with pytest.raises(ClientError) as raised:
        await complete(service[1], raw_text("x some UnavailableError"), temperature=1.0)
    assert raised.value.code == grpc.StatusCode.UNAVAILABLE
    first, *others = service[0].requests
    assert len(others) == 3
    assert first.sampling.HasField("seed")
    for request in others:
        assert request.sampling == first.sampling
        assert (list(request.resume_from.token_ids), request.resume_from.num_characters) == ([4], 5)
        assert request.resume_from.num_messages == 2


@pytest.mark.parametrize("flaw", ["gap", "end"])
async def test_a_stream_with_a_gap_or_without_an_end_is_no_completion(
    service: tuple[FakeGeneration, str], complete: Complete, flaw: str
) -> None:
    with pytest.raises(ClientError) as raised:
        await complete(service[1], raw_text(f"x some {flaw} words"))
    assert raised.value.reason == "INCOMPLETE_STREAM"


async def test_the_callers_deadline_holds(service: tuple[FakeGeneration, str], complete: Complete) -> None:
    with pytest.raises(ClientError) as raised:
        await complete(service[1], raw_text("x forever"), timeout=0.2)
    assert raised.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_nobody_there_is_unavailable(complete: Complete) -> None:
    with pytest.raises(ClientError) as raised:
        await complete("127.0.0.1:1", raw_text("x"), timeout=10)
    assert raised.value.code == grpc.StatusCode.UNAVAILABLE


async def test_options_and_the_token_reach_the_server(service: tuple[FakeGeneration, str], complete: Complete) -> None:
    options: GenerateOptions = {
        "request_id": "mine", "cache_salt": b"me", "max_tokens": 7, "temperature": 0.5, "stop": ["a"], "seed": 1 << 63,
    }  # fmt: skip
    await complete(service[1], raw_text("x"), **options)
    request = service[0].requests[0]
    assert (request.request_id, request.cache_salt) == ("mine", b"me")
    assert (request.sampling.max_tokens, request.sampling.temperature) == (7, 0.5)
    assert (list(request.sampling.stop), request.sampling.seed) == (["a"], 1 << 63)
    assert not request.sampling.HasField("top_p")
    assert service[0].metadata[0]["authorization"] == "Bearer t0k3n"


async def test_a_large_request_is_not_the_clients_to_refuse(
    service: tuple[FakeGeneration, str], complete: Complete
) -> None:
    await complete(service[1], [user_message("x", [bytes(8 << 20)])])
    assert len(service[0].requests[0].chat.messages[0].parts[0].image.data) == 8 << 20


async def test_tokenize_and_model_info_answer_on_both_clients(service: tuple[FakeGeneration, str]) -> None:
    async with AsyncDiptychClient(service[1]) as client:
        assert (await client.tokenize(raw_text("fine"))).token_ids == [1, 2, 3]
        assert (await client.get_model_info()).model_name == "fake"
        with pytest.raises(ClientError):
            await client.tokenize(raw_text("bug"))

    def in_thread() -> None:
        with DiptychClient(service[1]) as client:
            assert client.tokenize(raw_text("fine")).token_ids == [1, 2, 3]
            assert client.get_model_info().model_name == "fake"
            with pytest.raises(ClientError):
                client.tokenize(raw_text("bug"))

    await asyncio.to_thread(in_thread)


async def test_leaving_a_stream_early_cancels_it(service: tuple[FakeGeneration, str]) -> None:
    servicer, address = service

    def leave() -> None:
        with DiptychClient(address) as client:
            stream = client.generate(raw_text("x a forever"))
            next(stream)
            stream.close()
            left.set_result(None)
            checked.wait(10)

    left: Future[None] = Future()
    checked = threading.Event()
    thread = asyncio.create_task(asyncio.to_thread(leave))
    await asyncio.wrap_future(left)
    await until(lambda: servicer.num_open == 0)
    checked.set()
    await thread
    async with AsyncDiptychClient(address) as client:
        async with aclosing(client.generate(raw_text("x a forever"))) as stream:
            async for _ in stream:
                break
        await until(lambda: servicer.num_open == 0)


def test_a_chat_keeps_roles_and_the_order_of_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    messages: list[ChatMessage] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "one"},
            {"type": "image", "path": str(tmp_path / "a.png")},
            {"type": "image", "data": b"B"},
            {"type": "text", "text": "two"},
        ]},
        {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    made = chat(messages)
    assert [message.role for message in made.messages] == [1, 2, 3]
    parts = [part.text or part.image.data for part in made.messages[1].parts]
    assert parts == ["one", b"A", b"B", "two"]


def test_a_user_message_has_its_pictures_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    parts = chat([user_message("what?", [b"B", tmp_path / "a.png"])]).messages[0].parts
    assert [part.text or part.image.data for part in parts] == [b"B", b"A", "what?"]


def test_token_ids_carry_their_pictures() -> None:
    made = token_ids([1, 10, 2], [b"A"])
    assert (list(made.ids), made.images[0].data) == ([1, 10, 2], b"A")


@pytest.mark.parametrize(
    "message",
    [
        "text",
        {"role": "user"},
        {"role": "robot", "content": "a"},
        {"role": ["user"], "content": "a"},
        {"role": "user", "content": 5},
        {"role": "user", "content": {"type": "text"}},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "image", "url": "http://x"}]},
        {"role": "user", "content": [{"type": "text", "text": 5}]},
    ],
)
def test_a_message_of_another_form_is_a_value_error(message: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"message|role|content|part"):
        chat([message])


@pytest.mark.parametrize("messages", [5, None, "text", {"role": "user", "content": "a"}])
def test_what_is_no_list_of_messages_is_a_value_error(messages: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="a chat is a list of messages"):
        chat(messages)


def test_the_client_needs_neither_torch_nor_googleapis() -> None:
    script = (
        "import sys, common.client.client; "
        "unwanted = ('torch', 'numpy', 'PIL', 'google.rpc', 'grpc_status', 'prometheus_client'); "
        "print([name for name in sys.modules if name in unwanted])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
