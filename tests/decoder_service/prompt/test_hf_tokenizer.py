import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import find_tokenizer_file, load_tokenizer
from decoder_service.text.detokenizer import Detokenizer
from tests.decoder_service.hf_checkpoints import BYTE_IDS, CONTROLS

GPT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
HOSTILE = st.lists(
    st.sampled_from([*CONTROLS, "<0x41>", "[", "]", "INST", "</", "s>", "<SPECIAL_30>"]) | st.text(max_size=8),
    max_size=8,
).map("".join)
HONEST = HOSTILE.filter(lambda text: not any(name in text for name in [*CONTROLS, "<SPECIAL_30>"]))
Both = tuple[Tokenizer, PreTrainedTokenizerBase]
Edit = Callable[[dict[str, Any]], object]


@given(text=HONEST)
def test_ids_of_text_are_those_of_transformers(hf: Both, text: str) -> None:
    tokenizer, oracle = hf
    assert tokenizer.encode_text(text) == oracle.encode(text, add_special_tokens=False)


@given(text=HOSTILE)
def test_text_never_becomes_a_control_token(hf: Both, text: str) -> None:
    tokenizer, _ = hf
    token_ids = tokenizer.encode_text(text)
    assert not any(map(tokenizer.is_control, token_ids))
    assert Detokenizer(tokenizer.texts).feed(token_ids).lstrip(" ") == text.lstrip(" ")


def test_the_oracle_takes_text_for_control_tokens(hf: Both) -> None:
    """The negative control: what we keep from happening does happen in the library."""
    tokenizer, oracle = hf
    assert any(map(tokenizer.is_control, oracle.encode("[INST]", add_special_tokens=False)))


