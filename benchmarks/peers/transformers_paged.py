"""Hugging Face transformers' continuous batching: an engine behind `protocol`.

Runs in an environment of its own with torch and transformers. Its loop runs on a thread of its own, so nothing
here may be inside torch's inference mode.
"""

import os
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.peers.protocol import serve

_BLOCK_SIZE = 32


class Engine:
    """The loaded model."""

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None
        self._num_blocks = 0

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str) -> dict[str, object]:
        """Load a checkpoint in this type."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="paged|sdpa")
        self._num_blocks = max_requests * -(-max_tokens // _BLOCK_SIZE) + 1
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts, and the seconds that they took."""
        if self._model is None:
            raise ValueError("no model is loaded")
        started_at = time.perf_counter()
        outputs = self._model.generate_batch(  # type: ignore[operator]
            inputs=prompts,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            # Without these numbers it sizes its cache anew for every call.
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=_BLOCK_SIZE, num_blocks=self._num_blocks, max_batch_tokens=512
            ),
            progress_bar=False,
        )
        seconds = time.perf_counter() - started_at
        ordered = {tuple(output.prompt_ids): list(output.generated_tokens) for output in outputs.values()}
        return {"tokens": [ordered[tuple(prompt)] for prompt in prompts], "seconds": seconds}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
