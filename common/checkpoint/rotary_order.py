"""The two orders of the rows of a query or key projection.

Knows that Mistral's own checkpoints rotate neighbouring rows (2j, 2j + 1) of a head, and Hugging Face's rows
half a head apart (j, j + head_dim / 2). Does not know which tensors are concerned (see
`layout`). Our arithmetic uses the second order.
"""

from torch import Tensor


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows [num_heads * head_dim, in] from pairs to halves."""
    pairs: Tensor = weight.unflatten(0, (-1, head_dim // 2, 2))
    return pairs.transpose(1, 2).reshape(weight.shape)


def paired(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows [num_heads * head_dim, in] from halves to pairs; undoes `half_split`."""
    halves: Tensor = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(weight.shape)
