"""transformers' `generate`, eager, or with a static cache, whose steps it compiles on a GPU by itself."""

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.clock import Marks
from benchmarks.gpu.peers.transformers_weights import transformers_decoder
from benchmarks.gpu.workloads import Workload
from decoder_service.model.weights import DecoderModel


class Generate:
    """`generate` with attention by torch's own function."""

    def __init__(self, model: DecoderModel, *, is_static: bool) -> None:
        self._model = transformers_decoder(model, attention="sdpa")
        self._device = model.device
        self._cache = {"cache_implementation": "static"} if is_static else {}

    def answer(self, workload: Workload, *, seconds: float) -> Answers:
        """See `Decoding`. Raises ValueError unless all prompts are of one length, and all outputs of another."""
        if len({len(prompt) for prompt in workload.prompts}) != 1 or len(set(workload.num_new)) != 1:
            raise ValueError("generate needs prompts of one length and outputs of one length")
        ids = torch.tensor(workload.prompts, device=self._device)
        marks = Marks(self._device)
        marks.note()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=workload.num_new[0],
            do_sample=False,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([_Watch(marks)]),
            **self._cache,
        )
        times = marks.seconds()
        tokens = output[:, ids.shape[1] :].tolist()
        return Answers(tokens=tokens, times=[times] * len(tokens), seconds=times[-1])


class _Watch(LogitsProcessor):
    """Notes when logits are there, and changes nothing. `generate` runs ahead of the device, so nothing waits here."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        self._marks.note()
        return scores
