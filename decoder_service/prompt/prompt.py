"""From what a caller asked to the prompt that runs: token ids, and where the images go in them.

Knows limits, image headers and the fields to blame. Does not know protobuf or pixels: a header tells an image's
size, the preprocessing its grid, and the grid its tokens. Whatever the caller sent, a prompt that leaves here
has one [IMG] for every image feature row, in placeholder ranges that hold exactly their image's tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from common.errors import InvalidArgumentError
from common.image.header import ImageLimits, read_image_header
from common.image.preprocessing import PatchGrid, Preprocessing
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.prompt.image_layout import locate_images
from decoder_service.prompt.prompt_spec import ChatMessage, ChatPrompt, PromptSpec, Role, TextPrompt, TokenPrompt
from decoder_service.prompt.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as the engine runs it."""

    token_ids: tuple[int, ...]
    placeholders: tuple[PlaceholderRange, ...]
    """Where the images stand, in the order of their offsets."""
    images: tuple[bytes, ...]
    """Image files, one for each placeholder range and in the same order."""
    image_fields: tuple[str, ...] = dataclass_field(default=(), compare=False)
    """Where each of them stands in the request."""

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for images: placeholders, row breaks and ends."""
        return sum(placeholder.length for placeholder in self.placeholders)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """How large a prompt may be."""

    max_prompt_tokens: int
    """Longest prompt; less than the model's length, as a completion has at least one token."""
    max_images: int
    image: ImageLimits


