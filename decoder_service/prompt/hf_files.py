"""The small files around a tokenizer.json: names of special tokens, and the chat template.

Knows where versions 4 and 5 of transformers write them, and which wins. Does not know what they mean.
"""

from pathlib import Path
from typing import Any

from common.checkpoint.files import read_json

_MAX_TEMPLATE_BYTES = 2**24
# Later ones win. The image tokens of Pixtral stand in the processor's file.
_NAME_FILES = ("special_tokens_map.json", "tokenizer_config.json", "processor_config.json")
_NAME_GROUPS = ("model_specific_special_tokens", "extra_special_tokens")
_TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_KEY = "chat_template"


def read_special_names(directory: Path) -> dict[str, str]:
    """Texts of special tokens by their names, such as bos_token and image_break_token. Raises ValueError."""
    names: dict[str, str] = {}
    for file in _NAME_FILES:
        settings = _settings(directory / file)
        for group in (*(settings.get(key) for key in _NAME_GROUPS), settings):
            if isinstance(group, dict):
                names |= {key: text for key, value in group.items() if (text := _token_text(key, value))}
    return names


def read_chat_template(directory: Path) -> str | None:
    """Source of the chat template; None where the checkpoint has none. Raises ValueError."""
    path = directory / _TEMPLATE_FILE
    if path.is_file():
        return _read_text(path)
    for file in ("chat_template.json", "tokenizer_config.json"):
        template = _settings(directory / file).get(_TEMPLATE_KEY)
        if isinstance(template, list):
            # Several templates by name: the one called default is for chats without tools.
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def _settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises ValueError naming the file."""
    return read_json(path) if path.is_file() else {}


def _read_text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_TEMPLATE_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8") from error


def _token_text(key: str, value: object) -> str | None:
    if not key.endswith("_token"):
        return None
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None
