"""Identities of pictures: equal exactly when the features must be equal."""

import dataclasses
from typing import Any

import pytest

from common.features.wire_types import preprocessing_from_proto, preprocessing_to_proto
from common.image.identity import image_hash
from common.image.preprocessing import Preprocessing, PreprocessingMode

CLIP = Preprocessing(
    mode=PreprocessingMode.HF,
    patch_size=16,
    image_size=1024,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def _hash(
    image: bytes = b"picture",
    *,
    preprocessing: Preprocessing = CLIP,
    weights_digest: bytes = b"w",
    dtype: str = "float32",
    salt: bytes = b"",
) -> bytes:
    return image_hash(image, preprocessing=preprocessing, weights_digest=weights_digest, dtype=dtype, salt=salt)


def test_settings_that_crossed_the_wire_give_the_same_identity() -> None:
    crossed = preprocessing_from_proto(preprocessing_to_proto(CLIP))
    assert crossed != CLIP, "32 bits do not hold these values, or the test proves nothing"
    assert _hash(preprocessing=crossed) == _hash()


@pytest.mark.parametrize(
    "changes",
    [
        {"image": b"another"},
        {"salt": b"tenant"},
        {"dtype": "bfloat16"},
        {"weights_digest": b"v"},
        {"preprocessing": dataclasses.replace(CLIP, mode=PreprocessingMode.MISTRAL)},
        {"preprocessing": dataclasses.replace(CLIP, image_size=512)},
        {"preprocessing": dataclasses.replace(CLIP, mean=(0.5, 0.4578275, 0.40821073))},
    ],
)
def test_every_part_changes_the_identity(changes: dict[str, Any]) -> None:
    assert _hash(**changes) != _hash()


def test_bytes_that_move_between_parts_change_the_identity() -> None:
    assert _hash(image=b"ab", salt=b"c") != _hash(image=b"a", salt=b"bc")
