"""A decoding peer beside ours: the same tokens first, then its speed on the same workloads.

Knows what both must have in common. Does not know how a peer decodes.
"""

import gc
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.compare.agreement import agreement
from benchmarks.gpu.answers import Answers
from benchmarks.gpu.models import random_decoder
from benchmarks.gpu.ours import OurEngine, our_compute
from benchmarks.gpu.peers.peer import Decoding, MakeDecoding, Setting
from benchmarks.gpu.report import Row
from benchmarks.gpu.workloads import Workload, decode_workload, offline_workload
from benchmarks.pixtral_12b import DECODER_12B
from decoder_service.model.weights import DecoderModel

CHECKED = replace(
    DECODER_12B,
    hidden_size=768,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_hidden_layers=2,
    feed_forward_length=1024,
    vocab_size=2048,
)
"""Small, and as in the large shape the heads together are narrower than a row."""
_CHECK_TOKENS = 16
_DECODE_BATCHES = {"G1": (1,), "G2": (32, 128)}
_MARGIN_SECONDS = 20.0
"""Of a process that is ended when its time is over: what it imports before this begins, and its last step."""


def decoding_workloads(cases: frozenset[str], *, vocab_size: int) -> list[Workload]:
    """What decoding peers are asked in these cases, and we with them."""
    batches = [batch for case, batches in _DECODE_BATCHES.items() if case in cases for batch in batches]
    workloads = [decode_workload(batch, vocab_size=vocab_size) for batch in batches]
    return workloads + ([offline_workload(vocab_size=vocab_size)] if "G8" in cases else [])


def check_workload() -> Workload:
    """Three prompts whose tokens in float32 must be ours."""
    return decode_workload(3, vocab_size=CHECKED.vocab_size, context=70, num_new=_CHECK_TOKENS)


def checked_decoder(device: torch.device) -> DecoderModel:
    """The small decoder in float32, with the same weights on every device."""
    model = random_decoder(CHECKED, torch.device("cpu"), torch.float32)
    model.decoder.to(device)
    return replace(model, device=device)


def decoding_rows(make: MakeDecoding, setting: Setting) -> Iterator[Row]:
    """A row for the check in float32, and one for each workload. Raises what the peer raises."""
    stop_at = time.monotonic() + setting.seconds - _MARGIN_SECONDS
    right = _check(make, setting.device)
    yield right
    if not right["right"]:
        raise ValueError("in float32 it gives other tokens than ours; it is not timed")
    gc.collect()
    is_cuda = setting.device.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
    dtype = torch.bfloat16 if is_cuda else torch.float32
    peer = make(random_decoder(setting.decoder, setting.device, dtype))
    for workload in decoding_workloads(setting.cases, vocab_size=setting.decoder.vocab_size):
        yield _timed(peer, workload, stop_at, setting.ours.answers.get(workload.name))


def _check(make: MakeDecoding, device: torch.device) -> Row:
    model, workload = checked_decoder(device), check_workload()
    count, length = len(workload.prompts), workload.max_len
    make_compute = our_compute(device, max_num_requests=count, max_model_len=length, is_recorded=False)
    engine = OurEngine(model, make_compute, max_num_requests=count, max_model_len=length)
    ours = engine.answer(workload)
    found = agreement(ours.tokens, make(model).answer(workload, seconds=60.0).tokens)
    return {"case": "float32", "tokens as ours": str(found), "right": found.is_exact}


def _timed(peer: Decoding, workload: Workload, stop_at: float, ours: Answers | None) -> Row:
    """Whatever goes wrong with one workload, the next is tried."""
    try:
        peer.answer(_warm_up(workload), seconds=stop_at - time.monotonic())
        if (left := stop_at - time.monotonic()) <= 0:
            raise TimeoutError("no time was left")
        theirs = peer.answer(workload, seconds=left)
        is_even = len(set(workload.num_new)) == 1
        return decode_row(workload, theirs, ours) if is_even else offline_row(workload, theirs, ours)
    except Exception as error:  # Of whatever kind another project's errors are.
        traceback.print_exc()
        return {"case": workload.name, "not run": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def _warm_up(workload: Workload) -> Workload:
    """One request whole, as what is compiled for it depends on its length; of several a few, and few tokens."""
    return workload if len(workload.prompts) == 1 else workload.beginning(num_requests=32, num_new=8)


def decode_row(workload: Workload, theirs: Answers, ours: Answers | None) -> Row:
    """Steps in which all requests are decoded."""
    rate = theirs.decode_rate()
    row: Row = {"case": workload.name, "ms/step": len(workload.prompts) / rate * 1e3, "tokens/s": rate}
    if ours is not None:
        row["ours / its"] = ours.decode_rate() / rate
        row["tokens as ours"] = str(agreement(ours.tokens, theirs.tokens))
    return row


def offline_row(workload: Workload, theirs: Answers, ours: Answers | None) -> Row:
    """All tokens, or those until it was stopped: ours are then held against it over as many tokens."""
    count, seconds = theirs.num_tokens, theirs.seconds
    row: Row = {
        "case": workload.name,
        "output tokens/s": count / seconds,
        "seconds": seconds,
        "output tokens": f"{count} of {workload.num_new_tokens}",
    }
    if ours is not None and count:
        row["ours / its"] = seconds / ours.seconds_until(count)
        parts = [mine[: len(its)] for mine, its in zip(ours.tokens, theirs.tokens, strict=True)]
        row["tokens as ours"] = str(agreement(parts, theirs.tokens))
    return row
