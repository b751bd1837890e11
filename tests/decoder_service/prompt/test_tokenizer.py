import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.mistral_chat import ChatTokenizer
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import find_tokenizer_file, load_tokenizer
from decoder_service.text.detokenizer import Detokenizer

LoadMistral = Callable[[str], tuple[Tokenizer, ChatTokenizer]]

CONTROL_TEXTS = [
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<pad>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[PREFIX]", "<SPECIAL_30>", "<|endoftext|>"),
]
# Texts that try to be control tokens, among anything else.
HOSTILE = st.lists(st.sampled_from(CONTROL_TEXTS) | st.text(max_size=8), max_size=8).map("".join)


@given(text=HOSTILE)
def test_text_never_becomes_a_control_token(both: tuple[Tokenizer, ChatTokenizer], text: str) -> None:
    tokenizer, _ = both
    token_ids = tokenizer.encode_text(text)
    assert not any(map(tokenizer.is_control, token_ids))
    space = " " if tokenizer.texts.first_pieces and text else ""  # SentencePiece begins every text with one.
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == (space + text).encode()


@given(text=HOSTILE)
def test_ids_are_those_of_mistral_common(both: tuple[Tokenizer, ChatTokenizer], text: str) -> None:
    tokenizer, oracle = both
    expected = oracle.instruct_tokenizer.tokenizer.encode(text, bos=False, eos=False)
    assert tokenizer.encode_text(text) == expected
    assert Detokenizer(tokenizer.texts).feed(expected) == oracle.decode(expected) == text


@given(data=st.data())
def test_streamed_text_is_what_mistral_common_decodes(
    both: tuple[Tokenizer, ChatTokenizer], data: st.DataObject
) -> None:
    tokenizer, oracle = both
    # Any token, control tokens and bytes among them, and the tokens of texts.
    low, high = st.integers(0, 1300), st.integers(0, tokenizer.vocabulary_size - 1)
    texts = st.text(max_size=4).map(tokenizer.encode_text)
    pieces = data.draw(st.lists(st.lists(low | high, max_size=4) | texts, max_size=6))
    detokenizer = Detokenizer(tokenizer.texts)
    told = "".join([*map(detokenizer.feed, pieces), detokenizer.flush()])
    assert told == oracle.decode([token_id for piece in pieces for token_id in piece])


@pytest.mark.parametrize("bytes_", ["E2 82", "E2 82 61", "F0 9F C3 A9", "E2 - 82 AC", "- E2 82 - AC", "20 61", "FF 61"])
def test_broken_characters_are_told_as_mistral_common_decodes_them(
    both: tuple[Tokenizer, ChatTokenizer], bytes_: str
) -> None:
    tokenizer, oracle = both
    ids = {piece: token_id for token_id, piece in reversed([*enumerate(tokenizer.texts.pieces)])}
    token_ids = [tokenizer.eos_id if byte == "-" else ids[bytes.fromhex(byte)] for byte in bytes_.split()]
    detokenizer = Detokenizer(tokenizer.texts)
    assert detokenizer.feed(token_ids) + detokenizer.flush() == oracle.decode(token_ids)


@given(start=st.text(min_size=1, max_size=8), data=st.data())
def test_text_that_goes_on_keeps_its_first_space(
    both: tuple[Tokenizer, ChatTokenizer], start: str, data: st.DataObject
) -> None:
    tokenizer, oracle = both
    prompt = tokenizer.encode_text(start)
    output = data.draw(st.lists(st.integers(1300, tokenizer.vocabulary_size - 1), max_size=4))
    detokenizer = Detokenizer(tokenizer.texts, first=False)
    told = detokenizer.feed(output) + detokenizer.flush()
    assert start + told == oracle.decode(prompt) + told
    if "\ufffd" not in told:
        assert start + told == oracle.decode(prompt + output)


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
    assert load_tokenizer(moved).image_ids == ImageTokenIds(placeholder=12, row_break=13, end=10)


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
        load_tokenizer(broken)


def test_a_missing_or_unknown_file_is_refused(tmp_path: Path) -> None:
    unknown = tmp_path / "vocabulary.json"
    unknown.write_text("{}")
    for path in (unknown, tmp_path / "tekken.json", tmp_path / "tokenizer.model.v3", tmp_path / "tokenizer.json"):
        with pytest.raises(ValueError, match="is not a tokenizer file"):
            load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "size", "image_ids"),
    [
        ("tokenizer.model.v1", 32000, None),
        ("mistral_instruct_tokenizer_240216.model.v2", 32768, None),
        ("mistral_instruct_tokenizer_240323.model.v3", 32768, None),
        ("mistral_instruct_tokenizer_241114.model.v7", 32768, ImageTokenIds(10, 14, 15)),
        ("mistral_instruct_tokenizer_241114.model.v7m1", 32768, ImageTokenIds(10, 14, 15)),
        ("tekken_240718.json", 131072, ImageTokenIds(10, 12, 13)),
        ("tekken_240911.json", 131072, ImageTokenIds(10, 12, 13)),
    ],
)
def test_every_file_tells_its_ids(
    load_mistral: LoadMistral, name: str, size: int, image_ids: ImageTokenIds | None
) -> None:
    tokenizer, _ = load_mistral(name)
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id) == (size, 1, 2)
    assert tokenizer.image_ids == image_ids


def test_a_lone_surrogate_is_a_value_error_or_a_replacement_character(load_mistral: LoadMistral) -> None:
    sentencepiece, _ = load_mistral("tokenizer.model.v1")
    with pytest.raises(ValueError, match="not valid Unicode"):
        sentencepiece.encode_text("a\ud800b")
    tekken, _ = load_mistral("tekken_240911.json")
    assert tekken.encode_text("a\ud800b") == tekken.encode_text("a\ufffdb")


def test_a_file_that_hides_its_version_is_refused(tmp_path: Path, data: Path) -> None:
    for name in ("mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_241114.model.v7"):
        path = tmp_path / "tokenizer.model"
        path.write_bytes((data / name).read_bytes())
        with pytest.raises(ValueError, match=r"^tokenizer.model is newer than version 1: name it tokenizer.model.v2,"):
            load_tokenizer(path)
    path.write_bytes((data / "tokenizer.model.v1").read_bytes())
    assert load_tokenizer(path).vocabulary_size == 32000


def test_mistral_files_are_preferred_and_a_bare_name_comes_last(tmp_path: Path) -> None:
    names = ["tokenizer.model", "tokenizer.json", "x.model.v2", "tokenizer.model.v3", "tekken.json"]
    with pytest.raises(ValueError, match="holds no tokenizer file"):
        find_tokenizer_file(tmp_path)
    for name in names:
        (tmp_path / name).touch()
        assert find_tokenizer_file(tmp_path).name == name
