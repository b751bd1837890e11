"""Pixels are normalised before the patch convolution, and why the convolution does not do it.

With weights w / (255 * std) and a bias of -sum(w * mean / std) the convolution would take raw pixels. The
products are then several times larger than their sum, most of all on flat pictures near the mean colour, and
what rounding loses is a share of the products.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common.image.preprocessing import PreprocessingMode
from common.model.config import PixtralVisionConfig
from tests.pictures import CLIP_MEAN, CLIP_STD, preprocessing
from vision_service.decoding.image import Pixels
from vision_service.model.encoded_image import rows_of
from vision_service.model.encoder import PixtralVisionModel
from vision_service.model.runner import EncoderRunner

CONFIG = PixtralVisionConfig(
    patch_size=16,
    image_size=1024,
    num_channels=3,
    vision_hidden_size=64,
    vision_num_attention_heads=1,
    vision_num_hidden_layers=0,  # The patch convolution and its norm are all.
    vision_intermediate_size=64,
    vision_head_dim=64,
    vision_rope_theta=1e4,
)
MEAN, STD = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
NOISE: Pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
NEAR_THE_MEAN: Pixels = np.full((128, 128, 3), 118, np.uint8)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def weight() -> Tensor:
    """Convolution weights that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 3, 16, 16, generator=generator).div(768**0.5).bfloat16().float()


def ours(image: Pixels, dtype: torch.dtype) -> Tensor:
    model = PixtralVisionModel(CONFIG).to(dtype)
    model.patch_conv.weight.data = weight().to(dtype)
    shape = preprocessing(PreprocessingMode.HF)
    (encoded,) = EncoderRunner(model, shape, device=torch.device("cpu"), dtype=dtype).encode([image])
    return torch.frombuffer(bytearray(rows_of(encoded)), dtype=dtype).view(-1, CONFIG.vision_hidden_size)


def folded(image: Pixels, dtype: torch.dtype) -> Tensor:
    scale = (1 / (255 * STD.double()))[:, None, None]
    shift = (MEAN.double() / STD.double())[:, None, None]
    bias = -(weight().double() * shift).sum((1, 2, 3))
    kernel = (weight().double() * scale).to(dtype)
    return normed(functional.conv2d(planes(image).to(dtype), kernel, bias.to(dtype), stride=16))


def exact(image: Pixels) -> Tensor:
    mean, std = MEAN.double()[:, None, None], STD.double()[:, None, None]
    pixels = (planes(image).double() / 255 - mean) / std
    return normed(functional.conv2d(pixels, weight().double(), stride=16))


def planes(image: Pixels) -> Tensor:
    return torch.tensor(image).permute(2, 0, 1)


def normed(patches: Tensor) -> Tensor:
    rows = patches.flatten(1).T.double()
    return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-5)


def error(rows: Tensor, image: Pixels) -> float:
    """Root mean square, relative to the rows'."""
    return float((rows.double() - exact(image)).norm() / exact(image).norm())


@pytest.mark.parametrize("image", [NOISE, NEAR_THE_MEAN], ids=["noise", "near-the-mean"])
@DTYPES
def test_normalised_patches_are_near_exact_ones(image: Pixels, dtype: torch.dtype) -> None:
    assert error(ours(image, dtype), image) < {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]


@DTYPES
def test_a_folded_normalisation_would_lose_several_times_more(dtype: torch.dtype) -> None:
    assert error(folded(NOISE, dtype), NOISE) > 1.3 * error(ours(NOISE, dtype), NOISE)
    assert error(folded(NEAR_THE_MEAN, dtype), NEAR_THE_MEAN) > 4 * error(ours(NEAR_THE_MEAN, dtype), NEAR_THE_MEAN)
