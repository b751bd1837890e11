"""Cost of a product of rows with a weight, by the ways that there are to compute it.

Knows the kernels and torch's own ways. Does not know models: the shapes are those of the model of 60 million weights.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks import checkpoints
from benchmarks.components.timing import Measurement, scaled, seconds_per_call
from common.native.opening import open_library
from common.native.weights import PackedWeights

Product = Callable[[Tensor], object]
"""Of rows [num_rows, depth]."""

_COPIES = 8
"""Of each weight, multiplied with in turn, as a model has several layers: one by itself would stay in the caches."""


def shapes() -> Mapping[str, tuple[int, int]]:
    """The products of the model, [columns, depth]."""
    config = checkpoints.SMALL
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "qkv": (queries + 2 * keys, config.hidden_size),
        "o": (config.hidden_size, queries),
        "gate_up": (2 * config.feed_forward_length, config.hidden_size),
        "down": (config.hidden_size, config.feed_forward_length),
        "head": (config.vocab_size, config.hidden_size),
    }


def measure_products(seconds: float, *, rows: Sequence[int]) -> Iterator[Measurement]:
    """Microseconds of every product of a step, by its rows and by what computes it."""
    with torch.inference_mode():
        for name, (columns, depth) in shapes().items():
            copies = 1 if name == "head" else _COPIES
            products = [_products(torch.randn(columns, depth) * depth**-0.5) for _ in range(copies)]
            for num_rows in rows:
                x = torch.randn(num_rows, depth)
                for way in products[0]:
                    turn = _in_turn([each[way] for each in products], x)
                    value = seconds_per_call(turn, seconds=seconds, samples=3, clock=time.perf_counter)
                    at = f"{name} {columns} x {depth}, {num_rows} rows, {way}"
                    yield Measurement(
                        component="product", at=at, value=scaled(value, 1e6 / copies), unit="us", parameter=num_rows
                    )


def _in_turn(products: Sequence[Product], x: Tensor) -> Callable[[], None]:
    def all_of_them() -> None:
        for product in products:
            product(x)

    return all_of_them


def _products(weight: Tensor) -> dict[str, Product]:
    """The same product in every way; each keeps a copy of the weight as it wants it."""
    library = open_library(threads=torch.get_num_threads())
    transposed = weight.t().contiguous()
    prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return {
        "kernels": PackedWeights(library, [_linear(weight)]),
        "kernels, bfloat16 weights": PackedWeights(library, [_linear(weight.bfloat16())]),
        "linear": lambda x: nn.functional.linear(x, weight),
        "transposed": lambda x: x @ transposed,
        "prepacked": lambda x: torch.ops.mkldnn._linear_pointwise(x, prepacked, None, "none", [], ""),
    }


def _linear(weight: Tensor) -> nn.Linear:
    columns, depth = weight.shape
    linear = nn.Linear(depth, columns, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear
