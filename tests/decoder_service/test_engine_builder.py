"""Settings that the model does not allow are known from its config, before its weights are read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.checkpoint.checkpoint import Checkpoint, open_checkpoint
from common.checkpoint.layout import Part
from common.model.settings import ComputeChoice, KVCacheDtype, ModelSettings, Quantize
from common.server.config import ServerConfig
from decoder_service import engine_builder, service
from decoder_service.config import DecoderConfig, EngineSettings, RequestSettings
from decoder_service.engine_builder import build_run_config, max_num_tries, num_mixed_tokens
from decoder_service.model.compute import Compute, TorchCompute
from decoder_service.model.compute_choice import MakeCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.weights import DecoderModel
from decoder_service.service import DecoderService

DEMO = Path(__file__).parents[2] / "models" / "demo"
LARGEST = 10 * 10 * 128 * 2
"""Bytes of the largest picture's features in the demo model, in 16 bits."""


def config_of(**engine: object) -> DecoderConfig:
    return DecoderConfig(
        server=ServerConfig(),
        model=ModelSettings(model=DEMO),
        engine=EngineSettings(**engine),  # type: ignore[arg-type] # whatever the test is about
        requests=RequestSettings(),
    )


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"feature_bytes": LARGEST - 1}, f"--feature-bytes {LARGEST - 1} is less than .*, {LARGEST}"),
        ({"max_model_len": 4097}, "--max-model-len 4097 is over the model's 4096"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_before_its_weights_are_read(
    engine: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_run_config(config_of(**engine), open_checkpoint(DEMO))


def test_missing_vision_addresses_are_told_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "build_engine", lambda *_: pytest.fail("the weights are read"))
    with pytest.raises(ValueError, match="--vision-addresses must be given"):
        DecoderService(config_of())


@pytest.mark.parametrize("engine", [{"quantize": Quantize.FP8}, {"kv_cache_dtype": KVCacheDtype.FP8}])
def test_a_device_that_knows_no_8_bit_floats_is_refused(
    engine: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_builder, "find_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ValueError, match=r"compute capability 8\.9"):
        build_run_config(config_of(**engine), open_checkpoint(DEMO))


def test_memory_is_looked_at_when_weights_have_their_last_places_and_before_more_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the KV cache would take what moving weights needs, and other processes of the device would get none."""
    order: list[str] = []

    def chosen(model: DecoderModel, *_: object, **__: object) -> MakeCompute:
        def make(kv_cache: KVCache) -> Compute:
            order.append("compute made")
            return TorchCompute(model, kv_cache)

        order.append("weights placed")
        return make

    def planned(*_: object, **__: object) -> int:
        order.append("memory looked at")
        return 64

    monkeypatch.setattr(engine_builder, "choose_compute", chosen)
    monkeypatch.setattr(engine_builder, "plan_num_blocks", planned)
    checkpoint, config = open_checkpoint(DEMO), config_of(max_model_len=64, max_num_mixed_tokens=8)
    config = replace(config, model=replace(config.model, compute=ComputeChoice.TORCH))
    engine_builder.build_engine(config, checkpoint, build_run_config(config, checkpoint))
    assert order == ["weights placed", "memory looked at", "compute made"]


def test_the_encoders_weights_are_read_once_for_their_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    class LoadedError(Exception):
        pass

    def info(**_: object) -> None:
        raise LoadedError

    read: list[Part] = []

    def digest(_: Checkpoint, part: Part) -> bytes:
        read.append(part)
        return b"digest"

    monkeypatch.setattr(Checkpoint, "digest", digest)
    monkeypatch.setattr(service, "ModelInfo", info)
    monkeypatch.setattr(service, "build_engine", lambda *_: None)
    with pytest.raises(LoadedError):
        DecoderService(replace(config_of(), vision_addresses=("127.0.0.1:1",)))
    assert read == [Part.VISION]


def test_what_it_just_allows_is_taken() -> None:
    """The negative control."""
    config = config_of(feature_bytes=LARGEST, max_model_len=4096)
    assert build_run_config(config, open_checkpoint(DEMO)).max_seq_len == 4096


@pytest.mark.parametrize(
    ("device", "engine", "expected"),
    [
        ("cpu", {}, 15),
        ("cuda", {}, None),
        ("cpu", {"max_step_stretch": 1.3}, 50),
        ("cuda", {"max_step_stretch": 1.3}, 200),
        ("cuda", {"max_num_mixed_tokens": 64}, 64),
        ("cpu", {"max_num_mixed_tokens": 3, "max_step_stretch": 1.3}, 3),
    ],
)
def test_prompts_beside_next_tokens_are_limited_on_a_cpu_and_wherever_a_stretch_asks_for_it(
    device: str, engine: dict[str, object], expected: int | None
) -> None:
    assert num_mixed_tokens(config_of(**engine).engine, torch.device(device), measure=lambda: 50) == expected


def test_a_slow_cpu_gives_prompts_a_few_tokens_in_each_step_all_the_same() -> None:
    assert num_mixed_tokens(config_of().engine, torch.device("cpu"), measure=lambda: 5) == 8


@pytest.mark.parametrize(
    ("engine", "on_cpu", "on_cuda"),
    [
        ({}, False, True),
        ({"overlap": True}, True, True),
        ({"overlap": False}, False, False),
        ({"num_speculative_tokens": 4}, False, False),
    ],
)
def test_steps_overlap_where_it_is_asked_for_and_on_cuda_unless_tokens_are_tried(
    engine: dict[str, object], on_cpu: bool, on_cuda: bool
) -> None:
    settings = config_of(**engine).engine
    assert (settings.has_overlap(on_cpu=True), settings.has_overlap(on_cpu=False)) == (on_cpu, on_cuda)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({}, 0),
        ({"num_speculative_tokens": 8, "max_num_requests": 4}, 32),
        ({"num_speculative_tokens": 8}, 200),
        ({"num_speculative_tokens": 8, "max_num_batched_tokens": 70}, 70),
    ],
)
def test_memory_is_planned_for_what_a_step_tries_at_most(
    engine: dict[str, object], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PlannedError(Exception):
        pass

    planned: list[object] = []

    def plan(*_: object, **limits: object) -> int:
        planned.append(limits["max_num_tries"])
        raise PlannedError

    monkeypatch.setattr(engine_builder, "plan_num_blocks", plan)
    checkpoint, config = open_checkpoint(DEMO), config_of(**engine)
    with pytest.raises(PlannedError):
        engine_builder.build_engine(config, checkpoint, build_run_config(config, checkpoint))
    assert planned == [max_num_tries(config.engine)] == [expected]
