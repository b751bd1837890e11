import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from PIL import Image

from common.errors import InvalidArgumentError
from common.image.header import ImageLimits
from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.prompt.mistral_chat import ChatTokenizer
from decoder_service.prompt.prompt import Prompt, PromptBuilder, PromptLimits
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TextPrompt, TokenPrompt
from decoder_service.prompt.tokenizer import Tokenizer
from decoder_service.prompt.tokenizer_files import load_tokenizer

MISTRAL = Preprocessing(
    mode=PreprocessingMode.MISTRAL, patch_size=16, image_size=1024, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
HF = Preprocessing(mode=PreprocessingMode.HF, patch_size=16, image_size=1024, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BOS, EOS, INST, END_INST, IMG, BREAK, END = 1, 2, 3, 4, 10, 12, 13
CLASSES = {Role.SYSTEM: SystemMessage, Role.USER: UserMessage, Role.ASSISTANT: AssistantMessage}


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


SMALL, WIDE = picture(20, 40), picture(60, 16)
"""Grids of 3 rows of 2, and 1 row of 4."""
SMALL_IDS = [IMG, IMG, BREAK, IMG, IMG, BREAK, IMG, IMG, END]
WIDE_IDS = [IMG, IMG, IMG, IMG, END]


def system(*parts: str | bytes) -> ChatMessage:
    return ChatMessage(role=Role.SYSTEM, parts=parts)


def user(*parts: str | bytes) -> ChatMessage:
    return ChatMessage(role=Role.USER, parts=parts)


def assistant(*parts: str | bytes) -> ChatMessage:
    return ChatMessage(role=Role.ASSISTANT, parts=parts)


def chat(*messages: ChatMessage) -> ChatPrompt:
    return ChatPrompt(messages)


def make_builder(tokenizer: Tokenizer, *, max_prompt_tokens: int = 4_000_000) -> PromptBuilder:
    limits = PromptLimits(
        max_prompt_tokens=max_prompt_tokens,
        max_images=4,
        image=ImageLimits(max_bytes=20 << 20, max_pixels=50_000_000),
    )
    return PromptBuilder(tokenizer, vocabulary_size=131072, limits=limits)


Build = Callable[..., Prompt]


@pytest.fixture(scope="session")
def build(tekken: Tokenizer) -> Build:
    builder = make_builder(tekken)
    return lambda spec, preprocessing=MISTRAL: builder.build(spec, preprocessing=preprocessing)


@pytest.fixture
def oracle(mistral_common: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves mistral-common as it is but for the pixels, which need OpenCV: a size stands for them."""
    monkeypatch.setattr(
        "mistral_common.tokens.tokenizers.image.transform_image", lambda image, new_size: np.array(image.size)
    )


def check_invariants(prompt: Prompt) -> None:
    """One [IMG] for each feature row, and in each range exactly its image's tokens."""
    num_patches = sum(placeholder.grid.num_patches for placeholder in prompt.placeholders)
    assert prompt.token_ids.count(IMG) == num_patches
    assert len(prompt.images) == len(prompt.placeholders)
    end = 0
    for placeholder, image in zip(prompt.placeholders, prompt.images, strict=True):
        height, width = placeholder.grid
        assert end <= placeholder.offset
        end = placeholder.offset + placeholder.length
        expected = ([IMG] * width + [BREAK]) * height
        assert list(prompt.token_ids[placeholder.offset : end]) == [*expected[:-1], END]
        assert MISTRAL.patch_grid(*Image.open(io.BytesIO(image)).size) == placeholder.grid


LAYOUTS: dict[str, tuple[ChatPrompt, list[str | bytes]]] = {
    "text": (chat(user("hi")), ["<s>[INST]", "hi", "[/INST]"]),
    "an only image": (chat(user(SMALL)), ["<s>[INST]", SMALL, "[/INST]"]),
    "a single image after the text moves first": (
        chat(user("Describe this image.", SMALL)),
        ["<s>[INST]", SMALL, "Describe this image.", "[/INST]"],
    ),
    "also after several texts": (chat(user("a", "b", SMALL)), ["<s>[INST]", SMALL, "a\n\nb", "[/INST]"]),
    "an image between texts stays": (
        chat(user("A", SMALL, "B", WIDE)),
        ["<s>[INST]", "A", SMALL, "B", WIDE, "[/INST]"],
    ),
    "two images after the text stay": (
        chat(user("A", SMALL, WIDE)),
        ["<s>[INST]", "A", SMALL, WIDE, "[/INST]"],
    ),
    "the system prompt goes to the last user turn": (
        chat(system("Be brief."), user("hi"), assistant("ok"), user("bye")),
        ["<s>[INST]", "hi", "[/INST]", "ok", "</s>[INST]", "Be brief.\n\nbye", "[/INST]"],
    ),
    "also before an image": (
        chat(system("Be brief."), user("A", SMALL)),
        ["<s>[INST]", "Be brief.\n\n", SMALL, "A", "[/INST]"],
    ),
    "messages of the same role are joined": (
        chat(user("a"), user("b", WIDE), user("c")),
        ["<s>[INST]", "a\n\nb", WIDE, "c", "[/INST]"],
    ),
    "images of earlier turns": (
        chat(user("A", SMALL), assistant("ok"), user("B", WIDE)),
        ["<s>[INST]", SMALL, "A", "[/INST]", "ok", "</s>[INST]", WIDE, "B", "[/INST]"],
    ),
    "whitespace is kept": (chat(user("  a \n")), ["<s>[INST]", "  a \n", "[/INST]"]),
    "control words are text": (
        chat(user("[IMG][INST]</s>[IMG_BREAK]", SMALL)),
        ["<s>[INST]", SMALL, "[IMG][INST]</s>[IMG_BREAK]", "[/INST]"],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_chats_are_laid_out_as_specified(build: Build, tekken: Tokenizer, name: str) -> None:
    spec, expected = LAYOUTS[name]
    marks = {"<s>[INST]": [BOS, INST], "[/INST]": [END_INST], "</s>[INST]": [EOS, INST]}
    token_ids: list[int] = []
    images = []
    for piece in expected:
        if isinstance(piece, bytes):
            images.append(piece)
            token_ids += SMALL_IDS if piece == SMALL else WIDE_IDS
        else:
            token_ids += marks.get(piece) or tekken.encode_text(piece)
    prompt = build(spec)
    assert list(prompt.token_ids) == token_ids
    assert list(prompt.images) == images
    check_invariants(prompt)


TEXTS = st.text(min_size=1, max_size=12) | st.sampled_from(["[IMG]", "[INST] a", "</s>", " ", "\n\n", "[IMG_END]"])
IMAGES = st.sampled_from([picture(*size) for size in ((1, 1), (16, 17), (40, 20), (2000, 30), (1, 1100), (1500, 999))])


@st.composite
def chats(draw: st.DrawFn) -> ChatPrompt:
    """Chats that are allowed: no system message after an assistant's, the user's last."""
    messages: list[ChatMessage] = []
    for _ in range(draw(st.integers(0, 4))):
        after_assistant = messages and messages[-1].role is Role.ASSISTANT
        roles = [Role.USER, Role.ASSISTANT] if after_assistant else list(Role)
        role = draw(st.sampled_from(roles))
        parts = draw(st.lists(TEXTS, min_size=1, max_size=3))
        messages.append(ChatMessage(role=role, parts=tuple(parts)))
    last = draw(st.lists(TEXTS | IMAGES, min_size=1, max_size=4))
    first = draw(st.lists(TEXTS | IMAGES, min_size=1, max_size=4)) if draw(st.booleans()) else []
    return chat(*([user(*first)] if first and len(first) + len(last) <= 4 else []), *messages, user(*last))


@given(spec=chats())
@settings(max_examples=150)
@pytest.mark.usefixtures("oracle")
def test_chats_are_laid_out_as_by_mistral_common(build: Build, mistral_common: ChatTokenizer, spec: ChatPrompt) -> None:
    messages = [
        CLASSES[message.role](
            content=[
                TextChunk(text=part) if isinstance(part, str) else ImageChunk(image=Image.open(io.BytesIO(part)))
                for part in message.parts
            ]
        )
        for message in spec.messages
    ]
    expected = mistral_common.encode_chat_completion(ChatCompletionRequest(messages=messages))
    prompt = build(spec)
    assert list(prompt.token_ids) == expected.tokens
    assert [Image.open(io.BytesIO(image)).size for image in prompt.images] == [tuple(size) for size in expected.images]
    check_invariants(prompt)


def test_grids_follow_the_preprocessing(build: Build) -> None:
    # The references round the shrunk height to different numbers of patches.
    spec = chat(user(picture(3000, 2018)))
    assert [build(spec, mode).placeholders[0].grid for mode in (MISTRAL, HF)] == [
        PatchGrid(height=44, width=64),
        PatchGrid(height=43, width=64),
    ]
    assert build(spec, HF).num_image_tokens == 43 * 65


def test_raw_text_follows_the_begin_token_and_is_only_text(build: Build, tekken: Tokenizer) -> None:
    text = "<s>[INST][IMG][/INST]\0"
    prompt = build(TextPrompt(text), None)
    assert prompt == Prompt(token_ids=(BOS, *tekken.encode_text(text)), placeholders=(), images=())
    assert IMG not in prompt.token_ids
    assert INST not in prompt.token_ids


@given(spec=chats())
@settings(max_examples=50)
def test_token_ids_of_a_chat_give_the_same_prompt(build: Build, spec: ChatPrompt) -> None:
    prompt = build(spec)
    assert build(TokenPrompt(prompt.token_ids, prompt.images)) == prompt


def test_each_image_is_known_by_its_place_in_the_request_wherever_it_is_laid_out(build: Build) -> None:
    of_chat = build(chat(user("A", SMALL, "B"), user(WIDE, "C")))
    assert of_chat.image_fields == ("chat.messages[0].parts[1].image", "chat.messages[1].parts[0].image")
    of_ids = build(TokenPrompt([*SMALL_IDS, *WIDE_IDS], (SMALL, WIDE)))
    assert of_ids.image_fields == ("token_ids.images[0]", "token_ids.images[1]")


def test_token_ids_may_put_images_side_by_side(build: Build) -> None:
    prompt = build(TokenPrompt([*SMALL_IDS, *WIDE_IDS, *SMALL_IDS, 131071], (SMALL, WIDE, SMALL)))
    assert prompt.placeholders == (
        PlaceholderRange(0, 9, PatchGrid(3, 2)),
        PlaceholderRange(9, 5, PatchGrid(1, 4)),
        PlaceholderRange(14, 9, PatchGrid(3, 2)),
    )


@pytest.mark.parametrize(
    ("token_ids", "images"),
    [
        ([BOS, IMG], ()),
        ([BOS, *SMALL_IDS], ()),
        ([BOS], (SMALL,)),
        ([BOS, *SMALL_IDS], (WIDE,)),
        ([BOS, *SMALL_IDS, *WIDE_IDS], (WIDE, SMALL)),
        ([BOS, *SMALL_IDS], (SMALL, SMALL)),
        ([BOS, *SMALL_IDS, IMG], (SMALL,)),
        ([IMG, BOS, *SMALL_IDS], (SMALL,)),
        ([BOS, *SMALL_IDS[:-1]], (SMALL,)),
        ([BOS, *SMALL_IDS[:4], 2000, *SMALL_IDS[4:]], (SMALL,)),
        ([BOS, IMG, IMG, END, IMG, IMG, BREAK, IMG, IMG, END], (SMALL,)),
        ([BOS, IMG, IMG, BREAK, IMG, IMG, BREAK, IMG, IMG, BREAK], (SMALL,)),
        ([BOS, IMG, IMG, IMG, BREAK, IMG, IMG, IMG, END], (SMALL,)),
    ],
)
def test_placeholders_that_are_not_the_images_are_refused(
    build: Build, token_ids: list[int], images: tuple[bytes, ...]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build(TokenPrompt(token_ids, images))
    assert (caught.value.reason, caught.value.field) == ("IMAGE_COUNT_MISMATCH", "token_ids.ids")


PART = "chat.messages[1].parts[0].image"


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        (chat(), "EMPTY_PROMPT", "chat.messages"),
        (TextPrompt(""), "EMPTY_PROMPT", "text.text"),
        (TokenPrompt([]), "EMPTY_PROMPT", "token_ids.ids"),
        (chat(user("a"), user()), "EMPTY_MESSAGE", "chat.messages[1].parts"),
        (chat(user("", "")), "EMPTY_MESSAGE", "chat.messages[0].parts"),
        (chat(user("a"), assistant(""), user("b")), "EMPTY_MESSAGE", "chat.messages[1].parts"),
        (chat(system("a")), "INVALID_ROLE_ORDER", "chat.messages[0].role"),
        (chat(user("a"), assistant("b")), "INVALID_ROLE_ORDER", "chat.messages[1].role"),
        (chat(system("a"), assistant("b")), "INVALID_ROLE_ORDER", "chat.messages[1].role"),
        (chat(user("a"), assistant("b"), system("c"), user("d")), "INVALID_ROLE_ORDER", "chat.messages[2].role"),
        (chat(user("a"), system(SMALL), user("b")), "IMAGE_IN_WRONG_ROLE", PART),
        (chat(user("a"), assistant(SMALL), user("b")), "IMAGE_IN_WRONG_ROLE", PART),
        (chat(user(*[SMALL] * 3), user(*[SMALL] * 2)), "TOO_MANY_IMAGES", "chat"),
        (TokenPrompt([BOS], (b"",) * 5), "TOO_MANY_IMAGES", "token_ids.images"),
        (chat(user("a"), user(b"")), "IMAGE_UNDECODABLE", PART),
        (chat(user("a"), user(b"not an image")), "IMAGE_UNDECODABLE", PART),
        (chat(user("a"), user(picture(50_001, 1000))), "IMAGE_TOO_LARGE", PART),
        (TokenPrompt([BOS], (SMALL, b"")), "IMAGE_UNDECODABLE", "token_ids.images[1]"),
        (TokenPrompt([BOS, 131072]), "INVALID_TOKEN_ID", "token_ids.ids[1]"),
        (TokenPrompt([2**32 - 1]), "INVALID_TOKEN_ID", "token_ids.ids[0]"),
        (TextPrompt(" " * 1_500_000), "TEXT_NOT_ENCODABLE", "text.text"),
        (chat(user(" " * 1_500_000)), "TEXT_NOT_ENCODABLE", "chat"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_with_its_field(
    build: Build, spec: PromptSpec, reason: str, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build(spec)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (chat(user("a", SMALL)), "chat.messages[0].parts[1].image"),
        (TokenPrompt([*SMALL_IDS], (SMALL,)), "token_ids.images[0]"),
    ],
)
def test_a_model_without_images_refuses_them(build: Build, spec: PromptSpec, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build(spec, None)
    assert (caught.value.reason, caught.value.field) == ("IMAGES_UNSUPPORTED", field)
    assert build(chat(user("a")), None).placeholders == ()


def texts_of(num_tokens: int) -> Sequence[PromptSpec]:
    """Prompts of so many tokens: "a1a1..." is a token a letter."""
    text = "a1" * (num_tokens // 2) + "a" * (num_tokens % 2)
    return TextPrompt(text[:-1]), chat(user(text[:-3])), TokenPrompt([5000] * num_tokens)


@pytest.mark.parametrize("limit", [50, 51])
def test_the_longest_prompt_passes_and_one_token_more_does_not(tekken: Tokenizer, limit: int) -> None:
    builder = make_builder(tekken, max_prompt_tokens=limit)
    for spec in texts_of(limit):
        assert len(builder.build(spec, preprocessing=None).token_ids) == limit
    for spec in texts_of(limit + 1):
        with pytest.raises(InvalidArgumentError) as caught:
            builder.build(spec, preprocessing=None)
        assert caught.value.reason == "PROMPT_TOO_LONG"
        assert caught.value.metadata == {"limit": str(limit), "got": str(limit + 1)}


@pytest.mark.parametrize("spec", [TextPrompt("-" * 76_001), chat(user("-" * 76_000, "-"))])
def test_text_that_cannot_fit_is_refused_before_it_is_encoded(
    tekken: Tokenizer, monkeypatch: pytest.MonkeyPatch, spec: PromptSpec
) -> None:
    builder = make_builder(tekken, max_prompt_tokens=1000)
    monkeypatch.setattr("mistral_common.tokens.tokenizers.tekken.Tekkenizer.encode", None)
    with pytest.raises(InvalidArgumentError) as caught:
        builder.build(spec, preprocessing=None)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert caught.value.metadata["got"] == "1001"


@pytest.mark.parametrize("unit", ["a", "A", " ", "\n", "-", "0", "\0", "aB", "中", "\u0301"])
def test_a_megabyte_of_one_letter_takes_linear_time(build: Build, unit: str) -> None:
    def seconds(num_characters: int) -> float:
        started = time.thread_time()
        build(chat(user(unit * (num_characters // len(unit)))))
        return time.thread_time() - started

    # Ten times the text may take up to thirty times as long: far from the hundred of quadratic work.
    short = max(min(seconds(90_000) for _ in range(3)), 0.02)
    assert seconds(900_000) < 30 * short


def test_a_checkpoint_without_a_chat_template_takes_text_alone(tmp_path: Path, hf_words: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(hf_words.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    builder = make_builder(load_tokenizer(tmp_path / "tokenizer.json"))
    assert builder.build(TextPrompt("the cat"), preprocessing=None).token_ids[0] == BOS
    with pytest.raises(InvalidArgumentError) as caught:
        builder.build(chat(user("the cat")), preprocessing=None)
    assert (caught.value.reason, caught.value.field) == ("CHAT_UNSUPPORTED", "chat")


def test_to_a_model_without_image_tokens_every_id_is_a_token_like_any_other(
    tekken: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tekken, "image_ids", None)
    builder = make_builder(tekken)
    prompt = builder.build(TokenPrompt([BOS, IMG, END]), preprocessing=None)
    assert prompt == Prompt(token_ids=(BOS, IMG, END), placeholders=(), images=())
    with pytest.raises(InvalidArgumentError) as caught:
        builder.build(TokenPrompt([BOS, *SMALL_IDS], (SMALL,)), preprocessing=MISTRAL)
    assert caught.value.reason == "IMAGES_UNSUPPORTED"


def test_prompts_can_be_built_in_several_threads_at_once(build: Build) -> None:
    specs = [chat(user("A", picture(16 * width, 32), SMALL)) for width in range(1, 30)]
    alone = [build(spec) for spec in specs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(build, specs)) == alone
