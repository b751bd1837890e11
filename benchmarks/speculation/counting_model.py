"""A checkpoint of the small model's shape whose greedy completions count: behind token t comes t + 1.

Knows weights. Every layer is random and computed as in any other model; only what comes out of them is much smaller
than the embedding, and the head is the table of embeddings moved on by one token. So a benchmark knows a completion
before, and can write prompts that have it, in part or not at all.
"""

import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks import checkpoints
from common.checkpoint.files import CheckpointFormat

_LOUDNESS = 1000.0
"""Of embeddings, against what the layers add to them."""


def counting_checkpoint(name: str) -> Path:
    """The directory of such a twin of a text model of `checkpoints.MODELS`, written where it is not there yet."""
    source = checkpoints.checkpoint(name)
    twin = source.with_name(f"{source.name}-counting")
    if not twin.exists():
        aside = twin.with_name(f"{twin.name}.{os.getpid()}")
        aside.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != CheckpointFormat.HF.weights_name:
                os.link(file, aside / file.name)
        weights = load_file(source / CheckpointFormat.HF.weights_name)
        table = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = table.roll(1, dims=0).contiguous()
        weights["model.embed_tokens.weight"] = table * _LOUDNESS
        save_file(weights, aside / CheckpointFormat.HF.weights_name, metadata={"format": "pt"})
        aside.replace(twin)
    return twin
