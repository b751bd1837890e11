import hmac
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.security.quota import Limits
from common.security.token_file import find_token, hash_token, read_token_file

DEFAULTS = Limits(calls_per_minute=9)
HASH = hash_token("secret").hex()
OTHER = hash_token("other").hex()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tokens"
    path.write_text(text)
    return path


def test_a_file_names_who_has_which_token_and_what_differs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"# those who may call\n{HASH} alice  # her laptop\n\n"
        f"{OTHER} bob expires=2027-01-31 methods=Tokenize,GetModelInfo max-open-calls=2 tokens-per-minute=50\n",
    )
    alice, bob = read_token_file(path, DEFAULTS)
    assert (alice.name, alice.limits, alice.expires, alice.methods) == ("alice", DEFAULTS, None, None)
    assert bob.expires == datetime(2027, 1, 31, tzinfo=UTC)
    assert bob.methods == frozenset({"Tokenize", "GetModelInfo"})
    assert bob.limits == Limits(max_open_calls=2, calls_per_minute=9, tokens_per_minute=50)
    assert find_token((alice, bob), "other") is bob
    assert find_token((alice, bob), "nobody's") is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice", "a line begins with a SHA-256 hash"),
        ("secret alice", "a line begins with a SHA-256 hash"),
        (HASH[:-1] + " alice", "a line begins with a SHA-256 hash"),
        (HASH, "a line begins with a SHA-256 hash"),
        (HASH + " al,ice", "a name is 1 to 128 letters"),
        (HASH + " alice expires=tomorrow", "expires must be a day"),
        (HASH + " alice max-open-calls=0", "max-open-calls must be a whole number"),
        (HASH + " alice max-open-calls=²", "max-open-calls must be a whole number"),
        (HASH + " alice admin", "what follows the name is none of"),
        (HASH + " alice secret", "what follows the name is none of"),
        (HASH + " alice secret=1", "what follows the name is none of"),
        (HASH + " alice methods=", "what follows the name is none of"),
    ],
)
def test_a_wrong_line_is_named_and_not_quoted(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path, f"# first\n{line}\n")
    with pytest.raises(ValueError, match="tokens:2: ") as raised:
        read_token_file(path, DEFAULTS)
    assert words in str(raised.value)
    assert HASH[:-1] not in str(raised.value)
    assert "secret" not in str(raised.value).removeprefix(str(path))


@pytest.mark.parametrize("text", [f"{HASH} a\n{HASH} b\n", f"{HASH} a max-open-calls=1\n{OTHER} a\n"])
def test_lines_that_contradict_each_other_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="tokens: "):
        read_token_file(write(tmp_path, text), DEFAULTS)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_token_file(tmp_path / "none", DEFAULTS)


@pytest.mark.parametrize("token", ["secret", "other", "wrong"])
def test_every_entry_is_compared_whichever_it_is(tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_token_file(write(tmp_path, f"{HASH} a\n{OTHER} b\n"), DEFAULTS)
    compared: list[bytes] = []

    def count(one: bytes, two: bytes) -> bool:
        compared.append(one)
        return one == two

    monkeypatch.setattr(hmac, "compare_digest", count)
    find_token(entries, token)
    assert compared == [entry.digest for entry in entries]
