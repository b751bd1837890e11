"""A decoder uses an encoder only if both make the same numbers of a picture and speak the same version."""

from dataclasses import replace

import pytest

from common.features.wire_types import dtype_to_proto, preprocessing_to_proto
from common.image.preprocessing import PreprocessingMode
from decoder_service.vision.agreement import Expected, read_info
from diptych.v1 import types_pb2
from diptych.v1 import vision_pb2 as pb
from tests.pictures import preprocessing

EXPECTED = Expected(weights_digest=b"digest", feature_width=8, api_version="2.3")
PREPROCESSING = replace(preprocessing(PreprocessingMode.MISTRAL), mean=(0.5, 0.25, 0.75), std=(0.125, 0.5, 0.25))
"""Of numbers that are the same in a message's 32 bits."""


def told() -> pb.VisionServiceGetModelInfoResponse:
    return pb.VisionServiceGetModelInfoResponse(
        weights_digest=b"digest",
        feature_width=8,
        dtype=dtype_to_proto("bfloat16"),
        preprocessing=preprocessing_to_proto(PREPROCESSING),
    )


def test_what_an_encoder_says_is_what_it_is_taken_for() -> None:
    info = read_info(told())
    assert info is not None
    assert (info.weights_digest, info.feature_width, info.dtype) == (b"digest", 8, "bfloat16")
    assert info.preprocessing == PREPROCESSING


def test_of_an_encoder_that_speaks_of_unknown_things_nothing_is_known() -> None:
    unknown = told()
    unknown.dtype = types_pb2.DTYPE_UNSPECIFIED
    assert read_info(unknown) is None
    without = told()
    without.ClearField("preprocessing")
    assert read_info(without) is None


@pytest.mark.parametrize(
    ("api_version", "changes", "words"),
    [
        ("2.3", {}, ""),
        ("2.99", {}, ""),
        ("3.3", {}, "version 3.3"),
        ("22.3", {}, "version 22.3"),
        ("", {}, "version"),
        ("2.3", {"weights_digest": b"other"}, "weights are not those"),
        ("2.3", {"feature_width": 9}, "9 wide"),
    ],
)
def test_an_encoder_of_another_major_version_or_checkpoint_is_of_no_use(
    api_version: str, changes: dict[str, object], words: str
) -> None:
    info = read_info(told())
    assert info is not None
    objection = EXPECTED.objection(api_version, replace(info, **changes))  # type: ignore[arg-type]
    assert words in objection
    assert bool(objection) == bool(words)
