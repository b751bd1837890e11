"""The same weights in Hugging Face's layout and in Mistral's own are the same model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.native_checkpoint import write_native
from tests.parity.plain_pair import PlainPair
from tests.parity.reference import BOUND, IMAGE_SHAPES, TEXT_SHAPES, expected, pictures, random_ids
from tests.tiny_models import Shape, random_pixtral, random_text_model, save

NUM_NEW = 24


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return one.state_dict().keys() == state.keys() and all(
        torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items()
    )


def clear_choices(model: PreTrainedModel, prompt: list[int], ids: list[int], **inputs: Tensor) -> list[tuple[int, int]]:
    """Our id and the reference's, wherever its two best logits are further apart than the bound on our error."""
    logits = expected(model, [*prompt, *ids], **inputs)[len(prompt) - 1 : -1]
    best = logits.topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 2 * BOUND
    return [
        (ours, int(theirs)) for ours, theirs, is_clear in zip(ids, best.indices[:, 0], clear, strict=True) if is_clear
    ]


@pytest.mark.parametrize("shape", TEXT_SHAPES[:4], ids=lambda shape: shape.name)
def test_text_models_give_identical_ids_in_both_layouts(shape: Shape, tmp_path: Path) -> None:
    model, prompt = random_text_model(shape), random_ids(40)
    hf = PlainPair(save(model, tmp_path / "hf"))
    native = PlainPair(write_native(model, tmp_path / "native"))
    assert same_weights(hf.model.decoder, native.model.decoder)
    ids = hf.greedy(prompt, num_new=NUM_NEW)
    assert ids == native.greedy(prompt, num_new=NUM_NEW)
    choices = clear_choices(model, prompt, ids)
    assert len(choices) >= NUM_NEW - 2
    assert all(ours == theirs for ours, theirs in choices)


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=lambda shape: shape.name)
def test_pixtrals_give_identical_ids_in_both_layouts(shape: Shape, tmp_path: Path) -> None:
    model, shown = random_pixtral(shape), pictures([(50, 31), (7, 64)])
    prompt = [1, *shown.token_ids[0], *random_ids(5), *shown.token_ids[1], *random_ids(3)]
    hf = PlainPair(save(model, tmp_path / "hf"))
    native = PlainPair(write_native(model, tmp_path / "native"))
    assert same_weights(hf.model.decoder, native.model.decoder)
    for one, other in zip(hf.features(shown.files), native.features(shown.files), strict=True):
        assert torch.equal(one, other)
    ids = hf.greedy(prompt, shown.files, num_new=NUM_NEW)
    assert ids == native.greedy(prompt, shown.files, num_new=NUM_NEW)
    choices = clear_choices(model, prompt, ids, **shown.inputs)
    assert len(choices) >= NUM_NEW - 2
    assert all(ours == theirs for ours, theirs in choices)


def test_rows_that_are_not_reordered_make_another_model(tmp_path: Path) -> None:
    """The negative control."""
    model, prompt = random_text_model(TEXT_SHAPES[1]), random_ids(40)
    hf = PlainPair(save(model, tmp_path / "hf"))
    wrong = PlainPair(write_native(model, tmp_path / "native", permuted=False))
    difference = hf.logits(prompt, chunk=40) - wrong.logits(prompt, chunk=40)
    assert difference.abs().max() > 0.1
