"""A tokenizer.json in which control tokens answer to secret names only.

Knows the file's format and the library that reads it. Does not know chats. The library takes every "[INST]" in a
text for the control token, whoever wrote it. So before it sees the file, each control token gets a name that
nobody can guess, and text can say what it likes. Who may steer (see `decoder_service.prompt.hf_chat`) writes the secret
names. Everything else is the library's: segments between control tokens are encoded exactly as it does.
"""

import json
import logging
import re
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer

from common.checkpoint.files import read_json

_MAX_FILE_BYTES = 2**28
_MAX_IDS = 2**24
_TEKKEN_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Mistral's tekken tokenizers cut text into words."""
_CONTRACTIONS = re.compile(r"'s\|'t\|'re\|'ve\|'m\|'ll\|'d")

_log = logging.getLogger(__name__)


class Vocabulary:
    """The library's tokenizer over a file with secret names."""

    def __init__(self, file: dict[str, Any], *, control_names: Collection[str]) -> None:
        """Take a parsed file, which is changed, and names of control tokens besides those marked special.

        Raises ValueError where the file is broken or of a kind that no Mistral model has.
        """
        tokens = _added_tokens(file)
        controls: dict[str, int] = {
            token["content"]: token["id"] for token in tokens if _is_control(token, control_names)
        }
        if spaces := [name for name in controls if not name.strip()]:
            raise ValueError(f"tokenizer.json has a control token that is only space: {spaces[0]!a}")
        _repair_pattern(file, controls)
        self.control_ids = controls
        """Ids of control tokens by their public names."""
        secret = secrets.token_hex(16)
        self._secret_names = {name: f"<|{secret}:{token_id}|>" for name, token_id in controls.items()}
        self.decoder: dict[str, Any] = file.get("decoder") or {}
        """How the file says that tokens become text."""
        _rename(file, self._secret_names)
        self._library = _load(file)
        self.tokens = self._tokens()
        """What the file calls each token, by id; None for control tokens and for gaps."""
        self._check_ids()
        self._control_pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")

    @classmethod
    def from_file(cls, path: Path, *, control_names: Collection[str]) -> "Vocabulary":
        """Read a tokenizer.json. Raises ValueError."""
        return cls(read_json(path, max_bytes=_MAX_FILE_BYTES), control_names=control_names)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, control tokens where secret names stand. Raises ValueError for lone surrogates."""
        try:
            return self._library.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:  # The library's answers to lone surrogates.
            raise ValueError("the text is not valid Unicode") from error

    def with_secret_names(self, text: str) -> str:
        """The text with every control token's public name replaced by its secret one."""
        return self._control_pattern.sub(lambda match: self._secret_names[match[0]], text)

    def _tokens(self) -> list[str | None]:
        ids = self._library.get_vocab(with_added_tokens=True)
        num_ids = max(ids.values(), default=-1) + 1
        if not 0 < num_ids <= _MAX_IDS:
            raise ValueError(f"tokenizer.json has ids up to {num_ids - 1}; from 0 to {_MAX_IDS - 1} are read")
        tokens: list[str | None] = [None] * num_ids
        hidden = set(self._secret_names.values())
        for token, token_id in ids.items():
            tokens[token_id] = None if token in hidden else token
        return tokens

    def _check_ids(self) -> None:
        for name, secret_name in self._secret_names.items():
            if self._library.token_to_id(secret_name) != self.control_ids[name]:
                raise ValueError(f"tokenizer.json gives {name[:40]!r} an id that the library does not")


def _added_tokens(file: dict[str, Any]) -> list[dict[str, Any]]:
    tokens = file.get("added_tokens", [])
    model = file.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError("tokenizer.json holds no BPE model, and Mistral models have no other")
    if not isinstance(tokens, list) or not all(map(_is_added_token, tokens)):
        raise ValueError("tokenizer.json has an added_tokens list that cannot be read")
    return tokens


def _is_added_token(token: object) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("id"), int)


def _is_control(token: dict[str, Any], control_names: Collection[str]) -> bool:
    return bool(token.get("special")) or token["content"] in control_names


def _rename(file: dict[str, Any], secret_names: dict[str, str]) -> None:
    model = file["model"]
    for token in file.get("added_tokens", []):
        token["content"] = secret_names.get(token["content"], token["content"])
    model["vocab"] = {secret_names.get(token, token): token_id for token, token_id in model["vocab"].items()}
    model["unk_token"] = secret_names.get(model.get("unk_token"), model.get("unk_token"))
    # "<" and "/s>" must not merge into a control token that is no longer there.
    model["merges"] = [merge for merge in model.get("merges", []) if _merged(merge) not in secret_names]
    file["post_processor"] = file["padding"] = file["truncation"] = None


def _merged(merge: str | Iterable[str]) -> str:
    return merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(merge)


def _repair_pattern(file: dict[str, Any], controls: dict[str, int]) -> None:
    """Put tekken's pattern where versions 4 of transformers wrote GPT's, which cuts words like O'Reilly elsewhere."""
    if any(controls.get(name) != token_id for name, token_id in _TEKKEN_IDS.items()):
        return
    cutter = file.get("pre_tokenizer")
    steps = cutter.get("pretokenizers", [cutter]) if isinstance(cutter, dict) else []
    for step in steps:
        pattern = step.get("pattern") if isinstance(step, dict) and step.get("type") == "Split" else None
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(regex, str) and _CONTRACTIONS.search(regex):
            step["pattern"] = {"Regex": _TEKKEN_PATTERN}
            _log.warning("tokenizer.json cuts words with GPT's pattern; Mistral's is used instead")


def _load(file: dict[str, Any]) -> LibraryTokenizer:
    try:
        return LibraryTokenizer.from_str(json.dumps(file))
    except Exception as error:  # The library raises bare exceptions.
        raise ValueError("tokenizer.json is not a file that the tokenizers library reads") from error
