from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.image.preprocessing import PatchGrid
from decoder_service.prompt.hf_chat import HuggingFaceChatTemplate
from decoder_service.prompt.hf_vocabulary import Vocabulary
from decoder_service.prompt.prompt_spec import ChatMessage, Role
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import load_tokenizer
from tests.decoder_service.hf_checkpoints import CONTROLS

# Hypothesis tries the words that it finds in our files, control tokens among them.
HONEST = st.text(min_size=1, max_size=12).filter(
    lambda text: not {*"[]"} <= {*text} and not {*"<>"} <= {*text}
) | st.sampled_from([" ", " a ", "\n\nb", "[", "]", "the cat ", "\U000f0000["])
Both = tuple[Tokenizer, PreTrainedTokenizerBase]
GRIDS = st.builds(PatchGrid, height=st.integers(1, 3), width=st.integers(1, 3))


def user(*parts: str | bytes) -> ChatMessage:
    return ChatMessage(role=Role.USER, parts=parts)


def lay_out(tokenizer: Tokenizer, messages: Sequence[ChatMessage], grids: Sequence[PatchGrid] = ()) -> list[int]:
    assert tokenizer.chat_template is not None
    layout = tokenizer.chat_template.lay_out(messages, grids)
    assert layout.image_order == tuple(range(len(grids)))
    return list(layout.token_ids)


def reference(
    oracle: PreTrainedTokenizerBase, messages: Sequence[ChatMessage], grids: Sequence[PatchGrid] = ()
) -> list[int]:
    """What transformers makes of the chat, each image's token replaced as Pixtral's processor does."""
    chat: Any = [{"role": message.role.value, "content": content(message.parts)} for message in messages]
    text = str(oracle.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    first, *rest = text.split("[IMG]")
    for grid, piece in zip(grids, rest, strict=True):
        rows = ["[IMG]" * grid.width] * grid.height
        first += "[IMG_BREAK]".join(rows) + "[IMG_END]" + piece
    ids: list[int] = oracle.encode(first, add_special_tokens=False)
    return ids


def content(parts: Sequence[str | bytes]) -> str | list[dict[str, str]]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


@st.composite
def conversations(draw: st.DrawFn) -> list[ChatMessage]:
    """Turns of one text each, as the narrowest templates take them."""
    system = [ChatMessage(role=Role.SYSTEM, parts=(draw(HONEST),))] if draw(st.booleans()) else []
    turns = [user(draw(HONEST))]
    for _ in range(draw(st.integers(0, 2))):
        turns += [ChatMessage(role=Role.ASSISTANT, parts=(draw(HONEST),)), user(draw(HONEST))]
    return [*system, *turns]


@given(messages=conversations())
def test_chats_are_laid_out_as_by_transformers(hf: Both, messages: list[ChatMessage]) -> None:
    tokenizer, oracle = hf
    assert lay_out(tokenizer, messages) == reference(oracle, messages)


@given(data=st.data())
def test_images_are_laid_out_as_by_transformers(pixtral: Both, data: st.DataObject) -> None:
    tokenizer, oracle = pixtral
    parts = data.draw(st.lists(HONEST | st.just(b""), min_size=1, max_size=5))
    later = data.draw(st.lists(HONEST | st.just(b""), min_size=1, max_size=3))
    messages = [user(*parts), ChatMessage(role=Role.ASSISTANT, parts=("ok",)), user(*later)]
    grids = [data.draw(GRIDS) for part in parts + later if isinstance(part, bytes)]
    assert lay_out(tokenizer, messages, grids) == reference(oracle, messages, grids)


@pytest.fixture(scope="session")
def pixtral(hf_bytes: Path) -> Both:
    return load_tokenizer(hf_bytes), AutoTokenizer.from_pretrained(hf_bytes.parent)


HOSTILE = st.lists(st.sampled_from([*CONTROLS, "[", "]", "IMG", "INST", "/", "</", "s>", "a"]), min_size=1).map("".join)


@given(texts=st.lists(HOSTILE, min_size=1, max_size=4))
def test_only_the_template_writes_control_tokens(pixtral: Both, texts: list[str]) -> None:
    tokenizer, _ = pixtral
    token_ids = lay_out(tokenizer, [user(*texts, b"", *texts)], [PatchGrid(1, 1)])
    assert [token_id for token_id in token_ids if tokenizer.is_control(token_id)] == [1, 3, 10, 13, 4]
    honest = lay_out(tokenizer, [user(*["a"] * len(texts), b"", *["a"] * len(texts))], [PatchGrid(1, 1)])
    written, told = (b"".join(map(tokenizer.token_bytes, ids)).decode() for ids in (token_ids, honest))
    # What is said stands where an honest text would stand, letter for letter.
    assert "".join(written.split("\n\n")) == "".join(told.split("\n\n")).replace("a" * len(texts), "".join(texts))


def test_parts_that_only_together_make_a_control_token_stay_text(pixtral: Both) -> None:
    tokenizer, oracle = pixtral
    template = "{{ bos_token }}{% for part in messages[0].content %}{{ part.text }}{% endfor %}"
    chat = make_template(tokenizer, template)
    layout = chat.lay_out([user("[IM", "G]", "<", "/s>")], [])
    assert list(layout.token_ids) == [1, *tokenizer.encode_text("[IMG]</s>")]
    chat = make_template(tokenizer, "[IM{{ messages[0].content }}]")
    assert list(chat.lay_out([user("G")], []).token_ids) == tokenizer.encode_text("[IMG]")
    assert oracle.encode("[IMG]") == [10]


def make_template(tokenizer: Tokenizer, source: str) -> HuggingFaceChatTemplate:
    vocabulary = tokenizer._vocabulary  # type: ignore[attr-defined]
    assert isinstance(vocabulary, Vocabulary)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return HuggingFaceChatTemplate(source, vocabulary=vocabulary, names=names, image_ids=tokenizer.image_ids)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{{ messages[0].content }}",
        "{{ bos_token }}{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
        "{{ bos_token }}{% for part in messages[0].content %}{{ part.content }}{% endfor %}",
    ],
)
def test_content_has_the_form_that_the_template_reads(pixtral: Both, source: str) -> None:
    tokenizer, _ = pixtral
    chat = make_template(tokenizer, source)
    assert list(chat.lay_out([user("the cat")], []).token_ids) == [1, *tokenizer.encode_text("the cat")]
    glue = "\n\n" if "for" not in source else ""
    assert list(chat.lay_out([user("a", "b")], []).token_ids) == [1, *tokenizer.encode_text(f"a{glue}b")]


