"""Correctness first, then the cases G0 to G6 with Pixtral-12B's shape: `python -m benchmarks.gpu`.

Prints a table a case and writes everything to a JSON file. Needs 40 GB on the device; `--small` needs 4.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
import triton

from benchmarks.gpu.attention import attention_rows
from benchmarks.gpu.ceilings import measure
from benchmarks.gpu.clock import seconds
from benchmarks.gpu.correctness import correctness_rows
from benchmarks.gpu.decoding import decode_rows, prefill_rows
from benchmarks.gpu.encoder_graphs import encoder_graph_rows
from benchmarks.gpu.encoding import encode_rows
from benchmarks.gpu.models import DECODER_1B, DECODER_12B, random_decoder, random_encoder
from benchmarks.gpu.overlap import NEW_TOKENS, PROMPT, CudaTimeline, overlap_rows
from common.model.graph_recorder import CudaGraphRecorder
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.fp8 import FP8, quantize_layers
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from vision_service.model.segment_attention import flash_attention

Row = dict[str, object]


def main() -> None:
    """Run all cases on the first device; exit with status 1 where the arithmetic is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="four layers instead of forty")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where to write the figures")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here")
    device = torch.device("cuda", 0)
    results: dict[str, list[Row]] = {}
    right = _collect(results, "correctness", correctness_rows(device), arguments.json)
    if not all(row["right"] for row in right):
        raise SystemExit("the CUDA path computes something else than the plain path; nothing is timed")
    ceilings = measure(device)
    limits = {"copy TB/s": ceilings.copy_bytes / 1e12, "read TB/s": ceilings.read_bytes / 1e12}
    _collect(results, "G0 ceilings", [{**limits, "TFLOP/s": ceilings.flops / 1e12}], arguments.json)
    _collect(results, "G3 attention", attention_rows(device, ceilings), arguments.json)
    _collect(results, "G6 encoder", encode_rows(device, ceilings), arguments.json)
    recorder = CudaGraphRecorder(device)
    small = encoder_graph_rows(random_encoder(device), recorder, flash_attention, seconds)
    if not all(row["right"] for row in _collect(results, "G6 recorded encoder", small, arguments.json)):
        raise SystemExit("recorded passes of the encoder give other features")
    overlapped = overlap_rows(random_decoder(DECODER_1B, device, torch.bfloat16), _recorded, CudaTimeline(), (1, 8, 32))
    if not all(row["right"] for row in _collect(results, "G4 overlap", overlapped, arguments.json)):
        raise SystemExit("steps that are planned ahead give other tokens")
    torch.cuda.empty_cache()
    config = replace(DECODER_12B, num_hidden_layers=4) if arguments.small else DECODER_12B
    model = random_decoder(config, device, torch.bfloat16)
    batches, prompts = (1, 8, 32, 128), (512, 1024, 4096)
    rows = decode_rows(model, ceilings, batches, layers=torch.bfloat16, keys=torch.bfloat16)
    _collect(results, "G1, G2 decode", rows, arguments.json)
    torch.cuda.empty_cache()
    _collect(results, "G5 prefill", prefill_rows(model, ceilings, prompts), arguments.json)
    quantize_layers(model.decoder)
    torch.cuda.empty_cache()
    for name, keys in (("fp8 weights", torch.bfloat16), ("fp8 weights, keys and values", FP8)):
        rows = decode_rows(model, ceilings, batches, layers=FP8, keys=keys)
        _collect(results, f"decode, {name}", rows, arguments.json)
    _collect(results, "prefill, fp8 weights", prefill_rows(model, ceilings, prompts), arguments.json)


def _recorded(model: DecoderModel, cache: KVCache) -> CudaCompute:
    recorder = CudaGraphRecorder(model.device)
    return CudaCompute(model, cache, recorder=recorder, max_num_requests=32, max_model_len=PROMPT + NEW_TOKENS)


def _collect(results: dict[str, list[Row]], name: str, rows: Iterable[Row], path: Path) -> list[Row]:
    """Print rows as they come; write all that there is after each, so that a run cut short has said something."""
    print(f"\n{name}", flush=True)
    results[name] = []
    for row in rows:
        results[name].append(row)
        print("  " + "   ".join(f"{key}: {_text(value)}" for key, value in row.items()), flush=True)
        path.write_text(json.dumps({"machine": _machine(), "results": results}, indent=1))
    return results[name]


def _machine() -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name(0),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "command": " ".join(sys.argv),
    }


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
