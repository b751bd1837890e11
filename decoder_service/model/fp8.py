"""Products whose weights are kept in 8-bit floats (e4m3), with a scale for each output and for each row of input.

Knows tensors and the decoder's modules. Does not know kernels that round faster (see `cuda.products`). A row's scale
depends on that row alone; how its sums are rounded, on whether it is among few rows or many. torch multiplies; on a
CPU, slowly.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import ScalingType

from decoder_service.model.mistral import MistralForCausalLM

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
"""The largest number of this type."""
MIN_SCALE = 1e-12
"""So that a row of zeros has one."""
FEW_ROWS = 256
"""On Hopper torch asks cuBLAS for products with a scale for each row, and that is reported to refuse so few rows where
there are many inputs to sum up: 256 rows of 9,216, but not 257. With one scale for all it takes any."""
_MIN_CAPABILITY = (8, 9)


class Fp8Linear(nn.Module):
    """A product without bias in the place of an `nn.Linear`."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        """Take a weight [out_features, in_features] in FP8 and its scale, fp32 [out_features, 1]."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    @staticmethod
    def of(linear: nn.Linear) -> "Fp8Linear":
        """Round a weight."""
        return Fp8Linear(*round_rows(linear.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [num_rows, in_features] to [num_rows, out_features], of the same type."""
        return multiply(*round_rows(x), self.weight, self.scale, dtype=x.dtype)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in FP8, and their scales in fp32 [num_rows, 1]; a row of its own scale reaches up to the largest number."""
    wide = x.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp_min(MIN_SCALE)
    return (wide / scale).to(FP8), scale


def multiply(rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, *, dtype: torch.dtype) -> Tensor:
    """`rows @ weight.T` with both sides scaled: [num_rows, out_features] in `dtype`."""
    if len(rows) <= FEW_ROWS:
        sums = multiply_unscaled(rows, weight, torch.ones(1, device=rows.device))
        return (sums * row_scale * weight_scale.t()).to(dtype)
    return multiply_scaled(rows, row_scale, weight, weight_scale, dtype=dtype)


def multiply_scaled(
    rows: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    *,
    dtype: torch.dtype,
    is_fast: bool = False,
) -> Tensor:
    """The same for more than `FEW_ROWS` rows, by torch alone.

    `is_fast` has Hopper's tensor cores keep sums for themselves all the way, with fewer digits than fp32 has.
    """
    # Not fast: what the digits cost a sum of 14,336 products, and what they bring, nobody has measured here yet; the
    # benchmark on a GPU tells both.
    out: Tensor = functional.scaled_mm(
        rows,
        weight.t(),
        row_scale,
        ScalingType.RowWise,
        weight_scale.t(),
        ScalingType.RowWise,
        output_dtype=dtype,
        use_fast_accum=is_fast,
    )
    return out


def multiply_unscaled(rows: Tensor, weight: Tensor, one: Tensor) -> Tensor:
    """`rows @ weight.T` in fp32, nothing scaled, for any number of rows; `one` is 1 as fp32 [1] on their device."""
    whole = ScalingType.TensorWise
    out: Tensor = functional.scaled_mm(rows, weight.t(), one, whole, one, whole, output_dtype=torch.float32)
    return out


def quantize_layers(decoder: MistralForCausalLM) -> None:
    """Round the weights of all layers, one after the other; embeddings, head and norms stay as they are."""
    for layer in decoder.decoder_layers:
        for module in (layer.self_attn, layer.mlp):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Fp8Linear.of(child))


def load_rounded(decoder: MistralForCausalLM, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Fill a decoder that was built on the meta device with its parameters, those of layers' products rounded.

    Each is rounded as it comes, so memory peaks at the rounded weights plus one that is not.
    """
    quantize_layers(decoder)
    products = {f"{name}." for name, module in decoder.named_modules() if isinstance(module, Fp8Linear)}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        prefix = name.removesuffix("weight")
        if prefix in products:
            state[name], state[f"{prefix}scale"] = round_rows(tensor)
        else:
            state[name] = tensor
        # Or it would still be there while the next one is read.
        del tensor
    decoder.load_state_dict(state, strict=True, assign=True)


def check_fp8(device: torch.device) -> None:
    """Raise ValueError where a device knows no 8-bit floats, neither to multiply nor to keep."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        raise ValueError("--quantize fp8 and --kv-cache-dtype fp8 need a device of compute capability 8.9 or newer")
