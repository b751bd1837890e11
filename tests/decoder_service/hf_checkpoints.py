"""Small Hugging Face tokenizers, written by the library that reads them; nothing in here is code of ours."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

CONTROLS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<pad>"]
BYTE_IDS = range(len(CONTROLS), len(CONTROLS) + 256)
"""Ids of the bytes of a tokenizer of words."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
SENTENCES = ["the cat sat on the mat and the dog ran", "what do you see in the picture", "a b c  d   e\n\nf"]

WORDS_TEMPLATE = """
{%- if messages[0].role == "system" %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set system = "" %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn.role == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("turns must alternate") }}{% endif %}
    {%- set start = system + "\\n\\n" if loop.last and system else "" %}
    {%- if turn.role == "user" %}{{ "[INST] " + start + turn.content + " [/INST]" }}
    {%- else %}{{ " " + turn.content | trim + eos_token }}{% endif %}
{%- endfor %}"""
"""Takes text alone, puts spaces between control tokens and text, and trims answers."""


def write_bytes_tokenizer(directory: Path, tekken: Path) -> Path:
    """What transformers makes of a tekken.json, with the chat template that mistral-common makes for it."""
    convert_tekken_tokenizer(str(tekken)).save_pretrained(directory)
    (directory / "tekken.json").unlink(missing_ok=True)
    return directory / "tokenizer.json"


def write_words_tokenizer(directory: Path, *, old: bool) -> Path:
    """A tokenizer of words and bytes, as Mistral 7B has it: with the spaces made first, or while cutting words."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=CONTROLS[0], fuse_unk=True))
    if old:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=CONTROLS + bytes_, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 10, trainer)
    file = json.loads(tokenizer.to_str())
    # The bytes belong to the model; special tokens they were only to get their places.
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in CONTROLS]
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(file))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "chat_template": WORDS_TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    return directory / "tokenizer.json"
