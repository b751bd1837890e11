"""Proof that training conversations are laid out as mistral-common lays out the same chat.

Knows both encoders. Does not know the model; `train` runs it once before it starts.
"""

from pathlib import Path
from random import Random

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk, TextChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import InstructRequest
from mistral_common.tokens.tokenizers.image import ImageEncoder, ImageEncoding
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from training.batches import ChatLayout, patches_of
from training.pictures import Picture
from training.tasks import TASKS, Example, askable, sample


class _GridsOnly(ImageEncoder):
    """mistral-common's own placeholders without its pixels, which need OpenCV."""

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        if not isinstance(content, ImageChunk):
            raise TypeError("only pictures in memory")
        width, height = self._image_to_num_tokens(content.image)
        tokens = ([self.special_ids.img] * width + [self.special_ids.img_break]) * height
        return ImageEncoding([*tokens[:-1], self.special_ids.img_end], np.zeros((3, 1, 1)))


def check_layout(tekken: Path, layout: ChatLayout, count: int = 24) -> None:
    """Raise where the layout's tokens differ from mistral-common's."""
    tokenizer = MistralTokenizer.from_file(tekken)
    pixels = tokenizer.instruct_tokenizer.image_encoder
    if pixels is None:
        raise AssertionError("the tokenizer knows no images")
    tokenizer.instruct_tokenizer.image_encoder = _GridsOnly(pixels.image_config, pixels.special_ids)
    rng = Random("layout")  # noqa: S311
    for index in range(count):
        asked = sample(TASKS[index % len(TASKS)], rng)
        turns = (*asked.turns, *askable(asked.pictures, rng))
        example = Example(asked.pictures, turns, asked.pictures_first)
        ours, _ = layout.conversation(example, [patches_of(picture.image)[0] for picture in example.pictures])
        theirs = tokenizer.instruct_tokenizer.encode_instruct(_request(example)).tokens
        if ours != theirs:
            raise AssertionError(f"layouts differ:\n{ours}\n{theirs}")


def _request(example: Example) -> InstructRequest:  # type: ignore[type-arg]
    messages: list[UserMessage | AssistantMessage] = []
    for place, turn in enumerate(example.turns):
        pictures = example.pictures if place == 0 else ()
        messages += [_question(turn.question, pictures, example.pictures_first), AssistantMessage(content=turn.answer)]
    return InstructRequest(messages=messages)


def _question(text: str, pictures: tuple[Picture, ...], pictures_first: bool) -> UserMessage:
    words, images = [TextChunk(text=text)], [ImageChunk(image=picture.image) for picture in pictures]
    return UserMessage(content=[*images, *words] if pictures_first else [*words, *images])
