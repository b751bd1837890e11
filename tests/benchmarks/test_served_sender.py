"""The sender of the served comparison against a small server that streams events, well and badly."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.load.records import RequestRecord
from benchmarks.load.workload import ImageSize, RequestPlan
from benchmarks.served import questions
from benchmarks.served.loads import limited
from benchmarks.served.sender import OpenAiSender, Question

PLAN = RequestPlan(text_token_ids=(100, 101), images=(), image_sizes=(), output_tokens=3)
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
TEXTS = [{"choices": [{"text": text}]} for text in (" Bäume", " t2", ' {"\\n')]
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


def body(events: Sequence[object], *, end: str = "data: [DONE]\n\n", newline: str = "\n") -> bytes:
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + end
    return text.replace("\n", newline).encode()


def chunked(content: bytes, size: int) -> bytes:
    """The content in frames of so many bytes, with no regard to lines or letters."""
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(f"{len(piece):x};a=b\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


def answer(content: bytes, *, head: str = HEAD + "Transfer-Encoding: chunked\r\n", at_once: int = 1 << 20) -> Reply:
    """Sends the head and these bytes, so many at once."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        everything = f"{head}\r\n".encode() + content
        for at in range(0, len(everything), at_once):
            writer.write(everything[at : at + at_once])
            await writer.drain()
            await asyncio.sleep(0)

    return reply


