import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from common.server.config import ServerConfig
from common.settings.settings import Parser, add_arguments, from_arguments, read, setting
from common.settings.values import SettingError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    depth: int = setting(2, help="how deep", minimum=1, maximum=9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner
    model: Path = setting(help="where it lies")
    share: float = setting(0.9, help="part of it, in % of all", minimum=0, maximum=1)
    loud_voice: bool = setting(False, help="speak up")
    colour: Colour = setting(Colour.RED, help="how it looks")
    limit: int | None = setting(None, help="how many", minimum=1)
    names: tuple[str, ...] = setting((), help="who")
    parts: tuple[str, ...] = setting(("4", "1"), help="which ones")
    title: str = setting("", help="what it says; nothing where empty")
    kind: str = setting("a", help="which", choices=("a", "b"))
    ahead: bool | None = setting(None, help="whether it begins early; as it likes where unset")
    rate: float = setting(1.0, help="how fast", minimum=0)
    secret: int = field(default=7)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < self.inner.depth:
            raise ValueError(f"--limit {self.limit} is below --depth {self.inner.depth}")


def parse(*arguments: str) -> Outer:
    parser = Parser(prog="thing")
    add_arguments(parser, Outer)
    return from_arguments(Outer, parser.parse_args(arguments))


def test_what_is_not_given_keeps_its_default() -> None:
    assert parse("--model", "m") == Outer(inner=Inner(), model=Path("m"))


def test_every_type_is_read() -> None:
    config = parse(
        *("--model", "/m", "--share", "0.5", "--loud-voice", "--colour", "blue", "--limit", "4"),
        *("--names", "a:1, b:2,", "--kind", "b", "--depth", "3"),
    )
    assert config == Outer(
        inner=Inner(depth=3), model=Path("/m"), share=0.5, loud_voice=True, colour=Colour.BLUE, limit=4,
        names=("a:1", "b:2"), kind="b",
    )  # fmt: skip
    assert not parse("--model", "m", "--loud-voice", "--no-loud-voice").loud_voice


def test_a_list_whose_flag_is_repeated_holds_all_that_was_given() -> None:
    assert parse("--model", "m", "--names", "a,b", "--names", "c").names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "ahead"),
    [((), None), (("--ahead",), True), (("--ahead", "true"), True), (("--ahead", "false"), False)],
)
def test_what_may_be_left_open_is_said_by_its_flag_alone_or_with_a_word(
    arguments: tuple[str, ...], ahead: bool | None
) -> None:
    assert parse("--model", "m", *arguments).ahead is ahead


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model must be given"),
        (["--model", "m", "--depth", "10"], "--depth must be a whole number from 1 to 9, got 10"),
        (["--model", "m", "--depth", "0"], "--depth must be a whole number from 1 to 9, got 0"),
        (["--model", "m", "--depth", "2.5"], "--depth must be a whole number from 1 to 9, got '2.5'"),
        (["--model", "m", "--share", "nan"], "--share must be a number from 0 to 1, got nan"),
        (["--model", "m", "--share", "inf"], "--share must be a number from 0 to 1, got inf"),
        (["--model", "m", "--rate", "inf"], "--rate must be a number of at least 0, got inf"),
        (["--model", "m", "--limit", "-1"], "--limit must be a whole number of at least 1, got -1"),
        (["--model", "m", "--colour", "green"], "--colour must be one of red, blue, got 'green'"),
        (["--model", "m", "--kind", "c"], "--kind must be one of a, b, got 'c'"),
        (["--model", "m", "--limit", "1"], "--limit 1 is below --depth 2"),
        (["--model", "m", "--colr", "red"], "unrecognized arguments: --colr red"),
        (["--model", "m", "--col", "red"], "unrecognized arguments: --col red"),
        (["--model", "m", "--secret", "1"], "unrecognized arguments: --secret 1"),
        (["--model", "m", "--kind", "a\nb"], "--kind must be one of a, b, got 'a\\nb'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(*arguments)
    assert raised.value.code == 2
    assert capsys.readouterr() == ("", f"thing: {words}\n")


def test_the_help_tells_bounds_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--model PATH where it lies (required)",
        "--share X part of it, in % of all; a number from 0 to 1 (default: 0.9)",
        "--colour TEXT how it looks; one of red, blue (default: red)",
        "--depth N how deep; a whole number from 1 to 9 (default: 2)",
        "--loud-voice, --no-loud-voice speak up (default: false)",
        "--parts TEXT,... which ones (default: 4,1)",
        "--title TEXT what it says; nothing where empty --kind",
    ):
        assert words in text


def test_a_default_in_the_help_can_be_typed_behind_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for name in ("depth", "share", "colour", "parts", "kind", "rate"):
        (default,) = re.findall(rf"--{name} [A-Z.,]+ .*?\(default: (.*?)\)", text)
        assert parse("--model", "m", f"--{name}", default) == parse("--model", "m")


def test_a_source_of_texts_alone_goes_through_the_same_checks() -> None:
    given: dict[str, Any] = {"model": "m", "loud_voice": "true", "depth": "4"}
    assert read(Outer, given) == Outer(inner=Inner(depth=4), model=Path("m"), loud_voice=True)
    with pytest.raises(SettingError, match="--loud-voice must be true or false, got 'maybe'"):
        read(Outer, {**given, "loud_voice": "maybe"})


def test_the_servers_own_defaults_are_within_its_bounds() -> None:
    assert read(ServerConfig, {}) == ServerConfig()
    with pytest.raises(SettingError, match="--port must be a whole number from 0 to 65535, got 65536"):
        read(ServerConfig, {"port": "65536"})
