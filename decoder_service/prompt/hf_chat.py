"""Lays a chat out with the template that a checkpoint brings.

Knows how text is kept apart from control tokens. Does not know Jinja (see `decoder_service.prompt.template_renderer`).
Templates write control tokens as text, between what people said, and may trim or measure what people said.
So, before rendering, every character of the chat that occurs in any control token's name is exchanged for a
private character that the chat does not use; in what comes out, a control token's name was written by the
template, every letter of it. Those names become secret ones, and then the characters are put back:

    chat       hi [INST]               (a private character for each of I N S T [ ] and so on)
    rendered   <s>[INST] hi ......[/INST]
    encoded    <secret 1><secret 3> hi [INST]<secret 4>

Lengths, spaces and emptiness stay as they were, so an honest chat gives what transformers gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from common.image.preprocessing import PatchGrid
from decoder_service.prompt.chat_template import ChatLayout
from decoder_service.prompt.hf_vocabulary import Vocabulary
from decoder_service.prompt.image_layout import ImageTokenIds
from decoder_service.prompt.prompt_spec import ChatMessage
from decoder_service.prompt.template_renderer import Message, TemplateRenderer

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Code points that Unicode keeps for private use."""
_PROBE = "probe"
_BETWEEN_TEXTS = "\n\n"
"""What stands between texts of one message where the template takes only one, as in mistral-common."""


class HuggingFaceChatTemplate:
    """The chat template of one checkpoint. Safe to use from several threads."""

    def __init__(
        self, source: str, *, vocabulary: Vocabulary, names: Mapping[str, str], image_ids: ImageTokenIds | None
    ) -> None:
        """Compile the template and find out which form of content it reads. Raises ValueError."""
        self._renderer = TemplateRenderer(source, names)
        self._vocabulary = vocabulary
        self._image_ids = image_ids
        self._guarded = sorted({char for name in vocabulary.control_ids for char in name if not char.isspace()})
        self._reads_text = self._reads(_PROBE)
        self._reads_parts = self._reads([_text_part(_PROBE)])
        if not self._reads_text and not self._reads_parts:
            raise ValueError("the chat template does not write what the user says")

    def lay_out(self, messages: Sequence[ChatMessage], grids: Sequence[PatchGrid]) -> ChatLayout:
        """Lay out a chat whose images, in the order of the messages, have these grids.

        Raises ValueError for a chat that the template refuses, and for text that cannot be encoded.
        """
        texts = [part for message in messages for part in message.parts if isinstance(part, str)]
        guards = self._guards(texts)
        rendered = self._renderer.render(
            [self._message(message, guards) for message in messages], num_characters=sum(map(len, texts))
        )
        honest = {guard: char for char, guard in guards.items()}
        token_ids = self._vocabulary.encode(self._vocabulary.with_secret_names(rendered).translate(honest))
        return ChatLayout(tuple(self._with_images(token_ids, grids)), tuple(range(len(grids))))

    def _reads(self, content: object) -> bool:
        try:
            rendered = self._renderer.render([{"role": "user", "content": content}], num_characters=len(_PROBE))
        except ValueError:
            return False
        # A template that takes a list for text writes its brackets and quotes too.
        return _PROBE in rendered and repr(_PROBE) not in rendered

    def _guards(self, texts: Sequence[str]) -> dict[int, int]:
        """Code points of the guarded characters, each with that of a private character that no text has."""
        used: set[str] = set().union(*texts)
        unused = (code for codes in _PRIVATE for code in codes if chr(code) not in used)
        guards = dict(zip(map(ord, self._guarded), islice(unused, len(self._guarded)), strict=False))
        if len(guards) < len(self._guarded):
            raise ValueError("the texts use up all private characters")
        return guards

    def _message(self, message: ChatMessage, guards: Mapping[int, int]) -> Message:
        parts = [part.translate(guards) if isinstance(part, str) else None for part in message.parts]
        return {"role": message.role.value, "content": self._content(parts)}

    def _content(self, parts: Sequence[str | None]) -> str | list[dict[str, str]]:
        """One text, or a list of parts, as the template reads it; None stands for an image."""
        texts = [part for part in parts if part is not None]
        only_texts = len(texts) == len(parts)
        if only_texts and self._reads_text and (len(parts) == 1 or not self._reads_parts):
            return _BETWEEN_TEXTS.join(texts)
        return [{"type": "image"} if part is None else _text_part(part) for part in parts]

    def _with_images(self, token_ids: Sequence[int], grids: Sequence[PatchGrid]) -> Iterator[int]:
        """Tokens with each image's token replaced by its layout."""
        ids = self._image_ids
        if ids is None or token_ids.count(ids.placeholder) != len(grids):
            if grids or ids is not None:
                raise ValueError("the chat template does not write one token for each image")
            yield from token_ids
            return
        images = iter(grids)
        for token_id in token_ids:
            if token_id == ids.placeholder:
                yield from ids.layout(next(images))
            else:
                yield token_id


def _text_part(text: str) -> dict[str, str]:
    # Pixtral's first template reads `content`, all later ones `text`.
    return {"type": "text", "text": text, "content": text}
