"""Mends what Triton's interpreter computes otherwise than any device."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

Array = npt.NDArray[np.generic]
_FP8 = tl.float8e4nv


@pytest.fixture(autouse=True)
def _eight_bit_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter (triton 3.7) loses the carry where rounding to 8 bits reaches a power of two; torch does not."""
    convert = interpreter._convert_float

    def converted(data: Array, source: tl.dtype, target: tl.dtype, rounding: object) -> Array:
        if _FP8 not in (source, target):
            kept: Array = convert(data, source, target, rounding)
            return kept
        return _to_bits(_from_bits(data, source), target).reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", converted)


@pytest.fixture(autouse=True)
def _bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop's bounds are arrays of one number, which triton 3.6 takes for numbers and numpy 2.4 does not."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: type[tl.tensor], scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda number: int(number.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def _from_bits(data: Array, dtype: tl.dtype) -> torch.Tensor:
    flat = np.ascontiguousarray(data).reshape(-1)
    if dtype == tl.bfloat16:
        return torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16)
    if dtype == _FP8:
        return torch.from_numpy(flat.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(flat)


def _to_bits(values: torch.Tensor, dtype: tl.dtype) -> Array:
    if dtype == tl.bfloat16:
        return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    if dtype == _FP8:
        return values.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    if dtype == tl.float16:
        return values.to(torch.float16).numpy().view(np.uint16)
    return values.to(torch.float32).numpy().view(np.uint32)
