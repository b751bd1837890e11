"""Peers that decode with our weights give our tokens, are timed on what we were timed on, and are found out if not."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.answers import Answers
from benchmarks.gpu.models import random_decoder
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.peers import decoding_rows as rows_module
from benchmarks.gpu.peers.catalogue import PEERS, find_peer
from benchmarks.gpu.peers.decoding_rows import CHECKED, check_workload, checked_decoder, decoding_rows, offline_row
from benchmarks.gpu.peers.gpt_fast import GptFast
from benchmarks.gpu.peers.peer import Decoding, MakeDecoding, Peer, Setting
from benchmarks.gpu.peers.transformers_generate import Generate
from benchmarks.gpu.peers.transformers_paged import Paged
from benchmarks.gpu.peers.transformers_weights import transformers_decoder
from benchmarks.gpu.report import Row
from benchmarks.gpu.workloads import Workload, decode_workload, offline_workload
from decoder_service.model.weights import DecoderModel
from tests.benchmarks.on_cpu import CPU, TINY, engine_for, tiny_decoder

GPT_FAST = Path(__file__).parent / "gpt_fast"
MAKERS: dict[str, MakeDecoding] = {
    "transformers": partial(Generate, is_static=False),
    "transformers-compiled": partial(Generate, is_static=True),
    "transformers-paged": Paged,
    "gpt-fast": partial(GptFast, checkout=GPT_FAST),
}


def workloads(cases: frozenset[str], *, vocab_size: int) -> list[Workload]:
    """The cases' own in small."""
    batches = (1,) if "G1" in cases else (2, 3)
    small = [decode_workload(batch, vocab_size=vocab_size, context=20, num_new=6) for batch in batches]
    offline = offline_workload(vocab_size=vocab_size, num_requests=5, least=3, most=20)
    return small + ([offline] if "G8" in cases else [])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "decoding_workloads", workloads)


def setting(*cases: str, own: OwnFigures | None = None, seconds: float = 100.0) -> Setting:
    return Setting(
        device=CPU,
        cases=frozenset(cases),
        decoder=TINY,
        ours=own or OwnFigures(),
        seconds=seconds,
        gpt_fast=GPT_FAST,
    )


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.name in MAKERS], ids=lambda peer: str(peer.name))
def test_every_peer_gives_our_tokens_and_is_held_against_our_rates(peer: Peer) -> None:
    own = OwnFigures(
        {each.name: engine_for(each).answer(each) for each in workloads(peer.cases, vocab_size=TINY.vocab_size)}
    )
    check, *timed = peer.rows(setting(*peer.cases, own=own))
    assert check == {"case": "float32", "tokens as ours": "3/3 prompts, 48/48 tokens", "right": True}
    assert [row["case"] for row in timed] == list(own.answers)
    for row in timed:
        tokens = own.answers[str(row["case"])].num_tokens
        assert str(row["tokens as ours"]).endswith(f" {tokens}/{tokens} tokens")
        assert float(str(row["ours / its"])) > 0


@pytest.mark.parametrize("name", MAKERS)
def test_a_peer_with_one_other_weight_is_found_out_and_not_timed(name: str) -> None:
    def make(model: DecoderModel) -> Decoding:
        return MAKERS[name](replace(model, decoder=spoilt(model).decoder))

    found: list[Row] = []
    with pytest.raises(ValueError, match="other tokens than ours; it is not timed"):
        found.extend(decoding_rows(make, setting("G1")))
    assert [row["right"] for row in found] == [False]


def test_a_workload_that_goes_wrong_costs_the_next_nothing() -> None:
    class Narrow(Paged):
        def answer(self, workload: Workload, *, seconds: float) -> Answers:
            if workload.name.startswith("decode 2") and len(workload.prompts[0]) == 20:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to")
            return super().answer(workload, seconds=seconds)

    _, first, second = decoding_rows(Narrow, setting("G2"))
    assert first == {"case": "decode 2 x 20", "not run": "OutOfMemoryError: CUDA out of memory."}
    assert float(str(second["tokens/s"])) > 0


