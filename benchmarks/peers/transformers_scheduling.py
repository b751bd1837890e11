"""Hugging Face transformers' continuous batching with a model that computes nothing: an engine behind `protocol`.

Runs in an environment of its own with torch and transformers. `step` is the whole body of its loop, which has no seam
between planning and tensors: with the model's inputs, the mask that attention on a CPU needs, and the choice between
eight logits. `schedule` leaves all of these out: what to compute, and to account for it.
"""

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.peers.protocol import serve
from benchmarks.peers.stepping import BLOCK_SIZE, MAX_REQUESTS, MAX_TOKENS, TOKEN, Step, prompts, time_steps

_BATCH_TOKENS = 512
_VOCAB_SIZE = TOKEN + 1
_SHAPE = MistralConfig(
    vocab_size=_VOCAB_SIZE,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=None,
)


class _IdleModel(nn.Module):
    """Finds the same token the likeliest, wherever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._logits = torch.zeros(1, _BATCH_TOKENS, _VOCAB_SIZE)
        self._logits[..., TOKEN] = 1.0

    def _supports_logits_to_keep(self) -> bool:
        return True

    def forward(self, *, logits_to_keep: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self._logits[:, : len(logits_to_keep)])


class _IdleInputs:
    """Makes no tensors of a batch, and has the same token for everybody."""

    def __init__(self) -> None:
        self.requests_in_batch: list[Any] = []

    def prepare_batch_tensors(self, *, requests_in_batch: list[Any], **_: object) -> None:
        """Remember who is in the batch, and move each on as whoever makes the tensors does."""
        self.requests_in_batch = requests_in_batch
        for each in requests_in_batch:
            each.state.position_offset += each.query_length

    def prepare_batch_update(self) -> tuple[list[Any], list[int], None]:
        """The batch, and a token for each that gets one."""
        batch = self.requests_in_batch
        return batch, [TOKEN for each in batch if each.has_new_token], None

    def reset(self) -> None:
        """Nothing is kept."""
        self.requests_in_batch = []


class Engine:
    """Its processor of batches, with and without tensors."""

    def __init__(self) -> None:
        self._manager: Any = None
        self._model = _IdleModel()
        self._inputs: Any = None
        self._num_requests = 0

    def load(self, model: str) -> dict[str, object]:
        """Build the processor for a model that is as small as can be."""
        torch.set_num_threads(1)
        config = GenerationConfig(max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        tiny = AutoModelForCausalLM.from_config(_SHAPE, attn_implementation="paged|sdpa")  # type: ignore[no-untyped-call]
        self._manager = tiny.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=BLOCK_SIZE,
                # A seventh is kept free.
                num_blocks=MAX_REQUESTS * MAX_TOKENS // BLOCK_SIZE,
                max_batch_tokens=_BATCH_TOKENS,
                max_requests_per_batch=MAX_REQUESTS,
            ),
        )
        self._manager.batch_processor = self._manager._create_batch_processor()
        self._inputs = self._manager.batch_processor.inputs_and_outputs
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    def step(self, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
        """Steps of its loop."""
        processor = self._manager.batch_processor
        processor.inputs_and_outputs = self._inputs

        def compute() -> None:
            processor._generation_step(self._model)

        return self._time(compute, running, context, steps, seconds)

    def schedule(self, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
        """Steps of its loop without tensors."""
        self._manager.batch_processor.inputs_and_outputs = _IdleInputs()
        return self._time(lambda: None, running, context, steps, seconds)

    def _time(self, compute: Any, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:  # noqa: ANN401
        processor = self._manager.batch_processor

        def step() -> int:
            if not processor.prepare_next_batch():
                return 0
            compute()
            processor.update_batch()
            return len(processor.inputs_and_outputs.requests_in_batch)

        def begin(running: int, context: int, steps: int) -> Step:
            self._begin(running, context)
            active = processor.scheduler.active_requests
            while len(active) < running or not all(each.generated_tokens for each in active.values()):
                step()
            return step

        return time_steps(begin, running=running, context=context, steps=steps, seconds=seconds)

    def _begin(self, running: int, context: int) -> None:
        self._manager.batch_processor.reset()
        for prompt in prompts(running, context, first=self._num_requests):
            self._manager.add_request(prompt)
        self._num_requests += running


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "step": engine.step, "schedule": engine.schedule})
