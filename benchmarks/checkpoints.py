"""Checkpoints with random weights, made once from a seed, that every system in a comparison reads.

Knows shapes and seeds. Does not know engines. The weights are drawn as wide as a trained model's, so that the most
likely token stands clear of the next and engines that round differently still choose the same one.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.checkpoint.config import CLIP_MEAN, CLIP_STD
from common.checkpoint.convert import convert_checkpoint
from common.checkpoint.files import CheckpointFormat
from common.checkpoint.hf_config import hf_documents
from common.checkpoint.layout import stored_name
from common.checkpoint.safetensors_writer import Planned, write_safetensors
from common.checkpoint.shapes import tensor_shapes
from common.image.preprocessing import Preprocessing, PreprocessingMode
from common.model.config import MistralConfig, ModelConfig, PixtralConfig, PixtralVisionConfig
from common.model.config import text_config as common_text_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build/benchmarks/checkpoints"
SEED = 20261126
TOKENIZER = ROOT / "models/demo/tekken.json"

SMALL = MistralConfig(
    hidden_size=512,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_hidden_layers=8,
    feed_forward_length=1792,
    vocab_size=32000,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=4096,
)
"""60 million weights."""
TINY = replace(
    SMALL,
    hidden_size=128,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=4,
    feed_forward_length=448,
    vocab_size=2048,
)
"""1.4 million weights."""
MEDIUM = replace(
    SMALL,
    hidden_size=1024,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_hidden_layers=7,
    feed_forward_length=3584,
)
"""161 million weights, 650 MB in float32."""
VISION = PixtralVisionConfig(
    patch_size=16,
    image_size=1024,
    num_channels=3,
    vision_hidden_size=256,
    vision_num_attention_heads=4,
    vision_num_hidden_layers=6,
    vision_intermediate_size=1024,
    vision_head_dim=64,
    vision_rope_theta=1e4,
)
PREPROCESSING = Preprocessing(
    mode=PreprocessingMode.HF,
    patch_size=16,
    image_size=1024,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
MODELS: dict[str, ModelConfig] = {
    "small": SMALL,
    "tiny": TINY,
    "small-bfloat16": SMALL,
    "pixtral": PixtralConfig(text=SMALL, vision=VISION, image_token_index=10),
    "pixtral-bfloat16": PixtralConfig(text=SMALL, vision=VISION, image_token_index=10),
    "medium-pixtral": PixtralConfig(text=MEDIUM, vision=VISION, image_token_index=10),
    "smoke": replace(TINY, num_hidden_layers=1, feed_forward_length=64, vocab_size=512),
    "smoke-pixtral": PixtralConfig(
        text=replace(TINY, num_hidden_layers=1, feed_forward_length=64, vocab_size=512),
        vision=replace(VISION, vision_num_hidden_layers=1, vision_intermediate_size=64),
        image_token_index=10,
    ),
}


def has_halves(name: str) -> bool:
    """Whether all weights of a model of `MODELS` are bfloat16, as published ones are; the file is float32 nevertheless.

    So every system reads the same file, and those that know no better keep 32 bits of each.
    """
    return name.endswith("-bfloat16")


def text_config(name: str) -> MistralConfig:
    """Shape of the decoder of a model of `MODELS`."""
    return common_text_config(MODELS[name])


def checkpoint(name: str) -> Path:
    """The directory of a model of `MODELS` in Hugging Face's format, written where it is not there yet."""
    directory = FOLDER / f"{name}-{SEED}"
    if not directory.exists():
        aside = directory.with_name(f"{directory.name}.{os.getpid()}")
        aside.mkdir(parents=True)
        _write(aside, MODELS[name], in_halves=has_halves(name))
        aside.replace(directory)
    return directory


def llama_twin(directory: Path) -> Path:
    """The same weights of a text model under the architecture's older name, for systems that know only that one.

    Without a sliding window a Llama computes what a Mistral does. Its tokenizer spells id 17 as `t17`, and its
    generation config is greedy in the one way that no reader takes for a default.
    """
    twin = directory.with_name(f"{directory.name}-llama")
    if not twin.exists():
        aside = twin.with_name(f"{twin.name}.{os.getpid()}")
        shutil.copytree(directory, aside, copy_function=os.link)
        config = json.loads((directory / "config.json").read_text())
        (aside / "tekken.json").unlink()
        (aside / "config.json").unlink()
        twin_config = config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 1}
        del twin_config["sliding_window"]
        (aside / "config.json").write_text(json.dumps(twin_config | {"eos_token_id": 2}))
        (aside / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 1}))
        for file, document in spelling_tokenizer(config["vocab_size"]).items():
            (aside / file).write_text(json.dumps(document))
        aside.replace(twin)
    return twin


def native_twin(directory: Path) -> Path:
    """The same weights in Mistral's own format, for systems that need no processor then."""
    twin = directory.with_name(f"{directory.name}-native")
    if not twin.exists():
        aside = twin.with_name(f"{twin.name}.{os.getpid()}")
        convert_checkpoint(directory, aside, CheckpointFormat.NATIVE)
        tokenizer = json.loads(TOKENIZER.read_text())
        # By this, and not by the model's own parameter, readers of this format scale pictures down.
        tokenizer["image"]["max_image_size"] = PREPROCESSING.image_size
        (aside / TOKENIZER.name).write_text(json.dumps(tokenizer))
        aside.replace(twin)
    return twin


def spelling_tokenizer(vocab_size: int) -> dict[str, object]:
    """Files of a tokenizer whose tokens are written by their ids, with blanks between: for systems that take text.

    The first three are control tokens, which are found inside of words too and so must not begin like others.
    """
    spellings = ["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(3, vocab_size))]
    vocabulary = {spelling: index for index, spelling in enumerate(spellings)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    blanks = {"type": "WhitespaceSplit"}
    parts: dict[str, object] = {
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "post_processor": None,
    }
    tokenizer = {"version": "1.0", **parts, "pre_tokenizer": blanks, "decoder": None, "model": model}
    names = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": names}


def random_prompts(name: str, count: int, length: int, *, seed: int) -> list[list[int]]:
    """Token ids of prompts that share no beginning; none is a control token."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = text_config(name).vocab_size
    prompts: list[list[int]] = torch.randint(100, vocab_size, (count, length), generator=generator).tolist()
    return [[1, *prompt[1:]] for prompt in prompts]


def _write(directory: Path, config: ModelConfig, *, in_halves: bool) -> None:
    has_vision = isinstance(config, PixtralConfig)
    planned = [
        Planned(
            name=stored_name(part, name, layout=CheckpointFormat.HF, has_vision=has_vision),
            dtype=torch.float32,
            shape=shape,
            make=partial(_random_tensor, f"{part.value}.{name}", shape, in_halves=in_halves),
        )
        for part, name, shape in tensor_shapes(config)
    ]
    write_safetensors(directory / CheckpointFormat.HF.weights_name, planned)
    preprocessing = PREPROCESSING if has_vision else None
    for file, document in hf_documents(config, preprocessing, torch_dtype="float32").items():
        (directory / file).write_text(json.dumps(document))
    shutil.copy(TOKENIZER, directory)


def _random_tensor(name: str, shape: Sequence[int], *, in_halves: bool) -> Tensor:
    """Values that depend on the tensor's name alone."""
    generator = torch.Generator().manual_seed(SEED ^ zlib.crc32(name.encode()))
    if len(shape) == 1:
        values = torch.rand(shape, generator=generator) + 0.5 if name.endswith("weight") else torch.zeros(shape)
    else:
        values = torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5
    return values.bfloat16().float() if in_halves else values
