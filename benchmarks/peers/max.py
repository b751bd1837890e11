"""MAX on a CPU: an engine behind `protocol`.

Runs in an environment of its own with `max[serve]`. MAX runs float32 on a CPU for Llama alone, so it gets the twin
of the checkpoint. Its offline interface takes and gives text, so token ids travel as the texts of a tokenizer that
spells them: `t17` is token 17.
"""

import importlib.metadata
import re
import time
from typing import Any

from benchmarks.peers.protocol import serve

_TOKEN = re.compile(r"t(\d+)")


class Engine:
    """The loaded engine and its worker process."""

    def __init__(self) -> None:
        self._engine: Any = None

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str) -> dict[str, object]:
        """Load a checkpoint in this type; the first time it is compiled, which takes minutes."""
        from max._entrypoints.llm import LLM
        from max.driver import DeviceSpec
        from max.pipelines.lib import PipelineArgs

        self._engine = LLM(
            PipelineArgs.from_flat_kwargs(
                model_path=model,
                quantization_encoding=dtype,
                device_specs=[DeviceSpec.cpu()],
                max_length=max_tokens,
                max_batch_size=max_requests,
            )
        )
        return {"version": f"max {importlib.metadata.version('max')}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts, and the seconds that they took."""
        texts = [" ".join(map(_spell, prompt)) for prompt in prompts]
        started_at = time.perf_counter()
        outputs = self._engine.generate(texts, max_new_tokens=max_tokens, use_tqdm=False)
        seconds = time.perf_counter() - started_at
        return {"tokens": [[int(token) for token in _TOKEN.findall(output)] for output in outputs], "seconds": seconds}


def _spell(token: int) -> str:
    return ("<unk>", "<s>", "</s>")[token] if token < 3 else f"t{token}"


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
