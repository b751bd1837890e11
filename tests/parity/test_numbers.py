"""Logits at every token are transformers', for every family of model, at any chunk size."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tests.parity.plain_pair import PlainPair
from tests.pictures import noise
from tests.pictures import save as save_picture
from tests.tiny_models import Shape, image_tokens, random_pixtral, random_text_model, save

BOUND = 1e-4
PATCH = 4

TEXT_SHAPES = [
    Shape(name="7b-v0.1-like", rope_theta=1e4, window=24, heads=8, kv_heads=2, head_dim=6),
    Shape(name="7b-v0.3-like", rope_theta=1e6, heads=8, kv_heads=2, head_dim=6),
    Shape(name="nemo-like", heads=8, kv_heads=2, head_dim=10),
    Shape(name="tied", tied=True, kv_heads=4),
    *(Shape(name=f"theta-1e{power}", rope_theta=10.0**power) for power in (5, 7, 8, 9)),
]
IMAGE_SHAPES = [
    Shape(name="12b-like", rope_theta=1e9, heads=8, kv_heads=2, head_dim=12, vision_head_dim=64),
    Shape(name="large-like", rope_theta=1e9, heads=12, kv_heads=1, vision_head_dim=88, projector_bias=False),
]
NUM_TOKENS = 90


class Pictures(NamedTuple):
    """Pictures as files, as the reference's pixels and as prompt tokens."""

    files: list[bytes]
    inputs: dict[str, Tensor]
    token_ids: list[list[int]]


def pictures(sizes: Sequence[tuple[int, int]]) -> Pictures:
    """Pictures of these widths and heights for towers of 16 x 16 patches, as transformers prepares them."""
    images = [noise(*size, seed=seed) for seed, size in enumerate(sizes)]
    processor = PixtralImageProcessorPil(
        patch_size={"height": PATCH, "width": PATCH}, size={"longest_edge": 16 * PATCH}
    )
    inputs = {name: tensor.float() for name, tensor in processor(images, return_tensors="pt").items()}
    inputs["image_sizes"] = inputs["image_sizes"].long()
    tokens = [image_tokens(int(h) // PATCH, int(w) // PATCH) for h, w in inputs["image_sizes"]]
    return Pictures([save_picture(image) for image in images], inputs, tokens)


def random_ids(length: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 160, (length,), generator=generator).tolist()


def expected(model: PreTrainedModel, token_ids: Sequence[int], **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([token_ids]), **inputs).logits[0]
    return logits.float()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=0)


@pytest.mark.parametrize("shape", TEXT_SHAPES, ids=lambda shape: shape.name)
def test_text_has_the_reference_logits_at_any_chunk_size(shape: Shape, tmp_path: Path) -> None:
    model, token_ids = random_text_model(shape), random_ids(NUM_TOKENS)
    reference = expected(model, token_ids)
    pair = PlainPair(save(model, tmp_path))
    for chunk in (1, 5, 23, 24, 40, NUM_TOKENS):
        close(pair.logits(token_ids, chunk=chunk), reference)


@pytest.mark.parametrize("window", [1, 7, 32, 89, 90])
def test_a_sliding_window_crosses_chunk_borders(window: int, tmp_path: Path) -> None:
    shape = replace(TEXT_SHAPES[0], window=window)
    model, token_ids = random_text_model(shape), random_ids(NUM_TOKENS)
    reference = expected(model, token_ids)
    pair = PlainPair(save(model, tmp_path))
    for chunk in (1, 8, 31, NUM_TOKENS):
        close(pair.logits(token_ids, chunk=chunk), reference)
    # The negative control: the window matters from its length on, and only there.
    unbounded = expected(random_text_model(replace(shape, window=None)), token_ids)
    close(reference[:window], unbounded[:window])
    if window < NUM_TOKENS - 1:
        assert (reference[window:] - unbounded[window:]).abs().max() > 0.1


def test_the_angle_base_matters() -> None:
    """The negative control: models that differ in theta alone differ in their logits."""
    token_ids = random_ids(NUM_TOKENS)
    one, other = (expected(random_text_model(Shape(name="", rope_theta=theta)), token_ids) for theta in (1e6, 1e9))
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("family", ["text", "pixtral"])
def test_a_head_width_that_the_config_leaves_out_is_the_reference_s(family: str, tmp_path: Path) -> None:
    shape = Shape(name="", heads=4, head_dim=12, kv_heads=1, vision_head_dim=88)
    model: PreTrainedModel = random_text_model(shape) if family == "text" else random_pixtral(shape)
    path = save(model, tmp_path) / "config.json"
    config = json.loads(path.read_text())
    sections = [config] if family == "text" else [config["text_config"], config["vision_config"]]
    for section in sections:
        del section["head_dim"]
    path.write_text(json.dumps(config))
    token_ids = random_ids(30)
    if family == "text":
        close(PlainPair(tmp_path).logits(token_ids, chunk=30), expected(model, token_ids))
    else:
        shown = pictures([(50, 31)])
        token_ids = [1, *shown.token_ids[0], *token_ids]
        close(PlainPair(tmp_path).logits(token_ids, shown.files, chunk=30), expected(model, token_ids, **shown.inputs))


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    "sizes",
    [
        [(64, 64)],
        [(1, 1), (200, 31)],
        [(13, 29), (29, 13), (64, 5)],
        [(20, 20), (20, 20), (3, 64), (500, 333)],
    ],
    ids=["one", "two", "three", "four"],
)
def test_picture_files_give_the_reference_logits_at_any_chunk_size(
    shape: Shape, sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    model, shown = random_pixtral(shape), pictures(sizes)
    token_ids = [1, *random_ids(3)]
    for tokens in shown.token_ids:
        token_ids += [*tokens, *random_ids(4, seed=len(tokens))]
    reference = expected(model, token_ids, **shown.inputs)
    pair = PlainPair(save(model, tmp_path))
    for chunk in (11, 64, len(token_ids)):
        close(pair.logits(token_ids, shown.files, chunk=chunk), reference)


def test_every_picture_stands_at_its_own_place(tmp_path: Path) -> None:
    """The negative control: with two pictures of equal size exchanged, the reference is missed by far."""
    model, shown = random_pixtral(IMAGE_SHAPES[0]), pictures([(20, 28), (20, 28)])
    token_ids = [1, *shown.token_ids[0], *shown.token_ids[1], *random_ids(4)]
    pair = PlainPair(save(model, tmp_path))
    reference = expected(model, token_ids, **shown.inputs)
    exchanged = pair.logits(token_ids, shown.files[::-1], chunk=16)
    close(pair.logits(token_ids, shown.files, chunk=16), reference)
    assert (exchanged - reference).abs().max() > 0.1


def test_text_at_far_positions_has_the_reference_logits(tmp_path: Path) -> None:
    model, token_ids = random_text_model(Shape(name="", rope_theta=1e9)), random_ids(40)
    first = 131_071 - 39
    positions = torch.arange(first, first + 40)[None]
    reference = expected(model, token_ids, position_ids=positions)
    close(PlainPair(save(model, tmp_path)).logits(token_ids, chunk=16, first_position=first), reference)