class Server:
    """Answers each connection by `reply` and keeps what was posted."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.port = 0
        self.posted: list[tuple[str, dict[str, object]]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].split()[0])
        self.posted.append((head.split()[1], json.loads(await reader.readexactly(length))))
        await self.reply(writer)
        writer.close()


@asynccontextmanager
async def served(reply: Reply) -> AsyncIterator[Server]:
    server = Server(reply)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server


async def sent(reply: Reply, plan: RequestPlan = PLAN) -> RequestRecord:
    async with served(reply) as server:
        return await OpenAiSender(server.port, questions.token_ids(Path("m"))).send(plan)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(("size", "at_once"), [(1 << 16, 1 << 20), (3, 7), (1, 1)])
async def test_a_stream_is_read_whole_however_it_is_divided(newline: str, size: int, at_once: int) -> None:
    record = await sent(answer(chunked(body([*TEXTS, USAGE], newline=newline), size), at_once=at_once))
    assert record.error is None
    assert record.succeeded
    assert len(record.chunk_times) == 3
    assert record.chunk_times == sorted(record.chunk_times)
    assert record.sent_at < record.chunk_times[0]
    assert (record.prompt_tokens, record.output_tokens) == (7, 3)


async def test_an_answer_without_frames_ends_with_its_connection() -> None:
    record = await sent(answer(body([*TEXTS, USAGE]), head=HEAD + "Connection: close\r\n"))
    assert record.succeeded
    assert record.output_tokens == 3


async def test_a_chunk_is_an_event_that_brings_tokens() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    ids = {"choices": [{"delta": {"content": ""}, "token_ids": [5, 6]}]}
    text = {"choices": [{"delta": {"content": "x"}, "token_ids": None}]}
    end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    record = await sent(answer(chunked(body([role, ids, text, end, USAGE]), 64)))
    assert record.succeeded
    assert len(record.chunk_times) == 2


async def test_tokens_are_timed_as_they_come_and_not_when_the_answer_ends() -> None:
    gate = asyncio.Event()
    whole = chunked(body([*TEXTS, USAGE]), 1 << 16)
    first = chunked(body(TEXTS[:1], end=""), 1 << 16).removesuffix(b"0\r\n\r\n")

    async def reply(writer: asyncio.StreamWriter) -> None:
        await answer(first)(writer)
        await gate.wait()
        writer.write(chunked(body([*TEXTS[1:], USAGE]), 1 << 16))

    assert len(first) < len(whole)
    async with served(reply) as server:
        sending = asyncio.ensure_future(OpenAiSender(server.port, questions.token_ids(Path("m"))).send(PLAN))
        await asyncio.sleep(0.1)
        assert not sending.done()
        opened_at = asyncio.get_running_loop().time()
        gate.set()
        record = await sending
    assert record.succeeded
    assert record.chunk_times[0] < opened_at < record.chunk_times[1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(b'{"error": "full"}', head="HTTP/1.1 503 Service Unavailable\r\nContent-Length: 17\r\n"), "status 503"),
        (answer(chunked(body([*TEXTS, USAGE]), 9)[:-40]), "broke off"),
        (answer(chunked(body([*TEXTS, USAGE]), 9).removesuffix(b"0\r\n\r\n")), "broke off"),
        (answer(b""), "broke off"),
        (answer(b"", head="HTTP/1.1 200"), "broke off"),
        (answer(chunked(body(TEXTS), 64)), "None tokens in place of 3"),
        (answer(body(TEXTS, end=""), head=HEAD), "None tokens in place of 3"),
        (answer(chunked(body([*TEXTS, {"usage": {"completion_tokens": 2}}]), 64)), "2 tokens in place of 3"),
        (answer(chunked(body([TEXTS[0], {"error": {"message": "out of memory"}}, USAGE]), 64)), "out of memory"),
        (answer(chunked(b"data: {no JSON\n\n", 64)), "cannot be read"),
        (answer(b"zz\r\nxx\r\n"), "cannot be read"),
    ],
)
async def test_what_is_no_whole_answer_is_a_failed_request_with_its_reason(reply: Reply, reason: str) -> None:
    record = await sent(reply)
    assert not record.succeeded
    assert reason in (record.error or "")


async def test_a_server_that_is_not_there_is_a_failed_request() -> None:
    async with served(answer(b"")) as server:
        port = server.port
    record = await OpenAiSender(port, questions.token_ids(Path("m"))).send(PLAN)
    assert "no connection" in (record.error or "")


async def test_a_request_that_takes_too_long_is_given_up_and_its_connection_closed() -> None:
    closed = asyncio.Event()

    async def reply(writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(chunked(body(TEXTS[:1], end=""), 1 << 16).removesuffix(b"0\r\n\r\n"))
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            closed.set()

    def head_first(writer: asyncio.StreamWriter) -> Awaitable[None]:
        writer.write(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        return reply(writer)

    async with served(head_first) as server:
        send = limited(OpenAiSender(server.port, questions.token_ids(Path("m"))).send, 0.2)
        record = await send(PLAN)
        await asyncio.wait_for(closed.wait(), 10)
    assert not record.succeeded
    assert record.error == "no end after 0.2 s"


async def test_every_question_asks_for_the_same_work(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(
        json.dumps({"vocab": [{"token_bytes": token} for token in ("IHJlZA==", "IGJsdWU=", "IQ==")]})
    )
    picture = RequestPlan(
        text_token_ids=(100, 101, 102), images=(b"\xff\xd8",), image_sizes=(ImageSize(1, 1, 1),), output_tokens=3
    )
    text, spelled = questions.token_ids(tmp_path)(PLAN), questions.spelled_text(tmp_path)(PLAN)
    words, chat = questions.chat_of_words(tmp_path)(picture), questions.spelled_chat(tmp_path)(picture)
    assert text.body["prompt"] == [1, 100, 101]
    assert spelled.body["prompt"] == "<s> t100 t101"
    assert contents(words) == (["data:image/jpeg;base64,/9g="], " red blue red")
    assert contents(chat) == (["data:image/jpeg;base64,/9g="], "t100 t101 t102")
    for question in (text, words):
        assert (question.body["max_tokens"], question.body["ignore_eos"], question.body["temperature"]) == (3, True, 0)
    for question in (spelled, chat):
        config = json.loads(str(question.body["generation_config"]))
        assert config == {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert all(question.body["stream"] is True for question in (text, spelled, words, chat))


def contents(question: Question) -> tuple[list[str], str]:
    (message,) = json.loads(json.dumps(question.body))["messages"]
    *pictures, text = message["content"]
    return [each["image_url"]["url"] for each in pictures], text["text"]