class PromptBuilder:
    """Builds prompts for one model. Takes up to seconds for megabytes of text; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, vocabulary_size: int, limits: PromptLimits) -> None:
        """Take the tokenizer and the number of ids that the model knows, which may be more than the tokenizer's."""
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._limits = limits

    def build(self, spec: PromptSpec, *, preprocessing: Preprocessing | None) -> Prompt:
        """Lay out a prompt; `preprocessing` is None where the model takes no images.

        Raises InvalidArgumentError with the field at fault: EMPTY_PROMPT, EMPTY_MESSAGE, PROMPT_TOO_LONG,
        INVALID_ROLE_ORDER, INVALID_TOKEN_ID, TEXT_NOT_ENCODABLE, CHAT_UNSUPPORTED, TOO_MANY_IMAGES,
        IMAGES_UNSUPPORTED, IMAGE_IN_WRONG_ROLE, IMAGE_COUNT_MISMATCH, and what `read_image_header` raises.
        """
        match spec:
            case ChatPrompt():
                prompt = self._chat(spec, preprocessing)
            case TextPrompt():
                prompt = self._text(spec)
            case TokenPrompt():
                prompt = self._tokens(spec, preprocessing)
        self._check_length(len(prompt.token_ids), _FIELDS[type(spec)])
        return prompt

    def _chat(self, spec: ChatPrompt, preprocessing: Preprocessing | None) -> Prompt:
        template = self._tokenizer.chat_template
        if template is None:
            raise InvalidArgumentError("CHAT_UNSUPPORTED", "this model has no chat template", field="chat")
        _check_messages(spec.messages)
        self._check_texts(spec.texts, "chat")
        images = list(_chat_images(spec.messages))
        grids = self._grids(images, preprocessing, "chat")
        try:
            layout = template.lay_out(spec.messages, grids)
        except ValueError as error:
            raise _not_encodable("chat") from error
        placeholders = self._locate(layout.token_ids, [grids[index] for index in layout.image_order])
        if placeholders is None:
            raise RuntimeError("the chat template did not lay out the images by their grids")
        fields, files = zip(*(images[index] for index in layout.image_order), strict=True) if images else ((), ())
        return Prompt(token_ids=layout.token_ids, placeholders=placeholders, images=files, image_fields=fields)

    def _text(self, spec: TextPrompt) -> Prompt:
        field = "text.text"
        if not spec.text:
            raise InvalidArgumentError("EMPTY_PROMPT", "the text is empty", field=field)
        self._check_texts([spec.text], field)
        try:
            token_ids = self._tokenizer.encode_text(spec.text)
        except ValueError as error:
            raise _not_encodable(field) from error
        return Prompt(token_ids=(self._tokenizer.bos_id, *token_ids), placeholders=(), images=())

    def _tokens(self, spec: TokenPrompt, preprocessing: Preprocessing | None) -> Prompt:
        self._check_length(len(spec.token_ids), "token_ids.ids")
        if not spec.token_ids:
            raise InvalidArgumentError("EMPTY_PROMPT", "there are no token ids", field="token_ids.ids")
        token_ids = tuple(spec.token_ids)
        check_token_ids(token_ids, vocabulary_size=self._vocabulary_size, field="token_ids.ids")
        images = [(f"token_ids.images[{index}]", image) for index, image in enumerate(spec.images)]
        placeholders = self._locate(token_ids, self._grids(images, preprocessing, "token_ids.images"))
        if placeholders is None:
            raise InvalidArgumentError(
                "IMAGE_COUNT_MISMATCH",
                "the placeholder tokens are not those of the images, in their order and of their sizes",
                field="token_ids.ids",
            )
        fields = tuple(field for field, _ in images)
        return Prompt(token_ids=token_ids, placeholders=placeholders, images=spec.images, image_fields=fields)

    def _grids(
        self, images: Sequence[tuple[str, bytes]], preprocessing: Preprocessing | None, field: str
    ) -> list[PatchGrid]:
        """Grids of (field, file) pairs, from the files' headers alone."""
        if images and (preprocessing is None or self._tokenizer.image_ids is None):
            raise InvalidArgumentError("IMAGES_UNSUPPORTED", "this model takes no images", field=images[0][0])
        if preprocessing is None:
            return []
        limit, got = self._limits.max_images, len(images)
        if got > limit:
            raise InvalidArgumentError(
                "TOO_MANY_IMAGES",
                f"there are {got} images; at most {limit} are accepted",
                field=field,
                metadata={"limit": limit, "got": got},
            )
        headers = [read_image_header(data, self._limits.image, field=name) for name, data in images]
        return [preprocessing.patch_grid(header.width, header.height) for header in headers]

    def _locate(self, token_ids: tuple[int, ...], grids: Sequence[PatchGrid]) -> tuple[PlaceholderRange, ...] | None:
        if self._tokenizer.image_ids is None:
            return ()
        return locate_images(token_ids, grids, self._tokenizer.image_ids)

    def _check_texts(self, texts: Iterable[str], field: str) -> None:
        # Refuses before any work what cannot fit: no token writes more than max_token_bytes characters.
        self._check_length(-(-sum(map(len, texts)) // self._tokenizer.max_token_bytes), field)

    def _check_length(self, num_tokens: int, field: str) -> None:
        limit = self._limits.max_prompt_tokens
        if num_tokens > limit:
            raise InvalidArgumentError(
                "PROMPT_TOO_LONG",
                f"the prompt has {num_tokens} tokens or more; at most {limit} are accepted",
                field=field,
                metadata={"limit": limit, "got": num_tokens},
            )


_FIELDS = {ChatPrompt: "chat", TextPrompt: "text.text", TokenPrompt: "token_ids.ids"}


def check_token_ids(token_ids: Sequence[int], *, vocabulary_size: int, field: str) -> None:
    """Raise InvalidArgumentError (INVALID_TOKEN_ID) for the first id that the model does not know."""
    if max(token_ids, default=0) < vocabulary_size:
        return
    index, got = next((index, got) for index, got in enumerate(token_ids) if got >= vocabulary_size)
    raise unknown_token_id(got, vocabulary_size=vocabulary_size, field=f"{field}[{index}]")


def unknown_token_id(token_id: int, *, vocabulary_size: int, field: str) -> InvalidArgumentError:
    """The refusal of an id that the model does not know."""
    return InvalidArgumentError(
        "INVALID_TOKEN_ID",
        f"there is no token {token_id}; ids go up to {vocabulary_size - 1}",
        field=field,
        metadata={"limit": vocabulary_size - 1, "got": token_id},
    )


def _check_messages(messages: Sequence[ChatMessage]) -> None:
    if not messages:
        raise InvalidArgumentError("EMPTY_PROMPT", "the chat has no messages", field="chat.messages")
    for index, message in enumerate(messages):
        field = f"chat.messages[{index}]"
        if all(part == "" for part in message.parts):
            raise InvalidArgumentError("EMPTY_MESSAGE", "the message says nothing", field=f"{field}.parts")
        if message.role is Role.SYSTEM and index and messages[index - 1].role is Role.ASSISTANT:
            raise InvalidArgumentError(
                "INVALID_ROLE_ORDER", "no system message may follow an assistant's", field=f"{field}.role"
            )
    if messages[-1].role is not Role.USER:
        raise InvalidArgumentError("INVALID_ROLE_ORDER", "the last message must be the user's", field=f"{field}.role")


def _chat_images(messages: Sequence[ChatMessage]) -> Iterable[tuple[str, bytes]]:
    """The images of a chat with their fields, in the order of the messages."""
    for index, message in enumerate(messages):
        for place, part in enumerate(message.parts):
            if isinstance(part, str):
                continue
            field = f"chat.messages[{index}].parts[{place}].image"
            if message.role is not Role.USER:
                raise InvalidArgumentError(
                    "IMAGE_IN_WRONG_ROLE", "only the user's messages may hold images", field=field
                )
            yield field, part


def _not_encodable(field: str) -> InvalidArgumentError:
    return InvalidArgumentError("TEXT_NOT_ENCODABLE", "the tokenizer cannot encode this prompt", field=field)
