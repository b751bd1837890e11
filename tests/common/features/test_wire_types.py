"""What goes over the wire and back is what it was, as far as identities can tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.features.wire_types import (
    dtype_from_proto,
    dtype_to_proto,
    preprocessing_from_proto,
    preprocessing_to_proto,
)
from common.image.preprocessing import PreprocessingMode
from diptych.v1 import types_pb2
from tests.pictures import preprocessing


@pytest.mark.parametrize("mode", PreprocessingMode)
def test_preprocessing_keeps_its_fingerprint_over_the_wire(mode: PreprocessingMode) -> None:
    message = preprocessing_to_proto(preprocessing(mode))
    arrived = preprocessing_from_proto(types_pb2.Preprocessing.FromString(message.SerializeToString()))
    assert arrived.fingerprint() == preprocessing(mode).fingerprint()
    assert preprocessing_from_proto(preprocessing_to_proto(arrived)) == arrived


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 3), st.integers(0, 2))
def test_preprocessing_that_is_not_whole_is_refused(mean: list[int], mode: int, size: int) -> None:
    message = types_pb2.Preprocessing(mode=mode, patch_size=size, image_size=size, mean=mean, std=[1, 1, 1])  # type: ignore[arg-type]
    if len(mean) == 3 and mode in (1, 2) and size:
        assert preprocessing_from_proto(message).patch_size == size
    else:
        with pytest.raises(ValueError, match=r"preprocessing is not known|values to unpack"):
            preprocessing_from_proto(message)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_go_over_the_wire_by_name(dtype: str) -> None:
    assert dtype_from_proto(dtype_to_proto(dtype)) == dtype
    assert types_pb2.Dtype.Name(dtype_to_proto(dtype)) == f"DTYPE_{dtype.upper()}"


def test_an_unknown_type_is_refused() -> None:
    for number in (types_pb2.DTYPE_UNSPECIFIED, 99):
        with pytest.raises(ValueError, match="not known"):
            dtype_from_proto(number)  # type: ignore[arg-type]
