import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image

from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from decoder_service.prompt.mistral_chat import ChatTokenizer
from decoder_service.prompt.prompt_spec import ChatMessage, Role
from decoder_service.prompt.tokenizer import Tokenizer

CLASSES = {Role.SYSTEM: SystemMessage, Role.USER: UserMessage, Role.ASSISTANT: AssistantMessage}
SIZES = Preprocessing(
    mode=PreprocessingMode.MISTRAL, patch_size=16, image_size=1024, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
TEXTS = st.text(min_size=1, max_size=12) | st.sampled_from(["[IMG]", "[INST] a", "</s>", " ", "\n\n", "[/INST]", "\0"])


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


IMAGES = st.sampled_from([picture(*size) for size in ((1, 1), (16, 17), (40, 20), (100, 30))])


@st.composite
def chats(draw: st.DrawFn, parts: st.SearchStrategy[str | bytes]) -> list[ChatMessage]:
    """Chats that every version allows: system messages first, the user's last."""
    messages = []
    if draw(st.booleans()):
        messages.append(ChatMessage(role=Role.SYSTEM, parts=tuple(draw(st.lists(TEXTS, min_size=1, max_size=2)))))
    for _ in range(draw(st.integers(0, 2))):
        messages.append(ChatMessage(role=Role.USER, parts=tuple(draw(st.lists(parts, min_size=1, max_size=3)))))
        if draw(st.booleans()):
            messages.append(
                ChatMessage(role=Role.ASSISTANT, parts=tuple(draw(st.lists(TEXTS, min_size=1, max_size=2))))
            )
    messages.append(ChatMessage(role=Role.USER, parts=tuple(draw(st.lists(parts, min_size=1, max_size=4)))))
    return messages


def expected(oracle: ChatTokenizer, messages: Sequence[ChatMessage]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Tokens and sizes of images in their order, by mistral-common."""
    request: ChatCompletionRequest[UserMessage | AssistantMessage | SystemMessage] = ChatCompletionRequest(
        messages=[
            CLASSES[message.role](
                content=[
                    TextChunk(text=part) if isinstance(part, str) else ImageChunk(image=Image.open(io.BytesIO(part)))
                    for part in message.parts
                ]
            )
            for message in messages
        ]
    )
    laid_out = oracle.encode_chat_completion(request)
    return laid_out.tokens, [tuple(int(side) for side in image) for image in laid_out.images]


def ours(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> tuple[list[int], list[tuple[int, ...]]]:
    sizes = [
        Image.open(io.BytesIO(part)).size for message in messages for part in message.parts if isinstance(part, bytes)
    ]
    grids: list[PatchGrid] = [SIZES.patch_grid(*size) for size in sizes]
    assert tokenizer.chat_template is not None
    layout = tokenizer.chat_template.lay_out(messages, grids)
    return list(layout.token_ids), [(16 * grids[i].width, 16 * grids[i].height) for i in layout.image_order]


@given(messages=chats(TEXTS))
@settings(max_examples=60)
def test_chats_of_text_are_laid_out_as_by_mistral_common(
    both: tuple[Tokenizer, ChatTokenizer], messages: list[ChatMessage]
) -> None:
    tokenizer, oracle = both
    assert ours(tokenizer, messages) == expected(oracle, messages)


@pytest.fixture
def size_stands_for_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mistral_common.tokens.tokenizers.image.transform_image", lambda image, new_size: np.array(new_size)
    )


@pytest.fixture(
    scope="session",
    params=[
        "mistral_instruct_tokenizer_241114.model.v7",
        "mistral_instruct_tokenizer_241114.model.v7m1",
        "tekken_240718.json",
        "tekken_240911.json",
    ],
)
def with_images(
    request: pytest.FixtureRequest, load_mistral: Callable[[str], tuple[Tokenizer, ChatTokenizer]]
) -> tuple[Tokenizer, ChatTokenizer]:
    """Files with tokens for images; the oracle is given an image encoder where the file's name gave it none."""
    tokenizer, oracle = load_mistral(request.param)
    assert tokenizer.image_ids is not None
    if oracle.instruct_tokenizer.image_encoder is None:
        oracle.instruct_tokenizer.image_encoder = ImageEncoder(
            ImageConfig(image_patch_size=16, max_image_size=1024), SpecialImageIDs(*tokenizer.image_ids)
        )
    return tokenizer, oracle


@given(messages=chats(TEXTS | IMAGES))
@settings(max_examples=60)
@pytest.mark.usefixtures("size_stands_for_pixels")
def test_chats_with_images_are_laid_out_as_by_mistral_common(
    with_images: tuple[Tokenizer, ChatTokenizer], messages: list[ChatMessage]
) -> None:
    tokenizer, oracle = with_images
    assert ours(tokenizer, messages) == expected(oracle, messages)
