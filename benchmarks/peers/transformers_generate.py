"""Hugging Face transformers' `generate`, static batches: an engine behind `protocol`.

Runs in an environment of its own with torch and transformers.
"""

import os
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peers.protocol import serve


class Engine:
    """The loaded model."""

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None

    def load(self, model: str, dtype: str, **_: object) -> dict[str, object]:
        """Load a checkpoint in this type."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts of one length, and the seconds that they took."""
        if self._model is None:
            raise ValueError("no model is loaded")
        started_at = time.perf_counter()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens = output[:, ids.shape[1] :].tolist()
        return {"tokens": tokens, "seconds": time.perf_counter() - started_at}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
