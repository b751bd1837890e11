"""Each service needs memory for its own part of a checkpoint, whatever the other part weighs."""

from pathlib import Path

import pytest
import torch

from benchmarks.loading_memory import bound, measure, synthetic_config, write_synthetic

GB = 1_000_000_000

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None,
    reason="the allowance is that of torch for CPUs; with CUDA it takes as much before anything is loaded",
)


@pytest.mark.parametrize(
    ("service", "quantize", "layers"), [("vision", "none", 1), ("decoder", "none", 8), ("decoder", "int8", 16)]
)
def test_weights_go_over_into_the_kernels_layout_product_by_product(
    service: str, quantize: str, layers: int, tmp_path: Path
) -> None:
    write_synthetic(tmp_path, synthetic_config(hidden_size=1024, layers=layers))
    measured = measure(service, tmp_path, "bfloat16", compute="native", quantize=quantize)
    assert measured["peak_resident"] < bound(service, measured)
    kept = 0.9 if quantize == "none" else 0.5
    assert measured["resident_after"] - measured["resident_before"] > kept * measured["weights"]


def test_a_decoder_of_two_gigabytes_costs_the_vision_service_nothing(tmp_path: Path) -> None:
    write_synthetic(tmp_path, synthetic_config(hidden_size=2048, layers=14))
    assert (tmp_path / "model.safetensors").stat().st_size > 2 * GB
    measured = measure("vision", tmp_path, "bfloat16")
    assert measured["weights"] < 0.3 * GB
    assert measured["peak_resident"] < bound("vision", measured)
    # The kernel's count would see it: what was loaded is there.
    assert measured["resident_after"] - measured["resident_before"] > 0.9 * measured["weights"]


def test_the_decoder_loads_within_its_weights_and_one_tensor(tmp_path: Path) -> None:
    write_synthetic(tmp_path, synthetic_config(hidden_size=1024, layers=4))
    measured = measure("decoder", tmp_path, "bfloat16")
    assert measured["weights"] > 0.6 * GB
    assert measured["peak_resident"] < bound("decoder", measured)
    assert measured["peak_anonymous"] > measured["weights"]
