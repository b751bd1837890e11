"""Runs the model over what the scheduler chose: embed, splice images in, layers, sample.

Knows the order of the parts. Does not know how each is computed (see `compute`), queues, text or gRPC. It runs on
the engine's thread.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, NoToken, ScheduledBatch, StepResult
from decoder_service.model.batch import ForwardBatch, ImageRows, PromptRows, lay_out
from decoder_service.model.compute import Compute, TorchCompute, WholeCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.near_ties import count_near_ties
from decoder_service.model.splice_error import SpliceError
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.likelihood import PROMPT_LOGITS_ROWS, likelihoods
from decoder_service.sampling.logits_processors import SamplingRow
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.sampling.random_stream import uniform
from decoder_service.sampling.sampler import sample


class DecoderRunner:
    """The engine's `Runner` in torch."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache, compute: Compute | None = None) -> None:
        """Run `model`; plain torch computes where nothing else is given."""
        self._model = model
        self._kv_cache = kv_cache
        self._compute = compute or TorchCompute(model, kv_cache)
        self._whole = self._compute if isinstance(self._compute, WholeCompute) else None

    @torch.inference_mode()
    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks of keys and values."""
        self._kv_cache.copy(*zip(*copies, strict=True))

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Compute the scheduled tokens and choose the next one of each sampled request."""
        layout = lay_out(batch, block_size=self._kv_cache.block_size)
        is_special = layout.image_rows or layout.prompt_rows or not all([each.is_plain for each in batch.sampled])
        if self._whole is None or is_special:
            return self._execute_in_torch(batch, layout.to(self._model.device))
        # Torch computes nothing here, and its tensors and inference mode alone would cost more than the choice.
        token_ids, num_near_ties = self._whole.next_tokens(layout)
        return StepResult(
            token_ids=[NoToken.NOT_FINITE if token_id is None else token_id for token_id in token_ids],
            num_near_ties=num_near_ties,
        )

    @torch.inference_mode()
    def _execute_in_torch(self, batch: ScheduledBatch, forward: ForwardBatch) -> StepResult:
        """As `execute`, whatever the batch asks for."""
        hidden, logits = self.compute(forward)
        token_ids, num_near_ties = self._choose(logits, batch.sampled)
        return StepResult(
            token_ids=token_ids,
            num_near_ties=num_near_ties,
            logprobs=_logprobs(logits, batch.sampled, token_ids),
            prompt_logprobs={rows.request_id: self._prompt_logprobs(hidden, rows) for rows in forward.prompt_rows},
        )

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        """Zero blocks: values that are hidden from whoever gets them next are still multiplied by 0."""
        self._kv_cache.clear(block_ids)

    def warm_up(self) -> None:
        """Run one small pass, so that the first request does not pay for what is set up at first use.

        It writes to the first block, which nobody owns yet.
        """
        rows = torch.zeros(2, dtype=torch.long, device=self._model.device)
        hidden = self.hidden(
            ForwardBatch(
                token_ids=rows,
                positions=rows,
                slot_mapping=rows,
                block_tables=rows[:, None],
                query_lengths=(1, 1),
                seq_lens=(1, 1),
                logits_indices=rows,
                image_indices=rows[:0],
                image_rows=(),
            )
        )
        self.logits(hidden)

    def compute(self, forward: ForwardBatch) -> tuple[Tensor, Tensor]:
        """The batch's hidden rows, and the logits to choose tokens from."""
        hidden = self.hidden(forward)
        return hidden, self.logits(hidden[forward.logits_indices])

    def _choose(self, logits: Tensor, requests: Sequence[Request]) -> tuple[list[int | NoToken], int]:
        """The next token of each request, and how many of them are near ties."""
        if self._whole is None or not all(each.matcher is None and each.sampling.is_greedy for each in requests):
            token_ids = sample(logits, [_sampling_row(request) for request in requests])
            return token_ids, count_near_ties(logits, requests)
        likeliest, finite, near_ties = self._whole.greedy(logits)
        columns = zip(likeliest, finite, strict=True)
        return [token_id if is_finite else NoToken.NOT_FINITE for token_id, is_finite in columns], sum(near_ties)

    @torch.inference_mode()
    def hidden(self, forward: ForwardBatch) -> Tensor:
        """Hidden rows [num_tokens, hidden_size] of the batch."""
        return self._compute.hidden(self._embed(forward), forward)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits as fp32 [num_sampled, vocab_size] to choose tokens from, for as many hidden rows."""
        return self._compute.logits(hidden)

    def _prompt_logprobs(self, hidden: Tensor, rows: PromptRows) -> list[Logprobs]:
        """How likely the tokens of a prompt were, a few rows of logits at a time."""
        found: list[Logprobs] = []
        for start in range(0, len(rows.token_ids), PROMPT_LOGITS_ROWS):
            token_ids = rows.token_ids[start : start + PROMPT_LOGITS_ROWS]
            first = rows.first + start
            logits = self._compute.logits(hidden[first : first + len(token_ids)])
            found.extend(likelihoods(logits, token_ids, num_top=[rows.num_top] * len(token_ids)))
        return found

    def _embed(self, forward: ForwardBatch) -> Tensor:
        """Embeddings [num_tokens, hidden_size], with projected image features at their places."""
        embeds = self._compute.embed(forward.token_ids)
        if not forward.image_rows:
            return embeds
        features = torch.cat([self._rows(rows) for rows in forward.image_rows])
        if len(features) != len(forward.image_indices):
            raise SpliceError(f"{len(features)} image rows for {len(forward.image_indices)} placeholders")
        return embeds.index_copy(0, forward.image_indices, self._compute.project(features))

    def _rows(self, rows: ImageRows) -> Tensor:
        """The wanted rows of one image [num_rows, vision_hidden_size], on the device."""
        spec = rows.features.spec
        matrix = torch.frombuffer(rows.features.data, dtype=_DTYPES[spec.dtype]).view(-1, spec.width)
        return matrix[rows.first : rows.last].to(device=self._model.device, dtype=self._model.dtype)


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _sampling_row(request: Request) -> SamplingRow:
    sampling, position = request.sampling, len(request.output_token_ids)
    return SamplingRow(
        params=sampling,
        uniform=uniform(seed=sampling.seed, index=request.index, position=position) if sampling.temperature else 0.0,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids,
        end_token_ids=request.end_token_ids,
        counts=request.token_counts,
        matcher=request.matcher,
    )


def _logprobs(logits: Tensor, requests: Sequence[Request], token_ids: Sequence[int | NoToken]) -> dict[str, Logprobs]:
    """Of the new tokens, for the requests that ask for it and got one."""
    asked = [
        (row, request.completion_id, token_id, request.sampling.logprobs)
        for row, (request, token_id) in enumerate(zip(requests, token_ids, strict=True))
        if request.sampling.logprobs is not None and not isinstance(token_id, NoToken)
    ]
    if not asked:
        return {}
    rows, completion_ids, chosen, num_top = zip(*asked, strict=True)
    wanted = logits[torch.tensor(rows, device=logits.device)]
    return dict(zip(completion_ids, likelihoods(wanted, chosen, num_top=num_top), strict=True))
