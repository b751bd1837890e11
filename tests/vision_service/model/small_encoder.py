"""A small encoder, and attention over several pictures as a device would read where they begin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.image.preprocessing import PreprocessingMode
from tests.pictures import preprocessing
from tests.small_configs import SMALL_VISION
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import rows_of
from vision_service.model.encoder import PixtralVisionModel
from vision_service.model.runner import EncoderRunner
from vision_service.model.segment_attention import SegmentAttention

CPU = torch.device("cpu")


CONFIG = replace(SMALL_VISION, patch_size=4, vision_num_hidden_layers=2, vision_intermediate_size=48)


SHAPE = preprocessing(PreprocessingMode.HF, image_size=64, patch_size=4)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float
) -> Tensor:
    """`SegmentAttention` by a mask that is made of the tensor, as a device would read it."""
    assert int(starts.diff().max()) <= longest
    assert (int(starts[0]), int(starts[-1])) == (0, len(query))
    segments = torch.bucketize(torch.arange(len(query)), starts[1:], right=True)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    mask = segments[:, None] == segments[None, :]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[0].transpose(0, 1)


def blind_attention(query: Tensor, key: Tensor, value: Tensor, *, starts: Tensor, longest: int, scale: float) -> Tensor:
    """One that lets everything see everything."""
    whole = torch.tensor([0, len(query)], dtype=torch.int32)
    return masked_attention(query, key, value, starts=whole, longest=len(query), scale=scale)


@pytest.fixture(scope="module")
def model() -> PixtralVisionModel:
    torch.manual_seed(0)
    model = PixtralVisionModel(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


def make_runner(
    model: PixtralVisionModel, attention: SegmentAttention | None = None, *, deterministic: bool = False
) -> EncoderRunner:
    return EncoderRunner(
        model, SHAPE, device=CPU, dtype=torch.float32, segment_attention=attention, deterministic=deterministic
    )


def images(grids: list[tuple[int, int]], *, seed: int = 0) -> list[Pixels]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (height * 4, width * 4, 3), dtype=np.uint8) for height, width in grids]


def encode(runner: EncoderRunner, pack: list[Pixels]) -> list[Tensor]:
    return [torch.frombuffer(bytearray(rows_of(image)), dtype=torch.float32) for image in runner.encode(pack)]
