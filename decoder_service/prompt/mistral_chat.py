"""Lays a chat out as Mistral's models were taught, with mistral-common.

Knows mistral-common's messages and how to make it lay out images without seeing one: its image encoder is
replaced by one that returns the tokens of a grid that we computed. Does not know image files, limits or fields
(see `decoder_service.prompt.prompt`). mistral-common decides the rest: where the system prompt goes, how adjacent
texts are joined, and that a single image after the text moves before it.
"""

from collections.abc import Sequence

import numpy as np
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import Tokenized
from mistral_common.tokens.tokenizers.image import ImageEncoder, ImageEncoding
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from common.image.preprocessing import PatchGrid
from decoder_service.prompt.chat_template import ChatLayout
from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.prompt_spec import ChatMessage, Role

ChatTokenizer = MistralTokenizer[UserMessage, AssistantMessage, ToolMessage, SystemMessage, Tokenized]
"""What mistral-common loads: a tokenizer for texts, and around it the layout of chats."""

_MESSAGE_CLASSES = {Role.SYSTEM: SystemMessage, Role.USER: UserMessage, Role.ASSISTANT: AssistantMessage}


class MistralChatTemplate:
    """The chat template of one tokenizer file. Safe to use from several threads."""

    def __init__(self, mistral: ChatTokenizer, image_ids: ImageTokenIds | None) -> None:
        """Replace the image encoder of mistral-common's object."""
        self._mistral = mistral
        if image_ids is not None:
            self._mistral.instruct_tokenizer.image_encoder = _GridEncoder(image_ids)

    def lay_out(self, messages: Sequence[ChatMessage], grids: Sequence[PatchGrid]) -> ChatLayout:
        """Lay out a chat whose images, in the order of the messages, have these grids.

        Raises ValueError for a chat that mistral-common refuses, and for text that cannot be encoded.
        """
        images = iter(enumerate(grids))
        chat = [
            _MESSAGE_CLASSES[message.role](
                content=[
                    TextChunk(text=part) if isinstance(part, str) else _GridChunk.of(*next(images))
                    for part in message.parts
                ]
            )
            for message in messages
        ]
        try:
            # Serving mode insists on a model's name; nothing is looked up by it.
            laid_out = self._mistral.encode_chat_completion(ChatCompletionRequest(model="served", messages=chat))
        except (MistralCommonException, RuntimeError) as error:  # SentencePiece says RuntimeError to lone surrogates.
            raise ValueError("mistral-common refused the chat") from error
        return ChatLayout(tuple(laid_out.tokens), tuple(int(index) for index in laid_out.images))


class _GridChunk(ImageURLChunk):
    """Stands for an image in a message: its index and its grid instead of an address."""

    index: int
    grid: PatchGrid

    @classmethod
    def of(cls, index: int, grid: PatchGrid) -> "_GridChunk":
        return cls(image_url="", index=index, grid=grid)


class _GridEncoder(ImageEncoder):
    """Gives an image's tokens by its grid, and for its pixels only its index."""

    def __init__(self, ids: ImageTokenIds) -> None:
        # The base class keeps sizes of images here; these come with every grid instead.
        self._ids = ids

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        if not isinstance(content, _GridChunk):
            raise TypeError("images enter chats only as grids")
        return ImageEncoding(tokens=list(self._ids.layout(content.grid)), image=np.array(content.index))
