"""Runs the model over what the scheduler chose: embed, splice images in, layers, sample.

Knows the order of the parts. Does not know how each is computed (see `compute`), queues, text or gRPC. It runs on
the engine's thread.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from decoder_service.cache.block_manager import BlockId
from decoder_service.engine.request import Request
from decoder_service.engine.step import BlockCopy, Launched, NoToken, ScheduledBatch, StepResult
from decoder_service.model.batch import BatchLayout, ForwardBatch, ImageRows, PromptRows
from decoder_service.model.batch_layout import lay_out
from decoder_service.model.chosen import Chosen, choose_greedily, choose_plainly, choose_tokens, plain_result
from decoder_service.model.compute import Compute, TorchCompute, WholeCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.sampling_rows import sampling_rows
from decoder_service.model.splice_error import SpliceError
from decoder_service.model.staging import Staging, staging_for
from decoder_service.model.step_queue import AtOnce, StepQueue
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.likelihood import PROMPT_LOGITS_ROWS, likelihoods
from decoder_service.sampling.logprobs import Logprobs
from decoder_service.sampling.sampler import SamplingBatch


class DecoderRunner:
    """The engine's `Runner` and `Launcher` in torch."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        compute: Compute | None = None,
        *,
        queue: StepQueue | None = None,
        staging: Staging | None = None,
    ) -> None:
        """Run `model`; plain torch computes where nothing else is given.

        Steps that are launched go through `queue`, and must be over before others are executed. Numbers travel to and
        from the device through `staging`.
        """
        self._model = model
        self._kv_cache = kv_cache
        self._compute = compute or TorchCompute(model, kv_cache)
        self._queue = queue or AtOnce()
        self._staging = staging or staging_for(model.device)
        self._whole = self._compute if isinstance(self._compute, WholeCompute) else None

    @torch.inference_mode()
    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks of keys and values."""
        self._kv_cache.copy(*zip(*copies, strict=True))

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Compute the scheduled tokens and choose the next one of each sampled request."""
        layout = lay_out(batch, block_size=self._kv_cache.block_size)
        if self._whole is not None and _is_plain(self._whole, layout, batch):
            return plain_result(self._whole, layout)
        return self._work_of(batch, layout, None)().read()

    def launch(self, batch: ScheduledBatch, after: Launched | None = None) -> Launched:
        """See `Launcher`. Raises TypeError where a step goes on from one that this runner did not launch."""
        before = after.tokens if after is not None else None
        if batch.is_ahead and not isinstance(before, Future):
            raise TypeError("a step that is planned ahead goes on from one that was launched here")
        layout = lay_out(batch, block_size=self._kv_cache.block_size)
        chosen = self._queue.put(self._work_of(batch, layout, before if isinstance(before, Future) else None))
        return Launched(lambda: chosen.result().read(), chosen)

    def _work_of(
        self, batch: ScheduledBatch, layout: BatchLayout, before: "Future[Chosen] | None"
    ) -> Callable[[], Chosen]:
        """What computes a batch. All that it needs of the requests is read here, as they are now."""
        if self._whole is not None and _is_plain(self._whole, layout, batch):
            return partial(choose_plainly, self._whole, layout, before)
        sampling = None
        if self._whole is None or not all(each.matcher is None and each.sampling.is_greedy for each in batch.sampled):
            rows = sampling_rows(batch)
            sampling = SamplingBatch.of(rows, self._staging.move, vocab_size=self._model.config.vocab_size)
        return partial(self._choose, layout.to(self._staging.move), sampling, batch.sampled, before)

    @torch.inference_mode()
    def _choose(
        self,
        forward: ForwardBatch,
        sampling: SamplingBatch | None,
        requests: Sequence[Request],
        before: "Future[Chosen] | None",
    ) -> Chosen:
        """The next tokens, whatever the batch asks for; without `sampling` the likeliest ones, by the kernels."""
        if before is not None:
            forward = forward.continued_from(before.result().token_ids())
        hidden, logits = self.compute(forward)
        if sampling is not None:
            chosen = choose_tokens(logits, sampling, self._staging)
        else:
            chosen = choose_greedily(self._whole, logits)
        if not forward.prompt_rows and all(request.sampling.logprobs is None for request in requests):
            return chosen
        return replace(chosen, read=partial(self._with_logprobs, chosen, hidden, logits, forward, requests))

    @torch.inference_mode()
    def _with_logprobs(
        self, chosen: Chosen, hidden: Tensor, logits: Tensor, forward: ForwardBatch, requests: Sequence[Request]
    ) -> StepResult:
        result = chosen.read()
        return replace(
            result,
            logprobs=_logprobs(logits, requests, result.token_ids),
            prompt_logprobs={rows.request_id: self._prompt_logprobs(hidden, rows) for rows in forward.prompt_rows},
        )

    def clear(self, block_ids: Sequence[BlockId]) -> None:
        """Zero blocks: values that are hidden from whoever gets them next are still multiplied by 0."""
        self._kv_cache.clear(block_ids)

    def run_idle(self, num_tokens: int) -> None:
        """Compute so many tokens of nobody, each as a request of its own, and the logits of one.

        They write to the first block, which nobody may own yet.
        """
        rows = torch.zeros(num_tokens, dtype=torch.long, device=self._model.device)
        ones = (1,) * num_tokens
        hidden = self.hidden(
            ForwardBatch(
                token_ids=rows,
                positions=rows,
                slot_mapping=rows,
                block_tables=rows[:, None],
                query_lengths=ones,
                seq_lens=ones,
                seq_lens_there=rows + 1,
                logits_indices=rows,
                image_indices=rows[:0],
                image_rows=(),
            )
        )
        self.logits(hidden[:1])

    def run_idle_prompt(self, num_tokens: int, seq_len: int) -> None:
        """Compute so many last tokens of nobody's prompt of that length, all of it in the first block as above."""
        places = torch.arange(seq_len - num_tokens, seq_len, device=self._model.device)
        block_size = self._kv_cache.block_size
        self.hidden(
            ForwardBatch(
                token_ids=torch.zeros_like(places),
                positions=places,
                slot_mapping=places % block_size,
                block_tables=places.new_zeros(1, -(-seq_len // block_size)),
                query_lengths=(num_tokens,),
                seq_lens=(seq_len,),
                seq_lens_there=places[-1:] + 1,
                logits_indices=places[:0],
                image_indices=places[:0],
                image_rows=(),
            )
        )

    def compute(self, forward: ForwardBatch) -> tuple[Tensor, Tensor]:
        """The batch's hidden rows, and the logits to choose tokens from."""
        hidden = self.hidden(forward)
        return hidden, self.logits(hidden[forward.logits_indices])

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
        return self._staging.carry(matrix[rows.first : rows.last]).to(self._model.dtype)


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _is_plain(whole: WholeCompute, layout: BatchLayout, batch: ScheduledBatch) -> bool:
    """Whether torch computes nothing of it: its tensors and inference mode alone would cost more than the choice."""
    return not layout.prompt_rows and whole.takes(layout) and all([each.is_plain for each in batch.sampled])


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