def test_what_there_is_no_time_for_is_named() -> None:
    _, row = decoding_rows(MAKERS["transformers"], setting("G1", seconds=0.0))
    assert row == {"case": "decode 1 x 20", "not run": "TimeoutError: no time was left"}


def spoilt(model: DecoderModel) -> DecoderModel:
    """The same with two key heads of a layer exchanged."""
    other = random_decoder(model.config, CPU, torch.float32)
    weight = other.decoder.decoder_layers[1].self_attn.k_proj.weight
    with torch.no_grad():
        weight.copy_(weight.roll(model.config.head_dim, 0))
    return other


def test_the_tokens_that_are_compared_are_no_near_ties() -> None:
    """Or rounding, which differs between devices, would decide whether a peer is timed."""
    model, workload = checked_decoder(CPU), check_workload()
    tokens = engine_for(workload, model).answer(workload).tokens
    reference = transformers_decoder(model, attention="eager")
    ids = torch.tensor([[*prompt, *new] for prompt, new in zip(workload.prompts, tokens, strict=True)])
    with torch.no_grad():
        logits = reference(ids).logits[:, len(workload.prompts[0]) - 1 : -1]
    best = logits.topk(2).values
    assert float((best[..., 0] - best[..., 1]).min() / logits.std()) > 2e-3
    assert len({token for row in tokens for token in row}) > 20


def test_transformers_takes_our_parameters_and_no_memory_for_them() -> None:
    model = tiny_decoder(torch.bfloat16)
    theirs = transformers_decoder(model, attention="sdpa")
    mine = {parameter.data_ptr() for parameter in model.decoder.parameters()}
    assert {parameter.data_ptr() for parameter in theirs.parameters()} == mine
    assert theirs.dtype is torch.bfloat16
    assert all(not buffer.is_meta for buffer in theirs.buffers())


def test_what_a_stopped_peer_has_so_far_is_held_against_as_many_of_our_tokens() -> None:
    workload = offline_workload(vocab_size=CHECKED.vocab_size, num_requests=8, least=100, most=300)
    model = checked_decoder(CPU)
    own = engine_for(workload, model).answer(workload)
    # Long enough to have begun, on a machine however busy; too short for all.
    seconds = 0.5
    while not (part := Paged(model).answer(workload, seconds=seconds)).num_tokens:
        seconds *= 2
    assert 0 < part.num_tokens < own.num_tokens
    row = offline_row(workload, part, own)
    assert row["output tokens"] == f"{part.num_tokens} of {workload.num_new_tokens}"
    assert row["ours / its"] == pytest.approx(part.seconds / own.seconds_until(part.num_tokens))
    assert str(row["tokens as ours"]).endswith(f" {part.num_tokens}/{part.num_tokens} tokens")


def test_generate_refuses_what_it_would_pad() -> None:
    workload = offline_workload(vocab_size=TINY.vocab_size, num_requests=3, least=3, most=20)
    with pytest.raises(ValueError, match="prompts of one length"):
        Generate(tiny_decoder(), is_static=False).answer(workload, seconds=1.0)


def test_gpt_fast_needs_a_checkout() -> None:
    with pytest.raises(ValueError, match="--gpt-fast"):
        next(iter(find_peer("gpt-fast").rows(replace(setting("G1"), gpt_fast=None))))


def test_gpt_fast_can_be_compiled_whole() -> None:
    """Without the code that is made at the end, which takes a GPU."""
    peer = GptFast(checked_decoder(CPU), GPT_FAST, compiled=partial(torch.compile, fullgraph=True, backend="eager"))
    found = peer.answer(check_workload(), seconds=1.0)
    assert found.tokens == GptFast(checked_decoder(CPU), GPT_FAST).answer(check_workload(), seconds=1.0).tokens


def test_an_unknown_peer_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match=r"'vllm' is no peer; there are transformers, .*transformers-paged"):
        find_peer("vllm")
