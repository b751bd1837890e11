"""Our own cases on a GPU, each by itself: it makes its models, adds its rows, and leaves nothing on the device.

To add one, write what makes its rows in a file of its own, a function here, and a line in `CASES`.
"""

import gc
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.attention import attention_rows, launch_rows
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.decoding import decode_rows, prefill_rows
from benchmarks.gpu.eight_bits import eight_bit_rows
from benchmarks.gpu.encoder_graphs import encoder_graph_rows
from benchmarks.gpu.encoding import encode_rows
from benchmarks.gpu.engine_rows import engine_rows, offline_limit, offline_rows
from benchmarks.gpu.models import DECODER_1B, random_decoder, random_encoder
from benchmarks.gpu.one_row import one_row_rows
from benchmarks.gpu.ours import OurEngine, our_compute
from benchmarks.gpu.overlap import NEW_TOKENS, PROMPT, overlap_rows
from benchmarks.gpu.own_figures import OwnFigures
from benchmarks.gpu.peers.decoding_rows import decoding_workloads
from benchmarks.gpu.report import Reporting, Row
from benchmarks.gpu.workloads import Workload
from common.model.config import MistralConfig
from common.model.graph_recorder import CudaGraphRecorder
from decoder_service.model.fp8 import FP8, quantize_layers
from decoder_service.model.weights import DecoderModel
from vision_service.model.segment_attention import flash_attention

_PROMPTS = (512, 1024, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a case works with."""

    device: torch.device
    ceilings: Ceilings
    decoder: MistralConfig
    """Shape of the decoder, large or small"""
    report: Reporting
    own: OwnFigures
    """What peers are held against; a case that they take part in puts its own figures there"""


class WrongError(Exception):
    """What was computed is not what it should be."""


Case = Callable[[Bench], None]


def run_cases(names: Sequence[str], cases: Mapping[str, Case], bench: Bench) -> list[str]:
    """Run these cases one after another; what one fails with is told, and the others go on. Returns those that failed.

    Raises nothing that a case raises.
    """
    failed = []
    for name in names:
        try:
            cases[name](bench)
        except Exception as error:  # Whatever it is, the figures of the other cases are not lost.
            traceback.print_exc()
            failed.append(name)
            bench.report.add(f"{name} failed", [{"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}])
        # Outside of the handler, as a traceback holds what its frames hold.
        gc.collect()
        if bench.device.type == "cuda":
            with suppress(RuntimeError):  # Of a device that is lost: who asked for the cases sees to it.
                torch.cuda.empty_cache()
    return failed


def _attention(bench: Bench) -> None:
    bench.report.add("G3 attention", attention_rows(bench.device, bench.ceilings))


def _launches(bench: Bench) -> None:
    bench.report.add("G3 ways to launch", launch_rows(bench.device, bench.ceilings))


def _encoder(bench: Bench) -> None:
    from vision_service.model.fused_encoder import FusedEncoder

    whole = bench.report.add("G6 encoder", encode_rows(bench.device, bench.ceilings))
    bench.own.pictures.update({str(row["case"]): float(str(row["pictures/s"])) for row in whole})
    model, recorder = random_encoder(bench.device), CudaGraphRecorder(bench.device)
    rows = encoder_graph_rows(model, recorder, flash_attention, seconds, FusedEncoder(model))
    recorded = bench.report.add("G6 recorded encoder", rows)
    _all_right([*whole, *recorded], "fused or recorded passes of the encoder give other features")


def _overlap(bench: Bench) -> None:
    model = random_decoder(DECODER_1B, bench.device, torch.bfloat16)
    make_compute = our_compute(bench.device, max_num_requests=32, max_model_len=PROMPT + NEW_TOKENS)
    rows = bench.report.add("G4 overlap", overlap_rows(model, make_compute, (1, 8, 32)))
    _all_right(rows, "steps that are planned ahead give other tokens")


def _decode(bench: Bench, *, case: str, batches: tuple[int, ...]) -> None:
    model = _decoder(bench)
    rows = decode_rows(model, bench.ceilings, batches, layers=torch.bfloat16, keys=torch.bfloat16)
    bench.report.add(f"{case} decode", rows)
    workloads = decoding_workloads(frozenset({case}), vocab_size=bench.decoder.vocab_size)
    engine = _engine(model, workloads)
    bench.report.add(f"{case} decode, whole engine", engine_rows(engine, workloads, bench.own))


def _one_row(bench: Bench) -> None:
    bench.report.add("G1 products of one row", one_row_rows(bench.device, bench.ceilings))


def _prefill(bench: Bench) -> None:
    bench.report.add("G5 prefill", prefill_rows(_decoder(bench), bench.ceilings, _PROMPTS))


def _offline(bench: Bench) -> None:
    workloads = decoding_workloads(frozenset({"G8"}), vocab_size=bench.decoder.vocab_size)
    engine = _engine(_decoder(bench), workloads)
    for workload in workloads:
        limit = offline_limit(workload, bench.decoder, torch.bfloat16, bench.ceilings)
        bench.report.add("G8 offline", offline_rows(engine, workload, limit, bench.own))


def _fp8(bench: Bench) -> None:
    model = _decoder(bench)
    quantize_layers(model.decoder)
    torch.cuda.empty_cache()
    for name, keys in (("fp8 weights", torch.bfloat16), ("fp8 weights, keys and values", FP8)):
        rows = decode_rows(model, bench.ceilings, (1, 8, 32, 128), layers=FP8, keys=keys)
        bench.report.add(f"decode, {name}", rows)
    bench.report.add("prefill, fp8 weights", prefill_rows(model, bench.ceilings, _PROMPTS))
    bench.report.add("products of prompts, fp8", eight_bit_rows(bench.device, bench.ceilings))


CASES: Mapping[str, Case] = {
    "G1": partial(_decode, case="G1", batches=(1,)),
    "G2": partial(_decode, case="G2", batches=(8, 32, 128)),
    "G5": _prefill,
    "G3": _attention,
    "G6": _encoder,
    "G4": _overlap,
    "G8": _offline,
    "fp8": _fp8,
    "one-row": _one_row,
    "launches": _launches,
}
"""In the order in which they run, so that a run that is cut short has what matters most"""


def _decoder(bench: Bench) -> DecoderModel:
    return random_decoder(bench.decoder, bench.device, torch.bfloat16)


def _engine(model: DecoderModel, workloads: Sequence[Workload]) -> OurEngine:
    count = max(len(workload.prompts) for workload in workloads)
    length = max(workload.max_len for workload in workloads)
    gc.collect()  # What was measured before keeps memory in circles of references.
    make_compute = our_compute(model.device, max_num_requests=count, max_model_len=length)
    return OurEngine(model, make_compute, max_num_requests=count, max_model_len=length)


def _all_right(rows: Iterable[Row], complaint: str) -> None:
    if not all(row["right"] for row in rows):
        raise WrongError(complaint)