def test_special_ids_come_from_the_files(hf_bytes: Path, hf_words: Path) -> None:
    tokenizer = load_tokenizer(hf_bytes)
    assert (tokenizer.vocabulary_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    assert tokenizer.image_ids == ImageTokenIds(placeholder=10, row_break=12, end=13)
    assert list(filter(tokenizer.is_control, range(600))) == list(range(32))
    words = load_tokenizer(hf_words)
    assert words.image_ids == ImageTokenIds(placeholder=5, row_break=6, end=7)
    assert list(filter(words.is_control, range(600))) == list(range(len(CONTROLS)))


def test_image_tokens_are_named_by_the_processor(tmp_path: Path, hf_words: Path) -> None:
    names = {"image_token": "[IMG_END]", "image_break_token": "[IMG]", "image_end_token": {"content": "[IMG_BREAK]"}}
    path = edited(hf_words, tmp_path, lambda file: None)
    (tmp_path / "processor_config.json").write_text(json.dumps(names))
    assert load_tokenizer(path).image_ids == ImageTokenIds(placeholder=7, row_break=5, end=6)


def test_image_tokens_steer_even_where_the_file_calls_them_text(tmp_path: Path, hf_words: Path) -> None:
    path = edited(hf_words, tmp_path, lambda file: [token.update(special=False) for token in file["added_tokens"]])
    tokenizer = load_tokenizer(path)
    assert all(map(tokenizer.is_control, (1, 2, 5, 6, 7)))
    assert not {1, 2, 5, 6, 7} & set(tokenizer.encode_text("<s></s>[IMG][IMG_BREAK][IMG_END]"))


@pytest.mark.parametrize("text", ["'second", "'Read", "'shown", "'thing"])
def test_the_wrong_pattern_of_old_files_is_repaired(tmp_path: Path, hf_bytes: Path, text: str) -> None:
    def spoil(file: dict[str, Any]) -> None:
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = GPT_PATTERN

    path = edited(hf_bytes, tmp_path, spoil)
    good, spoilt = (AutoTokenizer.from_pretrained(file.parent) for file in (hf_bytes, path))
    ids = load_tokenizer(path).encode_text(text)
    assert ids == good.encode(text, add_special_tokens=False)
    assert ids != spoilt.encode(text, add_special_tokens=False)


def test_a_pattern_of_another_vocabulary_is_kept(tmp_path: Path, hf_bytes: Path) -> None:
    def another(file: dict[str, Any]) -> None:
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = GPT_PATTERN
        for token in file["added_tokens"]:
            token["content"] = token["content"].replace("INST", "TURN")
        vocabulary = file["model"]["vocab"]
        file["model"]["vocab"] = {name.replace("INST", "TURN"): token_id for name, token_id in vocabulary.items()}

    path = edited(hf_bytes, tmp_path, another)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(path).encode_text("it's") == oracle.encode("it's", add_special_tokens=False)


def edited(path: Path, directory: Path, edit: Edit) -> Path:
    """A copy of a tokenizer and the files beside it, with the file changed."""
    for file in path.parent.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    content = json.loads(path.read_text())
    edit(content)
    (directory / path.name).write_text(json.dumps(content))
    return directory / path.name


BROKEN: dict[str, tuple[Edit, str]] = {
    "no model": (lambda file: file.pop("model"), "no BPE model"),
    "another kind of model": (lambda file: file["model"].update(type="Unigram"), "no BPE model"),
    "an unknown decoder": (
        lambda file: file.update(decoder={"type": "BPEDecoder", "suffix": ""}),
        "no Mistral model has",
    ),
    "no decoder": (lambda file: file.update(decoder=None), "no Mistral model has"),
    "a decoder of another shape": (lambda file: file.update(decoder=7), "tokenizers library reads"),
    "tokens of another shape": (lambda file: file.update(added_tokens=[7]), "added_tokens list that cannot be read"),
    "a control token of space": (
        lambda file: file["added_tokens"].append({**file["added_tokens"][0], "content": " \n", "id": 900}),
        "only space",
    ),
    "a merge of nothing": (lambda file: file["model"]["merges"].append(["q", "zz"]), "tokenizers library reads"),
    "a number for merges": (lambda file: file["model"].update(merges=3), "is not a tokenizer file"),
    "an id from nowhere": (lambda file: file["added_tokens"][-1].update(content="[new]", id=2000), "an id that"),
    "a huge id": (lambda file: file["model"]["vocab"].update(x=2**31), "ids up to"),
    "no begin": (lambda file: file["added_tokens"].pop(1), "name no bos_token that it has"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, hf_words: Path, name: str) -> None:
    edit, line = BROKEN[name]
    with pytest.raises(ValueError, match=line) as caught:
        load_tokenizer(edited(hf_words, tmp_path, edit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"{" * 100_000, b'{"a": ' * 100_000])
def test_broken_neighbours_are_refused_too(tmp_path: Path, hf_words: Path, file: str, content: bytes) -> None:
    path = edited(hf_words, tmp_path, lambda file: None)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"^(tokenizer|chat_template|the chat template)[^\n]*$"):
        load_tokenizer(path)


def test_a_tokenizer_larger_than_the_model_is_refused(hf_bytes: Path) -> None:
    tokenizer = load_tokenizer(find_tokenizer_file(hf_bytes.parent))
    tokenizer.check_fits(vocabulary_size=512, image_token_id=10)
    with pytest.raises(ValueError, match="512 ids, the model only 500"):
        tokenizer.check_fits(vocabulary_size=500, image_token_id=10)


def test_lone_surrogates_are_refused(hf: Both) -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        hf[0].encode_text("a\ud800")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\0", "[", "中"])
def test_a_megabyte_of_one_letter_takes_linear_time(hf: Both, unit: str) -> None:
    def seconds(num_characters: int) -> float:
        started = time.process_time()
        hf[0].encode_text(unit * num_characters)
        return time.process_time() - started

    # Ten times the text may take up to thirty times as long: far from the hundred of quadratic work.
    short = max(min(seconds(30_000) for _ in range(2)), 0.02)
    assert seconds(300_000) < 30 * short


@pytest.mark.parametrize("bytes_", ["E2 82", "E2 - 82 AC", "- C3 - A9", "20 61", "61 20 61"])
def test_bytes_and_control_tokens_are_told_as_the_library_decodes_them(hf: Both, bytes_: str) -> None:
    tokenizer, oracle = hf
    ids = {piece: token_id for token_id, piece in reversed([*enumerate(tokenizer.texts.pieces)])}
    token_ids = [tokenizer.eos_id if byte == "-" else ids[bytes.fromhex(byte)] for byte in bytes_.split()]
    detokenizer = Detokenizer(tokenizer.texts)
    expected = oracle.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert detokenizer.feed(token_ids) + detokenizer.flush() == expected


@given(data=st.data())
def test_streamed_text_is_what_the_library_decodes(hf: Both, data: st.DataObject) -> None:
    tokenizer, oracle = hf
    words = st.integers(0, tokenizer.vocabulary_size - 1)
    if tokenizer.texts.replaces_each_byte:
        # Whole characters: of a run of bytes with one that is wrong the library replaces every byte.
        texts = st.text(max_size=3).map(lambda text: oracle.encode(text, add_special_tokens=False))
        pieces = st.lists(
            texts | words.filter(lambda token_id: token_id not in BYTE_IDS).map(lambda token_id: [token_id])
        )
        token_ids = [token_id for piece in data.draw(pieces) for token_id in piece]
    else:
        token_ids = data.draw(st.lists(words, max_size=20))
    detokenizer = Detokenizer(tokenizer.texts)
    told = "".join([*(detokenizer.feed([token_id]) for token_id in token_ids), detokenizer.flush()])
    assert told == oracle.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
