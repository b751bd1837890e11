"""A Pixtral checkpoint with the processor that transformers wants: its tokenizer spells ids, `t17` is token 17.

Knows the files of a processor. Does not know weights. Marks of pictures are control tokens here, as they are in a
prompt between brackets and without blanks, and the chat template adds nothing but the one at the beginning.
"""

import json
import os
import shutil
from pathlib import Path

from benchmarks.checkpoints import spelling_tokenizer

_MARKS = {"<s>": 1, "[IMG]": 10, "[IMG_BREAK]": 12, "[IMG_END]": 13}
"""As the decoder service numbers them, and as Mistral's own tokenizers do."""
_TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG]{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def spelled_twin(directory: Path) -> Path:
    """The same weights beside such a processor."""
    twin = directory.with_name(f"{directory.name}-spelled")
    if not twin.exists():
        aside = twin.with_name(f"{twin.name}.{os.getpid()}")
        shutil.copytree(directory, aside, copy_function=os.link)
        (aside / "tekken.json").unlink()
        vocab_size = json.loads((directory / "config.json").read_text())["text_config"]["vocab_size"]
        for file, document in spelled_files(vocab_size).items():
            (aside / file).write_text(json.dumps(document))
        aside.replace(twin)
    return twin


def spelled_files(vocab_size: int) -> dict[str, object]:
    """Files of the tokenizer and of its template."""
    files = json.loads(json.dumps(spelling_tokenizer(vocab_size)))
    vocabulary = files["tokenizer.json"]["model"]["vocab"]
    for mark, index in _MARKS.items():
        vocabulary.pop(f"t{index}", None)
        vocabulary[mark] = index
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    files["tokenizer.json"]["added_tokens"] = [
        {"id": index, "content": mark, **flags} for mark, index in sorted(_MARKS.items(), key=lambda each: each[1])
    ]
    return dict(files) | {"chat_template.json": {"chat_template": _TEMPLATE}}
