"""What a chat template is to the service: a chat in, its tokens out.

Knows the shape of both. Does not know how it is done: `decoder_service.prompt.mistral_chat` asks mistral-common,
`decoder_service.prompt.hf_chat` renders what the checkpoint brings.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from common.image.preprocessing import PatchGrid
from decoder_service.prompt.prompt_spec import ChatMessage


class ChatLayout(NamedTuple):
    """A chat as tokens."""

    token_ids: tuple[int, ...]
    image_order: tuple[int, ...]
    """Indices of the images, counted in the order of the messages, in the order in which they are laid out."""


class ChatTemplate(Protocol):
    """The chat template of one tokenizer. Safe to use from several threads."""

    def lay_out(self, messages: Sequence[ChatMessage], grids: Sequence[PatchGrid]) -> ChatLayout:
        """Lay out a chat whose images, in the order of the messages, have these grids.

        Raises ValueError for a chat that the model was not taught, or that cannot be encoded.
        """
