"""How likely the model held given tokens.

Knows logits. Does not know requests or how tokens are chosen: these are the model's own probabilities, before
the temperature and everything else that steers sampling.
"""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from decoder_service.sampling.logprobs import Logprobs

PROMPT_LOGITS_ROWS = 64
"""Rows of a prompt that get logits at once: a whole step's would take gigabytes of a large vocabulary."""


def likelihoods(logits: Tensor, token_ids: Sequence[int], *, num_top: Sequence[int]) -> list[Logprobs]:
    """Log probabilities of `token_ids`, one for each row of fp32 logits [num_rows, vocab_size].

    With each row come its `num_top` likeliest tokens.
    """
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    best = logits.topk(min(max(num_top), logits.shape[-1]), dim=-1)
    columns = zip(
        (logits.gather(-1, chosen) - normaliser).squeeze(-1).tolist(),
        best.indices.tolist(),
        (best.values - normaliser).tolist(),
        num_top,
        strict=True,
    )
    # Arrays, as a long prompt has millions of these numbers and Python's own take four times the memory.
    return [Logprobs(logprob, array("I", ids[:num]), array("f", values[:num])) for logprob, ids, values, num in columns]