@pytest.mark.parametrize("source", ["", "{{ bos_token }}", "{{ messages[7].content }}", "{% for", "{{ '" + "a" * 2**20])
def test_a_template_that_cannot_work_is_refused_when_it_is_read(pixtral: Both, source: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        make_template(pixtral[0], source)


def test_a_chat_that_the_template_refuses_is_a_value_error(hf: Both, hf_words: Path) -> None:
    with pytest.raises(ValueError, match="refused the chat"):
        lay_out(load_tokenizer(hf_words), [user("a"), user("b")])
    with pytest.raises(ValueError, match="not valid Unicode"):
        lay_out(hf[0], [user("a\udfff")])


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}[IMG]", "{% for p in messages[0].content %}{{ p.text }}{% endfor %}"]
)
def test_one_token_for_each_image_or_none(pixtral: Both, source: str) -> None:
    chat = make_template(pixtral[0], source)
    wrong = [] if "[IMG]" in source else [PatchGrid(1, 1)]
    with pytest.raises(ValueError, match="one token for each image"):
        chat.lay_out([user("a", *[b""] * len(wrong))], wrong)


def test_private_characters_of_the_chat_are_kept(pixtral: Both) -> None:
    tokenizer, _ = pixtral
    chat = make_template(tokenizer, "{{ messages[0].content }}")
    text = "".join(map(chr, range(0xF0000, 0xF0100))) + "[IMG]"
    assert list(chat.lay_out([user(text)], []).token_ids) == tokenizer.encode_text(text)


def test_a_checkpoint_without_a_template_has_none(tmp_path: Path, hf_bytes: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((hf_bytes.parent / name).read_bytes())
    assert load_tokenizer(tmp_path / "tokenizer.json").chat_template is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.json", '{"chat_template": "{{ messages[0].content }}!"}'),
        ("tokenizer_config.json", '{"chat_template": "{{ messages[0].content }}!"}'),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "rag", "template": "?"},'
            ' {"name": "default", "template": "{{ messages[0].content }}!"}]}',
        ),
    ],
)
def test_templates_are_found_in_every_place(tmp_path: Path, hf_bytes: Path, file: str, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(hf_bytes.read_bytes())
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    (tmp_path / file).write_text(content)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert lay_out(tokenizer, [user("hi")]) == tokenizer.encode_text("hi!")
