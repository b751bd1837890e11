"""Logits at every token are transformers', for every family of model, at any chunk size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.parity.plain_pair import PlainPair
from tests.parity.reference import BOUND, IMAGE_SHAPES, TEXT_SHAPES, expected, pictures, random_ids
from tests.tiny_models import Shape, random_pixtral, random_text_model, save

NUM_TOKENS = 90


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
