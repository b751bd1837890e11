"""llama.cpp through its C interface, all requests in one batch a step: an engine behind `protocol`.

Runs in an environment of its own with llama-cpp-python. Prompts go in one after the other, as llama.cpp's own
parallel example does; then every step decodes one token of each sequence. Keys and values are float32 beside weights in
float32, and float16 beside weights in bfloat16, which is llama.cpp's default.
"""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.gguf_file import write
from benchmarks.peers.protocol import serve

_BATCH_TOKENS = 512
_CACHE_TYPES = {"float32": llama_cpp.GGML_TYPE_F32, "bfloat16": llama_cpp.GGML_TYPE_F16}


class Engine:
    """The loaded model and its context."""

    def __init__(self) -> None:
        self._context: Any = None
        self._batch: Any = None
        self._vocab_size = 0

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str) -> dict[str, object]:
        """Write the checkpoint as GGUF beside it, where it is not there yet, and load it."""
        source = Path(model)
        file = source.with_name(f"{source.name}.{dtype}.gguf")
        if not file.exists():
            write(source, file, dtype)
        llama_cpp.llama_backend_init()
        threads = len(os.sched_getaffinity(0))
        loaded = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = max_requests * max_tokens
        parameters.n_batch = parameters.n_ubatch = _BATCH_TOKENS
        parameters.n_seq_max = max_requests
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = _CACHE_TYPES[dtype]
        parameters.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(loaded, parameters)
        if not self._context:
            raise ValueError("llama.cpp made no context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        return {"version": f"llama-cpp-python {llama_cpp.__version__}"}

    def generate(self, prompts: list[list[int]], max_tokens: int) -> dict[str, object]:
        """Greedy tokens of prompts, and the seconds that they took."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        started_at = time.perf_counter()
        tokens = [[self._read(prompt, sequence)] for sequence, prompt in enumerate(prompts)]
        for step in range(1, max_tokens):
            rows = [
                (each[-1], len(prompt) + step - 1, sequence)
                for sequence, (each, prompt) in enumerate(zip(tokens, prompts, strict=True))
            ]
            for each, token in zip(tokens, self._decode(rows, [True] * len(rows)), strict=True):
                each.append(token)
        return {"tokens": tokens, "seconds": time.perf_counter() - started_at}

    def _read(self, prompt: list[int], sequence: int) -> int:
        """Take a prompt in and choose the token behind it."""
        chosen: list[int] = []
        for start in range(0, len(prompt), _BATCH_TOKENS):
            part = prompt[start : start + _BATCH_TOKENS]
            rows = [(token, start + index, sequence) for index, token in enumerate(part)]
            is_last = start + len(part) == len(prompt)
            chosen = self._decode(rows, [False] * (len(part) - 1) + [is_last])
        return chosen[0]

    def _decode(self, rows: list[tuple[int, int, int]], wanted: list[bool]) -> list[int]:
        """One pass over rows (token, position, sequence); the likeliest token after each wanted row."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted[index]
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise ValueError("llama_decode failed")
        return [self._likeliest(index) for index, is_wanted in enumerate(wanted) if is_wanted]

    def _likeliest(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        row = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._vocab_size,))
        return int(row.argmax())


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "generate": engine.generate})
