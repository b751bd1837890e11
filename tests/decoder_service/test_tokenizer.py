import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.image_layout import ImageTokenIds
from decoder_service.tokenizer import ChatTokenizer, Tokenizer

CONTROL_TEXTS = [
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<pad>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[PREFIX]", "<SPECIAL_30>", "<|endoftext|>"),
]
# Texts that try to be control tokens, among anything else.
HOSTILE = st.lists(st.sampled_from(CONTROL_TEXTS) | st.text(max_size=8), max_size=8).map("".join)


@given(text=HOSTILE)
def test_text_never_becomes_a_control_token(tekken: Tokenizer, text: str) -> None:
    token_ids = tekken.encode_text(text)
    assert not any(map(tekken.is_control, token_ids))
    assert b"".join(map(tekken.token_bytes, token_ids)) == text.encode()


@given(text=HOSTILE)
def test_ids_are_those_of_mistral_common(tekken: Tokenizer, mistral_common: ChatTokenizer, text: str) -> None:
    expected = mistral_common.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)
    assert tekken.encode_text(text) == expected
    assert b"".join(map(tekken.token_bytes, expected)).decode() == mistral_common.decode(expected)


def test_special_ids_come_from_the_file(tekken: Tokenizer) -> None:
    assert tekken.vocabulary_size == 131072
    assert (tekken.bos_id, tekken.eos_id) == (1, 2)
    assert tekken.image_ids == ImageTokenIds(placeholder=10, row_break=12, end=13)
    assert all(map(tekken.is_control, range(1000)))
    assert not any(map(tekken.is_control, range(1000, 131072)))


def test_control_tokens_and_ids_beyond_the_vocabulary_write_nothing(tekken: Tokenizer) -> None:
    assert [tekken.token_bytes(token_id) for token_id in (0, 1, 10, 999, 131072, 2**32 - 1)] == [b""] * 6
    assert [tekken.token_bytes(token_id) for token_id in range(1000, 1256)] == [bytes([i]) for i in range(256)]


def test_the_longest_token_bounds_all_tokens(tekken: Tokenizer) -> None:
    lengths = [len(tekken.token_bytes(token_id)) for token_id in range(tekken.vocabulary_size)]
    assert tekken.max_token_bytes == max(lengths) == 76


def test_a_moved_image_token_is_followed(tmp_path: Path, demo_tekken: Path) -> None:
    file = json.loads(demo_tekken.read_text())
    names = [token["token_str"] for token in file["special_tokens"]]
    order = [*names[:10], "[IMG_END]", "<pad>", "[IMG]", "[IMG_BREAK]", *names[14:]]
    for token, name in zip(file["special_tokens"], order, strict=True):
        token["token_str"] = name
    moved = tmp_path / "tekken.json"
    moved.write_text(json.dumps(file))
    assert Tokenizer.from_file(moved).image_ids == ImageTokenIds(placeholder=12, row_break=13, end=10)


def test_a_tokenizer_larger_than_the_model_is_refused(tekken: Tokenizer) -> None:
    tekken.check_fits(vocabulary_size=131072, image_token_id=10)
    tekken.check_fits(vocabulary_size=131200, image_token_id=None)
    with pytest.raises(ValueError, match="131072 ids, the model only 131071"):
        tekken.check_fits(vocabulary_size=131071, image_token_id=10)
    with pytest.raises(ValueError, match="image token is 10, the model's is 32000"):
        tekken.check_fits(vocabulary_size=131072, image_token_id=32000)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"config": {"version": "v3"}}', b"\xff" * 100])
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "tekken.json"
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"^tekken.json is not a tokenizer file that mistral-common reads$"):
        Tokenizer.from_file(broken)


def test_a_missing_or_unknown_file_is_refused(tmp_path: Path) -> None:
    unknown = tmp_path / "tokenizer.json"
    unknown.write_text("{}")
    for path in (unknown, tmp_path / "tekken.json"):
        with pytest.raises(ValueError, match="is not a tokenizer file"):
            Tokenizer.from_file(path)


def test_sentencepiece_files_read_like_tekken_files(tekken_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = Tokenizer.from_file(tekken_path.parent / "mistral_instruct_tokenizer_240323.model.v3")
    token_ids = tokenizer.encode_text("[INST] Grüße, 世界 🙂\n")
    assert not any(map(tokenizer.is_control, token_ids))
    # SentencePiece puts a space before every text.
    assert b"".join(map(tokenizer.token_bytes, token_ids)).decode() == " [INST] Grüße, 世界 🙂\n"
    assert tokenizer.vocabulary_size == 32768
