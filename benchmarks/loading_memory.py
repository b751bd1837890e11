"""Measures the memory that each service needs to load its part of a checkpoint: `python -m benchmarks.loading_memory`.

Makes a synthetic Pixtral whose decoder has about 2 GB of bfloat16 weights, loads each service's part in a fresh
process as the service does, into the kernels' layout too where they compute, and prints what the system counted.
Knows nothing of serving. `VmHWM` is the peak of all resident pages,
those of mapped files included; a thread samples the anonymous ones, which nothing but the process can give back.
The file is written without data, so its pages read as zeros and take no room on the disk.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.checkpoints import PREPROCESSING
from benchmarks.pixtral_12b import DECODER_12B, ENCODER_400M
from common.checkpoint.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint.files import CheckpointFormat
from common.checkpoint.hf_config import hf_documents
from common.checkpoint.layout import Part, stored_name
from common.checkpoint.safetensors_writer import Planned, write_header
from common.checkpoint.shapes import tensor_shapes
from common.model.config import PixtralConfig
from common.model.settings import ComputeChoice, ModelSettings
from common.model.weight_types import WeightTypes
from common.native.library import Library
from common.native.opening import choose_library, weight_types
from common.process import tune_allocator
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.native_compute import NativeCompute
from decoder_service.model.weights import DecoderModel
from vision_service.model.runner import EncoderRunner
from vision_service.model.weights import load_encoder

CPU = torch.device("cpu")
MB = 1_000_000
ALLOWANCE = 500 * MB


def synthetic_config(hidden_size: int, layers: int) -> PixtralConfig:
    """A Pixtral of the 12B's encoder width and vocabulary, and a narrower decoder."""
    text = replace(
        DECODER_12B,
        hidden_size=hidden_size,
        num_attention_heads=16,
        num_hidden_layers=layers,
        feed_forward_length=3 * hidden_size,
    )
    vision = replace(ENCODER_400M, vision_num_hidden_layers=8)
    return PixtralConfig(text=text, vision=vision, image_token_index=10)


def write_synthetic(directory: Path, config: PixtralConfig) -> None:
    """Write the checkpoint: real config and header, and as many zeros as the header says."""
    planned = [
        Planned(
            name=stored_name(part, name, layout=CheckpointFormat.HF, has_vision=True),
            dtype=torch.bfloat16,
            shape=shape,
            make=lambda: torch.empty(0),
        )
        for part, name, shape in tensor_shapes(config)
    ]
    with (directory / CheckpointFormat.HF.weights_name).open("wb") as file:
        file.truncate(write_header(file, planned))
    for name, document in hf_documents(config, PREPROCESSING, torch_dtype="bfloat16").items():
        (directory / name).write_text(json.dumps(document))


def load_part(
    service: str, directory: Path, dtype: torch.dtype, *, compute: ComputeChoice, in_bytes: bool = False
) -> dict[str, int]:
    """Load what a service loads, in this process and with its allocator; returns bytes."""
    tune_allocator()
    checkpoint = open_checkpoint(directory)
    parts = [Part.VISION] if service == "vision" else [Part.DECODER, Part.PROJECTOR]
    library = choose_library(ModelSettings(model=directory, compute=compute), device=CPU, dtype=dtype).library
    types = weight_types(library, dtype)
    before = resident("VmRSS")
    with anonymous_peak() as samples:
        kept: object = (
            EncoderRunner(
                load_encoder(checkpoint, device=CPU, types=types),
                PREPROCESSING,
                device=CPU,
                dtype=dtype,
                library=library,
            )
            if service == "vision"
            else (load_decoder(checkpoint, types, library, in_bytes=in_bytes), checkpoint.digest(Part.VISION))
        )
        samples.append(resident("RssAnon"))
    stored = [entry.stored for part in parts for entry in checkpoint.entries(part)]
    measured = {
        "weights": sum(
            math.prod(tensor.shape) * types.of(tensor.dtype, len(tensor.shape)).itemsize for tensor in stored
        ),
        "largest_tensor": max(tensor.num_bytes for tensor in stored),
        "resident_before": before,
        "resident_after": resident("VmRSS"),
        "peak_resident": resident("VmHWM"),
        "peak_anonymous": max(samples),
    }
    del kept
    return measured


def load_decoder(checkpoint: Checkpoint, types: WeightTypes, library: Library | None, *, in_bytes: bool) -> object:
    """The decoder's weights, and in the kernels' layout where there is a library."""
    model = DecoderModel.load(checkpoint, device=CPU, types=types)
    cache = KVCache(model.config, num_blocks=1, block_size=16, device=CPU, dtype=torch.float32)
    return model if library is None else NativeCompute(model, cache, library, in_bytes=in_bytes)


def resident(name: str) -> int:
    """A count of the kernel for this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Samples of the anonymous memory, taken every millisecond while inside."""
    samples: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.001):
            samples.append(resident("RssAnon"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def measure(
    service: str, directory: Path, dtype: str, *, compute: str = "torch", quantize: str = "none"
) -> dict[str, int]:
    """The same in a fresh process, whose peak is its own."""
    options = ["--child", service, "--dtype", dtype, "--compute", compute, "--quantize", quantize]
    command = [sys.executable, "-m", "benchmarks.loading_memory", *options, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def bound(service: str, measured: dict[str, int]) -> int:
    """What the peak must stay below: the weights, for the decoder one tensor more, and an allowance for the rest."""
    tensor = measured["largest_tensor"] if service == "decoder" else 0
    return measured["weights"] + tensor + ALLOWANCE


def main() -> None:
    """Measure both services, or, as a child of itself, one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", help="checkpoint; a synthetic one where not given")
    parser.add_argument("--child", choices=["vision", "decoder"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="type to load as")
    parser.add_argument(
        "--compute", choices=["auto", "native", "torch"], default="auto", help="the services' setting of that name"
    )
    parser.add_argument("--quantize", choices=["none", "int8"], default="none", help="the decoder's setting")
    options = parser.parse_args()
    if options.child:
        dtype, compute = getattr(torch, options.dtype), ComputeChoice(options.compute)
        in_bytes = options.quantize == "int8"
        print(json.dumps(load_part(options.child, options.directory, dtype, compute=compute, in_bytes=in_bytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.directory is None:
            write_synthetic(Path(folder), synthetic_config(hidden_size=2048, layers=14))
        for service in ("vision", "decoder"):
            measured = measure(
                service,
                options.directory or Path(folder),
                options.dtype,
                compute=options.compute,
                quantize=options.quantize,
            )
            figures = ", ".join(f"{name} {value / MB:.0f} MB" for name, value in measured.items())
            print(f"{service}: {figures}; bound {bound(service, measured) / MB:.0f} MB")
            if measured["peak_resident"] >= bound(service, measured):
                sys.exit(f"{service}: the peak is over the bound")


if __name__ == "__main__":
    main()
