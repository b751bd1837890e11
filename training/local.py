"""Answers a question with the trained modules in this process, one token at a time.

Knows greedy decoding without a cache. Does not know services; it is the reference that they are compared
with, and what evaluates a run before services exist.
"""

import io

import numpy as np
import torch
from PIL import Image

from training.batches import BEGIN_INST, BOS, END_INST, EOS, Batch, ChatLayout, Slot, image_tokens, patches_of
from training.model import TrainablePixtral


class LocalAnswerer:
    """An `evaluate.Answerer` without a network."""

    def __init__(self, model: TrainablePixtral, layout: ChatLayout, most_tokens: int = 48) -> None:
        self._model = model
        self._layout = layout
        self._most_tokens = most_tokens

    @torch.no_grad()
    def ask(self, parts: tuple[str | bytes, ...]) -> str:
        """The greedy answer's text."""
        if len(parts) == 2 and isinstance(parts[1], bytes):
            parts = parts[::-1]  # as mistral-common does: a single trailing picture goes first
        slots, prompt = [], [BOS, BEGIN_INST]
        for part in parts:
            if isinstance(part, str):
                prompt += self._layout.words(part)
            else:
                slots.append(_slot(part))
                prompt += image_tokens(slots[-1].grid)
        return self._layout.text(self._decode([*prompt, END_INST], slots))

    def _decode(self, prompt: list[int], slots: list[Slot]) -> list[int]:
        features = [self._model.features(slot) for slot in slots]
        answer: list[int] = []
        while len(answer) < self._most_tokens:
            logits = self._model.answer_logits(_batch(prompt + answer, slots), features)
            token = int(logits[-1].argmax())
            if token == EOS:
                break
            answer.append(token)
        return answer


def _slot(png: bytes) -> Slot:
    grid, pixels = patches_of(Image.open(io.BytesIO(png)).convert("RGB"))
    nothing = np.zeros((1, len(pixels), 2), dtype=np.int64)
    return Slot(grid=grid, pixels=pixels[None], marks=nothing, places=nothing)


def _batch(tokens: list[int], slots: list[Slot]) -> Batch:
    """A batch of one sequence that asks for the logits after its last token."""
    return Batch(
        slots=slots,
        tokens=np.asarray([tokens], dtype=np.int64),
        predictors=np.asarray([len(tokens) - 1], dtype=np.int64),
        targets=np.asarray([EOS], dtype=np.int64),
        turn_of=np.zeros(1, dtype=np.int64),
        turn_tasks=[""],
    )
