"""The commands `generate` and `info` against a fake service, which runs on a thread's own event loop."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from common.security.quota import Limits
from common.security.token_file import find_token, read_token_file
from diptych.cli import main
from diptych.flags import target
from diptych.models import demo_model
from diptych.up_config import UpConfig
from diptych.v1 import vision_pb2, vision_pb2_grpc
from tests.certificates import Authority
from tests.fake_generation import HIDDEN, FakeGeneration, running


class Service:
    """A fake service that runs while the test does."""

    def __init__(self) -> None:
        self.servicer = FakeGeneration()
        self.address = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> "Service":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(asyncio.sleep(3600))
        async with running(self.servicer) as (_, self.address):
            self._ready.set()
            with suppress(asyncio.CancelledError):
                await self._task


@pytest.fixture
def service(capsys: pytest.CaptureFixture[str]) -> Iterator[Service]:
    with Service() as started:
        capsys.readouterr()
        yield started


Output = pytest.CaptureFixture[str]


def test_an_answer_is_printed_as_text(service: Service, capsys: Output) -> None:
    assert main(["generate", "--address", service.address, "x two words"]) == 0
    assert capsys.readouterr() == ("two words \n", "")


def test_json_is_one_object(service: Service, capsys: Output) -> None:
    assert main(["generate", "--address", service.address, "x two words", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "text": "two words ",
        "token_ids": [3, 5],
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 5,
            "image_tokens": 3,
            "cached_tokens": 1,
            "completion_tokens": 2,
            "images_not_encoded": 2,
        },
        "timings": {"queue_seconds": 0.5, "encode_wait_seconds": 0.0, "prefill_seconds": 0.0, "decode_seconds": 1.5},
    }


def test_pictures_come_before_the_question(service: Service, tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(path.name.encode())
    images = [argument for path in paths for argument in ("--image", str(path))]
    assert main(["generate", "--address", service.address, *images, "what?"]) == 0
    (message,) = service.servicer.requests[0].chat.messages
    assert [part.text or part.image.data for part in message.parts] == [b"a.png", b"b.png", "what?"]


def test_a_messages_file_is_a_chat(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    chat = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "b"}],
        },
    ]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    assert main(["generate", "--address", service.address, "--messages", str(tmp_path / "chat.json")]) == 0
    first, second = service.servicer.requests[0].chat.messages
    assert [part.text for part in first.parts] == ["Be brief."]
    assert [part.text or part.image.data for part in second.parts] == [b"A", "b"]


def test_every_flag_reaches_the_server_and_no_other_is_set(service: Service) -> None:
    flags = "--raw x --max-tokens 3 --temperature 0.5 --top-p 0.25 --seed 9 --ignore-eos --stop a --stop b"
    assert main(["generate", "--address", service.address, *flags.split()]) == 0
    assert main(["generate", "--address", service.address, "x"]) == 0
    first, second = service.servicer.requests
    sampling = first.sampling
    assert first.text.text == "x"
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (3, 0.5, 0.25, 9)
    assert (sampling.ignore_eos, list(sampling.stop)) == (True, ["a", "b"])
    assert not second.sampling.ListFields()
    assert not second.HasField("structured")


def test_an_answer_is_kept_inside_what_a_flag_or_its_file_says(service: Service, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "lark").write_text('start: "a"')
    for flags in (
        ["--json-schema", str(tmp_path / "schema.json")],
        ["--grammar", str(tmp_path / "lark")],
        ["--regex", "a+"],
        ["--json-object"],
        ["--choice", "red", "--choice", "dark blue"],
    ):
        assert main(["generate", "--address", service.address, "x", *flags]) == 0
    schema, grammar, regex, some_object, choice = (request.structured for request in service.servicer.requests)
    assert (schema.json_schema, grammar.grammar) == ('{"type": "integer"}', 'start: "a"')
    assert (regex.regex, some_object.json_object, list(choice.choice.texts)) == ("a+", True, ["red", "dark blue"])


def test_two_languages_for_one_answer_and_a_missing_file_are_told_before_anything_is_sent(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in ((["--regex", "a", "--choice", "b"], "give one of"), (["--grammar", "/no/such"], "/no/such")):
        assert main(["generate", "--address", service.address, "x", *flags]) == 2
        assert said in capsys.readouterr().err
    assert not service.servicer.requests


def test_several_completions_are_shown_one_after_another(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--address", service.address, "x two words", "--n", "2"]) == 0
    assert capsys.readouterr().out == "[0] two words \n[1] two words \n"
    assert main(["generate", "--address", service.address, "x two words", "--n", "2", "--json"]) == 0
    assert [each["text"] for each in json.loads(capsys.readouterr().out)] == ["two words "] * 2
    assert {request.sampling.n for request in service.servicer.requests} == {2}


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_a_refusal_tells_code_reason_and_message(service: Service, capsys: Output, json_flag: list[str]) -> None:
    assert main(["generate", "--address", service.address, "InvalidArgumentError", *json_flag]) == 1
    assert capsys.readouterr() == ("", "INVALID_ARGUMENT (SOME_REASON): Some text. [sampling.top_p]\n")


def test_what_ends_an_answer_stands_on_a_line_of_its_own(service: Service, capsys: Output) -> None:
    for words, said in (("x some bug", "some \n"), ("x some\n end", "some\n \n"), ("bug", "")):
        assert main(["generate", "--address", service.address, words]) == 1
        output = capsys.readouterr()
        assert (output.out, output.err.count("\n")) == (said, 1)


def test_an_interrupted_answer_ends_its_line(service: Service) -> None:
    # Whoever runs the tests may have had interrupts ignored, which processes inherit.
    script = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('diptych.cli', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, "generate", "--address", service.address, "x some forever"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    assert process.stdout.read(5) == "some "
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=30), process.returncode) == ("\n", "", 130)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("flags", [[], ["--n", "2"], ["--json"]])
def test_an_answer_is_shown_on_any_terminal(service: Service, encoding: str, flags: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "diptych.cli",
        "generate",
        "--address",
        service.address,
        *flags,
        "x gr\u00f6\u5f62",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(encoding)
    assert "\\u5f62" in shown or (encoding == "utf-8" and "gr\u00f6\u5f62" in shown)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "x some"],
        ["generate", "x some", "--json"],
        ["generate", "x some", "--n", "2"],
        ["info"],
        ["health"],
        ["config", "up", "--print"],
        ["token", "a"],
    ],
)
def test_a_full_disk_is_one_line_and_not_status_0(service: Service, command: list[str]) -> None:
    address = [] if command[0] in ("config", "token") else ["--address", service.address]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "diptych.cli", *command, *address],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if command[0] != "token" or "diptych" in line]
    assert told == ["diptych: No space left on device"]


@pytest.mark.parametrize("command", [["generate", "x"], ["info"], ["health"]])
@pytest.mark.parametrize(
    "address", ["", " ", "http://127.0.0.1:50051", "127.0.0.1", "localhost:", "127.0.0.1:99999", "a:b", "[::1]"]
)
def test_an_address_that_can_be_none_is_refused(command: list[str], address: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*command, "--address", address])
    assert raised.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"diptych {command[0]}: argument --address: must be HOST:PORT")
    assert errors.count("\n") == 1
    assert ("without http://" in errors) == address.startswith("http://")


@pytest.mark.parametrize(
    "address",
    [
        "unixbox",
        "localhost:1\n",
        "::1:50051",
        "[localhost]:1",
        "dns:///name",
        "dns:50051",
        "dns:///::1:50051",
        "dns:///a:1,b:2",
        "a:1,b:2",
        "ipv4:127.0.0.1:1,127.0.0.2",
        "ipv4:127.0.0.1:99999,127.0.0.2:1",
        "ipv6:::1:50051",
    ],
)
def test_an_address_that_looks_like_one_is_refused_with_the_forms_that_there_are(address: str) -> None:
    with pytest.raises(
        ArgumentTypeError, match=r"^must be HOST:PORT, \[IPV6\]:PORT, dns:///NAME:PORT or unix:PATH, got"
    ):
        target(address)


@pytest.mark.parametrize(
    "address",
    [
        "unixbox:50051",
        "unix:/run/diptych",
        "unix-abstract:diptych",
        "127.0.0.1:50051",
        "[::1]:50051",
        "dns:name:50051",
        "dns:///name:50051",
        "dns:///[::1]:50051",
        "dns://9.9.9.9/name:50051",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:1,[::2]:2",
    ],
)
def test_an_address_is_taken_in_other_forms_of_grpc_as_it_is(address: str) -> None:
    assert target(address) == address


@pytest.mark.parametrize("command", ["up", "generate", "info", "health", "config", "token", "top", "convert"])
def test_the_help_of_a_command_says_what_it_does(command: str, capsys: Output) -> None:
    for arguments in ([], [command]):
        with pytest.raises(SystemExit) as raised:
            main([*arguments, "--help"])
        assert raised.value.code == 0
    listed, own = capsys.readouterr().out.split(f"usage: diptych {command}")
    (words,) = re.findall(rf"^    {command} +(.*)$", listed, re.MULTILINE)
    assert f"{words[0].upper()}{words[1:]}." in own


def test_a_failure_in_the_middle_is_status_1(service: Service, capsys: Output) -> None:
    assert main(["generate", "--address", service.address, "x some bug"]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("INTERNAL (INTERNAL): ")
    assert HIDDEN not in output.err


@pytest.mark.parametrize("command", [["generate", "x"], ["info"]])
def test_nobody_there_is_one_line_and_status_1(capsys: Output, command: list[str]) -> None:
    assert main([*command, "--address", "127.0.0.1:1", "--timeout", "10"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("UNAVAILABLE: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["question", "--raw", "x"],
        ["--raw", "x", "--image", "a.png"],
        ["question", "--image", "/nowhere/a.png"],
        ["--messages", "/nowhere/a.json"],
        ["--messages", __file__],
    ],
)
def test_a_wrong_question_is_one_line_and_status_2(arguments: list[str], capsys: Output) -> None:
    assert main(["generate", "--address", "127.0.0.1:1", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("diptych generate: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("depth", ["message", "text", "image"])
def test_a_key_of_a_chat_that_means_nothing_is_named_and_not_passed_over(
    depth: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    text, image = {"type": "text", "text": "b"}, {"type": "image", "path": str(tmp_path / "a.png")}
    message: dict[str, Any] = {"role": "user", "content": [text, image]}
    {"message": message, "text": text, "image": image}[depth]["detail"] = "low"
    (tmp_path / "chat.json").write_text(json.dumps([message]))
    assert main(["generate", "--address", "127.0.0.1:1", "--messages", str(tmp_path / "chat.json")]) == 2
    form = "a message is {" if depth == "message" else "a part is {"
    assert f"chat.json: unknown key 'detail': {form}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["generate"], ["generate", "--adress", "x"], ["up", "--port", "-1"], ["no"]])
def test_a_wrong_flag_is_one_line_and_status_2(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--timeout", value) for value in ("-1", "nan", "inf", "0", "soon", "1e10")),
        ("--n", "-1"),
        *(("--max-tokens", value) for value in ("-1", "0", "1.5", "4294967296")),
        *(("--seed", value) for value in ("-1", "1.5", str(1 << 64))),
    ],
)
def test_a_number_out_of_range_is_told_with_its_flag(flag: str, value: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["generate", "--address", "127.0.0.1:1", "question", flag, value])
    assert raised.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"diptych generate: argument {flag}: ")
    assert errors.count("\n") == 1


def test_files_and_texts_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, capsys: Output) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(b'[{"role": "user", "content": "caf\xe9"}]')
    number = tmp_path / "number.json"
    number.write_text("5")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    for arguments, words in (
        (["x", "--image", "/nowhere/a.png"], "/nowhere/a.png: No such file or directory"),
        (["x", "--image", str(tmp_path)], f"{tmp_path}: Is a directory"),
        (["--messages", str(bad)], f"{bad}: not UTF-8 from byte 33 on"),
        (["x", "--grammar", str(bad)], f"{bad}: not UTF-8 from byte 33 on"),
        (["caf\udce9"], "'caf\\udce9': this text is not UTF-8"),
        (["--raw", "\udce9"], "'\\udce9': this text is not UTF-8"),
        (["--messages", str(number)], f"{number}: a chat is a list of messages"),
        (["--messages", str(deep)], f"{deep}: nested too deeply"),
    ):
        assert main(["generate", "--address", "127.0.0.1:1", *arguments]) == 2
        assert capsys.readouterr() == ("", f"diptych generate: {words}\n")


@pytest.mark.parametrize("content", [b"a b\nc", b"a\nb", b"a b", b"", b"\n", "é".encode(), b"\xff"])
@pytest.mark.parametrize("command", [["generate", "x"], ["info"]])
def test_a_token_that_cannot_be_sent_is_refused_before_the_call(
    service: Service, command: list[str], content: bytes, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    assert main([*command, "--address", service.address, "--token-file", str(path)]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"diptych {command[0]}: {path}: ")
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert service.servicer.requests == []
    path.write_bytes(b"a-b_c.~+/=\n")
    assert main([*command, "--address", service.address, "--token-file", str(path)]) == 0


@pytest.mark.parametrize("command", [["generate", "x"], ["info"], ["health"]])
def test_a_port_that_hangs_up_may_want_tls(command: list[str], tmp_path: Path, capsys: Output) -> None:
    authority = Authority(tmp_path)
    leaf = authority.leaf("server", names=["DNS:localhost"])
    server = grpc.server(ThreadPoolExecutor(1))
    keys = [(leaf.key.read_bytes(), leaf.cert.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(keys))
    server.start()
    try:
        assert main([*command, "--address", f"127.0.0.1:{port}", "--timeout", "10"]) == 1
    finally:
        server.stop(None).wait()
    told = "".join(capsys.readouterr())
    assert "(the port may want TLS: --tls or --ca)" in told
    assert told.count("\n") == 1


def test_info_shows_a_vision_service_too(capsys: Output) -> None:
    class Vision(vision_pb2_grpc.VisionServiceServicer):
        def GetModelInfo(self, request: object, context: object) -> vision_pb2.VisionServiceGetModelInfoResponse:
            return vision_pb2.VisionServiceGetModelInfoResponse(model_name="eyes", weights_digest=b"\x01\xff")

    server = grpc.server(ThreadPoolExecutor(1))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(Vision(), server)  # type: ignore[abstract]  # one call is enough
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert main(["info", "--address", f"127.0.0.1:{port}", "--json"]) == 0
    finally:
        server.stop(None).wait()
    fields = json.loads(capsys.readouterr().out)
    assert (fields["model_name"], fields["weights_digest"]) == ("eyes", "01ff")


def test_an_interrupt_while_importing_is_silent(tmp_path: Path) -> None:
    """The first module that the command imports sends it, which is earlier than anybody can press."""
    (tmp_path / "asyncio.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # Whoever runs the tests may have had this signal ignored, which processes inherit.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += f"sys.path.insert(0, {str(tmp_path)!r}); from diptych.cli import main; main(['info'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_answer_cannot_command_the_terminal(service: Service, capsys: Output) -> None:
    assert main(["generate", "--address", service.address, "x a\x1b[2Jb\n"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_info_shows_the_model_and_digests_in_hexadecimal(service: Service, capsys: Output) -> None:
    assert main(["info", "--address", service.address]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): value.strip() for name, value in rows.items()}
    assert shown["model name"] == "fake"
    assert shown["vision weights digest"] == "01ff"
    assert main(["info", "--address", service.address, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["model_name"], fields["end_token_ids"], fields["vision_weights_digest"]) == ("fake", [2, 3], "01ff")
    assert "preprocessing" not in fields


def test_token_prints_a_token_and_the_line_by_which_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "alice"]) == 0
    token, line = capsys.readouterr()
    path = tmp_path / "tokens"
    path.write_text(line)
    entries = read_token_file(path, Limits())
    assert find_token(entries, token.strip()) == entries[0]
    assert entries[0].name == "alice"
    assert main(["token", "a b"]) == 2


def test_health_tells_by_its_status_whether_a_name_serves(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    for name, status, words in (
        ("readiness", 0, "SERVING\n"),
        ("liveness", 0, "SERVING\n"),
        ("another", 1, "NOT_FOUND: There is no service of this name.\n"),
    ):
        assert main(["health", name, "--address", service.address]) == status
        assert capsys.readouterr().out == words
    assert main(["health", "--address", service.address, "--ca", "nowhere"]) == 2


def test_config_shows_the_settings_of_a_service_or_what_is_wrong_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "decoder.yaml"
    file.write_text("model: {model: /m}\nengine: {max_queue: 7}\n")
    monkeypatch.setenv("DIPTYCH_VISION_ADDRESSES", "a:1,b:2")
    assert main(["config", "decoder", "--print", "--config", str(file), "--port", "0"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["engine"]["max_queue"] == 7
    assert (shown["vision_addresses"], shown["server"]["port"]) == (["a:1", "b:2"], 0)
    for flags, words in (
        (["--max-message-bytes", "2000"], "--max-image-bytes 20971520 does not fit into --max-message-bytes 2000\n"),
        (["--allowed-clients", "a"], "--allowed-clients needs --tls-client-ca"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(["config", "decoder", "--model", "m", *flags])
        assert raised.value.code == 2
        output, errors = capsys.readouterr()
        assert (output, errors.count("\n")) == ("", 1)
        assert errors.startswith(f"diptych config decoder: {words}")


def test_config_shows_the_model_that_up_would_take(capsys: Output, tmp_path: Path) -> None:
    """The demo model by its name alone, so that the file is good for another installation, too."""
    assert main(["config", "up", "--print"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["model"] is None
    assert shown.splitlines()[0].split("  # ")[1] == "default: the demo model"
    file = tmp_path / "up.yaml"
    file.write_text(shown)
    assert main(["config", "up", "--print", "--config", str(file)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(shown)
    assert main(["config", "up", "--print", "--config", str(file), "--model", "other"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] == "other"
    assert UpConfig().model_or_demo == demo_model()
    assert UpConfig(model=Path("other")).model_or_demo == Path("other")


def test_help_says_what_is_taken_where_no_model_is_given(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["up", "--help"])
    assert "checkpoint directory (default: the demo model)" in " ".join(capsys.readouterr().out.split())


def test_config_opens_nothing_and_says_so(capsys: Output) -> None:
    assert main(["config", "decoder", "--model", "/nowhere", "--tokenizer", "/nowhere"]) == 0
    with pytest.raises(SystemExit):
        main(["config", "decoder", "--help"])
    assert "Neither the model nor any other file that they name is opened" in " ".join(capsys.readouterr().out.split())
