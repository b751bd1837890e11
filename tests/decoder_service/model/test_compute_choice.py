"""What computes: chosen once, by what there is and what is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.checkpoint.checkpoint import open_checkpoint
from common.model.settings import ComputeChoice, ModelSettings, Quantize
from common.native import opening
from common.native.opening import weight_types
from common.native.processor import NativeUnavailableError
from decoder_service.model.compute_choice import choose_compute, choose_kernels
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.run_config import make_run_config
from decoder_service.model.weights import DecoderModel
from tests.checkpoints import save_text

CPU = torch.device("cpu")


def choose(
    directory: Path, *, dtype: torch.dtype = torch.float32, quantize: Quantize = Quantize.NONE, **settings: object
) -> str:
    checkpoint = open_checkpoint(directory)
    threads = torch.get_num_threads()
    try:
        wanted = ModelSettings(model=directory, **settings)  # type: ignore[arg-type]
        run_config = make_run_config(checkpoint.text_config, dtype=dtype, device=CPU, max_seq_len=8, block_size=4)
        kernels = choose_kernels(wanted, run_config, quantize=quantize)
        model = DecoderModel.load(checkpoint, device=CPU, types=weight_types(kernels.library, dtype))
        cache = KVCache(model.config, num_blocks=2, block_size=4, device=CPU, dtype=dtype)
        compute = choose_compute(model, cache, wanted, kernels, max_num_requests=2, max_model_len=8, quantize=quantize)
        return compute.name
    finally:
        torch.set_num_threads(threads)


def test_kernels_compute_where_they_can_and_torch_where_it_is_asked_for(tmp_path: Path) -> None:
    directory = save_text(tmp_path)
    assert choose(directory).startswith("native")
    assert choose(directory, deterministic=True).startswith("native")
    assert choose(directory, compute=ComputeChoice.TORCH) == "torch"
    assert choose(directory, compute=ComputeChoice.TORCH, deterministic=True) == "torch in tiles"
    assert choose(directory, dtype=torch.bfloat16).endswith("bfloat16")
    assert choose(directory, dtype=torch.float16) == "torch"
    assert choose(directory, quantize=Quantize.INT8).endswith("int8")
    with pytest.raises(ValueError, match="--quantize int8 needs the kernels: plain torch is asked for"):
        choose(directory, compute=ComputeChoice.TORCH, quantize=Quantize.INT8)


def test_without_kernels_torch_computes_and_whoever_insists_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*, threads: int, rounds: bool) -> None:
        raise NativeUnavailableError("there is no compiler")

    monkeypatch.setattr(opening, "open_library", none)
    directory = save_text(tmp_path)
    assert choose(directory) == "torch"
    assert choose(directory, deterministic=True) == "torch in tiles"
    with pytest.raises(ValueError, match="--compute native: there is no compiler"):
        choose(directory, compute=ComputeChoice.NATIVE)


def test_loading_a_model_imports_no_compiler() -> None:
    """In a fresh interpreter: torch's takes more than a second and 150 MB."""
    script = """
import sys, torch
from pathlib import Path
from common.checkpoint.checkpoint import open_checkpoint
from common.model.weight_types import WeightTypes
from decoder_service.model.weights import DecoderModel
DecoderModel.load(open_checkpoint(Path("models/demo")), device=torch.device("cpu"), types=WeightTypes(torch.float32))
print(sorted({"torch._dynamo", "torch._inductor", "transformers", "sympy"} & set(sys.modules)))
"""
    root = Path(__file__).parents[3]
    path = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'build/gen')!r}]\n"
    command = [sys.executable, "-c", path + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)  # noqa: S603
    assert done.stdout == "[]\n"
