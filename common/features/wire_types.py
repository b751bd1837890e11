"""The messages of `types.proto` as the types that both services work with, and back.

Knows names and numbers. A value that is not understood is a ValueError: a peer of another version sent it.
"""

from collections.abc import Iterable

from common.image.preprocessing import PatchGrid, Preprocessing, PreprocessingMode
from diptych.v1 import types_pb2

_DTYPES = {
    "float32": types_pb2.DTYPE_FLOAT32,
    "bfloat16": types_pb2.DTYPE_BFLOAT16,
    "float16": types_pb2.DTYPE_FLOAT16,
}
_MODES = {
    PreprocessingMode.HF: types_pb2.PREPROCESSING_MODE_HF,
    PreprocessingMode.MISTRAL: types_pb2.PREPROCESSING_MODE_MISTRAL,
}


def dtype_to_proto(dtype: str) -> "types_pb2.Dtype.ValueType":
    """The enum value of "float32", "bfloat16" or "float16"."""
    return _DTYPES[dtype]


def dtype_from_proto(dtype: "types_pb2.Dtype.ValueType") -> str:
    """The name of a type. Raises ValueError."""
    for name, number in _DTYPES.items():
        if number == dtype:
            return name
    raise ValueError("the type of the features is not known")


def grid_to_proto(grid: PatchGrid) -> types_pb2.PatchGrid:
    """The message of a grid."""
    return types_pb2.PatchGrid(height=grid.height, width=grid.width)


def preprocessing_to_proto(preprocessing: Preprocessing) -> types_pb2.Preprocessing:
    """The message of preprocessing settings."""
    return types_pb2.Preprocessing(
        mode=_MODES[preprocessing.mode],
        patch_size=preprocessing.patch_size,
        image_size=preprocessing.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def preprocessing_from_proto(message: types_pb2.Preprocessing) -> Preprocessing:
    """Preprocessing settings out of a message. Raises ValueError."""
    modes = {number: mode for mode, number in _MODES.items()}
    if message.mode not in modes or not message.patch_size or not message.image_size:
        raise ValueError("the preprocessing is not known")
    return Preprocessing(
        mode=modes[message.mode],
        patch_size=message.patch_size,
        image_size=message.image_size,
        mean=_three(message.mean),
        std=_three(message.std),
    )


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
