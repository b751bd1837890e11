"""Hugging Face transformers' Pixtral: its processor, its encoder, and the whole: an engine behind `protocol`.

Runs in an environment of its own with torch and transformers. `encode` packs all pictures under one mask, as the model
does by itself; `encode_each` calls it for one picture after the other, which is faster on a CPU.
"""

import os
import time
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from benchmarks.peers.pictures import MEAN, PATCH, STD, prompt, random_pixels
from benchmarks.peers.protocol import serve


class Engine:
    """The loaded model."""

    def __init__(self) -> None:
        self._model: Any = None
        self._processor: Any = None

    def load(self, model: str, dtype: str, **_: object) -> dict[str, object]:
        """Load a checkpoint in this type."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self._processor = PixtralImageProcessorPil(patch_size=PATCH, size={"longest_edge": 1024})
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    def encode(self, sizes: list[list[int]], seed: int) -> dict[str, object]:
        """Features of random pictures in one call."""
        return self._timed(random_pixels(sizes, seed), at_once=len(sizes))

    def encode_each(self, sizes: list[list[int]], seed: int) -> dict[str, object]:
        """Features of random pictures, one call each."""
        return self._timed(random_pixels(sizes, seed), at_once=1)

    def preprocess(self, path: str) -> dict[str, object]:
        """Normalised pixels of a picture's file; the check is every sixteenth row's mean on the scale of bytes."""
        started_at = time.perf_counter()
        with Image.open(path) as image:
            pixels = self._processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        seconds = time.perf_counter() - started_at
        scaled = (pixels[:, ::16] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        return {"seconds": seconds, "check": [float(scaled.mean())]}

    def answer(self, sizes: list[list[int]], seed: int, max_tokens: int) -> dict[str, object]:
        """Greedy tokens of requests with one picture each; all are of one size, so that a batch needs no padding."""
        images = random_pixels(sizes, seed)
        width, height = sizes[0]
        vocab_size = self._model.config.text_config.vocab_size
        started_at = time.perf_counter()
        ids = torch.tensor(
            [
                prompt(width, height, num_text_tokens=28, vocab_size=vocab_size, seed=seed + index)
                for index in range(len(sizes))
            ]
        )
        pixels, image_sizes = _inputs(images, self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                image_sizes=image_sizes,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return {"seconds": time.perf_counter() - started_at, "check": output[:, ids.shape[1] :].tolist()}

    def _timed(self, images: list[NDArray[np.uint8]], *, at_once: int) -> dict[str, object]:
        started_at = time.perf_counter()
        features: list[torch.Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(images), at_once):
                part = images[start : start + at_once]
                pixels, sizes = _inputs(part, self._model.dtype)
                packed = self._model.model.vision_tower(pixels, image_sizes=sizes).last_hidden_state[0]
                features += packed.split([image.shape[0] // PATCH * (image.shape[1] // PATCH) for image in part])
        seconds = time.perf_counter() - started_at
        return {"seconds": seconds, "check": [float(each.abs().mean()) for each in features]}


def _inputs(images: list[NDArray[np.uint8]], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels, padded to the largest picture, and sizes (height, width)."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    pixels = torch.zeros(len(images), 3, int(sizes[:, 0].max()), int(sizes[:, 1].max()))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for row, image in zip(pixels, images, strict=True):
        normal = (torch.from_numpy(image).float() / 255 - mean) / std
        row[:, : image.shape[0], : image.shape[1]] = normal.permute(2, 0, 1)
    return pixels.to(dtype), sizes


if __name__ == "__main__":
    engine = Engine()
    serve(
        {
            "load": engine.load,
            "encode": engine.encode,
            "encode_each": engine.encode_each,
            "preprocess": engine.preprocess,
            "answer": engine.answer,
        }
    )
