"""What computes: chosen once, by what there is and what is asked for."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.checkpoint.checkpoint import open_checkpoint
from common.model.settings import AttentionBackend, ComputeChoice, ModelSettings, Quantize
from common.model.weight_types import WeightTypes
from common.native import opening
from common.native.opening import LibraryChoice, weight_types
from common.native.processor import NativeUnavailableError
from decoder_service.model import compute_choice
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.compute_choice import MakeCompute, choose_compute, choose_kernels
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
        make = choose_compute(model, wanted, kernels, max_num_requests=2, max_model_len=8, quantize=quantize)
        return make(cache).name
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


@pytest.mark.parametrize(
    ("compute", "expected"), [(ComputeChoice.AUTO, "our kernels"), (ComputeChoice.TORCH, "torch")], ids=str
)
def test_plain_torch_is_to_be_had_on_a_gpu_too(
    compute: ComputeChoice, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(save_text(tmp_path))
    model = DecoderModel.load(checkpoint, device=CPU, types=WeightTypes(torch.float32))
    cache = KVCache(model.config, num_blocks=2, block_size=4, device=CPU, dtype=torch.float32)
    chosen: list[AttentionBackend] = []

    def cuda_compute(model: DecoderModel, attention: AttentionBackend, **_: int) -> MakeCompute:
        chosen.append(attention)

        def make(kv_cache: KVCache) -> Compute:
            ours = TorchCompute(model, kv_cache)
            ours.name = "our kernels"
            return ours

        return make

    monkeypatch.setattr(compute_choice, "_cuda_compute", cuda_compute)
    make = choose_compute(
        replace(model, device=torch.device("cuda")),
        ModelSettings(model=tmp_path, device="cuda", compute=compute),
        LibraryChoice(None, "this is no CPU"),
        max_num_requests=2,
        max_model_len=8,
    )
    assert make(cache).name == expected
    assert chosen == [AttentionBackend.AUTO] * (compute is ComputeChoice.AUTO)


def test_attention_that_needs_triton_is_refused_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_choice, "find_spec", lambda _: None)
    model = DecoderModel.load(open_checkpoint(save_text(tmp_path)), device=CPU, types=WeightTypes(torch.float32))
    with pytest.raises(ValueError, match="--attention-backend flashinfer needs Triton"):
        choose_compute(
            replace(model, device=torch.device("cuda")),
            ModelSettings(model=tmp_path, device="cuda"),
            LibraryChoice(None, "this is no CPU"),
            max_num_requests=2,
            max_model_len=8,
            attention=AttentionBackend.FLASHINFER,
        )


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
