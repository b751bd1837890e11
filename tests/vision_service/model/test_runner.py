"""The encoder computes what transformers' computes, and a batch gives what its images give alone."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PixtralVisionConfig as HfConfig
from transformers import PixtralVisionModel as HfModel
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from common.errors import ResourceExhaustedError, UnavailableError
from common.image.preprocessing import PreprocessingMode
from common.native.opening import open_library
from tests.pictures import LIMITS, noise, preprocessing, save
from tests.small_configs import SMALL_VISION
from vision_service.decoding.image import Pixels, decode_image
from vision_service.model import encoded_image
from vision_service.model.encoded_image import EncodedImage
from vision_service.model.encoder import PixtralVisionModel
from vision_service.model.runner import EncoderRunner

CONFIG = replace(
    SMALL_VISION,
    patch_size=8,
    image_size=96,
    vision_hidden_size=48,
    vision_num_attention_heads=3,
    vision_num_hidden_layers=3,
    vision_intermediate_size=80,
)
SHAPE = preprocessing(PreprocessingMode.HF, image_size=96, patch_size=8)
SETS = [
    [(8, 8)],
    [(96, 96)],
    [(13, 71)],
    [(200, 30), (30, 200)],
    [(17, 17), (9, 90), (64, 64)],
    [(40, 24), (40, 24), (24, 40), (1, 1)],
]


@pytest.fixture(scope="module")
def reference() -> HfModel:
    torch.manual_seed(0)
    config = HfConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=3,
        patch_size=8,
        image_size=96,
        hidden_act="silu",
        rope_parameters={"rope_type": "axial", "rope_theta": 10000.0},
    )
    model = HfModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms that are not all ones, and weights large enough for attention to prefer some patches.
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def make_runner(
    reference: HfModel,
    dtype: torch.dtype = torch.float32,
    *,
    deterministic: bool = False,
    native: bool = False,
    keeps_on_device: bool = False,
) -> EncoderRunner:
    with torch.device("meta"):
        model = PixtralVisionModel(CONFIG)
    state = {name: tensor.to(dtype) for name, tensor in reference.state_dict().items()}
    library = open_library(threads=2) if native else None
    model.load_state_dict(state, strict=True, assign=True)
    return EncoderRunner(
        model.eval(),
        SHAPE,
        device=torch.device("cpu"),
        dtype=dtype,
        deterministic=deterministic,
        library=library,
        keeps_on_device=keeps_on_device,
    )


def decode(sizes: list[tuple[int, int]]) -> list[Pixels]:
    return [
        decode_image(save(noise(*size, seed=seed)), preprocessing=SHAPE, limits=LIMITS, field="")
        for seed, size in enumerate(sizes)
    ]


def rows_of(image: EncodedImage, dtype: torch.dtype = torch.float32) -> NDArray[np.float32]:
    return (
        torch.frombuffer(bytearray(encoded_image.rows_of(image)), dtype=dtype)
        .float()
        .view(-1, CONFIG.vision_hidden_size)
        .numpy()
    )


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("sizes", SETS)
def test_features_are_those_of_transformers(reference: HfModel, sizes: list[tuple[int, int]], *, native: bool) -> None:
    processor = PixtralImageProcessorPil(patch_size={"height": 8, "width": 8}, size={"longest_edge": 96})
    pictures = [noise(*size, seed=seed) for seed, size in enumerate(sizes)]
    inputs = processor(pictures, return_tensors="pt")
    with torch.inference_mode():
        expected = reference(inputs["pixel_values"].float(), image_sizes=inputs["image_sizes"]).last_hidden_state[0]
    encoded = make_runner(reference, native=native).encode(decode(sizes))
    np.testing.assert_allclose(np.concatenate([rows_of(image) for image in encoded]), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("sizes", SETS)
def test_a_batch_gives_what_its_images_give_alone(
    reference: HfModel, sizes: list[tuple[int, int]], *, native: bool
) -> None:
    runner = make_runner(reference, native=native)
    images = decode(sizes)
    together = runner.encode(images)
    alone = [runner.encode([image])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(rows_of(one), rows_of(other), atol=1e-5)
    # The same pictures in another order and other company.
    for one, other in zip(together, reversed(runner.encode(images[::-1])), strict=True):
        np.testing.assert_allclose(rows_of(one), rows_of(other), atol=1e-5)


def test_deterministic_features_are_the_same_bits_in_any_batch(reference: HfModel) -> None:
    images = decode([(96, 40), (33, 64), (96, 96), (64, 33), (33, 64), (8, 8)])
    free, fixed = make_runner(reference), make_runner(reference, deterministic=True)
    alone = [encoded_image.rows_of(fixed.encode([image])[0]) for image in images]
    for batch in (range(6), (5, 4, 3, 2, 1, 0), (1, 4), (2, 5, 0)):
        together = fixed.encode([images[i] for i in batch])
        assert [encoded_image.rows_of(each) for each in together] == [alone[i] for i in batch]
    # The negative control: without it some bit depends on the company.
    assert [encoded_image.rows_of(each) for each in free.encode(images)] != alone


def test_features_that_stay_on_the_device_are_the_same_bytes_when_they_are_sent(reference: HfModel) -> None:
    images = decode([(64, 48), (8, 8), (24, 40)])
    host, device = make_runner(reference), make_runner(reference, keeps_on_device=True)
    kept = device.encode(images)
    assert [image.is_on_host for image in kept] == [False] * 3
    device.encode(images[::-1])
    for one, other in zip(host.encode(images), kept, strict=True):
        assert one.is_on_host
        assert one.messages() == other.messages()


def test_bfloat16_rows_are_two_bytes_a_value_and_close(reference: HfModel) -> None:
    images = decode([(64, 48)])
    (exact,) = make_runner(reference).encode(images)
    (rough,) = make_runner(reference, torch.bfloat16).encode(images)
    assert rows_of(rough, torch.bfloat16).shape == (48, 48)
    a, b = rows_of(exact).ravel(), rows_of(rough, torch.bfloat16).ravel()
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.999


def test_float_pixels_beyond_the_scale_are_encoded_as_they_are(reference: HfModel) -> None:
    image = np.linspace(-64, 315, 16 * 16 * 3).astype(np.float32).reshape(16, 16, 3)
    runner = make_runner(reference)
    assert not np.allclose(rows_of(runner.encode([image])[0]), rows_of(runner.encode([image.clip(0, 255)])[0]))


def test_arrays_that_cannot_be_written_are_encoded(reference: HfModel) -> None:
    image = np.frombuffer(bytes(8 * 8 * 3), np.uint8).reshape(8, 8, 3)
    assert rows_of(make_runner(reference).encode([image])[0]).shape == (1, 48)


def test_warming_up_leaves_no_trace(reference: HfModel) -> None:
    runner = make_runner(reference)
    images = decode([(24, 24)])
    before = rows_of(runner.encode(images)[0])
    runner.warm_up([(1, 1), (12, 12)])
    np.testing.assert_array_equal(rows_of(runner.encode(images)[0]), before)


@pytest.mark.parametrize(
    ("failure", "error"),
    [(torch.OutOfMemoryError, ResourceExhaustedError), (torch.AcceleratorError, UnavailableError)],
)
def test_failures_of_the_device_are_told_apart(
    reference: HfModel, monkeypatch: pytest.MonkeyPatch, failure: type[Exception], error: type[Exception]
) -> None:
    runner = make_runner(reference)

    def fail(*args: object) -> None:
        raise failure("CUDA error at 0x7f00")

    keeping = make_runner(reference, keeps_on_device=True)
    (kept,) = keeping.encode(decode([(8, 8)]))
    monkeypatch.setattr(PixtralVisionModel, "forward", fail)
    monkeypatch.setattr("vision_service.model.runner._to_host", fail)
    for work in (lambda: runner.encode(decode([(8, 8)])), kept.messages):
        with pytest.raises(error) as caught:
            work()
        assert "0x" not in str(caught.value)


def test_images_that_do_not_fit_leave_room_for_those_that_are_tried_next(
    reference: HfModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is kept meanwhile, but not what was computed before it."""
    runner = make_runner(reference)
    seen: list[weakref.ref[Tensor]] = []

    def fail(model: PixtralVisionModel, patches: Tensor, *places: object) -> None:
        seen.append(weakref.ref(patches))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PixtralVisionModel, "forward", fail)
    with pytest.raises(ResourceExhaustedError) as caught:
        runner.encode(decode([(8, 8)]))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert [each() for each in seen] == [None]
